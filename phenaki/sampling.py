"""Filling ONE chunk: rounds of parallel decoding (MaskGIT, Chang et al. 2022, section 3.2).

Each round predicts all hidden tokens at once, keeps the ones it is surest of (or the next ones of a fixed order) and
hides the rest again. A token of a large codebook is chosen as a few factors, each given the ones before it, and a factor by
one uniform number: the value at which the sum of the probabilities exceeds it. Then, where asked for, it is corrected: tokens
that were chosen when little was known are chosen once more, a part of them at once (after the corrector steps of Campbell et
al. 2022, arXiv 2205.14987, section 4.4): all in turn, or those that a critic doubts most (Lezama et al. 2022, arXiv 2209.04439).
The functions take a callable that gives logits, so they can be tested with a fake model.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from phenaki.config import check_range
from phenaki.devices import sent
from phenaki.masking import halton_order, mask_schedule, num_hidden_after

ORDERS = ("confidence", "halton")
CORRECTION_ORDERS = ("halton", "critic")
CONTEXTS = ("tokens", "frames")
ARITHMETIC = 5  # raised whenever the same weights and noise come to other bits: what was begun before is not resumed
PIECE_VALUES = 2**17  # probabilities that a CPU computes at once: those of a whole chunk would be most of the memory of a round


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
        check_range(self, "num_steps", "num_corrections", "guidance_scale")
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


Head = Callable[[list[Tensor]], Tensor]  # factors chosen so far, (b n) each -> logits (b n factor_size) of the next one
Doubt = Callable[[Tensor], Tensor]  # tokens (b t h w) -> how much each is doubted (b t h w)


@dataclass(frozen=True)
class Round:
    """What is known of a round before any token is, so that the host need not ask a GPU for it."""

    step: int  # its number among all
    num_hidden: int  # tokens of a sample that are chosen
    num_kept: int  # of these, those that stay so
    part: Tensor | None = None  # of a correction: positions (n,) that are hidden again


@dataclass(frozen=True)
class PreparedRounds:
    """All that a chunk is filled with besides the model: tensors are on its device, and differ in their numbers alone between chunks of a kind.

    mask: (t h w), True = to be filled; ranks: (n,) of the positions in Halton order; noise: (rounds purposes b n), of a round the
    uniform numbers in [0, 1) of each factor, then, in the order "confidence", the Gumbel noise on it.
    """

    options: SamplingOptions
    rounds: tuple[Round, ...]
    mask: Tensor
    ranks: Tensor
    noise: Tensor


def prepare_rounds(mask: Tensor, options: SamplingOptions, keys: list[NoiseKey], num_factors: int, device: torch.device) -> PreparedRounds:
    """The rounds of a chunk for a model on a device. mask: (t h w); keys: the noise of each sample."""
    rounds = list(plan_rounds(mask.cpu(), options))
    purposes, count = [f"factor {index}" for index in range(num_factors)], mask.numel()
    noise = [uniform_noise(keys, one.step, purposes, count) for one in rounds]
    if options.order == "confidence":
        choice = (gumbel(uniform_noise(keys, one.step, ["choice"], count)) for one in rounds)
        noise = [torch.cat(both) for both in zip(noise, choice, strict=True)]
    drawn = torch.stack(noise) if noise else torch.empty(0, num_factors, len(keys), count)
    placed = tuple(one if one.part is None else replace(one, part=sent(one.part, device)) for one in rounds)
    return PreparedRounds(options, placed, sent(mask, device), sent(halton_order(*mask.shape), device), sent(drawn, device))


def sample_chunk(
    predict: Callable[[Tensor, Tensor, int], Head],
    tokens: Tensor,
    mask: Tensor,
    options: SamplingOptions,
    keys: list[NoiseKey],
    *,
    factor_size: int,
    num_factors: int = 1,
    critic: Doubt | None = None,
) -> Tensor:
    """Fills the hidden tokens of a chunk: `fill_chunk` in the rounds that the options ask for.

    mask: (t h w), True = to be filled, the same for the batch. keys: the noise of each sample.
    """
    if len(keys) != len(tokens):
        raise ValueError(f"{len(keys)} noise keys for a batch of {len(tokens)}: needed one each")
    prepared = prepare_rounds(mask, options, keys, num_factors, tokens.device)
    return fill_chunk(predict, tokens, prepared, factor_size=factor_size, num_factors=num_factors, critic=critic)


@torch.no_grad()
def fill_chunk(
    predict: Callable[[Tensor, Tensor, int], Head],
    tokens: Tensor,
    prepared: PreparedRounds,
    *,
    factor_size: int,
    num_factors: int = 1,
    critic: Doubt | None = None,
) -> Tensor:
    """Fills the hidden tokens of a chunk.

    predict(tokens, hidden, step): tokens (b t h w) with the mask token (factor_size^num_factors) where hidden; hidden (n,)
        indices of flattened positions -> a function: factors of the token chosen so far, (b n) each -> guided logits
        (b n factor_size) of the next one.
    tokens: (b t h w) int64, whatever stands where the mask is True.
    critic(tokens): filled chunks -> doubts (b t h w), for the correction order "critic".
    Returns (b t h w); positions that were not hidden are never touched. For a batch of one, or in Halton order, a GPU is asked for nothing.
    """
    options, mask, ranks = prepared.options, prepared.mask, prepared.ranks
    shape, mask_token_id = tokens.shape, factor_size**num_factors
    tokens = tokens.masked_fill(mask, mask_token_id).flatten(1)  # (b n)
    for one, noise in zip(prepared.rounds, prepared.noise, strict=True):
        order = options.order if one.part is None else options.correction_order
        if one.part is not None:
            again = one.part.expand(len(tokens), -1)
            if order == "critic":
                again = most_doubted(critic(tokens.view(shape)), mask, one.num_hidden)
            tokens = tokens.scatter(1, again, mask_token_id)
        still = tokens == mask_token_id
        hidden = hidden_positions(still, one.num_hidden, alike=len(tokens) == 1 or order == "halton")
        head = predict(tokens.view(shape), hidden, one.step)
        chosen, log_prob = choose_tokens(head, noise[:num_factors, :, hidden], options.temperature, factor_size)
        kept = still[:, hidden]  # not: known in this sample, hidden in another
        if one.num_kept < one.num_hidden:
            sureness = -ranks[hidden].float().expand_as(chosen)
            if order == "confidence":
                sureness = log_prob + options.choice_temperature * (1 - (one.step + 1) / options.num_steps) * noise[-1, :, hidden]
            kept = surest(sureness, kept, one.num_kept)
        tokens[:, hidden] = torch.where(kept, chosen, tokens[:, hidden])
    return tokens.view(shape)


def most_doubted(doubts: Tensor, mask: Tensor, count: int) -> Tensor:
    """Positions (b count) of the tokens that are doubted most, of those that are not given. doubts: (b t h w); mask: (t h w), True = not given."""
    return doubts.flatten(1).masked_fill(~mask.flatten(), -torch.inf).topk(count, dim=1).indices


def plan_rounds(mask: Tensor, options: SamplingOptions) -> Iterator[Round]:
    """All rounds of a chunk; mask (t h w), on the CPU. The last round that fills keeps all that it chooses, and so does every correction.

    Where fewer tokens are hidden than there are steps, each round keeps one; the rounds' step numbers are spread from 0 to the last (one round
    alone has the last), so that guidance and noise come to their final values.
    """
    schedule, total = mask_schedule(options.mask_schedule), int(mask.sum())
    hidden, count, last = total, min(options.num_steps, total), options.num_steps - 1
    for index in range(count):
        left = num_hidden_after(index, count, total, schedule)
        if hidden:
            yield Round(last - (count - 1 - index) * last // max(count - 1, 1), hidden, hidden - left)
        hidden = left
    for step, part in enumerate(correction_parts(mask, options.num_corrections), options.num_steps):
        yield Round(step, len(part), len(part), part)


def hidden_positions(still: Tensor, count: int, alike: bool) -> Tensor:
    """Positions hidden in any sample, (n,), rising. still: (b n), `count` a sample; alike: the same in all, found without waiting for a GPU."""
    if alike:
        return (~still[0]).to(torch.uint8).argsort(stable=True)[:count]
    return still.any(0).nonzero().squeeze(1)


def surest(sureness: Tensor, still: Tensor, count: int) -> Tensor:
    """Which `count` of each sample's tokens are kept, (b n); of tokens that are as sure, the first."""
    rank = sureness.masked_fill(~still, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count


def correction_parts(mask: Tensor, count: int) -> list[Tensor]:
    """The positions where mask (t h w) is True, in `count` parts of the chunk that are each spread all over it: indices (n,), none empty.

    In Halton order: those that it fills first come first.
    """
    if not count:
        return []
    parts = halton_order(*mask.shape).to(mask.device) * count // mask.numel()
    found = ((mask.flatten() & (parts == number)).nonzero().squeeze(1) for number in range(count))
    return [part for part in found if len(part)]


def uniform_noise(keys: list[NoiseKey], step: int, purposes: Sequence[str], num_positions: int) -> Tensor:
    """Numbers in [0, 1) of one round, (purposes b n): drawn for every position of the chunk, whichever are hidden."""
    drawn = [[torch.rand(num_positions, generator=key.stream(step, purpose)) for key in keys] for purpose in purposes]
    return torch.stack([torch.stack(one) for one in drawn])


def choose_tokens(head: Head, draws: Tensor, temperature: float, factor_size: int) -> tuple[Tensor, Tensor]:
    """Samples a token for each draw, factor by factor: draws (num_factors ...) in [0, 1) -> tokens (...) and their log-probability (...)."""
    factors: list[Tensor] = []
    token = log_prob = 0
    for index, drawn in enumerate(draws):
        factor, own = choose_values(head(factors), drawn, temperature)
        token, log_prob = token + factor * factor_size**index, log_prob + own
        factors.append(factor)
    return token, log_prob


def choose_values(logits: Tensor, draws: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Values of softmax(logits / temperature), in float32, for uniform draws: logits (... v), draws (...) -> values (...), log-probability (...)."""
    rows, shares, pieces = logits.flatten(0, -2), draws.flatten(), []
    at_once = max(len(rows) if logits.is_cuda else PIECE_VALUES // logits.shape[-1], 1)
    for some, drawn in zip(rows.split(at_once), shares.split(at_once), strict=True):
        probs = (some.float() / temperature).softmax(-1)
        if probs.is_cpu and probs[:, 0].isnan().any():  # with one a whole row has it; asking a GPU would hold it up
            raise ValueError("the model gives NaN for probabilities: its weights are damaged, or what it computes in is too narrow; try float32")
        values = inverse_cdf(probs, drawn)
        pieces.append((values, probs.gather(-1, values[:, None]).squeeze(-1).log()))
    values, log_probs = (torch.cat(found).view(draws.shape) for found in zip(*pieces, strict=True))
    return values, log_probs


def inverse_cdf(probs: Tensor, draws: Tensor) -> Tensor:
    """Values (n,) with just their probability: the first ones whose sum with all before it exceeds the draw. probs (n v), draws (n,) in [0, 1).

    Sums are of whole numbers of 2^-38, hence exact: the same in any order, on any device, and a value of probability 0 adds nothing,
    so that it is never the first. A draw is a whole number of 2^-24, as torch.rand makes them, below the whole sum even where that is not 1.
    """
    sums = (probs * 2.0**38).long().cumsum(-1)
    reached = (draws * 2.0**24).long().clamp(max=2**24 - 1)[:, None] * sums[:, -1:] >> 24
    return torch.searchsorted(sums, reached, right=True).squeeze(-1)
