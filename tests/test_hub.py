"""What is asked of the Hugging Face hub, and where what it gave is looked for; the hub is a fake."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from phenaki import encoder_folder
from phenaki.cache import user_cache
from phenaki.checkpoint import Model, ModelInfo, find_model, load_model
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT
from phenaki.pipeline import Phenaki
from phenaki.training.settings import load_settings

TINY = load_settings(Path(__file__).resolve().parents[1] / "configs/tiny.toml")
CODE = ["modeling.py", "pytorch_model.bin", "model.pt", "model.pkl", "flax_model.msgpack"]


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[tuple[str, dict]]:
    """Downloads as they are asked for; each gives a folder."""
    requests = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: requests.append((name, options)) or str(tmp_path))
    return requests


def taken(options: dict, names: list[str]) -> list[str]:
    """The files of a hub's folder that a request is for."""
    return list(filter_repo_objects(names, **options))


def test_a_model_comes_from_the_hub_without_pickles_and_code(asked, tmp_path):
    assert find_model("owner/name") == tmp_path
    ((name, options),) = asked
    model = ["config.json", "tokenizer.safetensors", "generator-1-0123456789ab.safetensors", "README.md"]
    assert name == "owner/name" and taken(options, [*model, *CODE]) == model


def test_a_text_encoder_comes_from_the_hub_without_pickles_code_and_subfolders(asked, tmp_path):
    assert encoder_folder.find_folder("owner/encoder") == encoder_folder.download("owner/encoder") == tmp_path
    assert asked[0] == asked[1] and asked[0][0] == "owner/encoder"
    encoder = ["config.json", "tokenizer.json", "model.safetensors.index.json", "vocab.txt", "spiece.model", "model.safetensors"]
    encoder += ["model-00001-of-00002.safetensors"]
    others = ["onnx/config.json", "onnx/model.safetensors", "consolidated.safetensors"]
    assert taken(asked[0][1], [*encoder, *CODE, *others]) == encoder


@pytest.mark.parametrize("private", [False, True])
def test_a_model_is_uploaded_whole(monkeypatch, private):
    torch.manual_seed(0)
    info = ModelInfo("tiny", TINY.tokenizer, TINY.generator, TINY.text, 8.0)
    model, done = Model(info, CViViT(TINY.tokenizer), MaskGIT(TINY.generator)), []

    class Hub:
        def __init__(self, token):
            done.append(("token", token))

        def create_repo(self, repo_id, **options):
            done.append(("create", repo_id, options))

        def upload_folder(self, *, repo_id, folder_path):
            done.append(("upload", repo_id, load_model(folder_path), Path(folder_path)))
            return "https://hub/owner/name"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    phenaki = Phenaki(model, None, torch.device("cpu"), torch.float32)
    assert phenaki.push_to_hub("owner/name", private=private, token="secret") == "https://hub/owner/name"
    *before, (kind, repo, loaded, folder) = done
    assert before == [("token", "secret"), ("create", "owner/name", {"private": private, "exist_ok": True})]
    assert (kind, repo) == ("upload", "owner/name") and not folder.exists(), "it lay there for the upload alone"
    for part in ("tokenizer", "generator"):
        sent, own = getattr(loaded, part).state_dict(), getattr(model, part).state_dict()
        assert sent.keys() == own.keys() and all(torch.equal(sent[name], own[name]) for name in own), part


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"PHENAKI_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"PHENAKI_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/phenaki"),
        ({"XDG_CACHE_HOME": ""}, "/home/somebody/.cache/phenaki"),
        ({}, "/home/somebody/.cache/phenaki"),
    ],
)
def test_what_can_be_had_again_lies_in_the_users_cache(monkeypatch, given, told):
    for name in ("PHENAKI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/somebody"} | given).items():
        monkeypatch.setenv(name, value)
    assert user_cache() == Path(told)
