"""tools/compare_sampling.py: variants of sampling are measured on the same scripts, and kept."""

import sys
from pathlib import Path

import pytest
from test_drift import Blind
from test_story_evaluation import folder, no_networks  # noqa: F401

from phenaki.evaluation.story_program import StoryExam
from phenaki.evaluation.story_scripts import ScriptSettings
from phenaki.sampling import SamplingOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from compare_sampling import OWN, measure, table
from variants import read_variant


def test_a_variant_is_fields_of_the_sampling_options():
    assert read_variant("num_steps=16,order=confidence", SamplingOptions) == {"num_steps": 16, "order": "confidence"}
    assert read_variant("guidance_ramp=false", SamplingOptions) == {"guidance_ramp": False}
    for wrong in ("steps=3", "num_steps", ""):
        with pytest.raises(ValueError, match="needed NAME=VALUE"):
            read_variant(wrong, SamplingOptions)


def test_variants_are_measured_beside_the_models_own_way(folder, no_networks, monkeypatch, tmp_path):  # noqa: F811
    exam = StoryExam(folder, scripts=ScriptSettings(3), fvd=False)
    found = measure(exam, ["num_steps=3,temperature=0.5"], tmp_path, referee=Blind())
    assert list(found) == [OWN, "num_steps=3,temperature=0.5"]
    assert found[OWN]["sampling"]["num_steps"] == 1
    changed = found["num_steps=3,temperature=0.5"]
    assert (changed["sampling"]["num_steps"], changed["sampling"]["temperature"]) == (3, 0.5)
    assert changed["seconds_per_second_of_video"] > 0 and set(changed["held_out_combinations"]) == {"actor", "place", "time", "motion", "scene"}
    rows = table(found).splitlines()
    assert len(rows) == 4 and rows[3].startswith("| num_steps=3,temperature=0.5 |") and len({row.count("|") for row in rows}) == 1

    monkeypatch.setattr("phenaki.pipeline.Phenaki.stream_story", None)  # nothing is made again
    assert measure(exam, ["num_steps=3,temperature=0.5"], tmp_path, referee=Blind()) == found
