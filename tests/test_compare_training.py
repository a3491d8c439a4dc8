"""tools/compare_training.py: variants differ by what they name alone, and are measured on the same chunks."""

import sys
from pathlib import Path

import pytest
from test_story_evaluation import folder  # noqa: F401

from phenaki.checkpoint import load_model, read_info
from phenaki.config import read_settings
from phenaki.text import TextEncoder
from phenaki.training import generator as generator_module
from phenaki.training.stories import tokenize_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from compare_training import OWN, TESTS, changed_settings, compare, table

CONFIG = Path(__file__).resolve().parents[1] / "configs/tiny.toml"
pytestmark = pytest.mark.usefixtures("synced")


def test_changes_go_to_the_sections_that_know_them():
    changed = changed_settings(CONFIG, {"token_factors": 4, "per_slice_prob": 0.0, "seed": 5})
    assert changed["generator"]["token_factors"] == 4 and changed["generator"]["dim"] == 32
    assert changed["train_generator"]["per_slice_prob"] == 0 and changed["train_generator"]["optimizer"]["seed"] == 5
    assert changed_settings(CONFIG, {}) == {**read_settings(CONFIG)}


def test_variants_are_trained_alike_but_for_what_they_name(folder, tmp_path, monkeypatch):  # noqa: F811
    encoder = TextEncoder.load()
    monkeypatch.setattr(TextEncoder, "load", lambda *_, **__: encoder)  # once will do
    monkeypatch.setattr(generator_module, "show_stories", lambda *_: None)
    short = tmp_path / "short.toml"
    short.write_text(CONFIG.read_text().replace("num_steps = 100", "num_steps = 3").replace("num_slices = 9", "num_slices = 12"))
    stories, held = tmp_path / "stories.safetensors", tmp_path / "held-out.safetensors"
    for path, seed in ((stories, 0), (held, 9)):
        tokenize_data(None, folder, path, config=short, num_clips=4, seed=seed)
    texts = ["seed=1", "token_factors=1,max_corruption=0"]
    given = (short, stories, held, tmp_path / "work", texts, 4, str(folder))
    found = compare(*given)
    assert list(found) == [OWN, *texts]
    losses = {name: one["nats_a_token"] for name, one in found.items()}
    assert list(losses[OWN]) == list(TESTS) and "loss_own_context" in losses[OWN]["masks of one ratio"]
    assert all(losses[name] != losses[OWN] for name in texts)
    models = {name: load_model(one["model"]) for name, one in found.items()}
    assert models[texts[1]].generator.config.token_factors == 1
    assert read_info(Path(found["seed=1"]["model"])).training["generator_seed"] == 1

    rows = table(found).splitlines()
    assert len(rows) == 2 + len(found) and len({row.count("|") for row in rows}) == 1 and rows[3].startswith("| seed=1 | ")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("weights.safetensors"))]
    assert compare(*given) == found
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("weights.safetensors"))] == times, "nothing is trained again"


def test_what_no_training_has_is_refused_before_any(tmp_path):
    with pytest.raises(ValueError, match="needed NAME=VALUE"):
        compare(CONFIG, tmp_path, tmp_path, tmp_path / "work", ["guidance_scale=2"], 4)
    assert not (tmp_path / "work").exists()
