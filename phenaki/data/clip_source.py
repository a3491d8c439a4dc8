"""The interface of training data: what training asks of footage, of the storybook world, and of any other source of clips by number."""

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from phenaki.data.clip_files import ClipFile


class Captioned(Protocol):
    """A video whose scenes are known: each has a caption and num_frames. StoryTruth is one."""

    @property
    def scenes(self) -> Sequence: ...


class ClipSource:
    """Gives clips by number, the same for the same seed and number.

    The values below are defaults for a source without these.
    """

    fingerprint: str = ""  # changes when the clips do
    clips_hash: str = ""  # names its files, however clips are cut from them; "" where the fingerprint suffices
    num_images: int = 0  # still pictures in it
    files: Sequence[ClipFile] = ()  # that its clips are cut from
    unusable: Collection[str] = ()  # names of the files found damaged so far; clips of other files take their places

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> Tensor:
        """Clips first .. first + count - 1 of a run, (b c f h w) float in [-1, 1]; a scene may change at frames 1 + align*k."""
        raise NotImplementedError

    def num_clips(self, num_frames: int) -> int | None:
        """How many different clips of `num_frames` frames there are; None where there is no end to them."""
        return None

    def images(self, seed: int, first: int, count: int) -> tuple[Tensor, list[str]]:
        """Pictures first .. first + count - 1 of the seed, (b c 1 h w) float in [-1, 1], and their captions: of a source with num_images."""
        raise NotImplementedError


class CaptionedSource(ClipSource):
    """A source whose clips come with captions: StorybookWorld, Footage."""

    def captioned_clips(
        self, seed: int, count: int, num_frames: int, align: int, max_scenes: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Sequence[Captioned]]]:
        """Captioned videos with the numbers first .. first + count - 1 of the seed, in batches."""
        raise NotImplementedError
