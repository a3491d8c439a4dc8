"""What a tokenizer is trained for (paper section 2.1, appendix B.1): L = L_VQ + 0.1 L_Adv + 0.1 L_IP + 1.0 L_VP + 1.0 L_2.

`TokenizerLosses` gives every part by name, the tokenizer's loss and the discriminator's. One backward pass through the sum of
the two gives each network the gradients of its own loss alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from phenaki.config import check_range
from phenaki.cvivit import Reconstruction
from phenaki.devices import sent
from phenaki.evaluation.i3d import I3D, MIN_SIZE, load_i3d
from phenaki.evaluation.lpips import LPIPS, load_lpips, unit_channels
from phenaki.evaluation.metrics import psnr, squared_error
from phenaki.training.adversarial import LeCam, adaptive_balance, hinge_discriminator, hinge_generator, r1_penalty
from phenaki.training.discriminator import MAX_STAGES, Discriminator

BALANCES = ("constant", "adaptive")
CHANGE_BLOCK = 4  # pixels a side
LEVEL = 2 / 255  # of 8-bit videos in [-1, 1]


@dataclass(frozen=True)
class LossSettings:
    """Weights of the parts, the paper's where it states them; 0 = the part is neither computed nor logged."""

    l2_weight: float = 1.0  # L_2
    l1_weight: float = 0.0
    change_weight: float = 0.0  # how much changes from a frame to the next: against stops inside slices and jumps between them
    motion_weight: float = 0.0  # L2 of each pixel's change from a frame to the next: against errors that come and go
    still_weight: float = 0.0  # L1 of each pixel's change where truth has none: against flicker of what stands still
    first_frame_weight: float = 1.0  # of a clip's first frame in L2 and L1, against 1 for each other: it has a slice to itself
    lpips_weight: float = 0.1  # L_IP; needs `phenaki metrics install`
    lpips_frames: int = 4  # of each clip, drawn anew in every step; 0 = all of them
    i3d_weight: float = 1.0  # L_VP; needs `phenaki metrics install`; videos only
    i3d_size: int = 224  # pixels a side that I3D sees; smaller is faster
    quantizer_weight: float = 1.0  # L_VQ, or FSQ's own loss; the commitment inside it is the tokenizer's setting
    revive_after: int = 0  # steps without use after which an entry of VQ is moved; 0 = never
    adversarial_weight: float = 0.1  # L_Adv
    start_step: int = 10_000  # first step of the discriminator and of the adversarial loss
    balance: str = "constant"  # or "adaptive": adversarial_weight times the ratio of the gradients' lengths
    r1_weight: float = 10.0  # of the discriminator's gradient penalty (MAGVIT's)
    r1_every: int = 16  # steps; the penalty counts r1_every times where it is taken
    lecam_weight: float = 0.0  # MAGVIT-v2: 0.001
    lecam_decay: float = 0.999  # of the moving averages of scores
    discriminator_dim: int = 32  # channels of its first layer, a multiple of 8
    discriminator_stages: int = 3  # halvings after the first layer's; one answer for each 2^(1 + stages) pixels a side

    def __post_init__(self):
        check_range(self, *(name for name in vars(self) if name != "balance"), at_least=0)
        check_range(self, "first_frame_weight", above=0)  # a picture is a first frame alone
        check_range(self, "r1_every", "discriminator_stages", at_least=1)
        check_range(self, "discriminator_stages", at_most=MAX_STAGES)
        check_range(self, "lecam_decay", below=1)
        if not (self.l2_weight or self.l1_weight or self.lpips_weight or self.i3d_weight):
            raise ValueError("all of l2_weight, l1_weight, lpips_weight, i3d_weight are 0: nothing says how like a reconstruction is; set one")
        if self.balance not in BALANCES:
            raise ValueError(f"balance {self.balance!r}: allowed are {', '.join(BALANCES)}")
        if self.i3d_weight and self.i3d_size < MIN_SIZE:
            raise ValueError(f"i3d_size {self.i3d_size}: I3D needs at least {MIN_SIZE} pixels a side; it was trained on 224")


class TokenizerLosses(nn.Module):
    """The losses, and what of them is trained and saved: the discriminator and LeCam's averages.

    The metric networks are frozen, not in the state dict, and stay on the device that they were loaded on.
    """

    def __init__(self, settings: LossSettings, lpips: LPIPS | None = None, i3d: I3D | None = None):
        super().__init__()
        for name, network in (("lpips", lpips), ("i3d", i3d)):
            if getattr(settings, f"{name}_weight") and network is None:
                raise ValueError(f"{name}_weight is {getattr(settings, f'{name}_weight')}: it needs the network; set it to 0, or use build_losses")
        self.settings = settings
        self.frozen = tuple(network and network.eval().requires_grad_(False) for network in (lpips, i3d))  # a tuple: not a part of this module
        is_adversarial = settings.adversarial_weight > 0
        self.discriminator = Discriminator(settings.discriminator_dim, settings.discriminator_stages) if is_adversarial else None
        self.lecam = LeCam(settings.lecam_decay) if is_adversarial and settings.lecam_weight else None

    def forward(self, result: Reconstruction, video: Tensor, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """A tokenizer's answer to `video` (b 3 f h w) in [-1, 1] -> every part by name, scalars.

        "loss" is the tokenizer's, "discriminator_loss" the discriminator's; call backward on their sum. rng is on the CPU and the
        same in all processes and all batches of a step: it draws which frames LPIPS sees.
        """
        settings, made, truth = self.settings, result.video.float(), video.float()
        parts = self._likeness(made, truth, rng)
        likeness = sum(getattr(settings, f"{name}_weight") * part for name, part in parts.items())
        parts["quantizer"] = result.quantizer_loss
        loss = likeness + settings.quantizer_weight * result.quantizer_loss
        if self.discriminator is not None:
            parts |= self._adversarial(made, truth, likeness, step)
            loss = loss + settings.adversarial_weight * parts["balance"] * parts["adversarial"]
        return {"loss": loss, **parts, "squared_error": squared_error(made, truth).mean().detach()}

    @torch.no_grad()
    def held_out(self, result: Reconstruction, video: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Losses of a tokenizer's answer to held-out `video` (b 3 f h w): scalars by name.

        Without the quantizer's loss and the discriminator's, so that "loss" can be compared between steps.
        """
        made, truth = result.video.float(), video.float()
        parts = self._likeness(made, truth, rng)
        loss = sum(getattr(self.settings, f"{name}_weight") * part for name, part in parts.items())
        return {"loss": loss, **parts, "squared_error": squared_error(made, truth).mean()}

    def _likeness(self, made: Tensor, truth: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """How unlike two videos are, in each way that has a weight."""
        settings, (lpips, i3d), parts = self.settings, self.frozen, {}
        weights = frame_weights(truth.shape[2], settings.first_frame_weight, truth.device)
        if settings.l2_weight:
            parts["l2"] = ((made - truth).square() * weights).mean()
        if settings.l1_weight:
            parts["l1"] = ((made - truth).abs() * weights).mean()
        if settings.change_weight:
            parts["change"] = change_error(made, truth)
        if settings.motion_weight:
            parts["motion"] = motion_error(made, truth)
        if settings.still_weight:
            parts["still"] = still_error(made, truth)
        if settings.lpips_weight:
            parts["lpips"] = frame_perceptual(lpips, made, truth, settings.lpips_frames, rng)
        if settings.i3d_weight:
            parts["i3d"] = video_perceptual(i3d, made, truth, settings.i3d_size)
        return parts

    def _adversarial(self, made: Tensor, truth: Tensor, likeness: Tensor, step: int) -> dict[str, Tensor]:
        settings, zero = self.settings, torch.zeros_like(likeness)
        parts = dict.fromkeys(("adversarial", "balance", "discriminator_hinge", "score_real", "score_fake"), zero)
        parts |= {name: zero for name in ("r1", "lecam") if getattr(settings, f"{name}_weight")}
        if step < settings.start_step:  # no gradients rather than zeros, on which AdamW would decay the weights
            return parts | {"discriminator_loss": zero}

        parts["adversarial"] = hinge_generator(self._frozen_scores(made))
        can_balance = settings.balance == "adaptive" and made.requires_grad
        parts["balance"] = adaptive_balance(likeness, parts["adversarial"], made) if can_balance else zero + 1

        real, fake = self.discriminator(truth), self.discriminator(made.detach())
        parts |= {"score_real": real.detach().mean(), "score_fake": fake.detach().mean()}
        parts["discriminator_hinge"] = loss = hinge_discriminator(real, fake)
        if self.lecam is not None:
            parts["lecam"] = self.lecam(real, fake, step)
            loss = loss + settings.lecam_weight * parts["lecam"]
        if settings.r1_weight and step % settings.r1_every == 0:
            parts["r1"] = settings.r1_every * r1_penalty(self.discriminator, truth)
            loss = loss + settings.r1_weight * parts["r1"]
        return parts | {"discriminator_loss": loss}

    def _frozen_scores(self, made: Tensor) -> Tensor:
        """Scores of a reconstruction, with gradients for it and none for the discriminator's weights."""
        weights = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (made,))


def frame_weights(num_frames: int, first: float, device: torch.device) -> Tensor:
    """Weights (f 1 1) with mean 1: `first` for the first frame against 1 for each other."""
    weights = torch.ones(num_frames, device=device)
    weights[:1].fill_(first)
    return (weights / weights.mean())[:, None, None]


def with_psnr(means: dict[str, float]) -> dict[str, float]:
    """Means of losses with decibels in place of "squared_error": of the mean error, since means of decibels depend on what is averaged first."""
    decibels = {"psnr": psnr(torch.tensor(means["squared_error"], dtype=torch.float64)).item()}
    return {name: value for name, value in means.items() if name != "squared_error"} | decibels


def build_losses(settings: LossSettings, device: str | torch.device = "cpu") -> TokenizerLosses:
    """The losses with the installed metric networks they need. ValueError where `phenaki metrics install` has not been run."""
    lpips = load_lpips(device) if settings.lpips_weight else None
    i3d = load_i3d(device) if settings.i3d_weight else None
    return TokenizerLosses(settings, lpips, i3d).to(device)


def change_error(made: Tensor, truth: Tensor) -> Tensor:
    """Error of how much videos (b c f h w) change from a frame to the next: L1 of the mean absolute changes of blocks of pixels.

    0 for single frames, which do not change. Of blocks: the error of each pixel's own change is least where a video that is not
    sure of its motion stands still inside a slice of tokens and jumps to the next.
    """
    if truth.shape[2] == 1:
        return made.new_zeros(())
    changes = (F.avg_pool3d(video.diff(dim=2).abs(), (1, CHANGE_BLOCK, CHANGE_BLOCK)) for video in (made, truth))
    return F.l1_loss(*changes)


def motion_error(made: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of the changes of each pixel from a frame to the next, of videos (b c f h w); 0 for single frames.

    It weighs errors that differ from frame to frame, which are seen as flicker, and not those that stay.
    """
    return made.new_zeros(()) if truth.shape[2] == 1 else (made - truth).diff(dim=2).square().mean()


def still_error(made: Tensor, truth: Tensor) -> Tensor:
    """Mean over all pixels of how much they change from a frame to the next where truth does not, of videos (b c f h w).

    Faint flicker of a whole picture is seen, and is next to nothing when squared. Where truth moves this is 0: there the least
    error of a decoder that is not sure of a motion would be to stand still.
    """
    if truth.shape[2] == 1:
        return made.new_zeros(())
    still = truth.diff(dim=2).abs().amax(1, keepdim=True) < LEVEL / 2
    return (made.diff(dim=2).abs() * still).mean()


def frame_perceptual(lpips: LPIPS, made: Tensor, truth: Tensor, num_frames: int, rng: torch.Generator) -> Tensor:
    """L_IP: mean LPIPS of `num_frames` frames (0 = all) of videos (b c f h w), the same frames of each clip, drawn by `rng`."""
    chosen = torch.randperm(truth.shape[2], generator=rng)[: num_frames or None]
    chosen = sent(chosen, truth.device)
    pictures = (rearrange(video[:, :, chosen], "b c f h w -> (b f) c h w") for video in (made, truth))
    return lpips(*pictures).mean()


def video_perceptual(i3d: I3D, made: Tensor, truth: Tensor, size: int) -> Tensor:
    """L_VP: how far I3D's features of two videos (b c f h w) are apart; 0 for single frames, which do not move.

    The paper does not say how they are compared. Here as in LPIPS, without weights: squared distance of unit vectors, averaged
    over places, times and the four stages; 0 to 4.
    """
    if truth.shape[2] == 1:
        return made.new_zeros(())
    pairs = zip(i3d.features(made, size), i3d.features(truth, size), strict=True)
    distances = [(unit_channels(a) - unit_channels(b)).square().sum(1).mean() for a, b in pairs]
    return torch.stack(distances).mean()
