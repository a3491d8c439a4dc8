"""Truths of a step's examples: tasks and their masks, still pictures, and a loss that is the same in one piece and in shares."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phenaki.config import ConfigError, build
from phenaki.data.tokens import StoryTokens
from phenaki.maskgit import MaskGIT, MaskGITConfig, split_token
from phenaki.training.batches import Batch, draw_batch, share
from phenaki.training.generator_losses import generator_loss, text_batch, validation_loss
from phenaki.training.optimizers import OptimizerSettings, generator_for
from phenaki.training.parallel import Part
from phenaki.training.settings import GeneratorTraining, MaskTasks
from phenaki.training.tasks import BETWEEN, FIRST_FRAME, INPAINT, OUTPAINT, PLAIN, TASKS, draw_tasks, task_regions

CONFIG = MaskGITConfig(codebook_size=256, dim=16, depth=2, heads=2, mlp_dim=24, text_dim=8, chunk_slices=4, context_slices=2)
ALL = MaskTasks(first_frame=0.25, between=0.25, inpaint=0.25, outpaint=0.25)
NONE = MaskTasks(0.0, 0.0, 0.0, 0.0)
SLICES = 9


def stories_of(count: int = 12, side: int = 4, pictures: int = 0) -> StoryTokens:
    """Random stories of one or two scenes, each with its caption; pictures whose every token is 200 and more."""
    rng = torch.Generator().manual_seed(0)
    starts, ends = torch.zeros(count, SLICES, dtype=torch.long), torch.full((count, SLICES), SLICES)
    starts[::2, 5:], ends[::2, :5] = 5, 5
    said = torch.arange(count)[:, None] * 2 + (starts > 0)
    number = 2 * count + pictures
    texts = torch.randn(3 * number, CONFIG.text_dim, generator=rng).half()
    spans = torch.stack([torch.arange(number) * 3, torch.arange(number) * 3 + 1 + torch.arange(number) % 3], dim=1)
    tokens = torch.randint(200, (count, SLICES, side, side), generator=rng, dtype=torch.int32)
    images = torch.randint(200, 256, (pictures, side, side), generator=rng, dtype=torch.int32)
    return StoryTokens(tokens, starts, ends, said, texts, spans, "random", images, 2 * count + torch.arange(pictures))


STORIES = stories_of(pictures=6)


def training(batch_size: int = 12, seed: int = 0, **changes) -> GeneratorTraining:
    return GeneratorTraining(optimizer=OptimizerSettings(batch_size=batch_size, seed=seed), **changes)


def draws(count: int, own: GeneratorTraining, stories: StoryTokens = STORIES) -> Iterator[Batch]:
    return (draw_batch(stories, CONFIG, own, step) for step in range(count))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Tasks


def test_tasks_come_as_often_as_they_are_set():
    shares = MaskTasks(first_frame=0.1, between=0.2, inpaint=0.3, outpaint=0.05)
    counts = draw_tasks((20000, 4, 4, 4), True, shares, rng()).bincount(minlength=len(TASKS)) / 20000
    assert (counts - torch.tensor([0.35, 0.1, 0.2, 0.3, 0.05])).abs().max() < 0.012


@pytest.mark.parametrize(
    ("shape", "starts", "possible"),
    [
        ((400, 3, 4, 4), True, {FIRST_FRAME, BETWEEN, INPAINT, OUTPAINT}),
        ((400, 3, 4, 4), False, {PLAIN, BETWEEN, INPAINT, OUTPAINT}),
        ((400, 2, 4, 4), True, {PLAIN, FIRST_FRAME, INPAINT, OUTPAINT}),
        ((400, 2, 1, 1), True, {PLAIN, FIRST_FRAME}),
        ((400, 1, 1, 2), True, {PLAIN, INPAINT, OUTPAINT}),
        ((400, 1, 1, 1), False, {PLAIN}),
    ],
)
def test_only_possible_tasks_are_drawn_and_leave_something_known_and_something_hidden(shape, starts, possible):
    tasks = draw_tasks(shape, starts, ALL, rng())
    assert set(tasks.tolist()) == possible
    regions = task_regions(tasks, shape, rng())
    known = (~regions).flatten(1)
    assert not known.all(1).any(), "nothing is left to be filled"
    assert torch.equal(known.any(1), tasks != PLAIN)


def test_shares_of_one_and_of_nothing():
    assert (draw_tasks((200, 4, 4, 4), True, NONE, rng()) == PLAIN).all()
    assert (draw_tasks((200, 4, 4, 4), True, MaskTasks(1.0, 0.0, 0.0, 0.0), rng()) == FIRST_FRAME).all()
    assert (draw_tasks((200, 4, 4, 4), True, MaskTasks(0.0, 0.0, 0.0, 1.0), rng()) == OUTPAINT).all()


def test_a_task_knows_what_its_name_says():
    shape = (2000, 4, 5, 6)
    tasks = draw_tasks(shape, True, MaskTasks(0.2, 0.2, 0.2, 0.2), rng())
    regions = task_regions(tasks, shape, rng())
    assert regions[tasks == PLAIN].all()
    by_slice = regions.flatten(2)
    for task, hidden in ((FIRST_FRAME, [False, True, True, True]), (BETWEEN, [False, True, True, False])):
        rows = by_slice[tasks == task]
        assert torch.equal(rows, torch.tensor(hidden)[None, :, None].expand_as(rows))
    for task in (INPAINT, OUTPAINT):
        inside = regions[tasks == task] if task == INPAINT else ~regions[tasks == task]
        assert torch.equal(inside, inside[:, :1].expand_as(inside)), "the box is the same in every slice"
        rows, columns = inside[:, 0].any(2), inside[:, 0].any(1)
        assert torch.equal(inside[:, 0], rows[:, :, None] & columns[:, None, :])
        for side in (rows, columns):
            assert ((side.int().diff(dim=1) == 1).sum(1) + side[:, 0] == 1).all(), "a box is of one piece"


def test_known_tokens_are_never_hidden_and_all_mask_ratios_occur():
    """P(share of the unknown that is hidden <= r) = 1 - 2/pi arccos r, as without tasks; and it is never nothing."""
    stories, shares = stories_of(side=10), {task: [] for task in range(len(TASKS))}
    for step, batch in enumerate(draws(150, training(tasks=replace(ALL, outpaint=0.15), image_prob=0.0, from_text_prob=0.6), stories)):
        own, shape = generator_for(0, step, "tasks"), tuple(batch.mask.shape)
        assert torch.equal(draw_tasks(shape, batch.starts, replace(ALL, outpaint=0.15), own), batch.tasks)
        regions = task_regions(batch.tasks, shape, own)
        assert not (batch.mask & ~regions).any(), "a known token is hidden"
        hidden = batch.mask.flatten(1).sum(1) / regions.flatten(1).sum(1)
        for task in range(len(TASKS)):
            shares[task] += hidden[batch.tasks == task].tolist()
    for task, found in shares.items():
        found = torch.tensor(found)
        assert len(found) > 100 and found.min() > 0 and found.max() == 1
        assert found.min() < 0.12 and (found > 0.9).float().mean() > 0.15, TASKS[task]
        assert abs(found.mean() - 2 / torch.pi) < 0.06, TASKS[task]


def test_tasks_move_no_other_choice_and_leave_plain_samples_as_they_are():
    plain = draws(30, training(tasks=NONE))
    for before, batch in zip(plain, draws(30, training(tasks=ALL)), strict=True):
        assert torch.equal(before.tokens, batch.tokens) and torch.equal(before.dropped, batch.dropped)
        assert (before.tasks == PLAIN).all() and torch.equal(before.mask[batch.tasks == PLAIN], batch.mask[batch.tasks == PLAIN])
        assert before.context is None or torch.equal(before.context, batch.context)


def test_most_of_the_default_recipe_is_text_and_continuing():
    tasks = torch.cat([batch.tasks for batch in draws(300, training())])
    shares = tasks.bincount(minlength=len(TASKS)) / len(tasks)
    assert shares[PLAIN] > 0.8 and (shares[1:] > 0.01).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": {"between": -0.1}}, r"here.tasks: between -0.1: needed a share in \[0, 1\]"),
        ({"tasks": {"between": 0.6, "inpaint": 0.6}}, r"come to 1\.\d+: needed 1 at most"),
        ({"tasks": {"betwen": 0.1}}, "did you mean 'between'"),
        ({"tasks": 3}, "here.tasks: needed a table"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0: needed at least 0 and below 1"),
        ({"image_prob": 1.5}, "image_prob 1.5: needed at least 0 and at most 1"),
        ({"from_text_prob": float("nan")}, "from_text_prob nan"),
        ({"num_images": -1}, "num_images -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        build(GeneratorTraining, values, "file: here")


def test_settings_of_tasks_are_read():
    read = build(GeneratorTraining, {"tasks": {"between": 0.25}, "optimizer": {"num_steps": 3}}, "here")
    assert read.tasks == MaskTasks(between=0.25) and read.optimizer.num_steps == 3


# Still pictures


def is_picture(batch: Batch) -> bool:
    return batch.starts and batch.tokens.shape[1] == 1 and bool((batch.tokens >= 200).any())


def test_batches_of_pictures_come_as_often_as_they_are_set():
    for prob in (0.0, 0.25, 1.0):
        own = training(image_prob=prob, from_text_prob=0.0)
        found = sum(batch.context is None for batch in draws(400, own)) / 400
        assert abs(found - prob) <= (0.06 if prob == 0.25 else 0)


def test_a_picture_is_one_of_the_data_s_or_a_story_s_first_frame_with_its_caption():
    seen: set[int] = set()
    for batch in draws(60, training(image_prob=1.0)):
        assert batch.tokens.shape == (12, 1, 4, 4) and batch.starts and batch.context is None
        assert not {FIRST_FRAME, BETWEEN} & set(batch.tasks.tolist()), "one slice leaves nothing to animate"
        for tokens, caption in zip(batch.tokens[:, 0], batch.captions.tolist(), strict=True):
            whole = STORIES.tokens[caption // 2, 0] if caption < 24 else STORIES.images[caption - 24]
            assert torch.equal(tokens, whole.long())
            seen.add(caption)
    assert seen == {*range(0, 24, 2), *range(24, 30)}


def test_pictures_alone_are_enough():
    alone = STORIES.stories(slice(0, 0))
    alone = replace(alone, images=STORIES.images, image_caption=STORIES.image_caption)
    assert all(is_picture(batch) for batch in draws(5, training(image_prob=1.0), alone))
    with pytest.raises(ValueError, match="neither stories nor pictures"):
        draw_batch(STORIES.stories(slice(0, 0)), CONFIG, training(image_prob=1.0), 0)


# The loss


def model_of(seed: int = 0, **changes) -> MaskGIT:
    torch.manual_seed(seed)
    model = MaskGIT(replace(CONFIG, **changes))
    with torch.no_grad():
        for head in model.to_logits.heads:
            head.weight.normal_(std=0.4)
    return model


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("token_factors", [1, 2, 4])
def test_each_factor_s_cross_entropy_is_torch_s(smoothing, token_factors):
    model = model_of(token_factors=token_factors)
    features, tokens = torch.randn(50, 16, generator=rng()), torch.randint(256, (50,), generator=rng())
    scores = model.score(features, tokens, smoothing)
    factors = split_token(tokens, model.config.factor_size, token_factors)
    assert scores.cross_entropy.shape == (token_factors, 50)
    for index, factor in enumerate(factors):
        logits = model.to_logits(features, factors[:index])
        wanted = F.cross_entropy(logits, factor, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(scores.cross_entropy[index], wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores.log_probs[index], -F.cross_entropy(logits, factor, reduction="none"))


def gradients(model: MaskGIT) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(one) if one.grad is None else one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("cuts", [[0, 3, 6, 9, 12], [0, 1, 12]])
def test_the_mean_over_shares_is_the_whole_batch(smoothing, cuts):
    """Loss and gradients, with every task, with context and without, dropped captions and unequal numbers of hidden tokens."""
    model, seen = model_of(cond_drop_prob=0.3), set()
    for step in (0, 1, 2, 3):
        batch = draw_batch(STORIES, model.config, training(tasks=replace(ALL, outpaint=0.1), image_prob=0.1), step)
        seen |= {*batch.tasks.tolist(), "context" if batch.context is not None else "no context", "dropped" if batch.dropped.any() else ""}
        text, text_mask = STORIES.text(batch.captions)
        whole = generator_loss(model, batch, text, text_mask, smoothing)
        whole["loss"].backward()
        wanted = gradients(model)
        parts = [share(batch, slice(first, end)) for first, end in pairwise(cuts)]
        assert len({part.num_hidden for part in parts}) > 1
        losses, correct = [], []
        for part in parts:
            text, text_mask = STORIES.text(part.captions)  # padded to its own longest
            made = generator_loss(model, part, text, text_mask, smoothing, batch.num_hidden / len(parts))
            (made["loss"] / len(parts)).backward()
            losses.append(made["loss"])
            correct.append(made["correct"])
        assert torch.stack(losses).mean().item() == pytest.approx(whole["loss"].item(), rel=1e-6)
        assert torch.stack(correct).mean().item() == pytest.approx(whole["correct"].item(), rel=1e-6)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-6)
    assert seen >= {*range(len(TASKS)), "context", "no context", "dropped"}, seen


@pytest.mark.parametrize("bf16", [False, True])
def test_padding_of_texts_changes_nothing_but_rounding(bf16):
    """On a GPU they are padded to a multiple of 16, with context and without, for dropped captions too."""
    model, seen = model_of(cond_drop_prob=0.3, critic=True), set()
    for step in range(4):
        batch = draw_batch(STORIES, model.config, training(), step)
        seen |= {batch.context is None, bool(batch.dropped.any())}
        found = []
        for padding in (1, 16):
            text, mask = STORIES.text(batch.captions, padding)
            assert text.shape[:2] == mask.shape and text.shape[1] == (int(mask.sum(1).max()) if padding == 1 else 16) and not text[~mask].any()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = generator_loss(model, batch, text, mask)
            losses["loss"].backward()
            found.append((losses["loss"].detach(), gradients(model)))
        torch.testing.assert_close(found[0], found[1], **({"atol": 2e-2, "rtol": 2e-2} if bf16 else {"atol": 1e-6, "rtol": 1e-5}))
    assert seen == {True, False}
    given = [text_batch(STORIES, batch, Part(), torch.device(place)).text.shape[1] for place in ("cpu", "meta")]
    assert given[0] < 16 == given[1]


def test_a_share_has_its_rows_of_everything():
    batch = next(batch for batch in draws(20, training()) if batch.context is not None)
    part = share(batch, slice(3, 8))
    for name, value in vars(batch).items():
        wanted = value[3:8] if isinstance(value, Tensor) and name != "kinds" else value
        assert torch.equal(getattr(part, name), wanted) if isinstance(value, Tensor) else getattr(part, name) == wanted


# Validation


def test_validation_is_the_mean_over_hidden_tokens_and_always_the_same():
    model = model_of(cond_drop_prob=0.9).train()
    own = training(batch_size=5, label_smoothing=0.3)
    torch.manual_seed(1)
    found = validation_loss(model, STORIES, model.config, own, 12, seed=77)
    torch.manual_seed(2)
    assert validation_loss(model, STORIES, model.config, replace(own, label_smoothing=0.0), 12, seed=77) == found, "not of targets, not of the moment"
    assert model.training and all(one.grad is None for one in model.parameters())
    sums = {"loss": [], "loss_from_text": [], "loss_continue": []}
    for step in range(12):
        batch = draw_batch(STORIES, replace(CONFIG, cond_drop_prob=0.0), training(batch_size=5, seed=77), step)
        assert not batch.dropped.any()
        loss = generator_loss(model, batch, *STORIES.text(batch.captions))["loss"].item() * batch.num_hidden
        for name in ("loss", "loss_from_text" if batch.starts else "loss_continue"):
            sums[name].append((loss, batch.num_hidden))
    for name, parts in sums.items():
        assert found[name] == pytest.approx(sum(loss for loss, _ in parts) / sum(count for _, count in parts), rel=1e-5)
    assert validation_loss(model, STORIES, model.config, own, 12, seed=78)["loss"] != found["loss"]
    with pytest.raises(ValueError, match="0 batches to validate on"):
        validation_loss(model, STORIES, model.config, own, 0, seed=1)


def test_stories_can_be_held_out():
    held, rest = STORIES.stories(slice(0, 3)), STORIES.stories(slice(3, None))
    assert torch.equal(torch.cat([held.tokens, rest.tokens]), STORIES.tokens) and len(held.tokens) == 3 and not len(held.images)
    for one, two in zip(held.text(held.caption[1]), STORIES.text(STORIES.caption[1]), strict=True):
        assert torch.equal(one, two)
