"""Settings of footage; imports no video codec, so that machines that only train on tokens can read settings."""

from dataclasses import dataclass

from phenaki.config import check_range


@dataclass(frozen=True)
class FootageSettings:
    """How clips are cut out of footage."""

    size: int = 64  # pixels a side
    fps: float = 8.0  # frames a second
    random_crop: bool = False  # the square is cut at a random place, not in the middle
    min_zoom: float = 1.0  # least side of that square as a share of the shorter side, in (0, 1]; below 1 it is drawn for each clip
    flip_prob: float = 0.0  # chance that a clip is mirrored; captions that say left and right become wrong
    check: bool = True  # every file is decoded once before training; without it, damage is found when a clip is cut
    num_workers: int = 0  # decoding processes; 0 = half of the cores, at most 8

    def __post_init__(self):
        check_range(self, "size", at_least=1)
        check_range(self, "fps", above=0, below=1000)
        check_range(self, "min_zoom", above=0, at_most=1)
        check_range(self, "flip_prob", at_least=0, at_most=1)
        check_range(self, "num_workers", at_least=0)
