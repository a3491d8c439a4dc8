"""Draws the next clips while the current ones are used: those of a training step, or a batch to be tokenised or measured."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Ahead:
    """Calls `draw(step)` for steps first, first + 1, ... in a thread of its own, one step ahead of `take`."""

    def __init__(self, draw: Callable[[int], Any], first: int, end: int):
        self.draw, self.step, self.end = draw, first, end
        self.pool = ThreadPoolExecutor(1, "clips")
        self.coming: Future | None = self._ask()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def take(self) -> tuple[Any, float]:
        """The next step's clips, and the seconds that this call waited for them. Errors of `draw` are raised here."""
        began = time.perf_counter()
        batch = self.coming.result()
        waited = time.perf_counter() - began
        self.step += 1
        self.coming = self._ask()
        return batch, waited

    def _ask(self) -> Future | None:
        return self.pool.submit(self.draw, self.step) if self.step < self.end else None


def drawn_ahead(draw: Callable[[int], Any], numbers: range) -> Iterator[Any]:
    """draw(number) for each of the numbers, in their order, the next one drawn while one is used."""
    with Ahead(lambda index: draw(numbers[index]), 0, len(numbers)) as ahead:
        for _ in numbers:
            yield ahead.take()[0]
