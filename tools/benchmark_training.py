"""Training steps of both sides, for benchmark.py: loss, gradients, clipping, optimizer and, where the program keeps one, the average of the weights.

The peer's tokenizer minimises L2 alone (its loss with VGG16 and a discriminator costs several times as much), ours the loss of
configs/footage.toml. "ours compiled" is a run with `compile = true` (a setting of every training; compiling itself, a minute or
two once, is among the rounds that are not counted). The peer's trainers have no such setting.
"""

from collections.abc import Callable

import torch
from benchmark_sizes import CODES, FIRST_FRAMES, TEXT_LENGTH, BenchmarkSize
from peer_phenaki_pytorch import peer_generator, peer_tokenizer, trainer_with_mse
from torch import nn

from phenaki.compiling import compile_layers
from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT
from phenaki.masking import training_mask
from phenaki.training.batches import Batch
from phenaki.training.generator_losses import generator_loss
from phenaki.training.losses import LossSettings, TokenizerLosses
from phenaki.training.optimizers import EMA, OptimizerSettings, make_optimizers

Work = dict[str, Callable[[], object]]  # by contender
PEER_RATE, PEER_BETAS = 1e-4, (0.9, 0.99)  # of its PhenakiTrainer, which neither clips nor averages


def our_step(network: nn.Module, loss: Callable[[], torch.Tensor], settings: OptimizerSettings) -> Callable[[], None]:
    """A step as `phenaki.training.run` takes it."""
    optimizers, average = make_optimizers(network, settings), EMA(network, settings.ema_decay)
    taken = 0

    def step() -> None:
        nonlocal taken
        loss().backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(taken)
        taken += 1

    return step


def tokenizer_steps(size: BenchmarkSize, device: torch.device, *, with_compiled: bool, with_peer: bool) -> Work:
    """A step on a batch of windows (b 3 f h w)."""
    side = size.tokenizer.image_size
    video = torch.rand(size.batch_size, 3, FIRST_FRAMES, side, side, device=device)
    losses = TokenizerLosses(LossSettings(l1_weight=0.3, quantizer_weight=0.1, lpips_weight=0, i3d_weight=0, adversarial_weight=0))
    rng = torch.Generator()

    def ours(compiled: bool) -> Callable[[], None]:
        network = CViViT(size.tokenizer).to(device)
        if compiled:
            compile_layers(network)
        return our_step(network, lambda: losses(network(video * 2 - 1), video * 2 - 1, 0, rng)["loss"], OptimizerSettings())

    work = {"ours": ours(compiled=False)} | ({"ours compiled": ours(compiled=True)} if with_compiled else {})
    return work | {"peer": trainer_with_mse(size.peer, iter(lambda: video, None), device).step} if with_peer else work


def generator_steps(size: BenchmarkSize, device: torch.device, *, with_compiled: bool, with_peer: bool) -> Work:
    """A step on a batch of whole windows of tokens, from text alone."""
    b, config = size.batch_size, size.generator
    tokens = torch.randint(CODES, (b, config.chunk_slices, size.side, size.side), device=device)
    text, text_mask = torch.randn(b, TEXT_LENGTH, config.text_dim, device=device), torch.ones(b, TEXT_LENGTH, dtype=torch.bool, device=device)
    rng, nothing = torch.Generator().manual_seed(0), torch.zeros(b, dtype=torch.long, device=device)

    def batch_of_tokens() -> Batch:
        mask = training_mask(tuple(tokens.shape), rng, per_slice_prob=0.5).to(device)
        dropped = (torch.rand(b, generator=rng) < config.cond_drop_prob).to(device)
        return Batch(tokens, mask, nothing, nothing, dropped, None, nothing[:0], nothing, starts=True)

    def ours(compiled: bool) -> Callable[[], None]:
        network = MaskGIT(config).to(device)
        if compiled:
            compile_layers(network)
        return our_step(network, lambda: generator_loss(network, batch_of_tokens(), text, text_mask)["loss"], OptimizerSettings())

    work = {"ours": ours(compiled=False)} | ({"ours compiled": ours(compiled=True)} if with_compiled else {})
    return work | {"peer": peer_generator_step(size, tokens, text)} if with_peer else work


def peer_generator_step(size: BenchmarkSize, tokens: torch.Tensor, text: torch.Tensor) -> Callable[[], None]:
    """Its Phenaki's loss with its PhenakiTrainer's optimizer."""
    config = size.generator
    model = peer_generator(
        peer_tokenizer(size.peer), dim=config.dim, depth=config.depth, heads=config.heads, dim_head=size.peer.dim_head,
        max_seq_len=tokens[0].numel(), text_dim=config.text_dim,
    ).to(tokens.device)  # fmt: skip
    optimizer = torch.optim.Adam(model.maskgit.parameters(), lr=PEER_RATE, betas=PEER_BETAS)

    def step() -> None:
        model(video_codebook_ids=tokens, text_embeds=text).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
