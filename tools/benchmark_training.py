"""Training steps a second, ours against phenaki-pytorch 0.5.0, at the same sizes: tokenizer and generator.

    python tools/benchmark_training.py -o docs/results/training_speed.json

64x64 pixels, 11 frames, patches 8x8x2, width 256, 4 spatial and 4 temporal layers on both sides of the tokenizer; MaskGIT of width
256 with 6 layers on windows of 6x8x8 tokens of 8192 kinds, 12 vectors of text 768 wide. The hidden width of our feed-forward layers is
chosen so that both networks have as many parameters, within 5%. A step is loss, gradients, clipping, optimizer and, where the
program keeps one, the average of the weights: as both training programs do it. The peer's tokenizer minimises L2 alone (its loss
with VGG16 and a discriminator costs several times as much), ours the loss of configs/storybook.toml.
Ours is timed twice: as it is, and with `compile = true` (a setting of every run; compiling itself, a minute or two once, is among the
rounds that are not counted). The peer's trainers have no such setting. Steps of all alternate in one process, so that what else the
machine does strikes all; medians over the rounds.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from peer_phenaki_pytorch import VERSION, PeerSize, network_size, peer_generator, peer_tokenizer, trainer_with_mse
from torch import nn

from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.masking import training_mask
from phenaki.training.batches import Batch
from phenaki.training.generator import generator_loss
from phenaki.training.losses import LossSettings, TokenizerLosses
from phenaki.training.optimizers import EMA, OptimizerSettings, make_optimizers

SIZE, FRAMES, DIM, CODES = 64, 11, 256, 8192
SLICES, SIDE = 6, 8  # of a window, and tokens a side of a slice
TEXT_LENGTH, TEXT_DIM = 12, 768
MLP_DIMS = {"parameters": {"tokenizer": 1536, "generator": 2560}, "width": {"tokenizer": 4 * DIM, "generator": 4 * DIM}}
TOKENIZER = CViViTConfig(image_size=SIZE, dim=DIM, heads=8, encoder_layers="st st st st", decoder_layers="st st st st")
GENERATOR = MaskGITConfig(codebook_size=CODES, token_factors=1, dim=DIM, depth=6, text_dim=TEXT_DIM, chunk_slices=SLICES, context_slices=2)
PEER = PeerSize(dim=DIM, depth=4, heads=8, dim_head=64, codebook_size=CODES, image_size=SIZE)


@dataclass(frozen=True)
class Contender:
    """A network and what takes one training step of it."""

    parameters: int
    step: Callable[[], object]


def our_step(network: nn.Module, loss: Callable[[], torch.Tensor], settings: OptimizerSettings) -> Contender:
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
        average.update(network, taken)
        taken += 1

    return Contender(network_size(network), step)


def tokenizers(batch_size: int, mlp_dim: int) -> dict[str, Contender]:
    video = torch.rand(batch_size, 3, FRAMES, SIZE, SIZE)
    losses = TokenizerLosses(LossSettings(l1_weight=0.3, quantizer_weight=0.1, lpips_weight=0, i3d_weight=0, adversarial_weight=0))
    peer, rng = trainer_with_mse(PEER, iter(lambda: video, None)), torch.Generator()

    def ours(compiled: bool) -> Contender:
        network = CViViT(replace(TOKENIZER, mlp_dim=mlp_dim))
        if compiled:
            network.compile()
        return our_step(network, lambda: losses(network(video * 2 - 1), video * 2 - 1, 0, rng)["loss"], OptimizerSettings())

    return {"ours": ours(compiled=False), "ours compiled": ours(compiled=True), "peer": Contender(network_size(peer.cvivit), peer.step)}


def generators(batch_size: int, mlp_dim: int) -> dict[str, Contender]:
    tokens = torch.randint(CODES, (batch_size, SLICES, SIDE, SIDE))
    text, text_mask = torch.randn(batch_size, TEXT_LENGTH, TEXT_DIM), torch.ones(batch_size, TEXT_LENGTH, dtype=torch.bool)
    rng, nothing = torch.Generator().manual_seed(0), torch.zeros(batch_size, dtype=torch.long)

    def batch_of_tokens() -> Batch:
        mask = training_mask(tuple(tokens.shape), rng)
        dropped = torch.rand(batch_size, generator=rng) < GENERATOR.cond_drop_prob
        return Batch(tokens, mask, nothing, nothing, dropped, None, torch.empty(0, dtype=torch.long), nothing, starts=True)

    def ours(compiled: bool) -> Contender:
        network, loss = MaskGIT(replace(GENERATOR, mlp_dim=mlp_dim)), torch.compile(generator_loss) if compiled else generator_loss
        return our_step(network, lambda: loss(network, batch_of_tokens(), text, text_mask)["loss"], OptimizerSettings())

    peer = peer_generator(peer_tokenizer(PEER), dim=DIM, depth=6, heads=8, dim_head=64, max_seq_len=SLICES * SIDE**2, text_dim=TEXT_DIM)
    optimizer = torch.optim.Adam(peer.maskgit.parameters(), lr=1e-4, betas=(0.9, 0.99))  # its PhenakiTrainer's, which neither clips nor averages

    def peer_step() -> None:
        peer(video_codebook_ids=tokens, text_embeds=text).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"ours": ours(compiled=False), "ours compiled": ours(compiled=True), "peer": Contender(network_size(peer.maskgit), peer_step)}


def alternate(contenders: dict[str, Contender], rounds: int, warmup: int) -> dict:
    """Seconds of a step of each in turn, `rounds` times after `warmup` rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(warmup + rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender.step()
            seconds[name].append(time.perf_counter() - started)
    kept = {name: times[warmup:] for name, times in seconds.items()}
    medians = {name: median(times) for name, times in kept.items()}
    ours = [name for name in kept if name != "peer"]
    ratios = {name: [round(theirs / own, 2) for own, theirs in zip(kept[name], kept["peer"], strict=True)] for name in ours}
    return {
        "parameters": {name: contender.parameters for name, contender in contenders.items()},
        "seconds_a_step": {name: round(value, 4) for name, value in medians.items()},
        "steps_a_second": {name: round(1 / value, 3) for name, value in medians.items()},
        "times_faster": {name: round(medians["peer"] / medians[name], 2) for name in ours},
        "times_faster_by_round": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--match", choices=list(MLP_DIMS), default="parameters", help="what both networks have alike, beside width and layers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/training_speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}",
        "load_before": round(os.getloadavg()[0], 2),
        "peer": f"phenaki-pytorch {VERSION}",
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "match": options.match,
    }
    for name, make in (("tokenizer", tokenizers), ("generator", generators)):
        results[name] = alternate(make(options.batch_size, MLP_DIMS[options.match][name]), options.rounds, options.warmup)
        print(name, {key: value for key, value in results[name].items() if key != "times_faster_by_round"}, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
