"""Can one see where a video was put together? Changes of picture at chunk joins, beside those inside chunks."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from phenaki.evaluation.metrics import LEVELS


@dataclass(frozen=True)
class SeamParts:
    """(sum, count) of the mean absolute changes from a frame to the next, in 8-bit levels.

    joins: where chunks join; inside: inside chunks; between: of these, from a slice of tokens to the next.
    """

    joins: tuple[float, int]
    inside: tuple[float, int]
    between: tuple[float, int]


def seam_parts(video: Tensor, chunk_starts: Sequence[int], scene_starts: Collection[int], slice_starts: Collection[int]) -> SeamParts:
    """video: (c f h w) in [-1, 1]; chunk_starts, scene_starts, slice_starts: first frames, 0 among them.

    A chunk that begins a later scene shows the scene's own change, at once or over a few frames, so it is left out whole: its
    changes inside would make every join look smooth.
    """
    steps = (video.diff(dim=1).abs().mean(dim=(0, 2, 3)).double() * LEVELS).tolist()  # step i: from frame i to i + 1
    joins, inside = [], []
    for start, end in pairwise([*chunk_starts, video.shape[1]]):
        if start and start in scene_starts:
            continue
        joins += [start - 1] if start else []
        inside += range(start, end - 1)
    between = [step for step in inside if step + 1 in slice_starts]
    return SeamParts(*((sum(steps[step] for step in part), len(part)) for part in (joins, inside, between)))
