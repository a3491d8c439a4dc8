"""tools/measure_hour.py: its figures say of which weights, pictures and sampling they are."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from phenaki.sampling import SamplingOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import measure_hour

CONFIG = Path(__file__).resolve().parents[1] / "configs/tiny.toml"


def test_an_hour_is_of_known_weights_and_sampling(monkeypatch, tmp_path):
    phenaki = measure_hour.random_model(CONFIG)
    phenaki.info = replace(phenaki.info, files={"tokenizer.safetensors": "0" * 64}, sampling=SamplingOptions(num_steps=7, temperature=0.3))
    told = measure_hour.measured_model(phenaki, 2)
    assert told["model"] == {"name": "random tiny", "training": {}, "files": {"tokenizer.safetensors": "0" * 64}}
    assert told["size"] == phenaki.info.tokenizer.image_size and told["dtype"] == str(torch.float32).split(".")[1]

    used = {}
    monkeypatch.setattr(measure_hour, "generate_to_file", lambda *given, **options: used.update(options) or type("Written", (), {"num_frames": 1}))
    monkeypatch.setattr(measure_hour, "VideoWriter", type("VideoWriter", (), {"write": None, "_finish": None}))
    measure_hour.make(phenaki, measure_hour.story_of(3, 4), tmp_path / "a.mp4", 2, measure_hour.Sampler())
    assert {name: told["sampling"][name] for name in ("num_steps", "guidance_scale", "temperature")} == {
        "num_steps": used["num_steps"], "guidance_scale": used["guidance_scale"], "temperature": 0.3,
    }  # fmt: skip
