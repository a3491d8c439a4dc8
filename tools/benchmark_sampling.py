"""What a user waits for, on both sides: encode, decode, a round, a chunk, a story of ten prompts. Random weights, prompts as given vectors.

A window is 11 frames. "encode" and "decode" take one window there or back; "round" is one guided prediction with every new token
hidden, context and text as a chunk's second round has them; "chunk" goes on from 5 frames with 6 new ones, to pixels;
"story" is 11 frames and nine chunks, to pixels. The peer encodes the 5 frames of pixels at every chunk, ours has their tokens.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from benchmark_sizes import CODES, CONTEXT_FRAMES, FIRST_FRAMES, GUIDANCE_SCALE, NEW_FRAMES, NUM_PROMPTS, TEXT_LENGTH, BenchmarkSize
from peer_phenaki_pytorch import import_peer, network_size, peer_generator, peer_tokenizer
from torch import Tensor, nn

from phenaki.cvivit import CViViT, Stream
from phenaki.devices import hold_matrices
from phenaki.director import SceneFiller, SceneText, direct, guided_logits
from phenaki.maskgit import MaskGIT
from phenaki.past import Past
from phenaki.pixels import to_pixels
from phenaki.sampling import NoiseKey
from phenaki.story import Story
from phenaki.story_plan import plan

FPS = 8.0


@dataclass(frozen=True)
class Side:
    """One project's pieces of work by name, and the parameters of its networks."""

    parameters: dict[str, int]
    work: dict[str, Callable[[], object]]


def precision(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 on a GPU, as `phenaki generate` chooses it; for both sides."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@torch.no_grad()
def our_side(size: BenchmarkSize, device: torch.device) -> Side:
    """This project's; the story is made as `phenaki generate` makes it, streamed, and kept as bytes. On a GPU its work needs `precision`."""
    tokenizer, generator = (network.to(device).eval().requires_grad_(False) for network in (CViViT(size.tokenizer), MaskGIT(size.generator)))
    if device.type == "cuda":
        for network in (tokenizer, generator):
            hold_matrices(network, torch.bfloat16)
    grid, slices = (size.side, size.side), tokenizer.num_slices(FIRST_FRAMES)
    video = torch.rand(1, 3, FIRST_FRAMES, *_pixels(size), device=device) * 2 - 1
    tokens = torch.randint(CODES, (1, slices, *grid), device=device)
    texts = [SceneText(text, torch.ones(1, TEXT_LENGTH, dtype=torch.bool, device=device)) for text in prompts(size, device)]
    planned = plan(story(), fps=FPS, temporal_patch_size=size.tokenizer.temporal_patch_size, chunk_slices=size.generator.chunk_slices)

    past, new_slices = Past(), NEW_FRAMES // size.tokenizer.temporal_patch_size
    past.remember(tokens[0], size.generator.context_slices)
    with precision(device):
        tokenizer.decode(tokens, past.decoder)
        one_round = _our_round(generator, texts[0], past, new_slices, grid)

    def chunk() -> Tensor:
        filler = SceneFiller(generator, texts[0], size.options)
        new = filler.fill(new_slices, past, grid, NoiseKey(0, 1, 0))
        return tokenizer.decode(new[None], Stream(past.decoder.num_slices, list(past.decoder.memory)))

    def whole_story() -> list:
        return [to_pixels(made.frames, size.tokenizer.image_size) for made in direct(planned, tokenizer, generator, texts, size.options, 0, grid)]

    work = {
        "encode": lambda: tokenizer.encode(video),
        "decode": lambda: tokenizer.decode(tokens),
        "round": one_round,
        "chunk": chunk,
        "story": whole_story,
    }
    return _side(tokenizer, generator, work)


def _our_round(generator: MaskGIT, text: SceneText, past: Past, new_slices: int, grid: tuple[int, int]) -> Callable[[], Tensor]:
    """One prediction of both branches in one batch; text and context were projected before, once for all rounds."""
    device = text.text.device
    hidden = torch.full((2, new_slices, *grid), generator.mask_token_id, device=device)
    null_text = torch.cat([text.text, generator.null_text.expand_as(text.text)])
    both = generator.encode_text(null_text, text.text_mask.repeat(2, 1))
    kinds = torch.zeros(len(past.slices), dtype=torch.long, device=device)
    context = generator.encode_context(torch.stack(past.slices)[None], kinds).repeated(2)
    return lambda: guided_logits(generator.to_logits, generator.features(hidden, both, context, starts=False), [], GUIDANCE_SCALE)


@torch.no_grad()
def peer_side(size: BenchmarkSize, device: torch.device) -> Side:
    """phenaki-pytorch's; ValueError where it is not installed. Its prompts are handed over where it would ask its T5."""
    peer, generator = import_peer(), size.generator
    tokenizer = peer_tokenizer(size.peer)
    slices = 1 + (FIRST_FRAMES - 1) // size.peer.temporal_patch_size
    model = peer_generator(
        tokenizer, dim=generator.dim, depth=generator.depth, heads=generator.heads, dim_head=size.peer.dim_head, max_seq_len=slices * size.side**2,
        text_dim=generator.text_dim,
    ).to(device).eval().requires_grad_(False)  # fmt: skip
    model.steps = size.num_steps
    texts = cycle(prompts(size, device))
    model.encode_texts = lambda _, output_device: next(texts)
    cvivit = model.cvivit
    video = torch.rand(1, 3, FIRST_FRAMES, *_pixels(size), device=device)
    tokens = torch.randint(CODES, (1, slices * size.side**2), device=device)
    shown = torch.full_like(tokens, model.mask_id)
    shown[:, : (1 + (CONTEXT_FRAMES - 1) // size.peer.temporal_patch_size) * size.side**2] = 0
    text = prompts(size, device)[0]
    told = {"context": text, "text_mask": torch.ones(1, TEXT_LENGTH, dtype=torch.bool, device=device), "cond_scale": GUIDANCE_SCALE}
    lengths = (FIRST_FRAMES, *[NEW_FRAMES] * (NUM_PROMPTS - 1))
    work = {
        "encode": lambda: cvivit(video, return_only_codebook_ids=True),
        "decode": lambda: cvivit.decode_from_codebook_indices(tokens),
        "round": lambda: model.maskgit.forward_with_cond_scale(shown, video_patch_shape=(slices, size.side, size.side), **told),
        "chunk": lambda: model.sample(texts="a prompt", prime_frames=video[:, :, :CONTEXT_FRAMES], num_frames=NEW_FRAMES, cond_scale=GUIDANCE_SCALE),
        "story": lambda: peer.make_video(model, ["a prompt"] * NUM_PROMPTS, lengths, (CONTEXT_FRAMES,) * (NUM_PROMPTS - 1)),
    }
    return _side(cvivit, model.maskgit, work)


def story() -> Story:
    """Ten prompts: a first scene of 11 frames, nine of 6."""
    return Story.of([(f"prompt {number}", (NEW_FRAMES if number else FIRST_FRAMES) / FPS) for number in range(NUM_PROMPTS)])


def prompts(size: BenchmarkSize, device: torch.device) -> list[Tensor]:
    """Ten encoded prompts (1 l text_dim), the same for both sides."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(1, TEXT_LENGTH, size.generator.text_dim, generator=rng).to(device) for _ in range(NUM_PROMPTS)]


def _pixels(size: BenchmarkSize) -> tuple[int, int]:
    return size.tokenizer.image_size, size.tokenizer.image_size


def _side(tokenizer: nn.Module, generator: nn.Module, work: dict[str, Callable[[], object]]) -> Side:
    parameters = {"tokenizer": network_size(tokenizer), "generator": network_size(generator)}
    return Side(parameters, {name: torch.no_grad()(one) for name, one in work.items()})
