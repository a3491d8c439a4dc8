"""What the evaluations of stories and of drift share: the model, world, referee and networks that take part in one."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import named_world
from phenaki.evaluation.networks import MetricNetworks, load_i3d_network
from phenaki.evaluation.outputs import machine
from phenaki.evaluation.referee import Referee
from phenaki.evaluation.story import FrameJudge, fingerprint
from phenaki.pipeline import Phenaki
from phenaki.sampling import ARITHMETIC

NO_REFERENCE = MetricNetworks(missing={"i3d": "not measured: without --data truth is drawn by code, other pictures than the model's"})


@dataclass(frozen=True)
class Exam:
    """What is examined, and how: what an evaluation of stories and one of drift both ask for."""

    model: str | Path  # shipped model, model folder, or hub id
    world: str = "small"
    atlas: Path | None = None  # None: pictures drawn by code
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of SamplingOptions in place of the model's own
    device: str = "cpu"
    dtype: str = "auto"  # what the model computes in (`choose_dtype`)
    fvd: bool = True


def examined_model(exam: Exam) -> Phenaki:
    """The model, with the exam's defaults of sampling in place of its own; ValueError says what is allowed."""
    phenaki = Phenaki.from_pretrained(exam.model, device=exam.device, dtype=exam.dtype)
    phenaki.info = replace(phenaki.info, sampling=replace(phenaki.info.sampling, **exam.sampling))
    return phenaki


def networks_for(exam: Exam, given: MetricNetworks | None, drawn: bool) -> MetricNetworks:
    """The networks that FVD needs: those given, or what is installed; none where truth is drawn by code (`is_drawn`)."""
    return NO_REFERENCE if drawn else given or video_network(exam)


def world_for(exam: Exam, phenaki: Phenaki, **changed: Any) -> StorybookWorld:
    """The exam's world at the model's size and rate. changed: other fields of its config."""
    config = replace(named_world(exam.world), fps=phenaki.info.fps, size=phenaki.info.tokenizer.image_size, **changed)
    return open_world(config, exam.atlas, exam.device)


def shipped_referee(exam: Exam) -> FrameJudge:
    """The referee that ships for the exam's world. RefereeError (a ValueError) where there is none."""
    return Referee.load(exam.world, exam.device)


def is_drawn(atlas: Path | None, referee: FrameJudge | None) -> bool:
    """Whether truth is drawn by code and judged by a shipped referee (`referee` None), which was trained on an atlas: other pictures."""
    return atlas is None and referee is None


def video_network(exam: Exam) -> MetricNetworks:
    """I3D where it is asked for and installed."""
    return load_i3d_network(exam.device) if exam.fvd else MetricNetworks(missing={"i3d": "not measured: --no-fvd"})


def not_measured(networks: MetricNetworks) -> dict[str, str]:
    """Figures of a report that are left out, each with the reason: "fvd" where I3D is missing."""
    return {"fvd": networks.missing["i3d"]} if "i3d" in networks.missing else {}


def surroundings(exam: Exam, phenaki: Phenaki, world: StorybookWorld, referee: FrameJudge) -> dict[str, Any]:
    """Model, world, referee and machine of an evaluation, as plain values. phenaki, world: as opened for the exam."""
    info = phenaki.info
    return {
        "model": info.provenance,
        "world": exam.world,
        "data": world.fingerprint,
        "referee": {"fingerprint": fingerprint(referee), "attributes": list(referee.labels)},
        "fps": world.config.fps,
        "size": world.config.size,
        "machine": machine(exam.device),
        "dtype": str(phenaki.dtype).removeprefix("torch."),
        "arithmetic": ARITHMETIC,
    }
