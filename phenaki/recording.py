"""A story into a file: written while it is made, and resumed where it was cut short.

The part file (part_file.py) keeps each chunk's tokens beside its frames. From them the director finds its past again, so
what follows is the same to the bit as if nothing had happened. Its label says what the frames are made from; a part file
with another label is not resumed.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phenaki import __version__
from phenaki.checkpoint import weights_hash
from phenaki.output_paths import check_output_path, check_spares
from phenaki.part_file import OtherPartError, set_aside
from phenaki.pipeline import Phenaki, Prepared, StoryChunk, ready_model
from phenaki.progress import story_progress
from phenaki.sampling import ARITHMETIC
from phenaki.scene_files import content_hashes, files_of, values_of
from phenaki.video import VideoWriter
from phenaki.video_encoders import part_path

TOKEN = np.dtype("<i4")  # as tokens stand in a chunk's note: t h w of them, one after the other
STRANGE = "this program did not write it"


@dataclass(frozen=True)
class Written:
    """What `generate_to_file` wrote, and how long it took."""

    num_frames: int
    video_seconds: float
    wall_seconds: float

    def __str__(self) -> str:
        return f"{self.num_frames} frames, {self.video_seconds:.2f} s of video in {self.wall_seconds:.1f} s"


def generate_to_file(
    phenaki: Phenaki | str | Path,
    story: Any,
    path: str | Path,
    *,
    progress: bool = True,
    resume: bool | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    on_chunk: Callable[[StoryChunk], None] = lambda chunk: None,
    **options: Any,
) -> Written:
    """Writes a story's video while it is made; of an .mp4 or .webm memory does not grow with its length.

    phenaki: a model, or its name, folder or hub id. Options: those of `Phenaki.prepare`. on_chunk: called with each chunk once it is in the file.

    resume: whether it goes on with what a run of the same story, model and options left behind, if one did; the file in the end
    is the one of a run that was never stopped. True: ValueError where story, model or options are others. None: then it begins
    anew, keeps what was left behind under another name, and says so. False: it begins anew.
    """
    started, phenaki = time.perf_counter(), ready_model(phenaki, None)
    prepared = phenaki.prepare(story, **options)  # checks everything before a file is opened
    story, size, rate = prepared.story, phenaki.picture_size(prepared.story), prepared.story.fps or phenaki.info.fps
    path = check_spares(check_output_path(path), files_of(story))
    about = {"scenes": phenaki.video_scenes(prepared), "script": phenaki.script(prepared), "label": label_of(phenaki, prepared)}
    about |= {"fps": rate, "size": (size, size)}
    with open_writer(path, resume, about, on_note) as writer, story_progress(progress) as advance:
        if resume or writer.notes:
            on_note(f"{writer.path}: {told_of(writer, prepared.plan.num_pieces)}")
        for chunk in phenaki.stream(prepared, MadeTokens(writer.notes, phenaki.grid, phenaki.tokenizer.codebook_size)):
            check_frames(writer, chunk.start_frame)
            writer.write(chunk.frames, note_of(chunk.tokens))
            advance(chunk)
            on_chunk(chunk)
        check_frames(writer, sum(scene.num_frames for scene in writer.scenes))
    return Written(writer.num_frames, writer.num_frames / rate, time.perf_counter() - started)


def open_writer(path: Path, resume: bool | None, about: dict[str, Any], on_note: Callable[[str], None]) -> VideoWriter:
    """The writer of a story's file. about: its other arguments. resume None: a part file of another run is kept, on_note is told of it."""
    if resume is not None or not part_path(path).exists():
        return VideoWriter(path, resume=bool(resume), **about)
    try:
        return VideoWriter(path, resume=True, **about)
    except OtherPartError as error:
        kept = keep_unfinished(path)
        on_note(f"begins anew: {error.problem}{f'. {kept}; to go on with it, name it {part_path(path).name} again' if kept else ''}")
        return VideoWriter(path, resume=False, **about)


def keep_unfinished(path: Path) -> str:
    """Moves what another run left of a video out of the way; says where it is, "" where no frames were left.

    BusyError where that run is still at work.
    """
    part = part_path(path)
    aside = set_aside(part)
    return "" if aside is None else f"What is in it plays, and is kept as {aside}"


def check_frames(writer: VideoWriter, due: int) -> None:
    """OtherPartError where the part file does not have the frames that stand before frame `due`, and no others."""
    if writer.num_frames != due:
        raise OtherPartError(f"{writer.path}: its part file has {writer.num_frames} frames where its chunks have {due}: {STRANGE}")


def told_of(writer: VideoWriter, num_chunks: int) -> str:
    """What a run that goes on found, in words."""
    if not writer.notes:
        return "there is nothing to go on with, so it begins at the first frame"
    return f"goes on after {writer.num_frames} frames, {len(writer.notes)} of {num_chunks} chunks"


class MadeTokens(Sequence[Tensor]):
    """The tokens (t h w) int64 in [0, codebook_size) of the chunks that lie in a part file, read when they are asked for.

    OtherPartError for a note that does not hold such.
    """

    def __init__(self, notes: Sequence[bytes], grid: tuple[int, int], codebook_size: int):
        self.notes, self.grid, self.codebook_size = notes, grid, codebook_size

    def __len__(self) -> int:
        return len(self.notes)

    def __getitem__(self, index: int) -> Tensor:
        note, slice_bytes = self.notes[index], TOKEN.itemsize * math.prod(self.grid)
        if not note or len(note) % slice_bytes:
            raise OtherPartError(f"chunk {index + 1} of the part file has a note of {len(note)} bytes, a slice has {slice_bytes}: {STRANGE}")
        tokens = tokens_of_note(note, self.grid)
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
            raise OtherPartError(f"chunk {index + 1} of the part file has tokens that are none of the model's {self.codebook_size}: {STRANGE}")
        return tokens


def note_of(tokens: Tensor) -> bytes:
    """Tokens (t h w) as they are kept with their chunk."""
    return tokens.cpu().numpy().astype(TOKEN).tobytes()


def tokens_of_note(note: bytes, grid: tuple[int, int]) -> Tensor:
    """Tokens (t h w) int64 from what `note_of` made of them."""
    return torch.from_numpy(np.frombuffer(note, TOKEN).reshape(-1, *grid).astype(np.int64))


def label_of(phenaki: Phenaki, prepared: Prepared) -> dict[str, Any]:
    """All that a story's frames are made from, in JSON types; pictures, videos and weights by their SHA-256.

    The kind of device and the versions are among it: others compute other bits.
    """
    story, info = prepared.story, phenaki.info
    script = values_of(story, content_hashes(files_of(story)).__getitem__)
    script |= {"fps": story.fps or info.fps, "size": phenaki.picture_size(story)}
    weights = weights_hash(info, (phenaki.tokenizer, phenaki.generator))
    model = {"model": info.name, "weights": weights, "text_encoder": phenaki.text_encoder.fingerprint, "sampling": asdict(prepared.options)}
    machine = {"device": phenaki.device.type, "dtype": str(phenaki.dtype)} | ({"compile": True} if phenaki.compiled else {})
    versions = {"torch": torch.__version__, "phenaki": __version__, "arithmetic": ARITHMETIC}
    return {**script, **model, **machine, **versions}
