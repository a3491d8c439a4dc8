"""Where clips come from: what training asks of footage, of the storybook world, and of whatever else gives clips by number."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from phenaki.data.clip_files import ClipFile


class Told(Protocol):
    """A video whose scenes are known: each has a caption and num_frames. StoryTruth is one."""

    @property
    def scenes(self) -> Sequence: ...


class ClipSource:
    """Gives clips by number, the same for the same seed and number; what it says of itself here is so where it has nothing of the kind."""

    fingerprint: str  # changes when the clips do
    clips_hash: str | None = None  # of its clips, however they are cut; None where they are drawn without end
    num_images: int = 0  # still pictures in it
    files: Sequence[ClipFile] | None = None  # that its clips are cut from; None where they are drawn without end

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]; a scene may change at frames 1 + align*k."""
        raise NotImplementedError

    def images(self, seed: int, first: int, count: int) -> tuple[Tensor, list[str]]:
        """Pictures first .. first + count - 1 of the seed, (b c 1 h w) float in [-1, 1], and their captions: of a source with num_images."""
        raise NotImplementedError


class ToldSource(ClipSource):
    """One whose clips are told: StorybookWorld, Footage."""

    def told_clips(
        self, seed: int, count: int, num_frames: int, align: int, max_scenes: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Sequence[Told]]]:
        """Told videos with the numbers first .. first + count - 1 of the seed, in batches."""
        raise NotImplementedError
