"""A model folder: config.json and safetensors, found by name, folder or hub id.

config.json holds the settings of both networks, the text encoder's, the default sampling and the SHA-256 of every weight
file. Weights are kept in the precision they were saved in and read as float32. A folder may hold a tokenizer alone.
Nothing is ever unpickled.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from phenaki.atomic import sha256, write_bytes, write_text
from phenaki.config import ConfigError, build, check_range, read_settings
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.outline import outline
from phenaki.retiming import MIN_FPS
from phenaki.sampling import SamplingOptions
from phenaki.text import TextConfig
from phenaki.vocabulary import MAX_WORDS

FORMAT_VERSION = 1
PRETRAINED = Path(__file__).parent / "pretrained"  # models that ship with the package, a folder each
DEFAULT_MODEL = "storybook"
MAX_SHARD_BYTES = 15 * 2**20  # of one weight file
WEIGHT_FILE = re.compile(r"(tokenizer|generator)(-\d+)?(-[0-9a-f]{12})?\.safetensors")  # what `save_weights` names one: network, shard, hash
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64", "I32", "I64")  # as safetensors names them; whole numbers are those of counters
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class ModelInfo:
    """config.json: what a model is, without its weights."""

    name: str
    tokenizer: CViViTConfig
    generator: MaskGITConfig | None
    text: TextConfig
    fps: float
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    text_encoder: str = ""  # fingerprint of the text encoder the generator was trained with
    training: dict[str, Any] = field(default_factory=dict)  # what is known of it: steps, world, ...
    files: dict[str, str] = field(default_factory=dict)  # weight file -> SHA-256
    words: tuple[str, ...] = ()  # of the captions that its generator was trained on; none where that is not known

    def __post_init__(self):
        if not self.name.isprintable():
            raise ValueError(f"name = {self.name!a}: needed characters that can be printed")
        check_range(self, "fps", at_least=MIN_FPS, below=1000)
        if len(self.words) > MAX_WORDS or not all(isinstance(word, str) and word.isalpha() for word in self.words):
            raise ValueError(f"words: needed a list of at most {MAX_WORDS} words")

    @property
    def provenance(self) -> dict[str, Any]:
        """Identifies the model in a file of results: its name, what is known of its training, its weights' hashes."""
        return {"name": self.name, "training": self.training, "files": self.files}


@dataclass
class Model:
    """A loaded model folder."""

    info: ModelInfo
    tokenizer: CViViT
    generator: MaskGIT | None


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.name for path in PRETRAINED.iterdir() if path.is_dir()) if PRETRAINED.is_dir() else []


def find_model(name: str | Path) -> Path:
    """A shipped model's name, a folder, or a hub id ("owner/name") -> the folder. CheckpointError where there is none."""
    shipped = shipped_models()
    if str(name) in shipped:
        return PRETRAINED / str(name)
    if Path(name).is_dir():
        return Path(name)
    if str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        return _download(str(name), shipped)
    raise CheckpointError(f"model {str(name)!r}: no such folder, and not a shipped model ({', '.join(shipped) or 'none'}) or a hub id (owner/name)")


def _download(hub_id: str, shipped: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["config.json", "*.safetensors", "README.md"]))
    except Exception as error:  # the hub client has a type for each way to fail
        raise CheckpointError(
            f"model {hub_id!r}: not a folder here, and the hub did not give it ({type(error).__name__}). "
            f"Offline? Give a folder or a shipped model: {', '.join(shipped)}"
        ) from error


def read_info(folder: Path) -> ModelInfo:
    """Reads config.json alone."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a model folder, config.json is missing. `phenaki train` writes one to RUN/model")
    try:
        values = read_settings(path)
        version = values.pop("format", None)
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format {version!r}; this version of phenaki reads {FORMAT_VERSION}: install a newer one")
        return build(ModelInfo, values, str(path))
    except ConfigError as error:  # names the file
        raise CheckpointError(str(error)) from error


def load_model(name: str | Path, device: str | torch.device = "cpu") -> Model:
    """Loads both networks in eval mode. Every file is checked against its hash before a tensor is used.

    The memory that is taken is that of the weights that are there, whatever sizes config.json states.
    """
    folder = find_model(name)
    info = read_info(folder)
    _check_files(folder, info)
    tokenizer = _load_network(lambda: CViViT(info.tokenizer), folder, info, "tokenizer")
    generator = None
    if info.generator is not None:
        if info.generator.codebook_size != tokenizer.codebook_size:
            sizes = f"{info.generator.codebook_size} tokens, its tokenizer {tokenizer.codebook_size}"
            raise CheckpointError(f"{folder}/config.json: the generator knows {sizes}: they are not of one model")
        generator = _load_network(lambda: MaskGIT(info.generator), folder, info, "generator").to(device)
    return Model(info, tokenizer.to(device), generator)


def _check_files(folder: Path, info: ModelInfo) -> None:
    if not info.files:
        raise CheckpointError(f"{folder}/config.json: lists no weight files")
    for name, expected in info.files.items():
        path = folder / name
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder}/config.json: weight file {name!r}: needed a plain name ending in .safetensors; pickles are never read")
        if not path.is_file():
            found = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
            pickles = f" (found {', '.join(found)}: pickled weights are refused, they can run code)" if found else ""
            raise CheckpointError(f"{path}: missing{pickles}. Copy the whole folder again")
        if sha256(path) != expected:
            raise CheckpointError(f"{path}: damaged or changed, its SHA-256 is not the one in config.json. Copy the folder again")


def _load_network(build: Callable[[], nn.Module], folder: Path, info: ModelInfo, part: str) -> nn.Module:
    """The network that `build` makes, in eval mode. It takes memory once its names and shapes are known to be those of the files."""
    names = [name for name in info.files if part_of(name) == part]
    network = outline_part(build, f"{folder}/config.json", part)
    needed, weights = network.state_dict(), {}
    _check_shapes(folder, part, {key: value.shape for key, value in needed.items()}, _stored_shapes(folder, names))
    for name in names:
        with _opened(folder / name) as file:
            if odd := next((f"{key} is {kind}" for key in file.keys() if (kind := file.get_slice(key).get_dtype()) not in WEIGHT_DTYPES), None):
                raise CheckpointError(f"{folder / name}: {odd}; weights are {', '.join(WEIGHT_DTYPES)}. Save the model anew")
            read = {key: file.get_tensor(key).to(needed[key].dtype, copy=True) for key in file.keys()}
        if wrong := first_not_finite(read):
            raise CheckpointError(f"{folder / name}: {wrong} holds NaN or infinite numbers, nothing comes of it. Copy or train the model anew")
        weights |= read
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def outline_part(build: Callable[[], nn.Module], config: str, part: str) -> nn.Module:
    """The network that `build` makes, without memory for its weights; CheckpointError, which names `config`, where there can be none of its sizes."""
    try:
        return outline(build)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{config}: there can be no {part} of these sizes ({error})") from error


def first_not_finite(weights: dict[str, Tensor]) -> str:
    """The name of the first tensor that holds a NaN or an infinite number, "" where none does."""
    numbers = ((name, value) for name, value in weights.items() if value.is_floating_point() and value.numel())
    return next((name for name, value in numbers if not torch.stack(value.aminmax()).isfinite().all()), "")


def _check_shapes(folder: Path, part: str, needed: dict[str, torch.Size], stored: dict[str, torch.Size]) -> None:
    wrong = [key for key in needed if key in stored and stored[key] != needed[key]]
    missing, surplus = set(needed) - set(stored), set(stored) - set(needed)
    if wrong or missing or surplus:
        first = sorted([*wrong, *missing, *surplus])[0]
        counts = f"{len(missing)} tensors missing, {len(surplus)} unknown, {len(wrong)} of another shape"
        raise CheckpointError(f"{folder}: the {part}'s weights are not those of its config.json: {counts} (first: {first})")


def _stored_shapes(folder: Path, names: Iterable[str]) -> dict[str, torch.Size]:
    """The shapes of all tensors of some weight files, read without the tensors."""
    shapes: dict[str, torch.Size] = {}
    for name in names:
        with _opened(folder / name) as file:
            shapes |= {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}
    return shapes


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); pickles are never read") from error


def save_model(folder: str | Path, info: ModelInfo, tokenizer: CViViT, generator: MaskGIT | None, dtype: torch.dtype = torch.float32) -> None:
    """Writes a model folder. Broken off at any moment, a folder that held a model holds the old one or the new one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = save_weights(folder, "tokenizer", tokenizer.state_dict(), dtype)
    if generator is not None:
        files |= save_weights(folder, "generator", generator.state_dict(), dtype)
    save_info(folder, replace(info, files=files))


def save_weights(folder: Path, part: str, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Writes the weights of a network as part.safetensors, or as shards part-1.safetensors, ...; returns their hashes by name.

    No file that the folder's config.json lists gets other contents: where a name is taken, the new file has its hash in it.
    """
    files, listed = {}, {name: digest for name, digest in _listed(folder).items() if part_of(name) == part}
    names = {digest: name for name, digest in listed.items()}
    shards = list(_shards(state, dtype))
    for number, shard in enumerate(shards, 1):
        stem = part if len(shards) == 1 else f"{part}-{number}"
        data = save(shard)  # `save_file` makes files that their owner alone can read
        digest = hashlib.sha256(data).hexdigest()
        taken = f"{stem}.safetensors" in listed
        name = names.get(digest) or (f"{stem}-{digest[:12]}.safetensors" if taken else f"{stem}.safetensors")
        write_bytes(folder / name, data)
        files[name] = digest
    return files


def save_info(folder: Path, info: ModelInfo) -> None:
    """Writes config.json, whole or not at all; then removes older weights of its networks, as far as they have names of `save_weights`."""
    write_text(folder / "config.json", json.dumps({"format": FORMAT_VERSION, **asdict(info)}, indent=2) + "\n")
    parts = set(map(part_of, info.files))
    for path in folder.glob("*.safetensors"):
        if path.name not in info.files and part_of(path.name) in parts and WEIGHT_FILE.fullmatch(path.name):
            path.unlink()


def part_of(name: str) -> str:
    """The network that a weight file is of: part.safetensors, part-1.safetensors, ... -> part."""
    return name.split(".")[0].split("-")[0]


def _listed(folder: Path) -> dict[str, str]:
    """The weight files of the config.json that stands in a folder, name -> SHA-256; {} where none can be read. Plain names alone."""
    try:
        files = read_info(folder).files
    except (CheckpointError, OSError):
        return {}
    plain = lambda name, digest: Path(name).name == name and name.endswith(".safetensors") and isinstance(digest, str)
    return {name: digest for name, digest in files.items() if plain(name, digest)}


def _shards(state: dict[str, Tensor], dtype: torch.dtype) -> Iterable[dict[str, Tensor]]:
    """Tensors on the CPU in `dtype`, in groups of at most MAX_SHARD_BYTES (a single larger tensor is a group of its own)."""
    shard, size = {}, 0
    for key, value in state.items():
        value = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        if shard and size + value.nbytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[key] = value
        size += value.nbytes
    yield shard


def weights_hash(info: ModelInfo, networks: Iterable[nn.Module]) -> str:
    """SHA-256 of a model's weights and its networks' settings: of its files' hashes, or of the tensors themselves where it was never saved."""
    files = "".join(f"{name} {value}\n" for name, value in sorted(info.files.items())) or state_sha256(networks)
    settings = json.dumps([asdict(info.tokenizer), info.generator and asdict(info.generator)])
    return hashlib.sha256((files + settings).encode()).hexdigest()


def state_sha256(networks: Iterable[nn.Module], without: tuple[str, ...] = ()) -> str:
    """The hash of the tensors of networks, names and bytes, as hexadecimal digits; without those whose names begin so."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            if name.startswith(without):
                continue
            digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
