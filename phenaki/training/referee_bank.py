"""The examples of a referee's training, painted once and kept as bytes in a folder: half of them as rendered, half as a tokenizer gives them back.

The bank is painted in parts, each written whole, by one process or by several; a run that is killed resumes with the parts that are missing.
"""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from phenaki.checkpoint import state_sha256
from phenaki.config import check_range
from phenaki.cvivit import CViViT
from phenaki.data.storybook import StorybookWorld
from phenaki.data.tensor_file import TensorFileError, read_metadata, read_tensors, save_tensors
from phenaki.training.referee_examples import MAX_CORRUPTION, Examples, draw_examples, draw_kinds, draw_stories, joined

PART = 32  # clips of a file


@dataclass(frozen=True)
class BankSettings:
    """What is painted."""

    num_clips: int = 2048
    num_frames: int = 17  # of a clip; 1 + pt*k of the tokenizer
    story_frames: int = 49  # of the story that a clip is cut from: long enough to leave the picture
    max_scenes: int = 4  # of a story
    seed: int = 0
    bf16: bool = False  # the tokenizer's matrix products

    def __post_init__(self):
        check_range(self, "num_clips", "num_frames", "max_scenes", at_least=1)
        check_range(self, "story_frames", at_least=self.num_frames)


class Bank:
    """A folder of examples of one world, one tokenizer and one seed."""

    def __init__(self, folder: Path, world: StorybookWorld, tokenizer: CViViT, settings: BankSettings):
        self.folder, self.world, self.tokenizer, self.settings = folder, world, tokenizer, settings
        shape = f"frames {settings.num_frames} of {settings.story_frames}, up to {settings.max_scenes} scenes, seed {settings.seed}"
        self.identity = f"{world.fingerprint} tokenizer {state_sha256([tokenizer])[:16]} {shape}"

    def load(self, on_part: Callable[[int, int], None] = lambda done, count: None, workers: "Workers | None" = None) -> Examples:
        """All examples; parts that are missing are painted, here or by workers. on_part is called with (parts done, parts in all).

        ValueError where a part is damaged or of other examples.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = range(math.ceil(self.settings.num_clips / PART))
        # Files are read before anything is painted, so that a wrong one is refused at once.
        parts = {number: self._read(self._path(number)) for number in numbers if self._path(number).is_file()}
        missing = [number for number in numbers if number not in parts]
        if not missing:
            on_part(len(numbers), len(numbers))
        for number in workers.painted(missing) if workers and missing else missing:
            parts[number] = self.part(number)
            on_part(len(parts), len(numbers))
        return joined([parts[number] for number in numbers])

    def part(self, number: int) -> Examples:
        """A part of the examples; painted and written where it is missing."""
        path = self._path(number)
        if path.is_file():
            return self._read(path)
        examples = self._paint(number)
        save_tensors(path, vars(examples), {"identity": self.identity})
        return examples

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:04d}.safetensors"

    def _read(self, path: Path) -> Examples:
        try:
            identity, tensors = (read_metadata(path) or {}).get("identity"), read_tensors(path)
        except TensorFileError as error:
            raise ValueError(f"{error}. Remove it, and it is painted again") from error
        if identity != self.identity:
            raise ValueError(f"{path}: examples of {identity}, and these are wanted: {self.identity}. Give another output folder")
        return Examples(**tensors)

    def _paint(self, number: int) -> Examples:
        """Every second part passes through the tokenizer."""
        settings, indices = self.settings, range(number * PART, (number + 1) * PART)
        stories = draw_stories(self.world, settings.seed, indices, settings.story_frames, max_scenes=settings.max_scenes)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=settings.bf16):
            tokenizer = self.tokenizer if number % 2 else None
            kinds = draw_kinds(settings.seed, indices)
            return draw_examples(self.world, stories, kinds, settings.seed + number, tokenizer, MAX_CORRUPTION, settings.num_frames)


@dataclass(frozen=True)
class Workers:
    """Processes of one thread each that paint parts of a bank. make: makes the bank in each of them; a function that a module defines."""

    count: int
    make: Callable[[], Bank]

    def painted(self, numbers: list[int]) -> Iterator[int]:
        """Has parts painted and written; yields their numbers as they are ready. What a process raises is raised here.

        ChildProcessError where a process ends before its work is done.
        """
        context = multiprocessing.get_context("spawn")  # a GPU that is in use survives no fork
        pool = ProcessPoolExecutor(min(self.count, len(numbers)), context, _begin, (self.make, os.getpid()))
        try:
            for ready in as_completed([pool.submit(_paint, number) for number in numbers]):
                yield ready.result()
        except BrokenProcessPool as error:
            raise ChildProcessError("a process that painted examples was ended: too little memory? Try again with fewer workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


_make: Callable[[], Bank] | None = None  # in a process that paints: makes the bank, once


def _begin(make: Callable[[], Bank], parent: int) -> None:
    """Sets up a new process, which ends itself when its parent is gone: nothing waits for what it paints then."""
    global _make
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _make = cache(make)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _paint(number: int) -> int:
    _make().part(number)
    return number
