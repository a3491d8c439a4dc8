"""What the evaluations of stories and of drift share: the model, world, referee and networks that take part in one."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import named_world
from phenaki.evaluation.networks import MetricNetworks, load_i3d_network
from phenaki.evaluation.outputs import machine
from phenaki.evaluation.referee import Referee
from phenaki.evaluation.story import FrameJudge, fingerprint
from phenaki.pipeline import Phenaki
from phenaki.sampling import ARITHMETIC

NO_REFERENCE = MetricNetworks(missing={"i3d": "not measured: without --data truth is drawn by code, other pictures than the model's"})


class Exam(Protocol):
    """What `StoryExam` and `DriftExam` both ask for of a model and its networks."""

    model: str | Path
    sampling: dict[str, Any]
    device: str
    dtype: str
    fvd: bool


def examined_model(exam: Exam) -> Phenaki:
    """The model, with the exam's defaults of sampling in place of its own; ValueError says what is allowed."""
    phenaki = Phenaki.from_pretrained(exam.model, device=exam.device, dtype=exam.dtype)
    phenaki.info = replace(phenaki.info, sampling=replace(phenaki.info.sampling, **exam.sampling))
    return phenaki


def networks_for(exam: Exam, given: MetricNetworks | None, drawn: bool) -> MetricNetworks:
    """The networks that FVD needs: those given, or what is installed; none where truth is drawn by code (`is_drawn`)."""
    return NO_REFERENCE if drawn else given or video_network(exam.fvd, exam.device)


def world_for(phenaki: Phenaki, name: str, atlas: Path | None, device: str, **changed: Any) -> StorybookWorld:
    """A world at the model's size and rate. changed: other fields of its config."""
    config = replace(named_world(name), fps=phenaki.info.fps, size=phenaki.info.tokenizer.image_size, **changed)
    return open_world(config, atlas, device)


def shipped_referee(world: str, device: str) -> FrameJudge:
    """The referee that ships for a world. RefereeError (a ValueError) where there is none."""
    return Referee.load(world, device)


def is_drawn(atlas: Path | None, referee: FrameJudge | None) -> bool:
    """Whether truth is drawn by code and judged by a shipped referee (`referee` None), which was trained on an atlas: other pictures."""
    return atlas is None and referee is None


def video_network(fvd: bool, device: str) -> MetricNetworks:
    """I3D where it is asked for and installed."""
    return load_i3d_network(device) if fvd else MetricNetworks(missing={"i3d": "not measured: --no-fvd"})


def not_measured(networks: MetricNetworks) -> dict[str, str]:
    """Figures of a report that are left out, each with the reason: "fvd" where I3D is missing."""
    return {"fvd": networks.missing["i3d"]} if "i3d" in networks.missing else {}


def surroundings(phenaki: Phenaki, name: str, world: StorybookWorld, referee: FrameJudge, device: str) -> dict[str, Any]:
    """Model, world, referee and machine of an evaluation, as plain values. name: the world's."""
    info = phenaki.info
    return {
        "model": info.provenance,
        "world": name,
        "data": world.fingerprint,
        "referee": {"fingerprint": fingerprint(referee), "attributes": list(referee.labels)},
        "fps": world.config.fps,
        "size": world.config.size,
        "machine": machine(device),
        "dtype": str(phenaki.dtype).removeprefix("torch."),
        "arithmetic": ARITHMETIC,
    }
