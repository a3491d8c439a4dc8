"""Options that several commands take, each worded once, and the values that they may have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class NumberKind(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ContextKind(StrEnum):
    tokens = "tokens"
    frames = "frames"


class World(StrEnum):
    small = "small"
    medium = "medium"
    full = "full"
    wide = "wide"


# what makes a video, and where
ModelName = Annotated[str, typer.Option(help="shipped model, model folder, or hub id")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")]
Dtype = Annotated[NumberKind, typer.Option(help="what is computed in; auto: bfloat16 where the machine is much faster in it")]

# how it is made
NumSteps = Annotated[int | None, typer.Option(help="refinement rounds a chunk")]
ModelNumSteps = Annotated[int | None, typer.Option(help="refinement rounds a chunk; the model's own by default")]  # where no script says
GuidanceScale = Annotated[float | None, typer.Option(help="how strongly prompts are followed; 1 = off")]
Style = Annotated[str | None, typer.Option(help="words appended to every prompt")]
Negative = Annotated[str | None, typer.Option(help="what the video should not show")]
Fps = Annotated[float | None, typer.Option(help="frames a second of the video")]
Size = Annotated[int | None, typer.Option(help="pixels a side of the video")]
Context = Annotated[ContextKind | None, typer.Option(help="what a chunk sees of the ones before: tokens, or frames encoded anew")]

# trainings
Config = Annotated[Path, typer.Option(help="settings, configs/NAME.toml")]
RunFolder = Annotated[Path, typer.Option(help="run folder; the model lands in OUT/model")]
Validation = Annotated[Path | None, typer.Option(help="held-out footage; other stories of the storybook world by default")]
InitFrom = Annotated[str | None, typer.Option(help="start from the weights of this model (shipped name, folder, hub id)")]
Steps = Annotated[int | None, typer.Option(help="optimiser steps")]
TrainingDevice = Annotated[str, typer.Option(help="auto, cpu, cuda")]

# data
Atlas = Annotated[Path | None, typer.Option(help="storybook atlas; a world drawn by code by default")]
WorldName = Annotated[World, typer.Option(help="of the storybook")]
Footage = Annotated[Path, typer.Argument(help="folder of videos and pictures, table (.jsonl, .csv, .parquet), or tar shards")]
NumWorkers = Annotated[int, typer.Option(help="decoding processes; 0 = half of the cores")]

# evaluations of stories
Figures = Annotated[Path, typer.Option("-o", "--output", "--json", help="figures, .json")]
ScriptSeed = Annotated[int, typer.Option(help="which scripts")]
