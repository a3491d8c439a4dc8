"""phenaki-pytorch 0.5.0 as it can be run today, for the programs that compare with it.

It is no part of this project. Give it an environment of its own that has this package too:

    python -m venv peer && peer/bin/pip install . phenaki-pytorch==0.5.0 vector-quantize-pytorch==1.32.0 torchvision==0.28.0

Three things stand in the way of an import or a constructor, and are put right here without touching what is measured:
torchvision's build for GPUs does not load beside a CPU build of torch (only its operators for boxes, which nobody uses here);
CViViT fetches the weights of VGG16, so the network is handed over; Phenaki asks a hub for the width of a T5, so it is told.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

VERSION = "0.5.0"
LEARNING_RATE, BETAS, MAX_GRAD_NORM, EMA_BETA = 3e-4, (0.9, 0.99), 0.5, 0.995  # defaults of its tokenizer's trainer


@dataclass(frozen=True)
class PeerSize:
    """Its C-ViViT: spatial and temporal layers, `depth` of each, on both sides."""

    dim: int = 192
    depth: int = 2
    heads: int = 5
    dim_head: int = 64
    codebook_size: int = 8192
    image_size: int = 64
    patch_size: int = 8
    temporal_patch_size: int = 2


def import_peer():
    """The package; ValueError where it is not installed."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    try:
        return importlib.import_module("phenaki_pytorch")
    except ImportError as error:
        raise ValueError(f"phenaki-pytorch cannot be imported ({error}). {__doc__}") from error


def peer_tokenizer(size: PeerSize, vgg: nn.Module | None = None) -> nn.Module:
    """Its CViViT; with `vgg`, the one with the perceptual and the adversarial loss, as it is by default."""
    return import_peer().CViViT(
        dim=size.dim, codebook_size=size.codebook_size, image_size=size.image_size, patch_size=size.patch_size,
        temporal_patch_size=size.temporal_patch_size, spatial_depth=size.depth, temporal_depth=size.depth, dim_head=size.dim_head, heads=size.heads,
        use_vgg_and_gan=vgg is not None, vgg=vgg,
    )  # fmt: skip


def peer_generator(cvivit: nn.Module, *, dim: int, depth: int, heads: int, dim_head: int, max_seq_len: int, text_dim: int) -> nn.Module:
    """Its Phenaki around a MaskGit; call it with video_codebook_ids and text_embeds for a loss."""
    peer = import_peer()
    tables = importlib.import_module("phenaki_pytorch.t5")
    tables.T5_CONFIGS[tables.DEFAULT_T5_NAME] = {"config": types.SimpleNamespace(d_model=text_dim)}
    vocabulary = cvivit.vq.codebook_size
    maskgit = peer.MaskGit(dim=dim, num_tokens=vocabulary, max_seq_len=max_seq_len, depth=depth, heads=heads, dim_head=dim_head, dim_context=text_dim)
    return peer.Phenaki(maskgit=maskgit, cvivit=cvivit, text_embed_dim=text_dim)


def network_size(network: nn.Module) -> int:
    """Parameters of what is kept after training: without the discriminator and the perceptual network."""
    return sum(value.numel() for name, value in network.named_parameters() if not name.startswith(("discr.", "vgg.")))


@torch.no_grad()
def peer_reconstruction(cvivit: nn.Module, video: Tensor) -> Tensor:
    """(b c f h w) in [-1, 1] there and back; the peer's own pixels are in [0, 1]."""
    return cvivit((video + 1) / 2, return_recons_only=True) * 2 - 1


class VGGFeatures(nn.Module):
    """The convolutional part of VGG16: pictures (b 3 h w) -> (b d), its last pooled features."""

    def __init__(self, convolutions: Sequence[nn.Conv2d]):
        super().__init__()
        layers: list[nn.Module] = []
        for convolution, last in zip(convolutions, _ends_of_blocks(), strict=True):
            layers += [convolution, nn.ReLU()] + ([nn.MaxPool2d(2)] if last else [])
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures).flatten(1)


def _ends_of_blocks() -> list[bool]:
    """For each of VGG16's thirteen convolutions: does its block of equal size end with it?"""
    return [index == length - 1 for length in (2, 2, 3, 3, 3) for index in range(length)]


def load_vgg(weights: Path | None) -> nn.Module:
    """What the peer's perceptual loss compares pictures with.

    weights: a safetensors file of torchvision's VGG16, then it is the peer's own choice: all but the last two layers of the
    classifier. None: the convolutional part alone, from the LPIPS network that `phenaki metrics install` installs, since the
    classifier's weights come with no package. Its inputs are not normalised: the peer does not either.
    """
    if weights is not None:
        import_peer()
        vgg = importlib.import_module("torchvision").models.vgg16()
        vgg.load_state_dict(load_file(weights))
        vgg.classifier = nn.Sequential(*vgg.classifier[:-2])
        return vgg
    from phenaki.evaluation.lpips import load_lpips

    convolutions = [layer for layer in load_lpips("cpu").modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    if len(convolutions) != 13:
        raise ValueError(f"the LPIPS network has {len(convolutions)} convolutions of 3x3, VGG16 has 13: give its weights with --vgg")
    return VGGFeatures(convolutions).requires_grad_(True)


@dataclass(frozen=True)
class Trainer:
    """Its tokenizer in training: step() takes one step, averaged() gives the network of averaged weights."""

    cvivit: nn.Module
    step: Callable[[], object]
    averaged: Callable[[], nn.Module]


def trainer_with_all_losses(size: PeerSize, data: Iterator[Tensor], folder: Path, vgg: nn.Module) -> Trainer:
    """Its own CViViTTrainer with all its defaults; `data` gives batches (b c f h w) in [0, 1] in place of its reader of files."""
    import_peer()
    module = importlib.import_module("phenaki_pytorch.cvivit_trainer")
    module.VideoDataset = lambda *arguments, **options: torch.utils.data.TensorDataset(torch.zeros(1))  # for its constructor; never read
    cvivit = peer_tokenizer(size, vgg)
    trainer = module.CViViTTrainer(
        cvivit, num_train_steps=10**9, batch_size=1, folder=str(folder), valid_frac=0.0, results_folder=str(folder / "results"),
        save_results_every=10**9, save_model_every=10**9,
    )  # fmt: skip
    trainer.dl_iter = data
    trainer.steps += 1  # at step 0 it writes samples and weights, whatever the intervals
    return Trainer(cvivit, trainer.train_step, lambda: trainer.ema_vae.ema_model)


def trainer_with_mse(size: PeerSize, data: Iterator[Tensor], device: torch.device | str = "cpu") -> Trainer:
    """Its L2 loss alone with its trainer's optimizer, clipping and average: the trainer itself crashes without a discriminator."""
    import_peer()
    cvivit = peer_tokenizer(size).to(device)
    averaged = importlib.import_module("ema_pytorch").EMA(cvivit, beta=EMA_BETA, update_after_step=0, update_every=1)
    make_optimizer = importlib.import_module("phenaki_pytorch.optimizer").get_optimizer
    optimizer = make_optimizer(list(cvivit.parameters()), lr=LEARNING_RATE, wd=0.0, betas=BETAS)

    def step() -> None:
        cvivit.train()
        cvivit(next(data)).backward()
        nn.utils.clip_grad_norm_(cvivit.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update()

    return Trainer(cvivit, step, lambda: averaged.ema_model)
