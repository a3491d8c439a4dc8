"""tools/compare_remedies.py: a model with its own settings, with others, and other models, on the same long scripts."""

import sys
from pathlib import Path

import pytest
import torch
from test_drift import Blind
from test_story_evaluation import folder  # noqa: F401

from phenaki.checkpoint import load_model
from phenaki.evaluation import drift_figures, drift_scripts
from phenaki.evaluation.drift_program import DriftExam
from phenaki.evaluation.drift_scripts import RECALLING, RETURNING, SWITCHING, DriftSettings
from phenaki.evaluation.networks import MetricNetworks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from compare_remedies import OWN, changed_model, measure, table, variant_exam


def test_a_changed_model_has_other_settings_and_the_same_weights(folder, tmp_path):  # noqa: F811
    model, other = load_model(folder), load_model(changed_model(folder, {"anchor": False, "context_slices": 1}, tmp_path / "other"))
    assert other.info.generator.anchor is False and other.info.generator.context_slices == 1 and model.info.generator.anchor is True
    for name, value in model.generator.state_dict().items():
        assert torch.equal(other.generator.state_dict()[name], value), name


def test_settings_of_sampling_need_no_other_model(folder, tmp_path):  # noqa: F811
    exam = DriftExam(folder)
    assert variant_exam(exam, {"context": "frames"}, tmp_path / "a") == DriftExam(folder, sampling={"context": "frames"})
    assert variant_exam(exam, {"anchor": False, "num_steps": 3}, tmp_path / "a") == DriftExam(tmp_path / "a", sampling={"num_steps": 3})


def test_remedies_are_measured_beside_the_model_as_it_is(folder, tmp_path, monkeypatch):  # noqa: F811
    for module in (drift_scripts, drift_figures):
        monkeypatch.setattr(module, "RETURN_AFTER", 6)  # within half a minute
    exam = DriftExam(folder, settings=DriftSettings(0.5, (SWITCHING, RETURNING)), fvd=False)
    given = {"referee": Blind(), "networks": MetricNetworks()}
    found = measure(exam, ["context=frames", "anchor=false"], [str(folder)], tmp_path, **given)
    assert list(found) == [OWN, "context=frames", "anchor=false", str(folder)]
    assert found[str(folder)] == found[OWN], "the same model, once more"
    assert found["context=frames"] != found[OWN], "other videos"
    assert set(found[OWN]) == {SWITCHING, RETURNING} and found[OWN][SWITCHING]["windows"] == 8
    assert found[OWN][RETURNING]["returns_same"] == 1 and "returns_same" not in found[OWN][SWITCHING]
    assert found[OWN][SWITCHING]["fvd"] is None and found[OWN][SWITCHING]["motion_of_truth"] > 0
    rows = table(found).splitlines()
    assert len(rows) == 2 + 8 and len({row.count("|") for row in rows}) == 1

    shown = given["referee"].shown
    assert measure(exam, ["context=frames", "anchor=false"], [str(folder)], tmp_path, **given) == found
    assert given["referee"].shown == shown, "what was judged is not made again"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_corruption=0", "needed NAME=VALUE"), ("anchor=False", "anchor"), ("num_steps=0", "needed 1 to 256"),
        ("context_slices=-1", "context_slices -1: needed at least 0"),
    ],
)
def test_changes_that_would_mean_nothing_or_something_else_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        measure(DriftExam("none"), [text], [], Path("nowhere"))


def test_nothing_can_be_recalled_without_an_anchor():
    with pytest.raises(ValueError, match="anchor=false: without an anchor nothing can be recalled"):
        measure(DriftExam("none", settings=DriftSettings(modes=(RECALLING,))), ["anchor=false"], [], Path("nowhere"))
