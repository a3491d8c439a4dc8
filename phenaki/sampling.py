"""Filling ONE chunk: rounds of parallel decoding (MaskGIT, Chang et al. 2022, section 3.2).

Each round predicts all hidden tokens at once, keeps the ones it is surest of (or the next ones of a fixed order) and
hides the rest again. A token of a large codebook is chosen as a few factors, each given the ones before it. Then, where
asked for, it is corrected: tokens that were chosen when little was known are chosen once more, a part of them at once (after the
corrector steps of Campbell et al. 2022, arXiv 2205.14987, section 4.4): all in turn, or those that a critic doubts most
(Lezama et al. 2022, arXiv 2209.04439).
The functions take a callable that gives logits, so they can be tested with a fake model.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from phenaki.config import check_range
from phenaki.masking import halton_order, mask_schedule, num_hidden_after

ORDERS = ("confidence", "halton")
CORRECTION_ORDERS = ("halton", "critic")
CONTEXTS = ("tokens", "frames")
ARITHMETIC = 2  # raised whenever the same weights and noise come to other bits: what was begun before is not gone on with
PIECE_VALUES = 2**17  # noise that is drawn at once: a whole chunk's, and its probabilities, would be most of the memory of a round


@dataclass(frozen=True)
class SamplingOptions:
    """How a chunk is sampled."""

    num_steps: int = 12  # rounds a chunk
    num_corrections: int = 0  # rounds after these, each of which chooses such a share of the tokens once more, all others known
    correction_order: str = "halton"  # of which tokens: each once, in that order, or "critic": in each round those it doubts most
    guidance_scale: float = 3.0  # uncond + scale * (cond - uncond); 1 = off
    guidance_ramp: bool = True  # the scale rises linearly from 1 to its value over the rounds
    temperature: float = 1.0  # of the token distribution
    choice_temperature: float = 4.0  # of the noise on confidence, falling to 0 over the rounds
    mask_schedule: str = "cosine"
    order: str = "confidence"  # which tokens are kept: "confidence" or "halton"
    context: str = "tokens"  # of a story's chunk: the last slices as they were made, or "frames": their frames, decoded and encoded anew

    def __post_init__(self):
        if not 1 <= self.num_steps <= 256:
            raise ValueError(f"num_steps {self.num_steps}: needed 1 to 256 rounds")
        if self.num_corrections == 1 or not 0 <= self.num_corrections <= 256:
            raise ValueError(f"num_corrections {self.num_corrections}: needed 0 (none), or 2 to 256 rounds; one would choose all anew at once")
        if not 1 <= self.guidance_scale <= 100:
            raise ValueError(f"guidance_scale {self.guidance_scale}: needed 1 (off) to 100")
        check_range(self, "temperature", above=0, at_most=100)
        check_range(self, "choice_temperature", at_least=0, at_most=1000)
        for name, allowed in (("order", ORDERS), ("correction_order", CORRECTION_ORDERS), ("context", CONTEXTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        mask_schedule(self.mask_schedule)


@dataclass(frozen=True)
class NoiseKey:
    """Names the noise of a chunk. Noise depends on this, the round and the position alone: not on batch, order or device."""

    seed: int
    scene: int
    chunk: int

    def stream(self, step: int, purpose: str) -> torch.Generator:
        """The random stream of one round for one purpose (on the CPU, whatever the model's device)."""
        digest = hashlib.sha256(f"phenaki {self.seed} {self.scene} {self.chunk} {step} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(u)) in place of the uniform numbers in [0, 1) that it is made from."""
    return uniform.clamp_(1e-20, 1 - 1e-7).log_().neg_().log_().neg_()


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits, or on what they are linear in (Ho & Salimans 2022, arXiv 2207.12598): uncond + scale * (cond - uncond)."""
    return uncond + scale * (cond - uncond)


def guidance_at(step: int, options: SamplingOptions) -> float:
    """The scale in a round: with a ramp it rises linearly from 1 in the first round to guidance_scale in the last (Muse, section 2.7)."""
    if not options.guidance_ramp or options.num_steps == 1:
        return options.guidance_scale
    return 1 + (options.guidance_scale - 1) * min(step / (options.num_steps - 1), 1)


Head = Callable[[list[Tensor]], Tensor]
Critic = Callable[[Tensor], Tensor]


@torch.no_grad()
def sample_chunk(
    predict: Callable[[Tensor, Tensor, int], Head],
    tokens: Tensor,
    mask: Tensor,
    options: SamplingOptions,
    keys: list[NoiseKey],
    *,
    factor_size: int,
    num_factors: int = 1,
    critic: Critic | None = None,
) -> Tensor:
    """Fills the hidden tokens of a chunk.

    predict(tokens, hidden, step): tokens (b t h w) with the mask token (factor_size^num_factors) where hidden; hidden (n,)
        indices of flattened positions -> a function: factors of the token chosen so far, (b n) each -> guided logits
        (b n factor_size) of the next one.
    tokens: (b t h w) int64, whatever stands where mask is True; mask: (t h w), True = to be filled, the same for the batch.
    keys: the noise of each sample. critic(tokens): filled chunks -> doubts (b t h w), for the correction order "critic".
    Returns (b t h w); positions that were not hidden are never touched.
    """
    if len(keys) != len(tokens):
        raise ValueError(f"{len(keys)} noise keys for a batch of {len(tokens)}: needed one each")
    shape, mask_token_id = tokens.shape, factor_size**num_factors
    tokens = torch.where(mask, mask_token_id, tokens).flatten(1)  # (b n)
    num_to_fill = int(mask.sum())
    schedule = mask_schedule(options.mask_schedule)
    order = halton_order(*shape[1:]).to(tokens.device) if options.order == "halton" else None
    for step in range(options.num_steps):
        still = tokens == mask_token_id
        hidden = still.any(0).nonzero().squeeze(1)
        if not len(hidden):
            break
        noise = Noise(keys, step, shape[1:].numel(), hidden)
        head = predict(tokens.view(shape), hidden, step)
        chosen, log_prob = choose_tokens(head, noise, options.temperature, factor_size, num_factors)
        if order is None:
            cooled = options.choice_temperature * (1 - (step + 1) / options.num_steps)
            sureness = log_prob + cooled * noise.of_choice()
        else:
            sureness = -order[hidden].float().expand_as(chosen)
        sureness = sureness.masked_fill(~still[:, hidden], -torch.inf)  # known in this sample: not to be chosen again
        keep = still[:, hidden].sum(1) - num_hidden_after(step, options.num_steps, num_to_fill, schedule)
        rank = sureness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        tokens[:, hidden] = torch.where(rank < keep[:, None], chosen, tokens[:, hidden])
    for step, part in enumerate(correction_parts(mask, options.num_corrections), options.num_steps):
        again = torch.zeros_like(tokens, dtype=torch.bool)
        if options.correction_order == "critic":
            doubts = critic(tokens.view(shape)).flatten(1).masked_fill(~mask.flatten(), -torch.inf)
            again.scatter_(1, doubts.topk(len(part), dim=1).indices, True)
        else:
            again[:, part] = True
        tokens[again] = mask_token_id
        hidden = again.any(0).nonzero().squeeze(1)
        head = predict(tokens.view(shape), hidden, step)
        noise = Noise(keys, step, shape[1:].numel(), hidden)
        chosen, _ = choose_tokens(head, noise, options.temperature, factor_size, num_factors)
        tokens[:, hidden] = torch.where(again[:, hidden], chosen, tokens[:, hidden])
    return tokens.view(shape)


def correction_parts(mask: Tensor, count: int) -> list[Tensor]:
    """The positions where mask (t h w) is True, in `count` parts of the chunk that are each spread all over it: indices (n,), none empty.

    In Halton order: those that it fills first come first.
    """
    if not count:
        return []
    parts = halton_order(*mask.shape).to(mask.device) * count // mask.numel()
    found = ((mask.flatten() & (parts == number)).nonzero().squeeze(1) for number in range(count))
    return [part for part in found if len(part)]


def choose_tokens(head: Head, noise: "Noise", temperature: float, factor_size: int, num_factors: int) -> tuple[Tensor, Tensor]:
    """Samples a token for each hidden position, factor by factor: tokens (b n) and their log-probability (b n)."""
    factors: list[Tensor] = []
    token = log_prob = 0
    for index in range(num_factors):
        logits = head(factors).float()
        factor, own = torch.empty(logits.shape[:-1], dtype=torch.long, device=logits.device), torch.empty_like(logits[..., 0])
        for rows, drawn in noise.of_tokens(index, factor_size):
            piece = logits[:, rows] / temperature
            factor[:, rows] = drawn.add_(piece).argmax(-1)  # Gumbel-max sampling
            own[:, rows] = piece.log_softmax(-1).gather(-1, factor[:, rows, None]).squeeze(-1)
        log_prob = log_prob + own
        token = token + factor * factor_size**index
        factors.append(factor)
    return token, log_prob


class Noise:
    """Gumbel noise of one round: drawn for every position of the chunk, taken where tokens are hidden; hidden (n,), rising."""

    def __init__(self, keys: list[NoiseKey], step: int, num_positions: int, hidden: Tensor):
        self.keys, self.step, self.num_positions, self.hidden = keys, step, num_positions, hidden

    def of_choice(self) -> Tensor:
        """(b n), for confidence."""
        pieces = [piece for _, piece in self._pieces("choice", ())]
        return torch.cat(pieces, dim=1) if pieces else torch.empty(len(self.keys), 0, device=self.hidden.device)

    def of_tokens(self, factor: int, factor_size: int) -> Iterator[tuple[slice, Tensor]]:
        """For a factor of the tokens, piece by piece: rows of the hidden positions, their noise (b rows factor_size)."""
        return self._pieces(f"factor {factor}", (factor_size,))

    def _pieces(self, purpose: str, shape: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
        """Noise of `shape` as torch.rand((num_positions, *shape))[hidden] makes it, to the bit, some positions at a time."""
        streams, hidden = [key.stream(self.step, purpose) for key in self.keys], self.hidden.cpu()
        at_once = max(PIECE_VALUES // math.prod(shape), 1)
        for start in range(0, self.num_positions, at_once):
            count = min(at_once, self.num_positions - start)
            drawn = [torch.rand(count, *shape, generator=stream) for stream in streams]
            first, last = torch.searchsorted(hidden, torch.tensor([start, start + count])).tolist()
            if first < last:
                yield slice(first, last), gumbel(torch.stack([one[hidden[first:last] - start] for one in drawn])).to(self.hidden.device)
