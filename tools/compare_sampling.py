"""One way of sampling beside others, on the same scripts with the same seeds: what each does to adherence, seams and time.

    python tools/compare_sampling.py --data storybook.safetensors --work runs/sampling -o docs/results/sampling.json \\
        num_steps=16 temperature=0.35 guidance_scale=4,guidance_ramp=false

A variant is fields of SamplingOptions that take the place of the model's own; the model's own way is always measured, too. Each is
an evaluation of stories (`phenaki evaluate story`) without FVD; finished stories are kept in the work folder, so that a run goes on
where it was killed, and variants may be made by several runs, one after the other or side by side.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from variants import parser_of, read_variant, write_found

from phenaki.evaluation.story_program import StoryExam, run_story_evaluation
from phenaki.evaluation.story_scripts import KINDS, ScriptSettings
from phenaki.sampling import SamplingOptions

OWN = "as shipped"


def measure(exam: StoryExam, texts: list[str], work: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Figures of the model's own way and of each variant, by name. options: of `run_story_evaluation`."""
    found = {}
    for name, variant in {OWN: {}, **{text: read_variant(text, SamplingOptions) for text in texts}}.items():
        place = work / name.replace(" ", "-")
        figures = run_story_evaluation(replace(exam, sampling=variant), place.with_name(f"{place.name}.json"), **options)
        found[name] = summary(figures)
        print(name, json.dumps(found[name]), flush=True)
    return found


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """What variants are compared by: shares of scenes in which all is right and each attribute is, persistence, seams, time."""
    return {
        "sampling": figures["sampling"],
        **{kind: {name: one["value"] for name, one in figures["adherence"][kind].items()} for kind in KINDS},
        "scenes_of_a_kind": figures["adherence"][KINDS[0]]["scene"]["n"],
        "persistence": figures["persistence"]["unsaid"]["value"],
        "seam_score": figures["seam_score"]["value"],
        "seconds_per_second_of_video": figures["seconds_per_second_of_video"]["value"],
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    heads = ["sampling", *(f"all right, {kind.replace('_', ' ')}" for kind in KINDS), "held-out motions", "persistence", "seam", "s/s"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, one in found.items():
        shares = [*(one[kind]["scene"] for kind in KINDS), one[KINDS[1]]["motion"], one["persistence"]]
        told = [f"{100 * share:.1f}%" if share is not None else "no such scenes" for share in shares]
        rows.append(f"| {name} | {' | '.join(told)} | {one['seam_score']:.2f} | {one['seconds_per_second_of_video']:.2f} |")
    return "\n".join(rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--scripts", type=int, default=24, help="a third of each kind")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    exam = StoryExam(options.model, options.world, options.data, device=options.device, scripts=ScriptSettings(options.scripts), fvd=False)
    found = measure(exam, options.variants, options.work)
    print(table(found))
    write_found(found, options.output)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"compare_sampling: {error}") from error
