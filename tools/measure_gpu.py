"""How fast models generate on a GPU, and what share of its peak is used; writes docs/results/gpu.json.

    python tools/measure_gpu.py -o docs/results/gpu.json                    # configs/storybook.toml and paper.toml
    python tools/measure_gpu.py -o docs/results/gpu.json --compile          # their layers compiled, as by `phenaki generate --compile`

Networks are those of the settings, with random weights: how long they take does not depend on them. A story of two scenes is
made as `phenaki generate` makes it, up to frames in the host's memory; a chunk goes on from a full context, to frames, too.
Operations are counted by torch; the peak is the one of the data sheet. On a CPU it runs, too, without a share of a peak.
Each part is printed and written as soon as it is there.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from benchmark_sampling import precision
from torch.utils.flop_counter import FlopCounterMode

from phenaki.atomic import write_text
from phenaki.compiling import check_compiler, compile_layers
from phenaki.cvivit import CViViT, Stream
from phenaki.devices import choose_device, choose_dtype, hold_matrices
from phenaki.director import SceneFiller, SceneText, direct
from phenaki.maskgit import MaskGIT
from phenaki.past import Past
from phenaki.sampling import NoiseKey
from phenaki.story import Story
from phenaki.story_plan import plan
from phenaki.training.journal import peak_operations
from phenaki.training.settings import ModelSettings, load_settings

CONFIGS = Path(__file__).parent.parent / "configs"
TEXT_LENGTH = 12  # vectors of a prompt
MATRIX = 8192  # a side of those that the machine is measured with


class Measured:
    """One model on one device."""

    def __init__(self, settings: ModelSettings, device: torch.device, compiled: bool):
        self.settings, self.device, self.compiled = settings, device, compiled
        with device:
            networks = CViViT(settings.tokenizer), MaskGIT(settings.generator)
        self.tokenizer, self.generator = (network.to(device).eval().requires_grad_(False) for network in networks)
        if device.type == "cuda":
            for network in networks:
                hold_matrices(network, choose_dtype("auto", device))
        self.grid = settings.tokenizer.grid

    def text(self) -> SceneText:
        return SceneText(
            torch.randn(1, TEXT_LENGTH, self.settings.generator.text_dim, device=self.device),
            torch.ones(1, TEXT_LENGTH, dtype=torch.bool, device=self.device),
        )

    def story(self, seconds: float, runs: int) -> dict[str, float]:
        """Frames a second of a story, and seconds to its first frames; medians of runs after two that are not counted (a GPU records then)."""
        settings = self.settings
        script = Story.of([("one", seconds / 2), ("two", seconds / 2)])
        slices = {"temporal_patch_size": settings.tokenizer.temporal_patch_size, "chunk_slices": settings.generator.chunk_slices}
        planned = plan(script, fps=settings.world.fps, **slices)
        texts, speeds, firsts = [self.text(), self.text()], [], []
        for seed in range(runs + 2):
            began, first, frames = self._now(), 0.0, 0
            for made in direct(planned, self.tokenizer, self.generator, texts, settings.sampling, seed, self.grid):
                frames += len(made.frames.cpu())
                first = first or self._now() - began
            speeds.append(frames / (self._now() - began))
            firsts.append(first)
        return {"frames": frames, "frames_per_second": rounded(median(speeds[2:])), "seconds_to_first_frames": rounded(median(firsts[2:]))}

    def chunk(self, runs: int) -> dict[str, float]:
        """Frames a second of a whole chunk that goes on from a full context, and the operations a second that it comes to.

        The first of this is done before layers are compiled: torch neither counts nor compiles what is compiled while it counts.
        """
        config, past = self.settings.generator, Past()
        slices = max(config.context_slices, 1)
        tokens = torch.randint(config.codebook_size, (slices, *self.grid), device=self.device)
        self.tokenizer.decode(tokens[None], past.decoder)
        past.remember(tokens, config.context_slices)
        filler = SceneFiller(self.generator, self.text(), self.settings.sampling)

        def made(number: int) -> torch.Tensor:
            new = filler.fill(config.chunk_slices, past, self.grid, NoiseKey(0, 1, number))
            return replace(past, decoder=Stream(past.decoder.num_slices, list(past.decoder.memory))).decode(self.tokenizer, new).cpu()

        with torch.inference_mode(), FlopCounterMode(display=False) as counter:  # where chunks are of another kind to what records them
            frames = made(0).shape[2]
        compiling = {"seconds_of_first_pass": self._compile(lambda: made(0))} if self.compiled else {}
        seconds = median([self._seconds(lambda number=number: made(number)) for number in range(1, runs + 3)][2:])
        operations, peak = counter.get_total_flops(), peak_operations(self.device)
        return {
            "new_frames": frames,
            "frames_per_second": rounded(frames / seconds),
            "seconds": rounded(seconds),
            **compiling,
            "tera_operations": rounded(operations / 1e12),
            "tera_operations_per_second": rounded(operations / seconds / 1e12),
            **({"share_of_peak": rounded(operations / seconds / peak)} if peak else {}),
        }

    def _compile(self, work: Callable[[], object]) -> float:
        """Seconds of the first time that work is done with compiled layers."""
        for network in (self.tokenizer, self.generator):
            compile_layers(network, dynamic=True)
        return rounded(self._seconds(work))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _seconds(self, work: Callable[[], object]) -> float:
        began = self._now()
        work()
        return self._now() - began


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def matrix_speed(device: torch.device) -> float:
    """Tera operations a second in products of large bfloat16 matrices of random numbers."""
    one, other = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(13):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        one @ other
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return rounded(2 * MATRIX**3 / median(seconds[3:]) / 1e12)


@torch.no_grad()
def measure(
    names: list[str],
    device: torch.device,
    seconds: float,
    runs: int,
    compiled: bool = False,
    on_found: Callable[[dict], None] = lambda found: None,
) -> dict:
    """All figures, by the names of the settings. on_found is called with all figures so far after each new one."""
    on_gpu = device.type == "cuda"
    found: dict = {"device": torch.cuda.get_device_name(device) if on_gpu else "cpu", "torch": torch.__version__}
    if on_gpu:
        found["matrix_tera_operations_per_second"] = matrix_speed(device)
    for name in names:
        settings = load_settings(CONFIGS / f"{name}.toml")
        with precision(device):
            model = Measured(settings, device, compiled)
            own = found[name] = {"num_steps": settings.sampling.num_steps, "num_corrections": settings.sampling.num_corrections}
            own |= {"compiled": True} if compiled else {}
            for part, work in (("chunk", model.chunk), ("story", partial(model.story, seconds))):
                own[part] = work(runs)
                print(name, part, json.dumps(own[part]), flush=True)
                on_found(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["storybook", "paper"], choices=sorted(path.stem for path in CONFIGS.glob("*.toml")))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=16.0, help="of the story")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile layers")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.runs < 1 or options.seconds <= 0:
        parser.error("--runs and --seconds: needed more than nothing")
    device, write = choose_device(options.device), lambda found: write_text(options.output, json.dumps(found, indent=2) + "\n")
    if options.compile:
        check_compiler(device)
    measure(options.configs, device, options.seconds, options.runs, options.compile, write)


if __name__ == "__main__":
    main()
