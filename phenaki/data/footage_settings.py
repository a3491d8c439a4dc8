"""How clips are cut out of footage; without the video codec, so that machines that only train on tokens can read settings."""

from dataclasses import dataclass


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
        if self.size < 1 or not 0 < self.fps < 1000:
            raise ValueError(f"footage of {self.size} pixels at {self.fps:g} fps: needed at least 1 pixel and 0 < fps < 1000")
        if not 0 < self.min_zoom <= 1 or not 0 <= self.flip_prob <= 1 or self.num_workers < 0:
            raise ValueError(
                f"footage: min_zoom {self.min_zoom:g}, flip_prob {self.flip_prob:g}, num_workers {self.num_workers}: "
                "needed 0 < min_zoom <= 1, 0 <= flip_prob <= 1, num_workers >= 0"
            )
