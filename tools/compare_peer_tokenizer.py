"""The figure "Real footage": our tokenizer against phenaki-pytorch 0.5.0's C-ViViT, same clips, size, minutes and machine.

    python tools/compare_peer_tokenizer.py --train droid/train --val droid/val --work peer-run --minutes 20 -o docs/results/real_footage.json

Videos are decoded once to uint8 arrays that both sides read. Our side trains with `phenaki.training`, as many steps as fit
into the minutes (timed on ten steps first); the peer then trains for those minutes or as long as ours took, whichever is
longer. What a side has done lies in the work folder: the same command goes on with it (ours from its last checkpoint, the peer's
from the start unless it had finished). `--side ours` and `--side peer` train one alone, `--evaluate` measures what is there.

The peer's loss is what its own CViViTTrainer minimises. `--peer-loss full` (its default): L2, VGG16 features and a hinge
discriminator on one random frame a clip, adaptive weight, gradient penalty, LFQ's own loss; run by the trainer itself, whose reader
of video files alone is replaced. VGG16 comes from `--vgg` or, without its classifier, from the LPIPS network. `--peer-loss mse`:
use_vgg_and_gan=False, its L2 alone, with its trainer's optimizer, clipping and average (the trainer itself crashes on that
setting). PSNR is L2's own measure, so mse is the harder opponent there and full the one in LPIPS: run both.
See tools/peer_phenaki_pytorch.py for what it needs installed.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from clip_array import ClipArray, open_folder
from peer_phenaki_pytorch import (
    VERSION,
    PeerSize,
    load_vgg,
    network_size,
    peer_reconstruction,
    peer_tokenizer,
    trainer_with_all_losses,
    trainer_with_mse,
)
from results import command_line, machine, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phenaki.atomic import put
from phenaki.checkpoint import ModelInfo, load_model, save_model
from phenaki.cvivit import CViViT
from phenaki.data.order import EVALUATION_SEED
from phenaki.evaluation.metrics import lpips_by_frame, psnr, squared_error, ssim
from phenaki.evaluation.networks import load_networks
from phenaki.evaluation.tokenizer import as_shown
from phenaki.evaluation.tokenizer_report import png, side_by_side
from phenaki.training.run import Run
from phenaki.training.settings import TokenizerTraining, load_settings
from phenaki.training.tokenizer import TokenizerTask

MOST_APART = 0.05  # of the sizes of the two networks
TIMED_STEPS = 10
SHOWN_CLIPS = 4
REPLICATES = 1000  # drawings of clips, for an interval
WIDTH, HEIGHT, MARGIN = 640, 320, 48  # pixels of the picture of curves, and of the room around them
COLOURS = ("#1f6fb2", "#c2542d", "#5c8a3a", "#8a5ca8")  # of the curves
Reconstruct = Callable[[Tensor], Tensor]  # video (b c f h w) in [-1, 1] -> what comes back


@dataclass
class Clock:
    """Seconds of training, kept in a file, and a curve of (seconds, PSNR of a training batch)."""

    path: Path
    seconds: float
    curve: list[tuple[float, float]]

    @classmethod
    def open(cls, path: Path) -> "Clock":
        values = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "curve": []}
        return cls(path, values["seconds"], [(at, value) for at, value in values["curve"]])

    def add(self, seconds: float, decibels: float) -> None:
        self.seconds += seconds
        self.curve.append((round(self.seconds, 1), round(decibels, 2)))
        write_json(self.path, {"seconds": self.seconds, "curve": self.curve})


def train_ours(options: argparse.Namespace, clips: ClipArray) -> None:
    """Our side, into WORK/ours; its model folder is WORK/ours/model."""
    folder, settings = options.work / "ours", load_settings(options.config)
    training = settings.train_tokenizer
    optimizer = replace(training.optimizer, batch_size=options.batch_size, seed=options.seed, sample_every=10**9, log_every=10)
    num_slices = 1 + (options.frames - 1) // settings.tokenizer.temporal_patch_size
    training = replace(training, num_slices=num_slices, optimizer=optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: str(getattr(options, name)) for name in ("config", "minutes", "frames", "batch_size", "seed")}
    plan = folder / "plan.json"
    if not plan.exists():
        seconds = step_seconds(ModelInfo(options.config.stem, settings.tokenizer, None, settings.text, options.fps), training, clips)
        num_steps = max(int(options.minutes * 60 / seconds), 1)
        warmup = min(optimizer.warmup_steps, max(num_steps // 10, 1))
        write_json(plan, {"wanted": wanted, "seconds_a_step": seconds, "num_steps": num_steps, "warmup_steps": warmup})
    planned = json.loads(plan.read_text())
    if planned["wanted"] != wanted:
        raise ValueError(f"{folder}: was begun with {planned['wanted']}, now asked for is {wanted}. Take another work folder")
    optimizer = replace(optimizer, num_steps=planned["num_steps"], warmup_steps=planned["warmup_steps"])
    torch.manual_seed(options.seed)
    clock, since = Clock.open(folder / "clock.json"), time.perf_counter()

    def on_log(line: dict) -> None:
        nonlocal since
        now = time.perf_counter()
        clock.add(now - since, line["psnr"])
        since = now
        print(f"ours: step {line['step']} of {optimizer.num_steps}, {clock.seconds:.0f} s, {line['psnr']:.2f} dB", flush=True)

    info = ModelInfo(options.config.stem, settings.tokenizer, None, settings.text, options.fps)
    run = run_of(clips, CViViT(settings.tokenizer), replace(training, optimizer=optimizer), info, folder / "tokenizer")
    run.train(on_log)
    save_model(folder / "model", replace(info, training={"tokenizer_steps": run.step}), run.averaged(), None)


def run_of(clips: ClipArray, tokenizer: CViViT, training: TokenizerTraining, info: ModelInfo, folder: Path) -> Run:
    """Our training run, as `phenaki train tokenizer` makes it."""
    return Run(folder, TokenizerTask(tokenizer, clips, training, info), training.optimizer)


def step_seconds(info: ModelInfo, training: TokenizerTraining, clips: ClipArray) -> float:
    """Median seconds of a training step, the first few left out."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        timed = replace(training, optimizer=replace(training.optimizer, num_steps=TIMED_STEPS, log_every=1, save_every=10**9))
        last = time.perf_counter()

        def on_log(line: dict) -> None:
            nonlocal last
            times.append(time.perf_counter() - last)
            last = time.perf_counter()

        run_of(clips, CViViT(info.tokenizer), timed, info, Path(folder)).train(on_log)
    return median(times[TIMED_STEPS // 3 :])


def batches(clips: ClipArray, options: argparse.Namespace, align: int) -> Iterator[Tensor]:
    """The clips of our side in the same order, in the peer's range [0, 1]."""
    for first in range(0, 10**12, options.batch_size):
        yield (clips.clips(options.seed, first, options.batch_size, options.frames, align) + 1) / 2


def train_peer(options: argparse.Namespace, clips: ClipArray) -> None:
    """The peer's side, into WORK/peer-LOSS: last.safetensors and averaged.safetensors, its last weights and their average."""
    folder = options.work / f"peer-{options.peer_loss}"
    if (folder / "averaged.safetensors").exists():
        print(f"{folder}: has been trained, not done again")
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ours = options.work / "ours" / "clock.json"
    budget = max(options.minutes * 60, Clock.open(ours).seconds)
    size = peer_size(options)
    torch.manual_seed(options.seed)
    data = batches(clips, options, size.temporal_patch_size)
    trainer = trainer_with_all_losses(size, data, folder, load_vgg(options.vgg)) if options.peer_loss == "full" else trainer_with_mse(size, data)
    probe = clips.clips(options.seed, 0, options.batch_size, options.frames, size.temporal_patch_size)
    clock, steps = Clock.open(folder / "clock.json"), 0
    while clock.seconds < budget:
        started = time.perf_counter()
        for _ in range(options.log_every):
            trainer.step()
            steps += 1
            if clock.seconds + time.perf_counter() - started >= budget:
                break
        seconds = time.perf_counter() - started
        decibels = float(psnr(squared_error(peer_reconstruction(trainer.cvivit, probe), probe).mean()))  # not timed
        clock.add(seconds, decibels)
        print(f"peer ({options.peer_loss}): step {steps}, {clock.seconds:.0f} of {budget:.0f} s, {decibels:.2f} dB", flush=True)
    vgg = "none" if options.peer_loss == "mse" else str(options.vgg or "features of the LPIPS network")
    write_json(folder / "plan.json", {"num_steps": steps, "size": asdict(size), "vgg": vgg})
    for name, network in (("last", trainer.cvivit), ("averaged", trainer.averaged())):
        weights = {key: value.contiguous() for key, value in network.state_dict().items() if not key.startswith(("discr.", "vgg."))}
        save_file(weights, folder / f".{name}.safetensors.part")
        put(folder / f".{name}.safetensors.part", folder / f"{name}.safetensors")


def peer_size(options: argparse.Namespace) -> PeerSize:
    """The peer's size from the options; ValueError where it is not that of our network."""
    config = load_settings(options.config).tokenizer
    size = PeerSize(
        options.peer_dim, options.peer_depth, options.peer_heads, options.peer_dim_head,
        image_size=config.image_size, patch_size=config.patch_size, temporal_patch_size=config.temporal_patch_size,
    )  # fmt: skip
    ours, theirs = network_size(CViViT(config)), network_size(peer_tokenizer(size))
    if abs(theirs - ours) > MOST_APART * ours:
        raise ValueError(f"{ours} parameters here, {theirs} in the peer: they must be within {MOST_APART:.0%}. Change --peer-dim, -depth or -heads")
    return size


def sides(options: argparse.Namespace) -> dict[str, tuple[nn.Module, Reconstruct, Path]]:
    """What has been trained: network, its reconstruction, its folder."""
    found: dict[str, tuple[nn.Module, Reconstruct, Path]] = {}
    if (options.work / "ours" / "model").is_dir():
        tokenizer = load_model(options.work / "ours" / "model").tokenizer
        found["ours"] = (tokenizer, lambda video: tokenizer.decode(tokenizer.encode(video)), options.work / "ours")
    for weights in sorted(options.work.glob("peer-*/*.safetensors")):  # an average may lag behind the last weights: both are measured
        folder = weights.parent
        cvivit = peer_tokenizer(PeerSize(**json.loads((folder / "plan.json").read_text())["size"])).eval()
        cvivit.load_state_dict(load_file(weights))
        found[f"{folder.name} {weights.stem}"] = (cvivit, lambda video, cvivit=cvivit: peer_reconstruction(cvivit, video), folder)
    return found


@torch.no_grad()
def measure(reconstruct: Reconstruct, clips: ClipArray, options: argparse.Namespace, lpips) -> tuple[dict, Tensor]:
    """Figures of one side over the held-out clips, each once; and the squared errors of the clips (v,)."""
    frames: dict[str, list[Tensor]] = {"error": [], "ssim": [], "lpips": []}
    for first in range(0, len(clips), options.batch_size):
        truth = clips.clips(EVALUATION_SEED, first, min(options.batch_size, len(clips) - first), options.frames, 1)
        made = as_shown(reconstruct(truth))
        frames["error"].append(squared_error(made, truth))
        frames["ssim"].append(ssim(made, truth))
        if lpips is not None:
            frames["lpips"].append(lpips_by_frame(lpips, made, truth))
    error = torch.cat(frames["error"])
    figures = {"psnr": round(float(psnr(error.mean())), 2), "ssim": round(float(torch.cat(frames["ssim"]).mean()), 4)}
    if frames["lpips"]:
        figures["lpips"] = round(float(torch.cat(frames["lpips"]).mean()), 4)
    figures["psnr_by_frame"] = [round(float(value), 2) for value in psnr(error.mean(dim=0))]
    return figures, error.mean(dim=1)


def advantage(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """PSNR of ours less theirs with a 95% interval, by drawing clips with replacement, the same for both; errors (v,)."""
    draws = torch.randint(len(ours), (REPLICATES, len(ours)), generator=torch.Generator().manual_seed(0))
    low, high = (psnr(ours[draws].mean(dim=1)) - psnr(theirs[draws].mean(dim=1))).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"decibels": round(float(psnr(ours.mean()) - psnr(theirs.mean())), 2), "low": round(low, 2), "high": round(high, 2)}


def evaluate(options: argparse.Namespace, clips: ClipArray) -> dict:
    """Measures both sides, writes the figures and the pictures, and returns the figures."""
    networks = load_networks("cpu")
    trained, results, errors = sides(options), {}, {}
    if not trained:
        raise ValueError(f"{options.work}: nothing has been trained there yet")
    for name, (network, reconstruct, folder) in trained.items():
        figures, errors[name] = measure(reconstruct, clips, options, networks.lpips)
        clock, plan = Clock.open(folder / "clock.json"), json.loads((folder / "plan.json").read_text())
        results[name] = {"parameters": network_size(network), "minutes": round(clock.seconds / 60, 2), "plan": plan, **figures, "curve": clock.curve}
    figures = {
        "command": command_line(),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 2),
        "peer": f"phenaki-pytorch {VERSION}",
        "clips": len(clips), "frames": options.frames, "size": load_settings(options.config).tokenizer.image_size, "fps": options.fps,
        "not_measured": {name: why for name, why in networks.missing.items() if name == "lpips"},
        "sides": results,
        "psnr_ahead_of": {name: advantage(errors["ours"], error) for name, error in errors.items() if "ours" in errors and name != "ours"},
        "pictures_from_the_top": ["truth", *trained],
    }  # fmt: skip
    write_json(options.output, figures)
    options.output.with_suffix(".svg").write_text(drawn_curves(results), encoding="utf-8")
    truth = clips.clips(EVALUATION_SEED, 0, min(SHOWN_CLIPS, len(clips)), options.frames, 1)
    with torch.no_grad():
        made = [as_shown(reconstruct(truth)) for _, reconstruct, _ in trained.values()]
    picture = side_by_side([video[index] for index in range(len(truth)) for video in (truth, *made)])
    options.output.with_suffix(".png").write_bytes(png(picture))
    return figures


def drawn_curves(sides: dict[str, dict]) -> str:
    """An SVG of what each side's training batches came to over its seconds of training, in dB."""
    points = {name: side["curve"] for name, side in sides.items() if not name.endswith("averaged")}  # the same run twice
    last = max(at for curve in points.values() for at, _ in curve)
    low, high = (bound(value for curve in points.values() for _, value in curve) for bound in (min, max))
    across = lambda at: MARGIN + (WIDTH - 2 * MARGIN) * at / last
    down = lambda value: HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / max(high - low, 1e-6)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for value in (low, (low + high) / 2, high):
        parts.append(f'<text x="4" y="{down(value):.0f}">{value:.1f} dB</text>')
    for minute in range(int(last // 60) + 1):
        parts.append(f'<text x="{across(60 * minute):.0f}" y="{HEIGHT - 16}">{minute} min</text>')
    for index, (name, curve) in enumerate(points.items()):
        line = " ".join(f"{across(at):.1f},{down(value):.1f}" for at, value in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[index]}" stroke-width="2"/>')
        parts.append(f'<text x="{MARGIN + 160 * index}" y="16" fill="{COLOURS[index]}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def array(options: argparse.Namespace, folder: Path, name: str) -> ClipArray:
    """The decoded clips of a folder, from the work folder where they are there."""
    size = load_settings(options.config).tokenizer.image_size
    return open_folder(folder, options.work / f"{name}.safetensors", size=size, fps=options.fps, num_frames=options.frames)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of videos to train on")
    parser.add_argument("--val", type=Path, required=True, help="folder of held-out videos")
    parser.add_argument("--work", type=Path, required=True, help="folder for arrays, checkpoints and clocks")
    parser.add_argument("--config", type=Path, default=Path("configs/storybook.toml"), help="our tokenizer and how it is trained")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--side", choices=["ours", "peer"], help="train this side alone")
    parser.add_argument("--evaluate", action="store_true", help="measure only")
    parser.add_argument("--peer-loss", choices=["full", "mse"], default="full")
    parser.add_argument("--vgg", type=Path, help="safetensors of torchvision's VGG16, for the peer's perceptual loss")
    for name, default in (("dim", PeerSize.dim), ("depth", PeerSize.depth), ("heads", PeerSize.heads), ("dim-head", PeerSize.dim_head)):
        parser.add_argument(f"--peer-{name}", type=int, default=default)
    parser.add_argument("--frames", type=int, default=11)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=10, help="steps of the peer between points of its curve")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/real_footage.json"))
    return parser.parse_args()


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        peer_size(options)
        train = array(options, options.train, "train")
        if options.side != "peer":
            train_ours(options, train)
        if options.side != "ours":
            train_peer(options, train)
    if options.evaluate or options.side is None:
        figures = evaluate(options, array(options, options.val, "val"))
        for name, side in figures["sides"].items():
            print(name, {key: side.get(key) for key in ("parameters", "minutes", "psnr", "ssim", "lpips")})
        print("ours ahead of", figures["psnr_ahead_of"])


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
