"""Losses of a pair that learn against each other: hinge, R1, LeCam, and how much the tokenizer listens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenaki.quantizer import shared_mean

MAX_BALANCE = 1e4
TINY = 1e-12  # of a gradient's length


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Scores of footage and of reconstructions -> scalar: footage above 1, the rest below -1 (Lim & Ye 2017, arXiv 1705.02894)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Scores of reconstructions -> scalar, least where they are high."""
    return -fake.mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """1/2 E |grad of the mean score|^2 on footage (b c f h w), in float32 (Mescheder et al. 2018, arXiv 1801.04406, Eq. 9)."""
    with torch.enable_grad(), torch.autocast(video.device.type, enabled=False):
        video = video.detach().float().requires_grad_()
        scores = discriminator(video).flatten(1).mean(1)
        (gradient,) = torch.autograd.grad(scores.sum(), video, create_graph=True)
        return 0.5 * gradient.square().flatten(1).sum(1).mean()


def adaptive_balance(reconstruction: Tensor, adversarial: Tensor, video: Tensor) -> Tensor:
    """How much the adversarial loss must count to pull at `video` as hard as the reconstruction losses do, without gradient.

    VQGAN (Esser et al. 2021, arXiv 2012.09841, Eq. 7) compares the gradients of the decoder's last layer; here they are those of
    the decoded video, which needs no knowledge of the decoder and leaves its gradients alone.
    """
    squares = [torch.autograd.grad(loss, video, retain_graph=True)[0].float().square().sum() for loss in (reconstruction, adversarial)]
    ours, theirs = shared_mean(torch.stack(squares)).sqrt()
    return (ours / (theirs + TINY)).clamp(max=MAX_BALANCE)


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al. 2021, arXiv 2104.03310): scores stay near the moving average of the other side's.

    A step sees the averages of the steps before it, also when it comes in several batches or in several processes: the means
    of the batches of one step wait until the next step asks. Means that are not finite (NaN or infinite), of a skipped step, are
    left out. All of it is in the state dict, so a resumed run is exact.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("average", torch.zeros(2))  # of the scores of footage, of reconstructions
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))  # that are in the average
        self.register_buffer("waiting", torch.zeros(2))  # sums of the means of one step's batches
        self.register_buffer("num_waiting", torch.zeros((), dtype=torch.int64))
        self.register_buffer("waiting_step", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor, step: int) -> Tensor:
        """Scores of footage and of reconstructions in a step -> scalar, 0 in the first step."""
        if self.training:
            self._settle(step)
        average_real, average_fake = self.average.clone()
        loss = F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()
        if self.training:
            means = shared_mean(torch.stack([real.detach().mean(), fake.detach().mean()]))
            is_finite = means.isfinite().all()
            self.waiting += torch.where(is_finite, means, 0)
            self.num_waiting += is_finite
            self.waiting_step.fill_(step)
        return loss * (self.num_steps > 0)

    def _settle(self, step: int) -> None:
        """Takes what waits of an earlier step into the average; without branches, so that a GPU is not waited for."""
        is_over = (self.num_waiting > 0) & (self.waiting_step != step)
        mean = self.waiting / self.num_waiting.clamp(min=1)
        moved = torch.where(self.num_steps > 0, torch.lerp(mean, self.average, self.decay), mean)
        self.average.copy_(torch.where(is_over, moved, self.average))
        self.num_steps += is_over
        self.waiting.masked_fill_(is_over, 0)
        self.num_waiting *= ~is_over
