"""Two processes, each with half of every batch, end up where one with all of it does: losses, gradients, codebooks."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.quantizer import VQ
from phenaki.training.losses import LossSettings, TokenizerLosses

SIZES = {"image_size": 16, "dim": 16, "heads": 2, "mlp_dim": 32, "encoder_layers": "st", "decoder_layers": "st"}
STEM = {"stem_dim": 8, "stem_blocks": 1, "head_blocks": 1, "fsq_levels": (4, 4, 4), "codebook_size": 16, "code_dim": 4}
SETTINGS = LossSettings(
    lpips_weight=0, i3d_weight=0, adversarial_weight=0.5, start_step=1, balance="adaptive", r1_every=2, lecam_weight=0.2, lecam_decay=0.9,
    discriminator_dim=8, discriminator_stages=1,
)  # fmt: skip
NUM_STEPS, LEARNING_RATE = 4, 0.02


class Trainee(nn.Module):
    """A tokenizer and its losses as one module, as DistributedDataParallel needs them."""

    def __init__(self, quantizer: str):
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer, self.losses = CViViT(CViViTConfig(**SIZES, **STEM, quantizer=quantizer)), TokenizerLosses(SETTINGS)

    def forward(self, video: Tensor, step: int) -> dict[str, Tensor]:
        return self.losses(self.tokenizer(video), video, step, torch.Generator().manual_seed(step))


def train(quantizer: str, rank: int | None) -> dict[str, Tensor]:
    """Steps of plain gradient descent on this process's half of each batch, or (None) on all of it; weights and losses."""
    trainee = Trainee(quantizer)
    module = trainee if rank is None else nn.parallel.DistributedDataParallel(trainee, find_unused_parameters=True)
    losses = []
    for step in range(NUM_STEPS):
        video = torch.rand(4, 3, 5, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1
        out = module(video if rank is None else video.chunk(2)[rank], step)
        (out["loss"] + out["discriminator_loss"]).backward()
        losses.append(torch.stack([out["loss"], out["discriminator_loss"]]).detach())
        with torch.no_grad():
            for parameter in trainee.parameters():
                if parameter.grad is not None:  # the discriminator starts late
                    parameter -= LEARNING_RATE * parameter.grad
        trainee.zero_grad()
    return {**trainee.state_dict(), "the losses": torch.stack(losses)}


def revive(rank: int | None) -> dict[str, Tensor]:
    """Codebook and counters after steps of which this process sees a half, or (None) all."""
    torch.manual_seed(0)
    vq = VQ(16, 40, 8)
    moved = []
    for step in range(NUM_STEPS):
        x = torch.randn(24, 16, generator=torch.Generator().manual_seed(step))
        quantized = vq(x if rank is None else x.chunk(2)[rank])
        moved.append(vq.revive(quantized.codes, quantized.tokens, 2, torch.Generator().manual_seed(step)))
    return {"codebook": vq.codebook.detach().clone(), "idle": vq.idle, "moved": torch.tensor(moved)}


WORK = {"fsq": lambda rank: train("fsq", rank), "vq": lambda rank: train("vq", rank), "revive": revive}


def in_group(rank: int, folder: Path) -> None:
    """One of two processes: all the work, its results as files."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        for name, work in WORK.items():
            save_file(work(rank), folder / f"{name}-{rank}.safetensors")
    finally:
        torch.distributed.destroy_process_group()


def as_the_other(index: int, folder: Path) -> None:
    in_group(index + 1, folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """A folder with what each of two processes came to; this one is the first of them."""
    folder = tmp_path_factory.mktemp("group")
    other = torch.multiprocessing.spawn(as_the_other, (folder,), nprocs=1, join=False)
    in_group(0, folder)
    while not other.join():
        pass
    return folder


@pytest.mark.parametrize("name", WORK)
def test_two_processes_end_up_where_one_does(name, together):
    alone, ranks = WORK[name](None), [load_file(together / f"{name}-{rank}.safetensors") for rank in range(2)]
    if "the losses" in alone:
        alone_losses, losses = alone.pop("the losses"), [rank.pop("the losses") for rank in ranks]
        torch.testing.assert_close(sum(losses) / 2, alone_losses, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(losses[0], losses[1], rtol=1e-3), "each process sees other clips"
    for rank in ranks:
        assert rank.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_something_was_revived(together):
    assert load_file(together / "revive-0.safetensors")["moved"].sum() > 10
