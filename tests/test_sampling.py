"""Rounds of parallel decoding, with fake models whose answers are known."""

import math
from itertools import pairwise

import pytest
import torch

from phenaki import sampling
from phenaki.masking import MASK_SCHEDULES, halton_order, num_hidden_after
from phenaki.sampling import (
    NoiseKey,
    SamplingOptions,
    choose_tokens,
    choose_values,
    guidance_at,
    guided,
    gumbel,
    inverse_cdf,
    plan_rounds,
    sample_chunk,
    uniform_noise,
)

V = 7  # values of a token
SHAPE = (3, 4, 4)
N = math.prod(SHAPE)
KEY = NoiseKey(seed=1, scene=2, chunk=3)
ALL_HIDDEN = torch.ones(SHAPE, dtype=torch.bool)


def fixed_model(logits):
    """Answers with logits (n v), whatever it is shown."""
    return lambda tokens, hidden, step: lambda factors: logits[hidden].expand(len(tokens), -1, -1)


def looking_model(tokens, hidden, step):
    """Logits depend on all tokens of the same sample, the position and the round."""
    weights = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    seen = (tokens.flatten(1).float() @ weights)[:, hidden, None]
    return lambda factors: torch.sin(seen * torch.arange(1, V + 1) + step) * 3


def random_logits(sharpness=2.0, values=V):
    return torch.randn(N, values, generator=torch.Generator().manual_seed(9)) * sharpness


def sample(predict, options, tokens=None, mask=ALL_HIDDEN, keys=(KEY,), **sizes):
    tokens = torch.zeros(len(keys), *mask.shape, dtype=torch.long) if tokens is None else tokens
    return sample_chunk(predict, tokens, mask, options, list(keys), **{"factor_size": V, **sizes})


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("num_steps", [1, 4, 100])
def test_known_tokens_stay_and_hidden_ones_are_filled(order, num_steps):
    tokens = torch.randint(V, (2, *SHAPE), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    original, calls = tokens.clone(), []

    def teacher(shown, hidden, step):  # the truth is the known token's neighbour in value
        calls.append(step)
        assert torch.equal(shown[:, ~mask], original[:, ~mask])
        return lambda factors: 100.0 * torch.nn.functional.one_hot((original.flatten(1)[:, hidden] + 1) % V, V)

    filled = sample(teacher, SamplingOptions(num_steps=num_steps, order=order), tokens, mask, [KEY, NoiseKey(9, 9, 9)])
    assert torch.equal(filled, torch.where(mask, (original + 1) % V, original))
    assert torch.equal(tokens, original)  # the caller's tensor is not written to
    assert len(calls) == min(num_steps, int(mask.sum())) and calls == sorted(set(calls)) and calls[-1] == num_steps - 1


def test_nothing_hidden_asks_nothing():
    def unasked(tokens, hidden, step):
        raise AssertionError("the model was asked")

    tokens = torch.randint(V, (1, *SHAPE))
    assert torch.equal(sample(unasked, SamplingOptions(), tokens, torch.zeros(SHAPE, dtype=torch.bool)), tokens)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_each_round_reveals_what_the_schedule_says(schedule, order):
    hidden_before, options = [], SamplingOptions(num_steps=6, mask_schedule=schedule, order=order)
    mask = ALL_HIDDEN.clone()
    mask[0, 0] = False

    def counting(tokens, hidden, step):
        hidden_before.append([(one == V).sum().item() for one in tokens])
        return looking_model(tokens, hidden, step)

    sample(counting, options, mask=mask, keys=[NoiseKey(seed, 0, 0) for seed in range(3)])
    counts = [num_hidden_after(step, 6, int(mask.sum()), MASK_SCHEDULES[schedule]) for step in range(5)]
    assert hidden_before == [[count] * 3 for count in [int(mask.sum()), *counts]]


def test_revealed_tokens_are_never_changed_again():
    shown = []

    def watching(tokens, hidden, step):
        shown.append(tokens.clone())
        return looking_model(tokens, hidden, step)

    shown.append(sample(watching, SamplingOptions(num_steps=8), keys=[NoiseKey(seed, 0, 0) for seed in range(3)]))
    assert len(shown) == 9
    for earlier, later in pairwise(shown):
        known = earlier != V
        assert torch.equal(later[known], earlier[known])


def test_low_temperature_takes_the_likeliest():
    logits = random_logits()
    filled = sample(fixed_model(logits), SamplingOptions(temperature=1e-4))
    assert torch.equal(filled.flatten(), logits.argmax(-1))
    assert not torch.equal(sample(fixed_model(logits), SamplingOptions(temperature=1.0)).flatten(), logits.argmax(-1))


def test_tokens_are_drawn_from_the_softmax():
    logits, shape = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5]), (4, 32, 32)
    predict = lambda tokens, hidden, step: lambda factors: logits.expand(len(tokens), len(hidden), 5)
    for temperature in (1.0, 0.5):
        options = SamplingOptions(num_steps=1, temperature=temperature)
        filled = sample(predict, options, mask=torch.ones(shape, dtype=torch.bool), factor_size=5)
        shares = filled.flatten().bincount(minlength=5) / filled.numel()
        torch.testing.assert_close(shares, (logits / temperature).softmax(0), atol=0.025, rtol=0)


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_a_sample_is_the_same_alone_and_in_a_batch(order):
    options, keys = SamplingOptions(num_steps=6, order=order), [NoiseKey(5, 0, 0), KEY, NoiseKey(5, 1, 0)]
    together = sample(looking_model, options, keys=keys)
    for index, key in enumerate(keys):
        assert torch.equal(sample(looking_model, options, keys=[key])[0], together[index])
    assert torch.equal(sample(looking_model, options, keys=keys[::-1]), together.flip(0))
    assert torch.equal(sample(looking_model, options, keys=keys), together)
    assert not torch.equal(together[0], together[1]) and not torch.equal(together[0], together[2])


def test_noise_is_keyed_by_seed_scene_chunk_round_purpose_and_position():
    def noise(key=KEY, step=0, purpose="factor 0", num_positions=N):
        return uniform_noise([key], step, [purpose], num_positions)[0, 0]

    whole = noise()
    assert whole.shape == (N,) and whole.min() >= 0 and whole.max() < 1
    assert torch.equal(noise(), whole), "drawn anew, the same"
    assert torch.equal(noise(num_positions=16), whole[:16]), "a chunk of fewer slices"
    keys = [NoiseKey(2, 2, 3), NoiseKey(1, 3, 3), NoiseKey(1, 2, 4), NoiseKey(12, 3, 4), NoiseKey(1, 23, 4)]  # 1 23 is not 12 3
    drawn = [whole, noise(step=1), noise(purpose="factor 1"), noise(purpose="choice"), *map(noise, keys)]
    assert all(not torch.isclose(one, other).all() for index, one in enumerate(drawn) for other in drawn[:index])
    together = uniform_noise([keys[0], KEY], 0, ["choice", "factor 0"], N)
    assert together.shape == (2, 2, N) and torch.equal(together[1, 1], whole) and torch.equal(together[0, 0], noise(keys[0], purpose="choice"))


def test_a_shorter_chunk_has_the_tokens_of_the_longer_one():
    logits, options = random_logits(), SamplingOptions(num_steps=1)
    short = sample(fixed_model(logits), options, mask=ALL_HIDDEN[:2])
    assert torch.equal(short, sample(fixed_model(logits), options)[:, :2])


def test_gumbel_noise_has_its_mean_and_spread():
    noise = gumbel(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


def test_over_many_seeds_a_position_has_the_values_of_its_softmax():
    logits, num_seeds = random_logits(sharpness=1.5), 4000
    draws = uniform_noise([NoiseKey(seed, 0, 0) for seed in range(num_seeds)], 0, ["factor 0"], N)[0]
    values, log_probs = choose_values(logits.expand(num_seeds, -1, -1), draws, 0.8)
    wanted = (logits / 0.8).softmax(-1)
    shares = torch.nn.functional.one_hot(values, V).float().mean(0)
    assert ((shares - wanted).abs() < 5 * (wanted * (1 - wanted) / num_seeds).sqrt() + 1e-3).all()
    torch.testing.assert_close(log_probs, wanted.log().expand(num_seeds, -1, -1).gather(-1, values[..., None]).squeeze(-1))


@pytest.mark.parametrize("values", [1, 7, 8192])
def test_a_value_has_just_the_draws_that_its_probability_says(values):
    probs = torch.randn(values, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    draws = torch.arange(2**12) / 2**12  # even steps: each value is hit as often as it is likely, but for one at each of its ends
    found = inverse_cdf(probs.expand(len(draws), -1), draws)
    assert (found.diff() >= 0).all()
    assert (found.bincount(minlength=values) / len(draws) - probs).abs().max() < 1.01 / len(draws)


def test_a_value_of_probability_0_is_never_chosen():
    possible = torch.tensor([2, 3, 6])
    ends = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24, 1.0])  # the least and the greatest draw, and one that torch.rand never makes
    draws = torch.cat([ends, torch.rand(20_000, generator=torch.Generator().manual_seed(0))])
    for sharpness in (0.0, 1.0, 30.0):  # sums of which some are below 1 and some above
        logits = torch.full((len(draws), 9), -torch.inf)
        logits[:, possible] = torch.randn(len(draws), 3, generator=torch.Generator().manual_seed(1)) * sharpness
        found, log_prob = choose_values(logits, draws, 1.0)
        assert torch.isin(found, possible).all() and log_prob.isfinite().all()
    likely = torch.zeros(3, 4).scatter(1, torch.tensor([[0], [2], [3]]), 0.9)  # sums that fall short of 1
    assert inverse_cdf(likely, torch.tensor([0.0, 0.95, 1 - 2**-24])).tolist() == [0, 2, 3]


@pytest.mark.parametrize("piece", [1, 5 * 8, 64 * 8, 2**17])
def test_what_is_chosen_depends_neither_on_the_pieces_nor_on_the_batch(piece, monkeypatch):
    logits = torch.randn(3, 200, 8, generator=torch.Generator().manual_seed(3)) * 2
    draws = uniform_noise([KEY, NoiseKey(4, 5, 6), NoiseKey(7, 8, 9)], 2, ["factor 1"], 200)[0]
    whole = choose_values(logits, draws, 0.9)
    monkeypatch.setattr(sampling, "PIECE_VALUES", piece)
    for found, wanted in zip(choose_values(logits, draws, 0.9), whole, strict=True):
        assert torch.equal(found, wanted)
    for place in (torch.tensor([0, 3, 63, 64, 199]), torch.tensor([150]), torch.tensor([], dtype=torch.long)):
        for found, wanted in zip(choose_values(logits[1:2, place], draws[1:2, place], 0.9), whole, strict=True):
            assert torch.equal(found, wanted[1:2, place])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_told(bad):
    logits = random_logits()
    logits[N // 2, V - 1] = bad
    with pytest.raises(ValueError, match=r"the model gives NaN for probabilities: its weights are damaged, or .*; try float32"):
        sample(fixed_model(logits), SamplingOptions(num_steps=2))


def test_two_factors_are_one_joint_choice():
    second_of = torch.tensor([3, 0, 5, 1, 2, 6, 4])  # the second factor that goes with each first one; all else is impossible
    logits = random_logits()

    def predict(tokens, hidden, step):
        def head(factors):
            if not factors:
                return logits[hidden].expand(len(tokens), -1, -1)
            return torch.zeros(*factors[0].shape, V).masked_fill(torch.arange(V) != second_of[factors[0]][..., None], -torch.inf)

        return head

    filled = sample(predict, SamplingOptions(num_steps=6), keys=[NoiseKey(seed, 0, 0) for seed in range(8)], num_factors=2)
    assert filled.max() < V * V
    assert torch.equal(filled // V, second_of[filled % V])
    assert (filled % V).unique().numel() == V


def test_two_factors_follow_their_joint_distribution():
    joint = torch.tensor([[0.30, 0.05, 0.05], [0.02, 0.20, 0.08], [0.10, 0.05, 0.15]])  # of (first, second)

    def head(factors):
        rows = joint.sum(1).log().expand(1, 8192, 3)
        return joint.log()[factors[0]] if factors else rows

    tokens, log_prob = choose_tokens(head, uniform_noise([KEY], 0, ["factor 0", "factor 1"], 8192), 1.0, 3)
    shares = torch.stack([(tokens == first + 3 * second).float().mean() for first in range(3) for second in range(3)]).view(3, 3)
    torch.testing.assert_close(shares, joint, atol=0.02, rtol=0)
    torch.testing.assert_close(log_prob, joint[tokens % 3, tokens // 3].log(), atol=1e-5, rtol=1e-5)


def test_halton_order_reveals_in_that_order():
    hidden_sets = []

    def watching(tokens, hidden, step):
        hidden_sets.append(set(hidden.tolist()))
        return looking_model(tokens, hidden, step)

    sample(watching, SamplingOptions(num_steps=6, order="halton"))
    ranks = halton_order(*SHAPE)
    assert len(hidden_sets) == 6
    for hidden in hidden_sets:
        assert hidden == set((ranks >= N - len(hidden)).nonzero().flatten().tolist())


def test_corrections_hide_every_filled_position_once_more_and_no_known_one():
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    tokens, asked = torch.full((1, *SHAPE), 5), []

    def watching(shown, hidden, step):
        assert set((shown.flatten(1)[0] == V).nonzero().flatten().tolist()) == set(hidden.tolist()), "all else is known"
        asked.append((step, set(hidden.tolist())))
        return looking_model(shown, hidden, step)

    filled = sample(watching, SamplingOptions(num_steps=2, num_corrections=3), tokens, mask)
    assert torch.equal(filled[0][~mask], tokens[0][~mask]) and (filled < V).all()
    corrected = [hidden for step, hidden in asked if step >= 2]
    assert [step for step, _ in asked] == [0, 1, 2, 3, 4]
    assert set.union(*corrected) == set(mask.flatten().nonzero().flatten().tolist()) and sum(map(len, corrected)) == int(mask.sum())
    ranks = halton_order(*SHAPE)
    assert max(ranks[list(corrected[0])]) < min(ranks[list(corrected[1])]) < min(ranks[list(corrected[2])]), "the first chosen come first"


def test_what_was_chosen_when_little_was_known_is_corrected():
    truth = torch.randint(V, (N,), generator=torch.Generator().manual_seed(4))

    def knows_with_half(shown, hidden, step):
        right = (shown == V).sum() <= N / 2
        return lambda factors: 100.0 * torch.nn.functional.one_hot((truth[hidden] + (0 if right else 1)) % V, V)[None]

    options = SamplingOptions(num_steps=2, order="halton")
    assert not torch.equal(sample(knows_with_half, options).flatten(), truth)
    assert torch.equal(sample(knows_with_half, SamplingOptions(num_steps=2, order="halton", num_corrections=2)).flatten(), truth)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("choice_temperature", [0.0, 4.0])
def test_confidence_order_equals_a_slow_maskgit(schedule, choice_temperature):
    options = SamplingOptions(num_steps=5, choice_temperature=choice_temperature, temperature=0.8, mask_schedule=schedule)
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.8
    given = torch.randint(V, SHAPE, generator=torch.Generator().manual_seed(3))

    tokens = [V if hidden else token for hidden, token in zip(mask.flatten().tolist(), given.flatten().tolist(), strict=True)]
    total = tokens.count(V)
    for step in range(5):
        hidden = [position for position in range(N) if tokens[position] == V]
        logits = looking_model(torch.tensor(tokens).view(1, *SHAPE), torch.tensor(hidden), step)([])[0] / 0.8
        draws = torch.rand(N, generator=KEY.stream(step, "factor 0"))
        choice_noise = gumbel(torch.rand(N, generator=KEY.stream(step, "choice")))
        guesses = []
        for row, position in zip(logits, hidden, strict=True):
            probs = (row.double().exp() / row.double().exp().sum()).tolist()
            token = next(value for value in range(V) if sum(probs[: value + 1]) > draws[position])
            log_prob = math.log(probs[token])
            cooled = choice_temperature * (1 - (step + 1) / 5)
            guesses.append(((log_prob + cooled * choice_noise[position]).item(), position, token))
        share = {"cosine": math.cos(math.pi / 2 * (step + 1) / 5), "linear": 1 - (step + 1) / 5}[schedule]
        still_hidden = 0 if step == 4 else min(math.floor(share * total), len(hidden) - 1)
        for _, position, token in sorted(guesses, reverse=True)[: len(hidden) - still_hidden]:
            tokens[position] = token

    assert tokens == sample(looking_model, options, given[None], mask)[0].flatten().tolist()


def test_guidance_formula():
    cond, uncond = torch.randn(2, 5)
    torch.testing.assert_close(guided(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guided(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guided(cond, uncond, 3.0), 3 * cond - 2 * uncond)


@pytest.mark.parametrize("hidden", [1, 2, 3, 5, 8, 11, 12, 13, 64])
def test_the_last_round_that_fills_has_the_whole_guidance_however_few_tokens_are_hidden(hidden):
    options = SamplingOptions(num_steps=12, num_corrections=3, guidance_scale=2.5)
    mask = (torch.arange(64) < hidden).view(1, 8, 8)
    filling = [one for one in plan_rounds(mask, options) if one.part is None]
    assert sum(one.num_kept for one in filling) == hidden and len(filling) == min(hidden, 12)
    steps = [one.step for one in filling]
    assert steps == sorted(set(steps)) and steps[-1] == 11 and guidance_at(steps[-1], options) == 2.5
    assert hidden == 1 or guidance_at(steps[0], options) == 1
    rest = [one.step for one in plan_rounds(mask, options) if one.part is not None]
    assert rest == [12 + number for number in range(len(rest))]


def test_guidance_rises_from_one_to_its_scale():
    ramp = [guidance_at(step, SamplingOptions(num_steps=5, guidance_scale=7.0)) for step in range(5)]
    assert ramp == [1.0, 2.5, 4.0, 5.5, 7.0]
    assert {guidance_at(step, SamplingOptions(num_steps=5, guidance_scale=7.0, guidance_ramp=False)) for step in range(5)} == {7.0}
    assert guidance_at(7, SamplingOptions(num_steps=5, guidance_scale=7.0)) == 7.0, "in corrections as in the last round"
    assert guidance_at(0, SamplingOptions(num_steps=1, guidance_scale=7.0)) == 7.0
    assert {guidance_at(step, SamplingOptions(guidance_scale=1)) for step in range(12)} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps 0: needed 1 to 256 rounds"),
        ({"num_corrections": -1}, r"num_corrections -1: needed 0 \(none\), or 2 to 256"),
        ({"num_corrections": 1}, "one would choose all anew at once"),
        ({"num_steps": 257}, "num_steps 257: needed 1 to 256 rounds"),
        ({"guidance_scale": 0.5}, r"guidance_scale 0.5: needed 1 \(off\) to 100"),
        ({"guidance_scale": math.nan}, "guidance_scale nan"),
        ({"temperature": 0.0}, "temperature 0.0: needed above 0 and at most 100"),
        ({"choice_temperature": -1.0}, "choice_temperature -1.0: needed at least 0 and at most 1000"),
        ({"order": "random"}, "order 'random': allowed are confidence, halton"),
        ({"mask_schedule": "sine"}, "mask schedule 'sine'; known: cosine"),
    ],
)
def test_wrong_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**settings)


def test_as_many_keys_as_samples_are_needed():
    with pytest.raises(ValueError, match="1 noise keys for a batch of 2: needed one each"):
        sample(looking_model, SamplingOptions(), tokens=torch.zeros(2, *SHAPE, dtype=torch.long), keys=[KEY])
