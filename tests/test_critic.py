"""The critic: it learns which tokens are wrong, the generator learns as it would without it, and corrections take what it doubts."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_sampling import KEY, SHAPE, N, V, looking_model, sample
from test_tasks import CONFIG, STORIES, gradients, training
from torch.nn.functional import binary_cross_entropy_with_logits

from phenaki.director import SceneFiller, SceneText
from phenaki.maskgit import MaskGIT, split_token
from phenaki.past import Past
from phenaki.sampling import NoiseKey, SamplingOptions
from phenaki.training.batches import draw_batch, share
from phenaki.training.generator_losses import generator_loss, validation_loss

WITH_CRITIC = replace(CONFIG, critic=True)
BY_CRITIC = SamplingOptions(num_steps=2, num_corrections=4, correction_order="critic")


def model_of(config=WITH_CRITIC) -> MaskGIT:
    torch.manual_seed(0)
    return MaskGIT(config)


def loss_of(model, batch):
    return generator_loss(model, batch, *STORIES.text(batch.captions))


def test_drawn_tokens_have_the_probabilities_that_the_generator_gives_them():
    model, count = model_of(), 40_000
    with torch.no_grad():
        for head in model.to_logits.heads:
            head.weight.mul_(40)
        features = torch.randn(1, CONFIG.dim, generator=torch.Generator().manual_seed(1)).expand(count, -1)
        drawn = model.draw_tokens(features, torch.rand(count, 2, generator=torch.Generator().manual_seed(2)))
        wanted = model.score(features[:256], torch.arange(256)).log_probs.sum(0).exp()
    assert wanted.max() > 0.05
    assert (torch.bincount(drawn, minlength=256) / count - wanted).abs().max() < 0.01
    assert model.draw_tokens(features[:2], torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist() == [0, 255], "all draws have a token"


def test_the_generator_learns_as_without_a_critic():
    model = model_of()
    alone = MaskGIT(CONFIG)
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("critic.")})
    for step in range(4):
        batch = draw_batch(STORIES, WITH_CRITIC, training(), step)
        plain = draw_batch(STORIES, CONFIG, training(), step)
        assert plain.draws is None and torch.equal(plain.mask, batch.mask), "one setting moves no other choice"
        made = loss_of(model, batch)
        made["loss"].backward()
        without = loss_of(alone, plain)
        without["loss"].backward()
        torch.testing.assert_close(made["loss"], without["loss"] + made["critic"])
        found = gradients(model)
        assert all(torch.equal(found[name], one) for name, one in gradients(alone).items())
        assert all(found[name].abs().sum() > 0 for name in found if name.startswith("critic."))


def test_the_loss_by_hand():
    model = model_of()
    batch = next(batch for batch in (draw_batch(STORIES, WITH_CRITIC, training(), step) for step in range(20)) if batch.context is not None)
    text, text_mask = model.drop_text(*STORIES.text(batch.captions), batch.dropped)
    with torch.no_grad():
        cache, context = model.encode_text(text, text_mask), model.encode_context(batch.context, batch.kinds, batch.corruption)
        seen = model.features(batch.tokens.masked_fill(batch.mask, model.mask_token_id), cache, context, batch.starts)
        filled = batch.tokens.clone()
        for place in batch.mask.nonzero().tolist():
            factors = []
            for draw in batch.draws[tuple(place)].tolist():
                below = model.to_logits(seen[tuple(place)], factors).softmax(-1).cumsum(-1)
                factors.append(torch.tensor(min(int((below <= draw).sum()), 15)))
            filled[tuple(place)] = factors[0] + 16 * factors[1]
        doubts = model.critic(model.features(filled, cache, context, batch.starts))
    expected = binary_cross_entropy_with_logits(doubts[batch.mask], (filled != batch.tokens)[batch.mask].float())
    torch.testing.assert_close(loss_of(model, batch)["critic"].detach(), expected)


def test_the_mean_over_shares_is_the_whole_batch():
    model = model_of()
    batch = draw_batch(STORIES, WITH_CRITIC, training(), 3)
    parts = [share(batch, slice(first, end)) for first, end in pairwise([0, 1, 12])]
    losses = [generator_loss(model, one, *STORIES.text(one.captions), num_hidden=batch.num_hidden / 2)["critic"] for one in parts]
    assert torch.stack(losses).mean().item() == pytest.approx(loss_of(model, batch)["critic"].item(), rel=1e-5)


def test_validation_is_of_the_tokens_alone():
    model = model_of()
    assert validation_loss(model, STORIES, WITH_CRITIC, training(), 4, seed=7) == validation_loss(model, STORIES, CONFIG, training(), 4, seed=7)


def test_it_learns_to_tell_wrong_tokens():
    """Stories of which every token is 7: a generator that does not know it yet chooses others, and its critic learns which."""
    model = model_of()
    for one in (parameter for name, parameter in model.named_parameters() if not name.startswith("critic.")):
        one.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.critic.parameters(), lr=3e-3)
    stories = replace(STORIES, tokens=torch.full_like(STORIES.tokens, 7), images=STORIES.images[:0], image_caption=STORIES.image_caption[:0])
    wanted = split_token(torch.tensor(7), 16, 2)
    with torch.no_grad():
        for head, value in zip(model.to_logits.heads, wanted, strict=True):
            head.bias[value] += 4  # right two times of three
    for step in range(150):
        batch = draw_batch(stories, WITH_CRITIC, training(), step)
        optimizer.zero_grad()
        loss_of(model, batch)["critic"].backward()
        optimizer.step()
    tokens = torch.full((64, 2, 4, 4), 7)
    wrong = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    tokens[wrong] = torch.randint(256, (int(wrong.sum()),), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        doubts = model.critic(model.features(tokens, model.encode_text(*model.no_text()), None, True))
    assert doubts[tokens != 7].quantile(0.1) > doubts[tokens == 7].quantile(0.9)


# Sampling


def test_corrections_take_what_is_doubted_most_and_known_tokens_stay():
    tokens = torch.randint(V, (1, *SHAPE), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    doubts, asked, judged = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(5)), [], []

    def watching(shown, hidden, step):
        asked.append((step, hidden.tolist(), (shown.flatten(1)[0] == V).nonzero().flatten().tolist()))
        return looking_model(shown, hidden, step)

    def critic(filled):
        assert (filled < V).all(), "it judges whole chunks"
        judged.append(filled.clone())
        return doubts

    filled = sample(watching, BY_CRITIC, tokens, mask, critic=critic)
    assert torch.equal(filled[0][~mask], tokens[0][~mask]) and (filled < V).all() and len(judged) == 4
    worst = doubts.flatten().masked_fill(~mask.flatten(), -1).argsort(descending=True)
    corrected = [one for one in asked if one[0] >= 2]
    assert [step for step, *_ in corrected] == [2, 3, 4, 5]
    for _, hidden, shown in corrected:
        assert hidden == shown == sorted(worst[: len(hidden)].tolist())
    assert sum(len(hidden) for _, hidden, _ in corrected) == int(mask.sum()), "as many choices as in the other order"


def test_each_sample_of_a_batch_is_corrected_as_alone():
    keys = [KEY, NoiseKey(9, 9, 9)]
    critic = lambda tokens: torch.sin(tokens.flatten(1).float() @ torch.randn(N, N, generator=torch.Generator().manual_seed(6))).view(tokens.shape)
    both = sample(looking_model, BY_CRITIC, keys=keys, critic=critic)
    for index, key in enumerate(keys):
        assert torch.equal(both[index : index + 1], sample(looking_model, BY_CRITIC, keys=[key], critic=critic))
    assert not torch.equal(both[0], sample(looking_model, replace(BY_CRITIC, correction_order="halton"), keys=[KEY])[0])


def test_a_scene_is_corrected_by_the_models_own_critic():
    model, key = model_of(), NoiseKey(1, 0, 0)
    text = SceneText(torch.randn(1, 3, CONFIG.text_dim), torch.ones(1, 3, dtype=torch.bool), None)
    made = SceneFiller(model, text, BY_CRITIC).fill(4, Past(), (4, 4), key)
    assert torch.equal(made, SceneFiller(model, text, BY_CRITIC).fill(4, Past(), (4, 4), key))
    with torch.no_grad():
        model.critic.to_doubt.weight.neg_()
    assert not torch.equal(made, SceneFiller(model, text, BY_CRITIC).fill(4, Past(), (4, 4), key)), "it is asked"


def test_a_model_without_a_critic_says_so():
    text = SceneText(torch.randn(1, 3, CONFIG.text_dim), torch.ones(1, 3, dtype=torch.bool), None)
    with pytest.raises(ValueError, match='correction_order "critic": this model has none'):
        SceneFiller(model_of(CONFIG), text, BY_CRITIC)
    SceneFiller(model_of(CONFIG), text, replace(BY_CRITIC, num_corrections=0))
    with pytest.raises(ValueError, match="correction_order 'random': allowed are halton, critic"):
        SamplingOptions(correction_order="random")
