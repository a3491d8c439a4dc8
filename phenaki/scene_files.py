"""The pictures and videos that scenes start from or end on: which they are, and what a model sees of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from phenaki.atomic import sha256
from phenaki.checkpoint import ModelInfo
from phenaki.director import Given
from phenaki.frame_source import FrameSource
from phenaki.pictures import middle_square, pictures_in, read_image
from phenaki.story import SAMPLING, Story
from phenaki.story_formats import FILE_FIELDS
from phenaki.story_plan import ScenePlan
from phenaki.video_files import VideoError


def files_of(story: Story) -> list[Path]:
    """The pictures and videos that a story's scenes start from or end on."""
    return [Path(getattr(scene, name)) for scene in story.scenes for name in FILE_FIELDS if getattr(scene, name) is not None]


def values_of(story: Story, named: Callable[[Path], str]) -> dict[str, Any]:
    """A story in JSON types, each file of its scenes as `named`; without sampling options, for those that it is made with stand beside it."""
    values = {name: value for name, value in story.to_dict().items() if name not in SAMPLING}
    for scene in values["scenes"]:
        scene |= {name: named(Path(scene[name])) for name in FILE_FIELDS if name in scene}
    return values


def content_hashes(files: Iterable[Path]) -> dict[Path, str]:
    """The `content_hash` of each, computed once of those that come often."""
    return {path: content_hash(path) for path in dict.fromkeys(files)}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the pictures of a folder in the order in which they are shown."""
    if not path.is_dir():
        return sha256(path)
    return hashlib.sha256("\n".join(map(sha256, pictures_in(path))).encode()).hexdigest()


class SceneFiles(Mapping[int, Given]):
    """By scene what it starts from or ends on, of those that have something.

    Every file is read once, before anything is made, and kept in bytes; as tensors there is only what the scene at hand is asked for.
    """

    def __init__(self, scenes: Iterable[ScenePlan], info: ModelInfo, to_tensor: Callable[[np.ndarray], Tensor]):
        """to_tensor: frames uint8 (f h w 3) -> float (f c h w). VideoError for a file that cannot be used."""
        self.info, self.to_tensor = info, to_tensor
        self.scenes = {scene.index: scene for scene in scenes if scene.starts_from_file or scene.end_image is not None}
        self.pictures: dict[str, np.ndarray] = {}  # uint8 (1 h w 3)
        self.clips: dict[str, np.ndarray] = {}  # uint8 (f h w 3)
        for scene in self.scenes.values():
            for path in {scene.image, scene.end_image} - {None, *self.pictures}:
                self.pictures[path] = read_image(path, info.tokenizer.image_size)[None]
            if scene.video is not None and scene.video not in self.clips:
                self.clips[scene.video] = last_frames(scene.video, info)

    def __getitem__(self, index: int) -> Given:
        scene, start, end = self.scenes[index], None, None
        if scene.starts_from_file:
            start = self.to_tensor(self.pictures[scene.image] if scene.image is not None else self.clips[scene.video])
        if scene.end_image is not None:
            end = self.to_tensor(self.pictures[scene.end_image])[0]
        return Given(start, end)

    def __iter__(self) -> Iterator[int]:
        return iter(self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)


def last_frames(path: str, info: ModelInfo) -> np.ndarray:
    """What a scene that goes on from a video sees of it, uint8 (f h w 3): slices as many as a chunk remembers, and one to start with."""
    patch, size = info.tokenizer.temporal_patch_size, info.tokenizer.image_size
    frames = FrameSource.of(path).last_frames(1 + patch * max(info.generator.context_slices, 1), info.fps)
    if len(frames) < 1 + patch:
        told = f"{path}: {len(frames)} frames at {info.fps:g} fps, going on from a video needs {1 + patch} at least"
        raise VideoError(f"{told}; give a longer one, or its last frame as `image`")
    whole = 1 + patch * ((len(frames) - 1) // patch)
    return np.stack([middle_square(Image.fromarray(pixels), size) for pixels in frames[-whole:]])
