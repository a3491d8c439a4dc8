"""Contexts that the network makes itself: which chunks have one, and that it is what the network would make in a story."""

from dataclasses import replace

import pytest
import torch
from test_training import GENERATOR, STORIES, generator_task, settings

from phenaki.director import SceneFiller, SceneText
from phenaki.maskgit import ANCHOR, MaskGIT, MaskGITConfig
from phenaki.past import Past
from phenaki.sampling import NoiseKey, SamplingOptions
from phenaki.training.batches import draw_batch, share
from phenaki.training.generator_losses import text_batch, validation_loss, with_own_context
from phenaki.training.parallel import Part
from phenaki.training.rollouts import TEMPERATURE, draw_rollout, least_slices
from phenaki.training.run import Run
from phenaki.training.settings import GeneratorTraining

pytestmark = pytest.mark.usefixtures("synced")
SLICES = STORIES.tokens.shape[1]
CPU = torch.device("cpu")


def training(rollout_prob: float, **changes) -> GeneratorTraining:
    return GeneratorTraining(num_slices=17, rollout_prob=rollout_prob, num_rollout_steps=3, image_prob=0, optimizer=settings(**changes))


def rolled_out(count: int = 300, config: MaskGITConfig = GENERATOR):
    """Batches whose context the network makes."""
    batches = (draw_batch(STORIES, config, training(1.0), step) for step in range(count))
    return [batch for batch in batches if batch.rollout is not None]


def network() -> MaskGIT:
    torch.manual_seed(0)
    return MaskGIT(GENERATOR).eval()


def test_what_is_chosen_has_a_whole_chunk_of_one_scene_before_it_after_a_whole_context_that_does_not_begin_the_video():
    batches = rolled_out()
    assert len(batches) > 100
    chosen = 0
    for batch in batches:
        begins, stories = batch.tokens[:, 0, 0, 0] % SLICES, batch.tokens[:, 0, 0, 0] // SLICES
        for row in range(len(begins)):
            begin, story = int(begins[row]), int(stories[row])
            before = begin - GENERATOR.chunk_slices
            in_one_scene = before >= 0 and int(STORIES.scene_end[story, before]) >= begin
            assert bool(batch.rollout.chosen[row]) == (before > GENERATOR.context_slices and in_one_scene)
            if batch.rollout.chosen[row]:
                chosen += 1
                wanted = STORIES.tokens[story, before - GENERATOR.context_slices : before].long()
                assert torch.equal(batch.rollout.context[row], wanted)
                assert int(batch.rollout.captions[row]) == int(STORIES.caption[story, before])
    assert chosen > 200


def test_one_setting_moves_no_other_choice():
    for step in range(60):
        without, with_them = (draw_batch(STORIES, GENERATOR, training(prob), step) for prob in (0.0, 1.0))
        assert torch.equal(without.tokens, with_them.tokens) and torch.equal(without.mask, with_them.mask)
        assert torch.equal(without.captions, with_them.captions) and torch.equal(without.dropped, with_them.dropped)
        assert without.rollout is None
        if with_them.rollout is not None:
            assert not with_them.corruption.any(), "what is made is told to be clean, as in a story"


def test_what_is_made_is_what_the_network_would_make_in_a_story_without_anchor_and_guidance():
    model = network()
    options = SamplingOptions(num_steps=3, guidance_scale=1, temperature=TEMPERATURE, order="halton")
    batch = next(batch for batch in rolled_out() if batch.rollout.chosen.any() and not batch.rollout.chosen.all())
    whole = text_batch(STORIES, batch, Part(0, 1), CPU)
    made = with_own_context(model, whole, 3).batch
    count = int((batch.kinds != ANCHOR).sum())
    assert made.rollout is None
    for row, is_chosen in enumerate(batch.rollout.chosen.tolist()):
        if not is_chosen:
            assert torch.equal(made.context[row], batch.context[row])
            continue
        text = whole.rollout_text[row : row + 1], whole.rollout_mask[row : row + 1]
        past = Past(slices=list(batch.rollout.context[row]), num_slices=9)  # not the first ones of a video
        key = NoiseKey(int(batch.rollout.seeds[row]), 0, 0)
        chunk = SceneFiller(model, SceneText(*text), options).fill(GENERATOR.chunk_slices, past, (2, 2), key)
        assert torch.equal(made.context[row, -count:], chunk[-count:])
        assert torch.equal(made.context[row, :-count], batch.context[row, :-count]), "the anchor stays"
    assert not torch.equal(made.context, batch.context)


def test_a_part_of_a_batch_has_the_contexts_that_it_has_in_the_whole():
    model = network()
    batch = max(rolled_out(), key=lambda one: int(one.rollout.chosen.sum()))
    whole = with_own_context(model, text_batch(STORIES, batch, Part(0, 1), CPU), 2).batch
    part = with_own_context(model, text_batch(STORIES, batch, Part(1, 2), CPU), 2).batch
    half = len(batch.tokens) // 2
    assert torch.equal(part.context, whole.context[half:])
    assert torch.equal(share(batch, slice(0, 2)).rollout.seeds, batch.rollout.seeds[:2])


@pytest.mark.parametrize("bf16", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_truth_after_what_was_made(bf16):
    task = generator_task(network(), STORIES, training(1.0, num_steps=200))
    drawn = ((step, task.draw(step, [Part(0, 1)])[0]) for step in range(200))
    step, batch = next((step, one) for step, one in drawn if one.batch.rollout is not None and one.batch.rollout.chosen.any())

    def gradients(of) -> tuple[float, dict[str, torch.Tensor]]:
        task.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = task.losses(of, step)["loss"]
        loss.backward()
        return loss.item(), {name: one.grad.clone() for name, one in task.model.named_parameters() if one.grad is not None}

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        own = with_own_context(task.model, batch, 3)
    assert torch.equal(own.batch.tokens, batch.batch.tokens) and not torch.equal(own.batch.context, batch.batch.context)
    (loss, found), (wanted_loss, wanted) = gradients(batch), gradients(own)
    assert loss == wanted_loss and found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert all(found[name].any() for name in found if "to_queries" in name), "what was cast in making the context does not stand in the way"
    clean, _ = gradients(replace(batch, batch=replace(batch.batch, rollout=None)))
    assert clean != pytest.approx(loss, abs=1e-6)


def test_held_out_figures_do_not_depend_on_what_the_model_makes_and_say_what_it_costs():
    model, batches = network(), 12
    plain = validation_loss(model, STORIES, GENERATOR, training(0.0, batch_size=4), batches, 7)
    rolled = validation_loss(model, STORIES, GENERATOR, training(0.3, batch_size=4), batches, 7)
    assert {name: value for name, value in rolled.items() if name != "loss_own_context"} == plain
    assert rolled["loss_own_context"] > 0 and rolled["loss_own_context"] != plain["loss_continue"]


def test_a_run_with_roll_outs_resumes_to_the_bit(tmp_path):
    def run_to(folder, stop: int) -> Run:
        own = training(1.0, num_steps=stop, save_every=4, warmup_steps=0, final_lr_ratio=1.0, learning_rate=1e-2)
        run = Run(folder, generator_task(network().train(), STORIES, own), own.optimizer)
        run.train(lambda line: None)
        return run

    whole = run_to(tmp_path / "whole", 8)
    run_to(tmp_path / "halves", 4)
    resumed = run_to(tmp_path / "halves", 8)
    start = network().state_dict()
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(value, resumed.task.model.state_dict()[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in whole.task.model.state_dict().items())


def test_no_shorter_story_has_a_chunk_with_such_a_context():
    least = least_slices(GENERATOR)
    end = torch.tensor([[least]])  # of one scene
    for begin, wanted in ((least - 2, False), (least - 1, True)):
        stories = replace(STORIES, scene_end=end.expand(1, least).contiguous())
        assert bool(draw_rollout(stories, GENERATOR, torch.tensor([0]), torch.tensor([begin]), torch.Generator()).chosen) == wanted


def test_chunks_with_nothing_before_them_choose_nothing():
    story, begin = torch.tensor([0, 1]), torch.tensor([0, GENERATOR.chunk_slices])
    rollout = draw_rollout(STORIES, GENERATOR, story, begin, torch.Generator().manual_seed(0))
    assert not rollout.chosen.any() and rollout.context.shape == (2, GENERATOR.context_slices, 2, 2)


@pytest.mark.parametrize(("changes", "said"), [({"rollout_prob": 1.5}, "rollout_prob 1.5"), ({"num_rollout_steps": 0}, "num_rollout_steps 0")])
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        GeneratorTraining(**changes)
