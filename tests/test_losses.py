"""Tokenizer losses: each network learns from its own loss alone, in one backward pass, in any split of a batch, after any resume."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenaki.cvivit import CViViT, CViViTConfig, Reconstruction
from phenaki.evaluation.i3d import I3D
from phenaki.evaluation.lpips import LPIPS
from phenaki.evaluation.weights import MetricWeightsError
from phenaki.training.adversarial import LeCam, adaptive_balance, hinge_discriminator, hinge_generator, r1_penalty
from phenaki.training.discriminator import Discriminator
from phenaki.training.losses import LossSettings, TokenizerLosses, build_losses, frame_perceptual, video_perceptual

TINY = CViViTConfig(
    image_size=16, dim=16, heads=2, mlp_dim=32, encoder_layers="st", decoder_layers="st", stem_dim=8, stem_blocks=1, head_blocks=1,
    fsq_levels=(4, 4, 4),
)  # fmt: skip
# All that needs no metric network.
ADVERSARIAL = LossSettings(
    lpips_weight=0, i3d_weight=0, l1_weight=0.3, adversarial_weight=0.5, start_step=0, r1_every=2, lecam_weight=0.2, lecam_decay=0.9,
    discriminator_dim=8, discriminator_stages=1,
)  # fmt: skip


class Trainee(nn.Module):
    """A tokenizer and its losses as one module, as a training program wraps them for several processes."""

    def __init__(self, settings: LossSettings, config: CViViTConfig = TINY):
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer, self.losses = CViViT(config), TokenizerLosses(settings)
        with torch.no_grad():
            for parameter in self.parameters():  # blocks that start as the identity would hide their gradients
                parameter += 0.05 * torch.randn_like(parameter)

    def forward(self, video: Tensor, step: int) -> dict[str, Tensor]:
        return self.losses(self.tokenizer(video), video, step, torch.Generator().manual_seed(step))


def clips(count: int, seed: int = 0, num_frames: int = 5, size: int = 16) -> Tensor:
    return torch.rand(count, 3, num_frames, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance) -> None:
    assert actual.keys() == expected.keys() and actual
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.fixture(scope="module")
def networks() -> tuple[LPIPS, I3D]:
    torch.manual_seed(0)
    return LPIPS(), I3D()


def test_one_backward_gives_each_network_the_gradients_of_its_own_loss():
    """Against both losses written out here, each with a graph of its own."""
    video, step = clips(2), 0
    trainee = Trainee(ADVERSARIAL)
    out = trainee(video, step)
    (out["loss"] + out["discriminator_loss"]).backward()
    of_tokenizer, of_discriminator = gradients(trainee.tokenizer), gradients(trainee.losses.discriminator)

    alone = Trainee(ADVERSARIAL)
    critic, result = alone.losses.discriminator, alone.tokenizer(video)
    likeness = F.mse_loss(result.video, video) + 0.3 * F.l1_loss(result.video, video)
    (likeness + result.quantizer_loss - 0.5 * critic(result.video).mean()).backward()
    assert_same(of_tokenizer, gradients(alone.tokenizer))

    critic.zero_grad()
    real, fake = critic(video), critic(result.video.detach())
    leaf = video.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(leaf).mean(dim=(1, 2, 3)).sum(), leaf, create_graph=True)
    penalty = slope.square().sum(dim=(1, 2, 3, 4)).mean() / 2
    (F.relu(1 - real).mean() + F.relu(1 + fake).mean() + 10 * 2 * penalty).backward()
    assert_same(of_discriminator, gradients(critic), rtol=1e-4, atol=1e-7)
    assert all(gradient.abs().max() > 0 for gradient in of_tokenizer.values() if gradient.ndim > 1)


@pytest.mark.parametrize("balance", ["constant", "adaptive"])
def test_neither_loss_reaches_the_other_network(balance):
    trainee = Trainee(replace(ADVERSARIAL, balance=balance))
    trainee(clips(2), 0)["loss"].backward()
    assert not gradients(trainee.losses) and gradients(trainee.tokenizer)
    trainee.zero_grad()
    trainee(clips(2), 0)["discriminator_loss"].backward()
    assert not gradients(trainee.tokenizer) and gradients(trainee.losses)


def test_the_loss_is_the_weighted_sum_of_what_is_logged(networks):
    settings = replace(ADVERSARIAL, lpips_weight=0.7, lpips_frames=2, i3d_weight=0.4, i3d_size=32, l2_weight=1.5, quantizer_weight=0.6)
    losses, result = TokenizerLosses(settings, *networks), Reconstruction(clips(2, 1, size=32), torch.zeros(2, 3, 2, 2).long(), torch.tensor(0.3))
    losses(result, clips(2, size=32), 0, torch.Generator())  # so that LeCam has an average
    out = losses(result, clips(2, size=32), 2, torch.Generator())
    weights = {"l2": 1.5, "l1": 0.3, "lpips": 0.7, "i3d": 0.4, "quantizer": 0.6, "adversarial": 0.5}
    torch.testing.assert_close(out["loss"], sum(weight * out[name] for name, weight in weights.items()))
    expected = out["discriminator_hinge"] + 0.2 * out["lecam"] + 10 * out["r1"]
    torch.testing.assert_close(out["discriminator_loss"], expected)
    assert min(out[name] for name in (*weights, "lecam", "r1") if name != "adversarial") > 0
    torch.testing.assert_close(out["squared_error"], out["l2"])
    assert all(value.shape == () for value in out.values())


def test_losses_on_held_out_clips_are_likeness_alone():
    """Off by 1/2 in the first of three frames, by 1/4 in the others: first frames three times as heavy, of weights whose mean is 1."""
    losses = TokenizerLosses(replace(ADVERSARIAL, first_frame_weight=3.0, l2_weight=2.0))
    truth = torch.zeros(2, 3, 3, 16, 16)
    made = truth + torch.tensor([0.5, -0.25, 0.25])[:, None, None]
    out = losses.held_out(Reconstruction(made, torch.zeros(2, 2, 2, 2).long(), torch.tensor(7.0)), truth, torch.Generator())
    l2, l1 = (1.8 * 0.25 + 1.2 * 0.0625) / 3, (1.8 * 0.5 + 1.2 * 0.25) / 3
    expected = {"loss": 2 * l2 + 0.3 * l1, "l2": l2, "l1": l1, "squared_error": (0.25 + 2 * 0.0625) / 3}
    assert {name: value.item() for name, value in out.items()} == pytest.approx(expected)


def test_a_weight_of_zero_leaves_its_part_out():
    plain = LossSettings(lpips_weight=0, i3d_weight=0, adversarial_weight=0)
    trainee = Trainee(plain)
    out = trainee(clips(2), 0)
    assert set(out) == {"loss", "l2", "quantizer", "squared_error"}
    torch.testing.assert_close(out["loss"], out["l2"] + out["quantizer"])
    out["loss"].backward()
    assert gradients(trainee.tokenizer) and not trainee.losses.state_dict()


def test_the_papers_weights_are_the_defaults():
    settings = LossSettings()
    assert (settings.l2_weight, settings.lpips_weight, settings.i3d_weight, settings.adversarial_weight) == (1.0, 0.1, 1.0, 0.1)
    assert settings.quantizer_weight == 1.0 and CViViTConfig().commitment == 0.25


def test_the_discriminator_starts_late():
    """Before, it gets no gradients, so that weight decay does not change it."""
    trainee = Trainee(replace(ADVERSARIAL, start_step=3))
    out = trainee(clips(2), 2)
    (out["loss"] + out["discriminator_loss"]).backward()
    assert not gradients(trainee.losses) and gradients(trainee.tokenizer)
    assert out["adversarial"] == 0 and out["balance"] == 0 and trainee.losses.lecam.num_waiting == 0
    torch.testing.assert_close(out["loss"], out["l2"] + 0.3 * out["l1"] + out["quantizer"])
    assert set(out) == set(trainee(clips(2), 3)), "a line of the log has the same columns before and after"
    assert trainee(clips(2), 3)["balance"] == 1


def test_the_penalty_is_taken_every_so_many_steps_and_counts_as_often():
    trainee = Trainee(replace(ADVERSARIAL, r1_every=4))
    penalties = [trainee(clips(2), step)["r1"].item() for step in range(8)]
    assert [step for step, penalty in enumerate(penalties) if penalty] == [0, 4]
    assert penalties[0] == pytest.approx(4 * r1_penalty(trainee.losses.discriminator, clips(2)).item(), rel=1e-5)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert hinge_generator(fake).item() == pytest.approx(1.5)


def test_r1_by_hand():
    """A score of a * sum(video) has the gradient a everywhere."""
    video = clips(3, num_frames=2, size=4)
    slope = torch.tensor(0.7, requires_grad=True)
    penalty = r1_penalty(lambda one: slope * one.sum(dim=(1, 2, 3, 4), keepdim=True), video)
    assert penalty.item() == pytest.approx(0.5 * 0.49 * 3 * 2 * 4 * 4, rel=1e-5)
    penalty.backward()
    assert slope.grad.item() == pytest.approx(0.7 * 96, rel=1e-5)


def test_adaptive_balance_makes_both_pulls_equal():
    video = clips(2).requires_grad_()
    shifted = video * 1.0
    likeness, adversarial = (shifted**2).mean(), 1000 * shifted.sin().mean()
    weight = adaptive_balance(likeness, adversarial, shifted)
    lengths = [torch.autograd.grad(loss, shifted, retain_graph=True)[0].norm().item() for loss in (likeness, weight * adversarial)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4) and not weight.requires_grad


# Perceptual losses


def test_lpips_sees_frames_that_the_generator_draws(networks):
    lpips, (made, truth) = networks[0], (clips(2, 1, 6, 32), clips(2, 0, 6, 32))
    rng = torch.Generator().manual_seed(5)
    chosen = torch.randperm(6, generator=torch.Generator().manual_seed(5))[:2]
    expected = torch.stack([lpips(made[:, :, one], truth[:, :, one]) for one in chosen]).mean()
    torch.testing.assert_close(frame_perceptual(lpips, made, truth, 2, rng), expected)
    everything = torch.stack([lpips(made[:, :, one], truth[:, :, one]) for one in range(6)]).mean()
    torch.testing.assert_close(frame_perceptual(lpips, made, truth, 0, rng), everything)
    drawn = {frame_perceptual(lpips, made, truth, 1, torch.Generator().manual_seed(seed)).item() for seed in range(8)}
    assert len(drawn) > 2


def test_the_video_loss_sees_motion_and_nothing_in_single_frames(networks):
    i3d, video = networks[1], clips(1, 0, 9, 32)
    assert video_perceptual(i3d, video, video, 32) == 0
    assert video_perceptual(i3d, video.flip(2), video, 32) > 0  # the same frames in another order
    assert video_perceptual(i3d, clips(1, 1, 1, 32), clips(1, 0, 1, 32), 32) == 0
    made = clips(1, 1, 9, 32).requires_grad_()
    video_perceptual(i3d, made, video, 32).backward()
    assert torch.isfinite(made.grad).all() and (made.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()


def test_metric_networks_are_frozen_and_not_saved(networks):
    settings = replace(ADVERSARIAL, lpips_weight=0.1, i3d_weight=1.0, i3d_size=32)
    losses = TokenizerLosses(settings, *networks)
    assert all(name.startswith(("discriminator.", "lecam.")) for name in losses.state_dict())
    assert {name.split(".")[0] for name, _ in losses.named_parameters()} == {"discriminator"}
    before = [parameter.clone() for network in networks for parameter in network.parameters()]
    made, truth = clips(1, 1, 3, 32).requires_grad_(), clips(1, 0, 3, 32)
    out = losses(Reconstruction(made, torch.zeros(1, 2, 2, 2).long(), torch.zeros(())), truth, 0, torch.Generator())
    (out["loss"] + out["discriminator_loss"]).backward()
    assert made.grad.abs().max() > 0
    after = [parameter for network in networks for parameter in network.parameters()]
    assert all(torch.equal(one, other) and other.grad is None and not other.requires_grad for one, other in zip(before, after, strict=True))


def test_networks_that_are_missing_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"lpips_weight is 0\.1"):
        TokenizerLosses(LossSettings())
    monkeypatch.setenv("PHENAKI_CACHE", str(tmp_path))
    with pytest.raises(MetricWeightsError, match="phenaki metrics install"):
        build_losses(LossSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l1_weight": -1.0}, "l1_weight -1.0: needed at least 0"),
        ({"balance": "often"}, "allowed are constant, adaptive"),
        ({"r1_every": 0}, "r1_every 0"),
        ({"lecam_decay": 1.0}, "lecam_decay 1"),
        ({"i3d_size": 16}, "i3d_size 16"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(LossSettings(), **change)


# LeCam


def test_lecam_by_hand():
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])
    assert lecam(real, fake, 0) == 0  # nothing to compare with yet
    expected = ((1 + 0.5) ** 2 + (2 + 0.5) ** 2) / 2 + ((1.5 + 1) ** 2 + 1.5**2) / 2
    assert lecam(real, fake, 1).item() == pytest.approx(expected)
    lecam(torch.tensor([5.0]), torch.tensor([0.0]), 2)
    assert lecam.average.tolist() == pytest.approx([1.5, -0.5])
    lecam(real, fake, 3)
    assert lecam.average.tolist() == pytest.approx([0.9 * 1.5 + 0.1 * 5, 0.9 * -0.5])


def test_lecam_is_the_same_for_a_step_in_one_batch_or_in_two():
    whole, split = LeCam(0.5), LeCam(0.5)
    for step in range(4):
        real, fake = torch.randn(2, 6, generator=torch.Generator().manual_seed(step))
        expected = whole(real, fake, step)
        halves = [split(real[:3], fake[:3], step), split(real[3:], fake[3:], step)]
        torch.testing.assert_close(sum(halves) / 2, expected)
    torch.testing.assert_close(split.average, whole.average)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_lecam_takes_nothing_of_a_step_without_a_number(value):
    spoilt, plain = LeCam(0.5), LeCam(0.5)
    for step in range(4):
        real, fake = torch.randn(2, 6, generator=torch.Generator().manual_seed(step))
        expected = plain(real, fake, step)
        torch.testing.assert_close(spoilt(real, fake, step), expected)
        spoilt(torch.tensor([value]), fake, step)  # one part of the step's batch
    spoilt(real, torch.tensor([value]), 4)  # all of it
    torch.testing.assert_close(spoilt(real, fake, 5), plain(real, fake, 5))
    assert_same(spoilt.state_dict(), plain.state_dict())


def test_lecam_stands_still_in_eval_mode():
    lecam = LeCam(0.5)
    lecam(torch.ones(2), torch.zeros(2), 0)
    before = {name: value.clone() for name, value in lecam.state_dict().items()}
    lecam.eval()(torch.ones(2), torch.zeros(2), 1)
    assert_same(lecam.state_dict(), before)


# Steps


def steps(trainee: Trainee, first: int, last: int, parts: int = 1) -> Iterator[float]:
    """Plain gradient descent on both networks, the batch of each step in `parts`; the losses."""
    for step in range(first, last):
        total = 0.0
        for video in clips(4, step).chunk(parts):
            out = trainee(video, step)
            loss = (out["loss"] + out["discriminator_loss"]) / parts
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter in trainee.parameters():
                parameter -= 0.05 * parameter.grad
        trainee.zero_grad()
        yield total


def test_resumed_from_its_state_it_takes_the_same_steps_to_the_bit():
    whole, first = Trainee(ADVERSARIAL), Trainee(ADVERSARIAL)
    expected = list(steps(whole, 0, 6))
    before = list(steps(first, 0, 3))
    resumed = Trainee(ADVERSARIAL)
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert before + list(steps(resumed, 3, 6)) == expected
    assert_same(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_batch_in_two_parts_gives_the_steps_of_the_whole():
    """With VQ: FSQ's own loss is about the spread of a whole batch, so it is another one for parts."""
    vq = replace(TINY, quantizer="vq", codebook_size=16, code_dim=4)
    whole, split = Trainee(ADVERSARIAL, vq), Trainee(ADVERSARIAL, vq)
    assert list(steps(split, 0, 4, parts=2)) == pytest.approx(list(steps(whole, 0, 4)), abs=1e-5)
    assert_same(dict(split.named_parameters()), dict(whole.named_parameters()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split.losses.lecam.average, whole.losses.lecam.average, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # RMSNorm under autocast on a CPU
def test_bf16_autocast_gives_finite_float32_losses_near_the_exact_ones():
    exact, rough = Trainee(ADVERSARIAL), Trainee(ADVERSARIAL)
    with torch.autocast("cpu", torch.bfloat16):
        out = rough(clips(2), 0)
        total = out["loss"] + out["discriminator_loss"]
    total.backward()
    expected = exact(clips(2), 0)
    for name, value in out.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.02, msg=lambda text, name=name: f"{name}: {text}")
    assert set(gradients(rough)) == {name for name, _ in rough.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients(rough).values())


# The discriminator


@pytest.mark.parametrize(("num_frames", "times"), [(1, 1), (2, 1), (5, 2), (11, 3)])
def test_it_scores_patches_of_clips_of_any_length(num_frames, times):
    critic = Discriminator(dim=8, num_stages=3).requires_grad_(False)
    video = clips(2, 0, num_frames, 64)
    scores = critic(video)
    assert scores.shape == (2, times, 4, 4) and scores.dtype == torch.float32
    torch.testing.assert_close(critic(video[1:]), scores[1:])  # nothing of the rest of the batch


def test_it_learns_to_tell_sharp_from_blurred():
    torch.manual_seed(0)
    critic = Discriminator(dim=8, num_stages=1)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    for seed in range(40):
        video = clips(4, seed)
        hinge = hinge_discriminator(critic(video), critic(F.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1))))
        optimizer.zero_grad()
        hinge.backward()
        optimizer.step()
    video = clips(8, 1000)
    real, fake = critic(video).mean(dim=(1, 2, 3)), critic(F.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1))).mean(dim=(1, 2, 3))
    assert real.min() > fake.max() and hinge < 1


@pytest.mark.parametrize(("dim", "num_stages"), [(12, 3), (0, 3), (8, 0)])
def test_sizes_that_do_not_fit_are_refused(dim, num_stages):
    with pytest.raises(ValueError, match="multiple of 8"):
        Discriminator(dim, num_stages)


def test_frames_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 16 pixels"):
        Discriminator(8, 3)(clips(1, 0, 1, 8))
