"""Tokenised stories for the training of the generator, made once so that no training step renders, encodes or embeds anything."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from phenaki.data.ahead import drawn_ahead
from phenaki.data.clip_source import Captioned, CaptionedSource, ClipSource
from phenaki.data.tensor_file import TensorFileError, read_metadata, read_tensors, save_tensors

FORMAT = "phenaki story tokens 1"

Encode = Callable[[Tensor], Tensor]  # video (b c f h w) -> tokens (b t h w)
EncodeText = Callable[[list[str]], list[Tensor]]  # captions -> their encodings, (l d) each


class TokensError(ValueError):
    """A file of story tokens that cannot be used: `problem` names it and says why; the message also says what to do."""

    def __init__(self, problem: str, remedy: str = "Make it again with `phenaki data tokenize`"):
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem


@dataclass(frozen=True)
class StoryTokens:
    """N stories of T slices, and P still pictures.

    tokens: (N T h w) int32; scene_start, scene_end: (N T) int64, first slice of the scene that a slice shows, and one past its last;
    caption: (N T) int64, index of its caption; texts: (L d) float16, all captions' encodings one after the other;
    text_spans: (C 2) int64, where each caption's encoding begins and ends; images: (P h w) int32, each the slice that starts a
    video; image_caption: (P,) int64; words: the C captions themselves, JSON as UTF-8 in uint8.
    """

    tokens: Tensor
    scene_start: Tensor
    scene_end: Tensor
    caption: Tensor
    texts: Tensor
    text_spans: Tensor
    description: str  # of the weights and settings that made it; a file with another description is not used
    images: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0, dtype=torch.int32))
    image_caption: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    words: Tensor = field(default_factory=lambda: words_of([]))

    def text(self, captions: Tensor, step: int = 1) -> tuple[Tensor, Tensor]:
        """Captions by index (b,) -> text (b l d) float32 padded with zeros, l a multiple of `step`; text_mask (b l)."""
        parts = [self.texts[start:end].float() for start, end in self.text_spans[captions].tolist()]
        text = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        text = torch.nn.functional.pad(text, (0, 0, 0, -text.shape[1] % step))
        lengths = torch.tensor([len(part) for part in parts])
        return text, torch.arange(text.shape[1])[None] < lengths[:, None]

    @property
    def captions(self) -> list[str]:
        """The captions themselves, by index."""
        return json.loads(self.words.numpy().tobytes())

    def stories(self, rows: slice) -> "StoryTokens":
        """Some of the stories, with all texts and without pictures."""
        by_row = ("tokens", "scene_start", "scene_end", "caption")
        cut = {name: getattr(self, name)[rows] for name in by_row}
        return replace(self, **cut, images=self.images[:0], image_caption=self.image_caption[:0])

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        save_tensors(path, self.tensors(), metadata(self.description))

    def tensors(self) -> dict[str, Tensor]:
        """Every field but the description."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @classmethod
    def load(cls, path: Path) -> "StoryTokens":
        """Reads a file of `save`, all of it checked; TokensError where it is missing, something else, damaged or cut short."""
        if not path.is_file():
            raise TokensError(f"{path}: no such file")
        if not is_story_tokens(path):
            raise TokensError(f"{path}: not a file of story tokens, or one of another version")
        try:
            tensors, description = read_tensors(path), (read_metadata(path) or {}).get("description")
        except TensorFileError as error:
            raise TokensError(str(error)) from error
        problem = "" if isinstance(description, str) else "it has no description"
        problem = problem or _problem_of_kinds(tensors)
        stories = None if problem else cls(**tensors, description=description)
        if problem := problem or _problem(stories):
            raise TokensError(f"{path}: {problem}")
        return stories


def metadata(description: str) -> dict[str, str]:
    """The metadata that marks a file as story tokens."""
    return {"format": FORMAT, "description": description}


def is_story_tokens(path: Path) -> bool:
    """Whether a file says that it is one of story tokens. It may be cut short nevertheless."""
    return path.is_file() and (read_metadata(path) or {}).get("format") == FORMAT


def words_of(captions: list[str]) -> Tensor:
    """Captions as the column `words`."""
    return torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)


COLUMNS = {  # dtype and number of axes
    "tokens": (torch.int32, 4), "scene_start": (torch.int64, 2), "scene_end": (torch.int64, 2), "caption": (torch.int64, 2),
    "texts": (torch.float16, 2), "text_spans": (torch.int64, 2), "images": (torch.int32, 3), "image_caption": (torch.int64, 1),
    "words": (torch.uint8, 1),
}  # fmt: skip


LATER_COLUMNS = {"images", "image_caption"}  # which files without pictures may lack
MAX_SLICES, MAX_GRID = 1 << 20, 4096  # of a story; of its slices, a side


def _problem_of_kinds(tensors: dict[str, Tensor]) -> str:
    """What is wrong with the names, dtypes and sizes of a file's columns, "" where nothing is."""
    needed = COLUMNS.keys() - (LATER_COLUMNS - tensors.keys())
    if other := sorted(tensors.keys() ^ needed):
        return f"its columns are not those of story tokens: {', '.join(other)}"
    for name, value in tensors.items():
        if (value.dtype, value.ndim) != COLUMNS[name]:
            return f"{name} is {value.dtype} of shape {tuple(value.shape)}"
    num_stories, num_slices, *grid = tensors["tokens"].shape
    if not 1 <= num_slices <= MAX_SLICES or not all(1 <= side <= MAX_GRID for side in grid):
        return f"its stories have {num_slices} slices of {grid[0]}x{grid[1]} tokens; needed 1 to {MAX_SLICES}, and 1 to {MAX_GRID} a side"
    return ""


def _problem(stories: StoryTokens) -> str:
    """What is wrong with the tensors' values, "" where nothing is."""
    by_slice = (stories.scene_start, stories.scene_end, stories.caption)
    if any(column.shape != stories.tokens.shape[:2] for column in by_slice) or len(stories.images) != len(stories.image_caption):
        return "its columns are of different lengths"
    places = torch.arange(stories.tokens.shape[1])
    if ((stories.scene_start > places) | (stories.scene_start < 0) | (stories.scene_end <= places) | (stories.scene_end > len(places))).any():
        return "its slices lie outside their scenes"
    if any(part.numel() and int(part.min()) < 0 for part in (stories.tokens, stories.images)):
        return "it holds tokens below 0"
    if stories.text_spans.shape[1] != 2 or not _within(stories.text_spans, len(stories.texts) + 1):
        return "its captions point outside its texts"
    if (stories.text_spans[:, 0] >= stories.text_spans[:, 1]).any():
        return "it has captions without a text"
    if not _is_list_of_words(stories.words, len(stories.text_spans)):
        return "its words are not one string for each caption"
    if not _within(stories.caption, len(stories.text_spans)) or not _within(stories.image_caption, len(stories.text_spans)):
        return "it names captions that it has not"
    return ""


def _within(numbers: Tensor, end: int) -> bool:
    """Whether all numbers are in [0, end)."""
    return not numbers.numel() or 0 <= int(numbers.min()) <= int(numbers.max()) < end


def _is_list_of_words(words: Tensor, count: int) -> bool:
    """Whether the column `words` holds so many captions."""
    try:
        captions = json.loads(words.numpy().tobytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(captions, list) and len(captions) == count and all(isinstance(caption, str) for caption in captions)


def slice_scenes(story: Captioned, temporal_patch_size: int) -> list[tuple[int, int]]:
    """The scenes of a story whose scenes change at frames 1 + pt*k, as (first slice, one past the last slice)."""
    spans, frame, first = [], 0, 0
    for scene in story.scenes:
        frame += scene.num_frames
        end = 1 + (frame - 1) // temporal_patch_size
        spans.append((first, end))
        first = end
    return spans


class Captions:
    """Numbers distinct captions in the order in which they come."""

    def __init__(self):
        self.number: dict[str, int] = {}

    def index(self, caption: str) -> int:
        return self.number.setdefault(caption, len(self.number))

    def encoded(self, encode_text: EncodeText) -> dict[str, Tensor]:
        """Columns of StoryTokens: texts, text_spans, words."""
        captions = list(self.number)
        texts = [text for at in range(0, len(captions), 256) for text in encode_text(captions[at : at + 256])]
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
        spans = torch.stack([lengths.cumsum(0) - lengths, lengths.cumsum(0)], dim=1)
        return {"texts": torch.cat(texts).half(), "text_spans": spans, "words": words_of(captions)}


@torch.no_grad()
def make_story_tokens(
    source: CaptionedSource,
    encode: Encode,
    encode_text: EncodeText,
    *,
    seed: int,
    num_stories: int,
    num_slices: int,
    temporal_patch_size: int,
    max_scenes: int,
    description: str,
    first: int = 0,
) -> StoryTokens:
    """Encodes captioned videos of `num_slices` slices, numbers first .. first + num_stories - 1, and embeds each distinct caption once."""
    num_frames = 1 + temporal_patch_size * (num_slices - 1)
    captions = Captions()
    tokens, starts, ends, said = [], [], [], []
    for video, stories in source.captioned_clips(seed, num_stories, num_frames, temporal_patch_size, max_scenes, first):
        tokens.append(encode(video).to("cpu", torch.int32))
        for story in stories:
            by_slice = []
            for (begin, end), scene in zip(slice_scenes(story, temporal_patch_size), story.scenes, strict=True):
                by_slice += [(begin, end, captions.index(scene.caption))] * (end - begin)
            for column, values in zip((starts, ends, said), zip(*by_slice, strict=True), strict=True):
                column.append(torch.tensor(values))
    stacked = [torch.stack(column) for column in (starts, ends, said)]
    return StoryTokens(torch.cat(tokens), *stacked, **captions.encoded(encode_text), description=description)


@torch.no_grad()
def make_image_tokens(
    source: ClipSource, encode: Encode, encode_text: EncodeText, *, seed: int, first: int, count: int, num_slices: int, description: str
) -> StoryTokens:
    """Encodes still pictures, numbers first .. first + count - 1: story tokens of no stories (of num_slices slices) and `count` pictures."""
    captions, tokens, said = Captions(), [], []
    draw = lambda begin: source.images(seed, begin, min(16, first + count - begin))
    for pictures, their_captions in drawn_ahead(draw, range(first, first + count, 16)):
        tokens.append(encode(pictures)[:, 0].to("cpu", torch.int32))
        said += [captions.index(caption) for caption in their_captions]
    images = torch.cat(tokens)
    none = torch.empty(0, num_slices, dtype=torch.int64)
    return StoryTokens(
        torch.empty(0, num_slices, *images.shape[1:], dtype=torch.int32), none, none, none, **captions.encoded(encode_text),
        description=description, images=images, image_caption=torch.tensor(said),
    )  # fmt: skip
