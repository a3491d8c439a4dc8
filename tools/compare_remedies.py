"""Remedies against drift, each on or off: what a long story loses with a model's settings changed, or with other models.

    python tools/compare_remedies.py --data storybook.safetensors --work runs/remedies -o docs/results/remedies.json \\
        anchor=false anchor=false,context_slices=1 context=frames --models runs/with/model runs/without/model

A variant is fields of the generator's or the sampling's settings that take the place of the model's own: `anchor` (a scene's first
slice is kept in sight), `context_slices` (recent slices seen), `context` ("tokens", or "frames" decoded and encoded anew). Remedies
of training (`max_corruption`, `rollout_prob`) are compared as models: train two alike but for the one. All are evaluations of drift
(`phenaki evaluate drift`) on the same scripts with the same seeds; what was judged is kept in the work folder, so that a run goes on
where it was killed.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from variants import of_kind, parser_of, read_variant, write_found

from phenaki.checkpoint import load_model, save_model
from phenaki.config import check_range
from phenaki.evaluation.drift_program import DriftExam, run_drift_evaluation
from phenaki.evaluation.drift_scripts import MODES, RECALLING, SWITCHING, DriftSettings
from phenaki.sampling import SamplingOptions

OWN = "as shipped"
LOOKS = ("sharpness", "brightness", "colourfulness")


@dataclass(frozen=True)
class PastSettings:
    """What of a generator's settings may be changed without training it anew; see MaskGITConfig."""

    anchor: bool = True
    context_slices: int = 3

    def __post_init__(self):
        check_range(self, "context_slices", at_least=0)


def changed_model(name: str | Path, changes: dict[str, Any], folder: Path) -> Path:
    """A copy of a model, in a folder of its own, whose generator has other settings of the kind that leave its weights as they are."""
    if not (folder / "config.json").exists():
        model = load_model(name)
        info = replace(model.info, generator=replace(model.info.generator, **changes), files={})
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder, info, model.tokenizer, model.generator)
    return folder


def variant_exam(exam: DriftExam, variant: dict[str, Any], folder: Path) -> DriftExam:
    """An examination with fields of the generator's and the sampling's settings in place of the model's own."""
    of_model, sampling = of_kind(variant, PastSettings), of_kind(variant, SamplingOptions)
    model = changed_model(exam.model, of_model, folder) if of_model else exam.model
    return replace(exam, model=model, sampling=sampling)


def measure(exam: DriftExam, texts: list[str], models: list[str], work: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Figures of the model as it is, of each variant and of each other model, by name. options: of `run_drift_evaluation`."""
    exams = {OWN: exam}
    for text in texts:
        variant = read_variant(text, PastSettings, SamplingOptions)
        if RECALLING in exam.settings.modes and variant.get("anchor") is False:
            raise ValueError(f"{text}: without an anchor nothing can be recalled; leave out the mode {RECALLING}")
        exams[text] = variant_exam(exam, variant, work / f"model-{text.replace('/', '-')}")
    exams |= {model: replace(exam, model=model) for model in models}
    found = {}
    for name, one in exams.items():
        figures = run_drift_evaluation(one, work / f"{name.replace(' ', '-').replace('/', '-')}.json", **options)
        found[name] = {mode: summary(measured) for mode, measured in next(iter(figures["contexts"].values())).items()}
        print(name, json.dumps(found[name]), flush=True)
    return found


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """What remedies are compared by: all of a story, its ends, and how much its looks change beyond what the script does."""
    ends = measured["ends"]
    right = {name: sides["made"]["value"] for name, sides in measured["by_attribute"].items()}
    fvd, (made, truth) = measured["whole"]["fvd"], (measured["whole"]["motion"][side]["value"] for side in ("made", "truth"))
    looks = {name: ends[name]["beyond_truth"] for name in LOOKS}
    returns = {"returns_same": measured["returns"]["made"]["same"]["value"]} if "returns" in measured else {}
    return {
        "windows": measured["windows"],
        "adherence": right,
        "fvd": None if fvd is None else fvd["value"],
        "motion_of_truth": round(made / truth, 4) if truth else None,
        "first": ends["adherence"]["made"]["first"],
        "last": ends["adherence"]["made"]["last"],
        "fvd_ratio": ends["fvd"]["ratio"] if "fvd" in ends else None,
        **looks,
        **returns,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    heads = ("remedies", "mode", "windows", "first 15%", "last 15%", "motions right", "of the truth's change", "FVD", "ratio", "sharpness", "colours")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    share = lambda value: "-" if value is None else f"{100 * value:.1f}%"
    for name, modes in found.items():
        for mode, one in modes.items():
            fvd = ["-" if value is None else f"{value:{form}}" for value, form in ((one["fvd"], ".0f"), (one["fvd_ratio"], ".2f"))]
            told = [share(value) for value in (one["first"], one["last"], one["adherence"].get("motion"), one["motion_of_truth"])]
            looks = [share(one[look]) for look in ("sharpness", "colourfulness")]
            rows.append(f"| {' | '.join([name, mode, str(one['windows']), *told, *fvd, *looks])} |")
    return "\n".join(rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", default=[], help="others, that were trained with another remedy")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--stories", type=int, default=1)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[SWITCHING])
    parser.add_argument("--no-fvd", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    settings = DriftSettings(options.minutes, tuple(options.modes), options.stories)
    exam = DriftExam(options.model, options.world, options.data, device=options.device, settings=settings, fvd=not options.no_fvd)
    found = measure(exam, options.variants, options.models, options.work)
    print(table(found))
    write_found(found, options.output)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"compare_remedies: {error}") from error
