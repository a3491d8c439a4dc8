"""Where a caller goes on who asks for one stretch of samples after another, so that the next one can be decoded ahead.

A process of several, which takes its share of a step in parts, comes by uneven strides: (part, part, the rest of the step), again
and again. After a stride that came so many times in a row is expected what followed it the last time; else the same once more.
"""


class Strides:
    """The calls of one caller so far."""

    def __init__(self):
        self.last: int | None = None
        self.run = (0, 0)  # the last stride, and how often in a row
        self.after: dict[tuple[int, int], int] = {}  # the stride that ended such a run

    def expected(self, first: int) -> int | None:
        """Notes a call that begins at sample `first`; where the next one will. None where there is no guess, or only a way back."""
        if self.last is None:
            self.last = first
            return None
        stride, (before, times) = first - self.last, self.run
        if stride == before:
            self.after.pop(self.run, None)
        else:
            self.after[self.run] = stride
        self.last, self.run = first, (stride, times + 1 if stride == before else 1)
        ahead = self.after.get(self.run, stride)
        return first + ahead if ahead > 0 else None
