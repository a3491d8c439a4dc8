"""What `phenaki evaluate drift` does, from a model's name to the file of figures and its picture."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phenaki.atomic import write_bytes
from phenaki.data.storybook import StorybookWorld
from phenaki.evaluation.drift import FVD_FRAMES, Judge, num_windows, read_windows, shortest_window, watch
from phenaki.evaluation.drift_figures import END_SHARE, mode_figures
from phenaki.evaluation.drift_plot import drift_plot
from phenaki.evaluation.drift_scripts import HELD, WINDOW_SECONDS, DriftSettings, LongScript, draw_long_script
from phenaki.evaluation.exam import Exam, examined_model, is_drawn, networks_for, not_measured, shipped_referee, surroundings, world_for
from phenaki.evaluation.networks import MetricNetworks
from phenaki.evaluation.outputs import check_outputs, write_figures
from phenaki.evaluation.story import FrameJudge
from phenaki.evaluation.story_figures import DRAWN_TRUTH, referee_cautions
from phenaki.evaluation.story_work import WorkFolder
from phenaki.pipeline import Phenaki
from phenaki.sampling import CONTEXTS

USUAL_MINUTES = DriftSettings().minutes
GOOD_REFEREE = 0.95  # share of the windows' rendered truth that a referee should have right, of each attribute
SHOWN = ("adherence", "fvd", "sharpness", "brightness", "colourfulness", "motion")  # in the summary


@dataclass(frozen=True)
class DriftExam(Exam):
    """An exam of long stories."""

    settings: DriftSettings = field(default_factory=DriftSettings)
    contexts: tuple[str, ...] = ()  # compared with the model's own: "tokens", "frames"

    def __post_init__(self):
        if unknown := [context for context in self.contexts if context not in CONTEXTS]:
            raise ValueError(f"context {unknown[0]!r}: allowed are {', '.join(CONTEXTS)}")


def run_drift_evaluation(
    exam: DriftExam, output: Path, *, plot: Path | None = None, work: Path | None = None, referee: FrameJudge | None = None,
    networks: MetricNetworks | None = None, on_window: Callable[[int, int], None] = lambda *_: None, on_note: Callable[[str], None] = print,
    command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Examines a model; writes the figures to `output` (JSON) and their picture to `plot` (PNG, beside it by default); returns the figures.

    work: folder of the stories and their judged windows, beside the output by default; run the same again to resume after an
    interruption, or with more modes, contexts or stories to add them. on_window is called with (windows done, windows in all).
    command: how it was started, kept with the figures.
    """
    if plot is None:
        plot = output.with_suffix(".png")
        if plot.exists() and not output.exists():
            raise ValueError(f"{plot}: is there, and the plot would replace it; name another with --plot, or other figures with -o")
    work = work or output.with_name(f"{output.stem}-work")
    check_outputs(output, picture=plot, work=work)
    if drawn := is_drawn(exam.atlas, referee):
        on_note(DRAWN_TRUTH)
    phenaki = examined_model(exam)
    contexts = tuple(dict.fromkeys([phenaki.info.sampling.context, *exam.contexts]))
    referee = referee or shipped_referee(exam)
    world = world_for(exam, phenaki, omit_prob=0.0)  # a scene is judged by its own prompt
    scripts = [draw_long_script(world, exam.settings, mode, index) for mode in exam.settings.modes for index in range(exam.settings.num_stories)]
    networks = networks_for(exam, networks, drawn).fitting(min(shortest_window(phenaki, script) for script in scripts), world.config.size)
    settings = settings_of(exam, phenaki, world, referee)
    kept = WorkFolder(work, {**settings, "fvd": networks.i3d is not None})
    with kept.told_when_stopped():
        watch_all(phenaki, contexts, scripts, Judge(world, referee, networks.i3d), kept.folder, settings, on_window)
        found = {context: {mode: figures_of(phenaki, context, scripts, mode, kept.folder) for mode in exam.settings.modes} for context in contexts}
        figures = {"command": command, **settings, "modes": list(exam.settings.modes), "stories": exam.settings.num_stories, "contexts": found}
        figures["not_measured"] = not_measured(networks)
        figures["cautions"] = cautions(figures, drawn)
        write_figures(output, figures)
        write_bytes(plot, drift_plot(figures))
    return figures


def watch_all(
    phenaki: Phenaki, contexts: Sequence[str], scripts: Sequence[LongScript], judge: Judge, folder: Path, settings: dict[str, Any],
    on_window: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Makes and judges all stories in each context, one after the other."""
    jobs = [(context, script) for context in contexts for script in scripts]
    counts = [num_windows(phenaki, script) for _, script in jobs]
    for number, (context, script) in enumerate(jobs):
        before = sum(counts[:number])
        done = lambda count, before=before: on_window(before + count, sum(counts))
        watch(phenaki, script, context, judge, story_path(folder, context, script.mode, script.index), settings, done)


def story_path(folder: Path, context: str, mode: str, index: int) -> Path:
    """Where a story's video lies; its windows' figures lie beside it."""
    return folder / f"{context}-{mode}-{index:04d}.mp4"


def figures_of(phenaki: Phenaki, context: str, scripts: Sequence[LongScript], mode: str, folder: Path) -> dict[str, Any]:
    """The figures of the scripts of one mode in one context, from the work folder."""
    of_mode = [script for script in scripts if script.mode == mode]
    paths = [story_path(folder, context, mode, script.index).with_suffix(".jsonl") for script in of_mode]
    windows = [read_windows(path, num_windows(phenaki, script)) for path, script in zip(paths, of_mode, strict=True)]
    return mode_figures(windows, mode, phenaki.info.fps)


def settings_of(exam: DriftExam, phenaki: Phenaki, world: StorybookWorld, referee: FrameJudge) -> dict[str, Any]:
    """All that a story depends on, as plain values; modes, contexts and the number of stories are not among it and may be added to."""
    return {
        **surroundings(exam, phenaki, world, referee),
        "sampling": {name: value for name, value in asdict(phenaki.info.sampling).items() if name != "context"},
        "minutes": exam.settings.minutes,
        "seed": exam.settings.seed,
        "judged": {"window_seconds": WINDOW_SECONDS, "fvd_frames": FVD_FRAMES, "end_share": END_SHARE},
    }


def cautions(figures: dict[str, Any], drawn: bool = False) -> list[str]:
    """What a reader of the figures must know. drawn: see `exam.is_drawn`."""
    said = [DRAWN_TRUTH] if drawn else []
    if figures["minutes"] < USUAL_MINUTES:
        said.append(f"Of {figures['minutes']:g} minutes: drift is stated of {USUAL_MINUTES:g} or more.")
    if figures["stories"] == 1:
        said.append("Of one story a mode: where there are intervals they are of its windows or minutes, not of other stories.")
    judged = {} if drawn else figures["contexts"]
    for context, modes in judged.items():
        for mode, found in modes.items():
            shares = {name: sides["truth"] for name, sides in found["by_attribute"].items()}
            said += referee_cautions(f"{mode}, {context}", shares, GOOD_REFEREE)
    modes = next(iter(figures["contexts"].values()))
    measured = {found["ends"]["windows"] for found in modes.values() if "fvd" in found["ends"]}
    if measured:
        said.append(f"FVD is of {min(measured)} windows at either end: it is biased upward for few. Compare it with itself alone.")
    if HELD in modes:
        said.append("A held prompt's truth begins anew in every window; a model that goes on may rightly look otherwise.")
    return said


def summary(figures: dict[str, Any]) -> list[str]:
    """The figures in a few lines for each mode and context: first and last part of every measure, its trend, and where scenes return."""
    share = f"{END_SHARE:.0%}"
    lines = [f"{figures['minutes']:g} minutes, first {share} -> last {share}; in brackets: change beyond that of rendered truth"]
    for mode in figures["modes"]:
        for context, modes in figures["contexts"].items():
            ends = modes[mode]["ends"]
            lines.append(f"{mode}, {context}: {'  '.join(shown(name, ends[name]) for name in SHOWN if name in ends)}")
            trends = "  ".join(f"{name} {shown_trend(modes[mode]['trends'][name])}" for name in SHOWN if name in modes[mode]["trends"])
            lines.append(f"    from start to end beside rendered truth (95%): {trends}")
            if "returns" in modes[mode] and modes[mode]["returns"]["each"]:
                made, truth = (modes[mode]["returns"][side] for side in ("made", "truth"))
                alike = "  ".join(f"{name.replace('_', ' ')} {made[name]['value']:g} ({truth[name]['value']:g})" for name in made)
                lines.append(f"    where it returns (rendered truth): {alike}")
    lines += [f"{name}: {why}" for name, why in figures["not_measured"].items()]
    return lines + [f"caution: {caution}" for caution in figures["cautions"]]


def shown_trend(trend: dict[str, Any]) -> str:
    if trend["value"] is None:
        return "-"
    return f"{trend['value']:+.1%}" + ("" if trend["low"] is None else f" ({trend['low']:+.1%} to {trend['high']:+.1%})")


def shown(name: str, ends: dict[str, Any]) -> str:
    if name == "fvd":
        spread = "" if ends["ratio_low"] is None else f", 95% {ends['ratio_low']} to {ends['ratio_high']}"
        return f"FVD {ends['first']:g} -> {ends['last']:g} (ratio {'-' if ends['ratio'] is None else ends['ratio']}{spread})"
    made, beyond = ends["made"], ends["beyond_truth"]
    if made["drift"] is None:
        return f"{name} -"
    return f"{name} {made['first']:.4g} -> {made['last']:.4g} ({'-' if beyond is None else format(beyond, '.1%')})"
