"""What a script becomes, and how long that will take on this machine: operations of the plan over a measured speed. Touches no weights."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phenaki.checkpoint import CheckpointError, ModelInfo, outline_part
from phenaki.cvivit import CViViT
from phenaki.devices import choose_dtype
from phenaki.maskgit import MaskGIT
from phenaki.sampling import SamplingOptions
from phenaki.story import Story
from phenaki.story_for_model import apply_overrides, check_texts, checked_plan, video_scenes
from phenaki.story_formats import StoryError
from phenaki.story_plan import StoryPlan
from phenaki.text import TextConfig, load_checker
from phenaki.video_files import VideoScene

EFFICIENCY = 0.45  # of a large matrix product's speed that a whole generation reaches; measured on two CPU cores
BFLOAT16_GAIN = 2.0  # times faster a story is where the CPU computes in bfloat16; measured on one that multiplies matrices 4.5 times as fast in it
PRODUCT_SIDE = 512
START_SECONDS = 3.0  # loading python's libraries, the text encoder and the weights; measured on the same


@dataclass(frozen=True)
class PlannedScript:
    """A story with what was asked for in place of its own values, what the model makes of it, and the video's own scenes and rate."""

    story: Story
    plan: StoryPlan
    shown: tuple[VideoScene, ...]
    fps: float

    @property
    def num_frames(self) -> int:
        return sum(scene.num_frames for scene in self.shown)


def plan_script(story: Story, file: Path, info: ModelInfo, **overrides: Any) -> PlannedScript:
    """The plan of a script's story, checked as `Phenaki.prepare` does as far as that needs no weights. StoryError names the file.

    overrides: options of `Phenaki.prepare`, in place of the story's own values.
    """
    story = apply_overrides(story, **overrides)
    try:
        planned = checked_plan(story, info)
        check_plan_texts(planned, info.text)
    except CheckpointError:
        raise
    except ValueError as error:
        raise StoryError(getattr(error, "problem", str(error)), file=str(file)) from None
    return PlannedScript(story, planned, video_scenes(story, planned), story.fps or info.fps)


def check_plan_texts(planned: StoryPlan, config: TextConfig) -> None:
    """ValueError where a scene tells more than the text encoder reads, or nothing that it knows; nothing where only the encoder itself could say."""
    if check := load_checker(config):
        check_texts(planned, check)


def expected_seconds(plan: StoryPlan, info: ModelInfo, options: SamplingOptions) -> float:
    """Seconds of `phenaki generate` for this plan on this machine's CPU. options: `sampling_options`."""
    gain = BFLOAT16_GAIN if choose_dtype("auto", torch.device("cpu")) is torch.bfloat16 else 1.0
    return START_SECONDS + story_operations(plan, info, options) / (EFFICIENCY * gain * matrix_speed())


def story_operations(plan: StoryPlan, info: ModelInfo, options: SamplingOptions) -> float:
    """Multiplications and additions of a story: 2 x weights x tokens for every pass of both networks, and attention."""
    generator = outline_part(lambda: MaskGIT(info.generator), f"model {info.name!r}", "generator")
    tokenizer = outline_part(lambda: CViViT(info.tokenizer), f"model {info.name!r}", "tokenizer")
    tokens_per_slice = math.prod(info.tokenizer.grid)
    weights, heads = num_weights(generator.layers), num_weights(generator.to_logits)
    context = (info.generator.context_slices + info.generator.anchor) * tokens_per_slice
    encoder, decoder, operations = encoder_operations_per_token(tokenizer), decoder_operations_per_token(tokenizer), 0.0
    for scene in plan.scenes:
        rounds = (scene.num_steps or options.num_steps) + options.num_corrections  # as in `director.py`
        branches = 1 if (scene.guidance_scale or options.guidance_scale) == 1 else 2
        for chunk in scene.chunks:
            tokens = chunk.num_slices * tokens_per_slice
            attention = 4 * info.generator.depth * info.generator.dim * tokens * (tokens + context)
            operations += branches * rounds * (2 * weights * tokens + 2 * heads * tokens / 2 + attention) + 2 * weights * context
            operations += tokens * decoder
            if options.context == "frames":  # the recent slices are encoded, and decoded again
                operations += info.generator.context_slices * tokens_per_slice * (encoder + decoder)
    return operations


def num_weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def encoder_operations_per_token(tokenizer: CViViT) -> float:
    """Of the transformer, and of the stem as of a head of its size (`decoder_operations_per_token`)."""
    return 2 * num_weights(tokenizer.encoder) + 8 * num_weights(tokenizer.stem)


def decoder_operations_per_token(tokenizer: CViViT) -> float:
    """Of the transformer, of the head, whose convolutions run at four positions a token, and of its refiner, at a quarter of a token's pixels."""
    refiner, config = getattr(tokenizer.head, "refiner", None), tokenizer.config
    fine = 0 if refiner is None else num_weights(refiner) - num_weights(refiner.from_head)
    positions = (config.patch_size // 2) ** 2 * config.temporal_patch_size
    return 2 * num_weights(tokenizer.decoder) + 8 * (num_weights(tokenizer.head) - fine) + 2 * positions * fine


def matrix_speed() -> float:
    """Operations a second of a matrix product of the generator's kind of size, on one thread or on all, whichever is faster.

    Beside other programs that is one: threads that wait for each other can be ten times as slow, and a story then takes fewer, too.
    """
    threads = torch.get_num_threads()
    try:
        return 2 * PRODUCT_SIDE**3 / min(product_seconds(number) for number in {1, threads})
    finally:
        torch.set_num_threads(threads)


def product_seconds(threads: int) -> float:
    """Seconds of a product of two square matrices of PRODUCT_SIDE on so many threads, the best of five."""
    torch.set_num_threads(threads)
    a, b = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE), torch.randn(PRODUCT_SIDE, PRODUCT_SIDE)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(4):
            a = (a @ b) / PRODUCT_SIDE**0.5
        times.append((time.perf_counter() - started) / 4)
    return min(times)
