"""What `phenaki evaluate story` does, from a model's name to the files of figures."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phenaki.atomic import write_text
from phenaki.data.storybook import StorybookWorld
from phenaki.evaluation.adherence import MOTION_MARGIN_SECONDS, SETTLING_SECONDS, STEADY_FRAMES
from phenaki.evaluation.exam import Exam, examined_model, is_drawn, networks_for, not_measured, shipped_referee, surroundings, world_for
from phenaki.evaluation.networks import MetricNetworks
from phenaki.evaluation.outputs import check_outputs, write_figures
from phenaki.evaluation.story import FrameJudge, evaluate_stories, tell
from phenaki.evaluation.story_figures import DRAWN_TRUTH, cautions, story_figures
from phenaki.evaluation.story_report import story_report
from phenaki.evaluation.story_scripts import ScriptSettings, draw_script
from phenaki.evaluation.story_work import WorkFolder
from phenaki.pipeline import Phenaki
from phenaki.story import Story

USUAL_SCRIPTS = ScriptSettings().scripts


@dataclass(frozen=True)
class StoryExam(Exam):
    """An exam of stories. With `fvd` I3D sees three videos a story: on a CPU nearly half as long as making it."""

    scripts: ScriptSettings = field(default_factory=ScriptSettings)


def run_story_evaluation(
    exam: StoryExam, output: Path, *, html: Path | None = None, work: Path | None = None, referee: FrameJudge | None = None,
    networks: MetricNetworks | None = None, on_story: Callable[[int, int], None] = lambda *_: None, on_note: Callable[[str], None] = print,
    command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Examines a model, writes the figures to `output` (JSON) and, where asked for, a page to `html`; returns the figures.

    work: folder of finished stories, beside the output by default; run the same again to resume after an interruption.
    referee, networks: those that ship or are installed by default. on_story is called with (stories done, stories in all).
    command: how it was started, kept with the figures.
    """
    work = work or output.with_name(f"{output.stem}-work")
    check_outputs(output, html, work=work)
    if drawn := is_drawn(exam.atlas, referee):
        on_note(DRAWN_TRUTH)
    phenaki = examined_model(exam)
    lengths = scene_lengths(phenaki, exam.scripts)
    referee = referee or shipped_referee(exam)
    world = world_for(exam, phenaki)
    networks = networks_for(exam, networks, drawn).fitting(sum(lengths), world.config.size)
    scripts = [draw_script(world, exam.scripts, index, lengths) for index in range(exam.scripts.scripts)]
    settings = settings_of(exam, phenaki, world, referee, lengths)
    folder = WorkFolder(work, work_settings(settings, networks))
    done = lambda count: on_story(count, len(scripts))
    with folder.told_when_stopped():
        evaluate_stories(scripts, lambda script: tell(phenaki, script), world, referee, networks.i3d, folder, done)

        measured = story_figures(scripts, folder.record, world.config.fps)
        figures = {"command": command, **settings, **measured, "not_measured": not_measured(networks)}
        figures["cautions"] = cautions(measured, len(scripts), USUAL_SCRIPTS, drawn)
        write_figures(output, figures)
        if html is not None:
            write_text(html, story_report(figures, scripts, folder, world.config.fps))
    return figures


def settings_of(exam: StoryExam, phenaki: Phenaki, world: StorybookWorld, referee: FrameJudge, lengths: list[int]) -> dict[str, Any]:
    """All that the stories and their figures depend on, as plain values."""
    return {
        **surroundings(exam, phenaki, world, referee),
        "sampling": asdict(phenaki.info.sampling),
        "scripts": {**asdict(exam.scripts), "frames_of_scenes": lengths},
        "frames": sum(lengths),
        "judged": {"settling_seconds": SETTLING_SECONDS, "motion_margin_seconds": MOTION_MARGIN_SECONDS, "steady_frames": STEADY_FRAMES},
    }


def work_settings(settings: dict[str, Any], networks: MetricNetworks) -> dict[str, Any]:
    """What must be equal for finished stories to be used again; more scripts of the same kind may be added to them."""
    scripts = {name: one for name, one in settings["scripts"].items() if name != "scripts"}
    return {**settings, "scripts": scripts, "fvd": networks.i3d is not None}


def scene_lengths(phenaki: Phenaki, settings: ScriptSettings) -> list[int]:
    """Frames of each scene of a script, by the model's plan, in which scenes end where slices of tokens do; truth is drawn with these lengths.

    ValueError where that leaves a scene no frame to be judged by.
    """
    story, fps = Story.of([("a scene", settings.seconds)] * settings.scenes), phenaki.info.fps
    lengths = [scene.num_frames for scene in phenaki.plan(story).scenes]
    unjudged = round(SETTLING_SECONDS * fps) + round(MOTION_MARGIN_SECONDS * fps)
    if min(lengths) <= unjudged:
        raise ValueError(
            f"{settings.seconds:g} seconds a scene: at {fps:g} frames a second one has {min(lengths)} frames, of which "
            f"{unjudged} at its ends are not judged; make scenes longer"
        )
    return lengths


def summary(figures: dict[str, Any]) -> list[str]:
    """The figures in a few lines, the referee's on rendered truth in brackets."""
    truth, switch, persistence = figures["truth"], figures["switch_time"], figures["persistence"]
    scripts = figures["scripts"]
    lines = [f"{scripts['scripts']} scripts of {scripts['scenes']} scenes, {figures['frames']} frames; in brackets: rendered truth"]
    for kind, by_attribute in figures["adherence"].items():
        shares = (f"{name} {percent(one)} ({percent(truth['adherence'][kind][name])})" for name, one in by_attribute.items() if one["n"])
        lines.append(f"{kind.replace('_', ' ')}: {'  '.join(shares)}")
    kept = [f"{name.replace('_', ' ')} {percent(persistence[name])} ({percent(truth['persistence'][name])})" for name in ("unsaid", "said_again")]
    times = [f"{name} {value(switch[name])} ({value(truth['switch_time'][name])})" for name in ("median", "p90")]
    never = f"never seen {percent(switch['never_seen'])} ({percent(truth['switch_time']['never_seen'])})"
    fvd = f"{value(figures['fvd'])} ({value(truth['fvd'])})" if figures["fvd"] else figures["not_measured"].get("fvd", "needs 2 stories")
    lines += [f"persistence: {'  '.join(kept)}", f"switch time, frames: {'  '.join(times)}  {never}", f"FVD {fvd}"]
    seams = [f"{value(one['seam_score'])}, beside slices {value(one['seam_score']['beside_slices'])}" for one in (figures, truth)]
    lines.append(f"seam score {seams[0]} ({seams[1]})")
    lines.append(f"seconds per second of video {value(figures['seconds_per_second_of_video'])} on {figures['machine']}")
    return lines + [f"caution: {caution}" for caution in figures["cautions"]]


def percent(estimate: dict[str, Any]) -> str:
    return "-" if estimate["value"] is None else f"{estimate['value']:.1%}"


def value(estimate: dict[str, Any]) -> str:
    return "-" if estimate["value"] is None else f"{estimate['value']:g}"
