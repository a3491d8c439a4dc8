"""Tokenising large sources: in parts, so that it can be resumed, which are merged at the end with one part in memory at a time.

The parts of FILE lie in the folder .FILE.parts beside it until FILE is written. Each is a file of story tokens of its own.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from phenaki.data.clip_source import CaptionedSource
from phenaki.data.tensor_file import Column, write_tensors
from phenaki.data.tokens import (
    Captions,
    Encode,
    EncodeText,
    StoryTokens,
    TokensError,
    make_image_tokens,
    make_story_tokens,
    metadata,
    words_of,
)
from phenaki.locks import LOCK, BusyError, take_folder

OWN = re.compile(r"\.?(stories|images)-[0-9]{8}\.safetensors(\.part-[0-9]+)?")  # names of parts, whole or not
PART_SIZE = 256  # stories or pictures of a part, at most what is lost by an interruption


@dataclass(frozen=True)
class TokenPlan:
    """What is to be tokenised of a source."""

    seed: int
    num_stories: int
    num_slices: int  # of each story
    temporal_patch_size: int
    max_scenes: int  # of each story
    num_images: int = 0  # of a source that has some

    def __post_init__(self):
        if self.num_stories < 0 or self.num_images < 0 or self.num_stories + self.num_images < 1 or self.num_slices < 1:
            asked = f"{self.num_stories} clips of {self.num_slices} slices and {self.num_images} pictures"
            raise ValueError(f"{asked} to tokenise: needed at least one, of at least one slice")


def parts_folder(path: Path) -> Path:
    """Where the parts of a file lie until it is whole."""
    return path.with_name(f".{path.name}.parts")


def tokenize_source(
    source: CaptionedSource, encode: Encode, encode_text: EncodeText, plan: TokenPlan, path: Path, description: str, on_note: Callable[[str], None]
) -> StoryTokens:
    """Writes the file of a plan's tokens, and returns what was read back from it. BusyError where another process is making it.

    Interrupted and called again, it resumes after the parts that are whole.
    """
    folder = parts_folder(path)
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a link, and what is made on the way would be written through it; remove it")
    with take_folder(folder, f"{path}: another process makes this file; wait for it, or give another name"):
        merge(_make_parts(source, encode, encode_text, plan, folder, description, on_note), path, description)
        stories = StoryTokens.load(path)
        _remove(folder)
    return stories


def drop_parts(path: Path) -> None:
    """Removes parts of a file left by a run that was killed before it removed them; not those of a process that is making the file now."""
    folder = parts_folder(path)
    if folder.is_dir() and not folder.is_symlink():
        with contextlib.suppress(BusyError), take_folder(folder, ""):
            _remove(folder)


def _remove(folder: Path) -> None:
    """The parts first, then the lock: a process that takes the lock meanwhile finds no half-removed parts."""
    for file in folder.iterdir():
        if OWN.fullmatch(file.name):
            file.unlink()
    with contextlib.suppress(OSError):  # it stays where somebody has just locked it again, or where something else lies in it
        (folder / LOCK).unlink()
        folder.rmdir()


def _make_parts(
    source: CaptionedSource, encode: Encode, encode_text: EncodeText, plan: TokenPlan, folder: Path, description: str, on_note: Callable[[str], None]
) -> list[Path]:
    """The files of a plan's parts; those that are there and whole are kept."""
    total, done, parts, is_new = plan.num_stories + plan.num_images, 0, [], True
    for kind, first, count in _cut(plan):
        part, own = folder / f"{kind}-{first:08d}.safetensors", f"{description} {plan} {kind} {first} {count}"
        parts.append(part)
        done += count
        if _is_whole(part, own):
            on_note(f"{done} of {total} clips and pictures were tokenised before")
            continue
        if kind == "stories":
            made = make_story_tokens(
                source, encode, encode_text, seed=plan.seed, num_stories=count, num_slices=plan.num_slices,
                temporal_patch_size=plan.temporal_patch_size, max_scenes=plan.max_scenes, description=own, first=first,
            )  # fmt: skip
        else:
            made = make_image_tokens(
                source, encode, encode_text, seed=plan.seed, first=first, count=count, num_slices=plan.num_slices, description=own
            )
        made.save(part)
        if is_new:
            check_room(part, (total - done) / count, on_note)
            is_new = False
        on_note(f"{done} of {total} clips and pictures tokenised")
    return parts


def check_room(part: Path, more: float, on_note: Callable[[str], None]) -> None:
    """ValueError where the disk has no room for `more` parts as large as this one; a note where it may have none for the merged file, too."""
    size, free = part.stat().st_size, shutil.disk_usage(part.parent).free
    told = f"{part.parent.parent}: the tokens and texts to come take some {size * more / 1e9:.1f} GB in parts, {free / 1e9:.1f} GB are free"
    if size * more > free:
        raise ValueError(f"{told}. Make room (what was made stays, and is gone on with), or ask for fewer (num_stories)")
    if size * (2 * more + 1) > free:
        on_note(f"{told}, and all of them are then joined in a file beside the parts: that may not fit")


def _cut(plan: TokenPlan) -> Iterator[tuple[str, int, int]]:
    """The parts of a plan: their kind ("stories" or "images"), first number and how many."""
    for kind, number in (("stories", plan.num_stories), ("images", plan.num_images)):
        for first in range(0, number, PART_SIZE):
            yield kind, first, min(PART_SIZE, number - first)


def _is_whole(part: Path, description: str) -> bool:
    try:
        return StoryTokens.load(part).description == description
    except TokensError:
        return False


@dataclass(frozen=True)
class _Met:
    """A part: the numbers in it of captions that no part before it has; the shape of its tokens; how many pictures it has."""

    path: Path
    new: list[int]
    shape: tuple[int, ...]
    num_images: int

    def texts(self) -> Tensor:
        """The encodings of the new captions, one after the other."""
        part = StoryTokens.load(self.path)
        spans = part.text_spans[self.new].tolist()
        return torch.cat([part.texts[:0], *(part.texts[start:end] for start, end in spans)])


def merge(parts: list[Path], path: Path, description: str) -> None:
    """Writes the stories and pictures of several files as one file. A caption that several of them have is kept once."""
    captions, met = Captions(), []
    columns: dict[str, list[Tensor]] = {"scene_start": [], "scene_end": [], "caption": [], "image_caption": []}
    lengths: list[Tensor] = []
    for file in parts:
        part, known = StoryTokens.load(file), len(captions.number)
        number = torch.tensor([captions.index(caption) for caption in part.captions])
        new = (number >= known).nonzero().squeeze(1)
        lengths.append((part.text_spans[:, 1] - part.text_spans[:, 0])[new])
        met.append(_Met(file, new.tolist(), tuple(part.tokens.shape), len(part.images)))
        renamed = {"caption": number[part.caption], "image_caption": number[part.image_caption]}
        for name, pieces in columns.items():
            pieces.append(renamed.get(name, getattr(part, name)))
    ends = torch.cat(lengths).cumsum(0)
    spans = torch.stack([ends - torch.cat(lengths), ends], dim=1)
    width, grid = part.texts.shape[1], met[0].shape[1:]
    whole = {name: Column.of(torch.cat(pieces)) for name, pieces in columns.items()}
    whole |= {"text_spans": Column.of(spans), "words": Column.of(words_of(list(captions.number)))}
    whole["tokens"] = Column(torch.int32, (sum(one.shape[0] for one in met), *grid), (StoryTokens.load(one.path).tokens for one in met))
    pictures = [one for one in met if one.num_images]
    whole["images"] = Column(
        torch.int32, (sum(one.num_images for one in met), *grid[1:]), (StoryTokens.load(one.path).images for one in pictures)
    )
    whole["texts"] = Column(torch.float16, (int(spans[-1, 1]), width), (one.texts() for one in met))
    write_tensors(path, whole, metadata(description))
