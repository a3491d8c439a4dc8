"""Training the referee: what a step is made of, that it learns, that it resumes, and figures that count what they say."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from referee_toys import COMPANY_WORLD, TINY_WORLD, story, tiny_coder

from phenaki.checkpoint import ModelInfo, save_model
from phenaki.data.storybook import open_world
from phenaki.evaluation.referee import WIDER, Referee, judge, labels_of, load_referee, save_referee
from phenaki.text import TextConfig
from phenaki.training import referee_bank
from phenaki.training.optimizers import OptimizerSettings
from phenaki.training.parallel import Part
from phenaki.training.referee import BLEND_SHARE, RefereeTask, as_batch, blended_loss, referee_losses
from phenaki.training.referee_augmentation import MAX_SHIFT, augmented, cosine_basis, in_blocks, noisy, shifted
from phenaki.training.referee_examples import UNJUDGED, Examples, draw_examples, draw_kinds, draw_stories, joined, truth_of
from phenaki.training.referee_figures import BATCH, SEED, accuracy, confusions, luck, plain_batches, worst_pairs
from phenaki.training.run import Run

NAMES = labels_of(TINY_WORLD)


@pytest.fixture(scope="module")
def bank(tiny_world) -> Examples:
    parts = [range(begin, begin + 32) for begin in range(0, 96, 32)]
    return joined([draw_examples(tiny_world, draw_stories(tiny_world, 0, part, 9), draw_kinds(0, part), part.start) for part in parts])


def settings(**changes) -> OptimizerSettings:
    plain = OptimizerSettings(num_steps=30, batch_size=8, learning_rate=2e-3, warmup_steps=5, ema_decay=0.9, validation_batches=0)
    return replace(plain, **{"log_every": 1000, "sample_every": 1000, "save_every": 1000, **changes})


def task(bank: Examples, chosen: OptimizerSettings) -> RefereeTask:
    torch.manual_seed(0)
    return RefereeTask(Referee(NAMES), bank, chosen, {"bank": "tiny"})


@pytest.fixture(scope="module")
def trained(bank, tmp_path_factory) -> Referee:
    run = Run(tmp_path_factory.mktemp("referee"), task(bank, settings()), settings())
    run.train(lambda line: None)
    return run.averaged()


# Augmentation


def test_augmented_clips_differ_a_little_and_by_the_generator_alone(tiny_world):
    clips = tiny_world.render([story({}), story({"place": "city"})]).repeat(8, 1, 1, 1, 1)
    first = augmented(clips.clone(), torch.Generator().manual_seed(4))
    assert torch.equal(first, augmented(clips.clone(), torch.Generator().manual_seed(4)))
    assert first.shape == clips.shape and first.min() >= -1 and first.max() <= 1
    difference = (first - clips).abs().mean(dim=(1, 2, 3, 4))
    assert difference.min() > 0.005 and difference.max() < 0.4 and len(set(difference.tolist())) == 16


def test_a_shift_moves_all_frames_of_a_clip_alike():
    ramp = torch.arange(32.0).expand(6, 3, 4, 32, 32) + 100 * torch.arange(32.0)[:, None]
    moved = shifted(ramp, torch.Generator().manual_seed(0))
    inner = slice(MAX_SHIFT, -MAX_SHIFT)
    offsets = [(clip - ramp[0])[..., inner, inner].unique().tolist() for clip in moved]
    assert all(len(offset) == 1 for offset in offsets), "whole pixels, the same in all frames"
    assert len({offset[0] for offset in offsets}) > 2
    assert all(abs(round(offset[0] / 100)) <= MAX_SHIFT for offset in offsets)


def test_blocks_are_those_of_a_cosine_transform():
    basis = cosine_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)
    smooth = torch.full((1, 3, 2, 16, 16), 0.3)
    coarse = in_blocks(torch.rand(1, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(2))
    spread = coarse.unflatten(3, (2, 8)).unflatten(5, (2, 8))
    coefficients = torch.einsum("uy,bcfiyjx,vx->bcfijuv", basis, spread, basis)
    share_of_zeros = (coefficients.abs() < 1e-4).float().mean(dim=(0, 1, 2, 3, 4))
    assert share_of_zeros[4:, 4:].mean() > share_of_zeros[:2, :2].mean() + 0.1, "fine detail goes first"
    assert in_blocks(smooth, torch.Generator().manual_seed(2)).std() < 1e-5, "what is flat stays flat"


def test_noise_differs_from_frame_to_frame():
    grey = torch.zeros(2, 3, 2, 16, 16)
    noise = noisy(grey, torch.Generator().manual_seed(0))
    assert not torch.equal(noise[:, :, 0], noise[:, :, 1]) and 0 < noise.std() < 0.1


# A step


def test_a_step_s_clips_depend_on_seed_and_step_and_parts_make_the_whole(bank):
    one, other = task(bank, settings()), task(bank, settings())
    whole, halves = one.draw(5, [Part()])[0], other.draw(5, [Part(0, 2), Part(1, 2)])
    assert torch.equal(whole.video, torch.cat([half.video for half in halves]))
    assert torch.equal(whole.labels, torch.cat([half.labels for half in halves]))
    assert not torch.equal(whole.video, one.draw(6, [Part()])[0].video)
    assert not torch.equal(whole.video, task(bank, settings(seed=1)).draw(5, [Part()])[0].video)
    assert one.num_tokens(whole) == 8 * 9


def test_some_clips_are_blends_that_carry_both_truths(bank):
    batches = [task(bank, settings(batch_size=32)).draw(step, [Part()])[0] for step in range(6)]
    share = torch.cat([batch.share for batch in batches])
    assert (share < 1).float().mean().item() == pytest.approx(BLEND_SHARE, abs=0.05) and share.min() >= 0.3
    for batch in batches:
        plain = batch.share == 1
        assert torch.equal(batch.labels[plain], batch.other_labels[plain])
        assert not torch.equal(batch.labels[~plain], batch.other_labels[~plain])


def test_a_blended_loss_is_the_mean_of_both_by_their_shares():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=rng)
    truths = torch.tensor([[0, 1, UNJUDGED], [2, 3, 1]]), torch.tensor([[3, 1, 2], [2, UNJUDGED, 0]])
    share, weight = torch.tensor([0.3, 1.0]), torch.tensor([[1.0, 0.5, 1.0], [1.0, 1.0, 0.0]])
    total, weights = 0.0, 0.0
    for clip in range(2):
        for frame in range(3):
            for truth, part in zip(truths, (share[clip], 1 - share[clip]), strict=True):
                if truth[clip, frame] != UNJUDGED:
                    counted = float(weight[clip, frame] * part)
                    total += counted * float(-F.log_softmax(logits[clip, frame], 0)[truth[clip, frame]])
                    weights += counted
    assert blended_loss(logits, truths, share, weight).item() == pytest.approx(total / weights, rel=1e-5)
    nothing = torch.full((2, 3), UNJUDGED)
    assert blended_loss(logits, (nothing, nothing), share, weight) == 0


def test_motion_near_a_change_counts_less(tiny_world):
    clips = draw_examples(tiny_world, [story({}, {"motion": "hops"})], ["plain"])
    referee = Referee(NAMES).eval()
    loss = lambda near: referee_losses(referee, as_batch(replace(clips, near_change=near), slice(None)))["motion"].item()
    none, some = torch.zeros(1, 16, dtype=torch.bool), torch.arange(16)[None] < 8
    logits = referee.see_motion(as_batch(clips, slice(None)).video)[0]
    each = F.cross_entropy(logits, clips.labels[0, :, 3].long(), reduction="none")
    assert loss(none) == pytest.approx(each.mean().item(), rel=1e-4)
    assert loss(some) == pytest.approx((0.3 * each[:8].sum() + each[8:].sum()).item() / (0.3 * 8 + 8), rel=1e-4)


# Training


def test_more_frames_of_a_clip_are_judged_where_more_are_asked_for(bank, wider_referee):
    few, all_of_them = (RefereeTask(Referee(NAMES), bank, settings(), {}, **more) for more in ({}, {"frames_judged": 9}))
    one, other = few.draw(3, [Part()])[0], all_of_them.draw(3, [Part()])[0]
    assert len(one.frames) == 4 and sorted(other.frames.tolist()) == list(range(9)) and torch.equal(one.video, other.video)
    assert few.build().config == Referee(NAMES).config
    again = RefereeTask(wider_referee, bank, settings(), {}, frames_judged=9).build()
    assert again.config == wider_referee.config and again.state_dict().keys() == wider_referee.state_dict().keys()


def test_the_wider_one_tells_who_acts_by_what_moves():
    """The same two animals, each once the one that walks past the other: from one picture alone nobody could say who acts."""
    world = open_world(replace(COMPANY_WORLD, objects=()))
    motions, starts = ("walks left", "walks right"), (0.3, 0.7)
    pairs = (("panda", "fox"), ("fox", "panda"))
    stories = [story({"actor": a, "companion": c, "motion": m, "num_frames": 5}, start_x=x) for a, c in pairs for m in motions for x in starts]
    batch = as_batch(draw_examples(world, stories, ["plain"] * len(stories)), slice(None))
    torch.manual_seed(0)
    referee = Referee(labels_of(world.config), replace(WIDER, width=12, motion_width=4))
    optimizer = torch.optim.Adam(referee.parameters(), lr=3e-3)
    for _ in range(25):
        losses = referee_losses(referee, batch)
        optimizer.zero_grad()
        (losses["actor"] + losses["companion"]).backward()
        optimizer.step()
    said, names = referee.see(batch.video), list(referee.labels)
    for name in ("actor", "companion"):
        truth = batch.labels[..., names.index(name)]
        judged = truth != UNJUDGED
        assert (said[name].argmax(-1) == truth)[judged].float().mean() > 0.9, name


def test_a_referee_learns_to_see(trained, tiny_world):
    matrices = confusions(trained, plain_batches(tiny_world, 40, 9, held_out=False, tokenizer=None), fps=8.0).frames
    right = {name: accuracy(matrix)["right"] for name, matrix in matrices.items()}
    assert min(right[name] for name in ("actor", "place", "time")) > 0.9, right
    held_out = confusions(trained, plain_batches(tiny_world, 24, 9, held_out=True, tokenizer=None), fps=8.0).frames
    assert accuracy(held_out["actor"])["right"] > 0.85


def test_motion_is_learnt_from_what_moves(tiny_world):
    """Few steps on one actor in one place; its picture has no left and right, so movement alone tells them apart."""
    clips = lambda seed: [story({"motion": motion, "num_frames": 9}, start_x=(24 + 4 * (seed % 5)) / 64) for motion in TINY_WORLD.motions]
    batches = [as_batch(draw_examples(tiny_world, clips(seed), ["plain"] * 4), slice(None)) for seed in range(5)]
    torch.manual_seed(0)
    referee = Referee(NAMES)
    optimizer = torch.optim.Adam([*referee.motion_trunk.parameters(), *referee.heads["motion"].parameters()], lr=3e-3)
    for step in range(40):
        batch = batches[step % 4]  # the fifth is never seen
        loss = F.cross_entropy(referee.see_motion(batch.video).flatten(0, 1), batch.labels[..., 3].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    referee.eval()
    judged = referee.see_motion(batches[4].video).argmax(-1)
    assert (judged == batches[4].labels[..., 3])[:, 2:7].float().mean() > 0.8, judged


def test_it_sees_nobody_where_nobody_is(trained, tiny_world):
    said = luck(trained, tiny_world, "nobody", 16, 9)
    assert said["n"] == 16 * 9 and said["still_named"] < 0.15 and said["nobody_seen"] > 0.4, said  # by luck a quarter each


def test_a_run_that_goes_on_takes_the_same_steps(bank, tmp_path):
    chosen = settings(num_steps=4, save_every=2, batch_size=2)
    whole = Run(tmp_path / "whole", task(bank, chosen), chosen)
    whole.train(lambda line: None)
    (tmp_path / "parts/checkpoints").mkdir(parents=True)
    (tmp_path / "whole/checkpoints/step-0000002").rename(tmp_path / "parts/checkpoints/step-0000002")
    again = Run(tmp_path / "parts", task(bank, chosen), chosen)
    assert again.step == 2
    again.train(lambda line: None)
    for name, value in whole.averaged().state_dict().items():
        assert torch.equal(value, again.averaged().state_dict()[name]), name


def test_a_run_of_another_network_is_told(bank, wider_referee, tmp_path):
    chosen = settings(num_steps=1, save_every=1, batch_size=2)
    Run(tmp_path, task(bank, chosen), chosen).train(lambda line: None)
    with pytest.raises(ValueError, match="was saved by a run that was not this one: attends False -> True, motion_width 16 -> 4"):
        Run(tmp_path, RefereeTask(Referee(NAMES, wider_referee.config), bank, chosen, {"bank": "tiny"}), chosen)


# Figures


class Oracle(torch.nn.Module):
    """Says of each clip what it is told to: labels (n f a), shifted by `error`."""

    def __init__(self, answers: list[torch.Tensor], error: int = 0):
        super().__init__()
        self.labels, self.answers, self.error = NAMES, list(answers), error
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = self.answers.pop(0).long()
        said = {}
        for index, (name, names) in enumerate(NAMES.items()):
            said[name] = F.one_hot((labels[..., index].clamp(min=0) + self.error) % len(names), len(names)).float()
        return said


def test_confusions_count_the_frames_that_can_be_judged(tiny_world):
    examples = draw_examples(tiny_world, [story({"num_frames": 6}, {"motion": "hops", "num_frames": 10})], ["plain"])
    examples.labels[0, 0, 0] = UNJUDGED
    right = confusions(Oracle([examples.labels]), [examples], fps=8.0).frames
    assert {name: accuracy(matrix)["right"] for name, matrix in right.items()} == dict.fromkeys(NAMES, 1.0)
    assert {name: accuracy(matrix)["n"] for name, matrix in right.items()} == {"actor": 15, "place": 16, "time": 16, "motion": 16 - 8}
    assert all(worst_pairs(matrix, NAMES[name]) == [] for name, matrix in right.items())
    wrong = confusions(Oracle([examples.labels], error=1), [examples], fps=8.0).frames
    assert {name: accuracy(matrix)["right"] for name, matrix in wrong.items()} == dict.fromkeys(NAMES, 0.0)
    assert worst_pairs(wrong["actor"], NAMES["actor"]) == [{"truth": "panda", "judged": "fox", "frames": 15, "of": 15}]


def test_scenes_are_what_most_of_their_frames_are(tiny_world):
    """Two scenes of 12 and 16 frames; what is near the change is left out, and an actor who is in the picture for less than a second."""
    examples = draw_examples(tiny_world, [story({"num_frames": 12}, {"motion": "hops", "num_frames": 16})], ["plain"])
    answers = examples.labels.clone()
    answers[0, :3, 1] += 1  # the place, wrong in three of the first scene's eight frames
    answers[0, 16:23, 2] = 0  # the time, wrong in seven of the second one's twelve
    examples.labels[0, 1, 0] = UNJUDGED  # so that the actor can be judged in seven frames of the first scene
    scenes = confusions(Oracle([answers]), [examples], fps=8.0).scenes
    assert {name: accuracy(matrix)["n"] for name, matrix in scenes.items()} == {"actor": 1, "place": 2, "time": 2, "motion": 2}
    assert {name: accuracy(matrix)["right"] for name, matrix in scenes.items()} == {"actor": 1.0, "place": 1.0, "time": 0.5, "motion": 1.0}


def test_luck_is_the_share_of_erased_actors_that_are_still_named(tiny_world):
    batches = [draw_stories(tiny_world, SEED, range(begin, begin + BATCH), 5) for begin in (0, BATCH)]
    truths = [truth_of(tiny_world, batch)[0] for batch in batches]
    assert luck(Oracle(truths), tiny_world, "nobody", 2 * BATCH, 5) == {"still_named": 1.0, "nobody_seen": 0.0, "n": 2 * BATCH * 5}
    nobody = [torch.zeros_like(truth) for truth in truths]
    assert luck(Oracle(nobody), tiny_world, "garbled", 2 * BATCH, 5) == {"still_named": 0.0, "nobody_seen": 1.0, "n": 2 * BATCH * 5}


def test_company_is_painted_as_often_as_asked_where_there_is_any(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    from train_referee import with_company

    assert with_company(COMPANY_WORLD, None) == COMPANY_WORLD and with_company(TINY_WORLD, 0.3) == TINY_WORLD
    often = with_company(COMPANY_WORLD, 0.3)
    assert (often.companion_prob, often.object_prob) == (0.3, 0.3) and labels_of(often) == labels_of(COMPANY_WORLD)
    for prob in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"--company {prob}: needed above 0"):
            with_company(COMPANY_WORLD, prob)


def test_a_wider_one_starts_from_that_of_a_world_with_other_attributes(tmp_path, monkeypatch):
    """What a trained one knows of an attribute goes to that attribute, wherever it stands in the order of either."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    from train_referee import first_referee

    worlds = open_world(TINY_WORLD), open_world(COMPANY_WORLD)
    for name, (before, after) in {"more": worlds, "fewer": worlds[::-1]}.items():
        torch.manual_seed(1)
        trained = Referee(labels_of(before.config), WIDER)
        for weight in trained.parameters():
            torch.nn.init.normal_(weight)
        save_referee(trained, tmp_path / name)
        begun = first_referee(argparse.Namespace(seed=0, wider=True, init_from=tmp_path / name), after)
        clips = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        said, expected = begun.eval()(clips), load_referee(tmp_path / name)(clips)
        assert list(said) == list(labels_of(after.config)) and {"actor", "place", "time", "motion"} <= said.keys() & expected.keys()
        for attribute in said.keys() & expected.keys():
            torch.testing.assert_close(said[attribute], expected[attribute], rtol=1e-3, atol=1e-3)


def test_the_program_writes_weights_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    import train_referee

    figures = tmp_path / "figures.json"
    monkeypatch.setattr(referee_bank, "PART", 2)
    coder = tiny_coder()
    save_model(tmp_path / "coder", ModelInfo("coder", coder.config, None, TextConfig(), 8.0), coder, None)
    coded = ["--model", str(tmp_path / "coder")]
    options = [*coded, "--clips", "4", "--steps", "2", "--batch", "2", "--measured", "1", "--figures", str(figures), "-o", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_referee.py", *options])
    train_referee.main()
    referee = load_referee(tmp_path / "run" / "small.safetensors")
    assert set(judge(referee, torch.zeros(1, 3, 2, 64, 64))) == {"actor", "place", "time", "motion"}
    told = json.loads(figures.read_text())
    assert told["sha256"] in capsys.readouterr().out and told["world"] == "small"
    for case in ("rendered_seen_pairs", "reconstructed_seen_pairs", "rendered_held_out_pairs", "reconstructed_held_out_pairs"):
        assert told[case]["place"]["n"] == 33 and 0 <= told[case]["actor"]["right"] <= 1
        assert told[case]["place"]["scenes"]["n"] in (1, 2)
    assert told["erased_actors"]["n"] == 33
    measured_again = tmp_path / "again.json"
    options = [*coded, "--measure", str(tmp_path / "run/small.safetensors"), "--measured", "1", "--figures", str(measured_again)]
    monkeypatch.setattr(sys, "argv", ["train_referee.py", *options])
    train_referee.main()
    how = dict.fromkeys(("command", "load_after"))
    assert json.loads(measured_again.read_text()) | how == told | how
    monkeypatch.setattr(sys, "argv", ["train_referee.py", *options[:4]])
    with pytest.raises(SystemExit, match="needed -o FOLDER to train in, or --measure FILE with --figures FILE"):
        train_referee.main()

    weights = tmp_path / "run" / "small.safetensors"
    options = [*coded, "--init-from", str(weights), "--clips", "4", "--steps", "1", "--batch", "2", "--learning-rate", "0", "-o"]
    monkeypatch.setattr(sys, "argv", ["train_referee.py", *options, str(tmp_path / "again")])
    train_referee.main()
    again = load_referee(tmp_path / "again" / "small.safetensors").state_dict()
    assert all(torch.equal(again[name], value) for name, value in referee.named_parameters()), "it starts from what it is given"
    monkeypatch.setattr(sys, "argv", ["train_referee.py", "--world", "medium", *options, str(tmp_path / "other")])
    train_referee.main()
    other = load_referee(tmp_path / "other" / "medium.safetensors").state_dict()
    alike = [name for name, value in referee.named_parameters() if torch.equal(other[name], value)]
    same = {name.split(".")[1] if name.startswith("heads.") else "trunks" for name in alike}
    assert same == {"trunks", "time"}, "of another world its trunks, and the heads of what has the same names"


@pytest.mark.parametrize("seed", [999, 4321, 777])
def test_a_referee_is_not_trained_on_what_it_is_measured_by(tmp_path, monkeypatch, seed):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    import train_referee

    monkeypatch.setattr(sys, "argv", ["train_referee.py", "--seed", str(seed), "-o", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=f"--seed {seed}: that of clips which referees or models are measured by"):
        train_referee.main()
