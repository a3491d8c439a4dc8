"""Measures a tokenizer on storybook clips that it was not trained on and writes docs/results/tokenizer.json.

    python tools/measure_tokenizer.py --data storybook.safetensors [--model storybook] [--clips 240] -o docs/results/tokenizer.json

PSNR is over all pixels and frames of all clips (mean squared error first, then decibels; the range of pixels is 255 wide).
Clips are drawn with a seed that training never uses; `held_out` ones show only (actor, place) and (actor, motion) pairs
that training never shows. A token of the default model is two factors of 1024 values (the generator's words), so code use
is the share of those values that appear, for each factor; the share of single FSQ levels in use is given too.
LPIPS (where `phenaki metrics install` has been run) is the mean over every fourth frame of each clip: "lpips_frames" pictures in all.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from results import write_results

from phenaki.checkpoint import load_model
from phenaki.data.order import EVALUATION_SEED
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.world import WORLDS
from phenaki.evaluation.codebook import TokenCounts
from phenaki.evaluation.metrics import lpips_by_frame, psnr, squared_error
from phenaki.evaluation.networks import load_networks
from phenaki.evaluation.tokenizer import as_shown, codebook_use

BATCH = 8
LPIPS_EVERY = 4  # frames


@torch.no_grad()
def measure(model, world: StorybookWorld, num_clips: int, num_frames: int, held_out: bool, lpips) -> dict:
    """PSNR and LPIPS of all, by frame index, and the tokens that were used."""
    tokenizer, pt = model.tokenizer, model.info.tokenizer.temporal_patch_size
    errors, distances, tokens = [], [], TokenCounts()
    for begin in range(0, num_clips, BATCH):
        batch = range(begin, min(begin + BATCH, num_clips))
        stories = [world.story(EVALUATION_SEED, index, num_frames, held_out=held_out, max_scenes=2, align=pt) for index in batch]
        video = world.render(stories)
        result = tokenizer(video)
        pixels = as_shown(result.video)
        errors.append(squared_error(pixels, video))
        tokens.add(result.tokens)
        if lpips is not None:
            distances.append(lpips_by_frame(lpips, pixels[:, :, ::LPIPS_EVERY], video[:, :, ::LPIPS_EVERY]))
    by_frame = torch.cat(errors).mean(0)
    decibels = [round(one, 2) for one in psnr(by_frame).tolist()]
    return {
        "n": num_clips,
        "clips": num_clips,
        "frames": num_frames,
        "psnr": round(psnr(by_frame.mean()).item(), 2),
        "lpips": round(torch.cat(distances).mean().item(), 4) if distances else None,
        "lpips_frames": sum(one.numel() for one in distances),
        "psnr_first_frame": decibels[0],
        "psnr_last_frame": decibels[-1],
        "psnr_by_frame": decibels,
        "code_use": code_use(tokens, model),
    }


def code_use(tokens: TokenCounts, model) -> dict:
    """Share of the values in use: of the generator's factors (whole tokens where it has one), and of the quantizer's levels (FSQ)."""
    whole, *parts = codebook_use(model, tokens)
    factors = [use for use in parts if use.name.startswith("factor")] or [whole]
    channels = [use for use in parts if use.name.startswith("channel")]
    figures = {"factors": [round(use.share, 4) for use in factors], "factor_size": factors[0].size}
    if channels:
        figures["levels"] = round(sum(use.used for use in channels) / sum(use.size for use in channels), 4)
    figures["distinct_tokens"] = whole.used
    figures["tokens"] = tokens.total
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--world", default="small")
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    model = load_model(options.model)
    config = replace(WORLDS[options.world], size=model.info.tokenizer.image_size, fps=model.info.fps)
    world, lpips = open_world(config, options.data), load_networks("cpu").lpips
    results = {
        "model": model.info.provenance,
        "world": options.world,
        "data": world.fingerprint,
        "size": config.size,
        "seed": EVALUATION_SEED,
        "seen_pairs": measure(model, world, options.clips, options.frames, held_out=False, lpips=lpips),
        "held_out_pairs": measure(model, world, options.clips, options.frames, held_out=True, lpips=lpips),
    }
    write_results(options.output, results)
    for name in ("seen_pairs", "held_out_pairs"):
        print(name, {key: value for key, value in results[name].items() if key != "psnr_by_frame"})


if __name__ == "__main__":
    main()
