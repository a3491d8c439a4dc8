"""Any length: walks through a plan chunk by chunk and yields frames as it goes, holding a few slices only.

The director knows what carries over from chunk to chunk (`past.py` has it), what a cut forgets, and which slices are kept under
a name for later scenes. How one chunk is filled is `sampling.py`'s business. It is handed the models.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Tensor

from phenaki.cuda_graphs import replayed
from phenaki.cvivit import CViViT
from phenaki.devices import device_of, sent
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY, Context, FactorHeads, MaskGIT, TextCache
from phenaki.past import Anchor, Past
from phenaki.sampling import Head, NoiseKey, PreparedRounds, SamplingOptions, fill_chunk, guidance_at, guided, prepare_rounds
from phenaki.story_plan import Chunk, ScenePlan, StoryPlan

TEXT_LENGTH_STEP = 16  # on a GPU prompts are padded to whole numbers of so many vectors, so that chunks of most of them are recorded once


@dataclass(frozen=True)
class SceneText:
    """A scene's prompt and, for guidance, its negative: text (1 l d) float and text_mask (1 l); negative None = no text."""

    text: Tensor
    text_mask: Tensor
    negative: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Given:
    """What a scene is given in pixels, float in [-1, 1].

    start: (f c h w), the picture it starts from (f = 1) or the last frames of the video it goes on from (1 + pt*k), of which
    the last one is shown. end: (c h w), the picture it ends on.
    """

    start: Tensor | None = None
    end: Tensor | None = None


@dataclass(frozen=True)
class ChunkFrames:
    """What one chunk came to. frames: (f c h w) float in [-1, 1] on the model's device; tokens: (t h w) int64."""

    frames: Tensor
    tokens: Tensor
    scene: int
    chunk: int
    start_frame: int  # in the story


@dataclass(frozen=True)
class Keep:
    """How much of the past is kept for the next chunk, and as what."""

    slices: int
    as_frames: bool  # decoded and encoded anew

    @classmethod
    def of(cls, generator: MaskGIT, options: SamplingOptions) -> "Keep":
        """A generator that sees no recent slices has nothing to encode anew."""
        slices = generator.config.context_slices
        return cls(slices, options.context == "frames" and slices > 0)


def direct(
    plan: StoryPlan,
    tokenizer: CViViT,
    generator: MaskGIT,
    texts: Sequence[SceneText],
    options: SamplingOptions,
    seed: int,
    grid: tuple[int, int],
    given: Mapping[int, Given] | None = None,
    made: Sequence[Tensor] = (),
) -> Iterator[ChunkFrames]:
    """Yields the frames of a story, chunk by chunk.

    texts: one for each scene. grid: rows and columns of tokens. given: by scene index, for the scenes that start or end on
    pixels of one's own. A scene's own guidance_scale and num_steps go before those of `options`.
    made: tokens (t h w) of the first chunks, given starts among them, from a run that stopped there: what follows them is
    yielded, the same to the bit as it would have been in that run. With context "frames" all of their segment are decoded again, for
    each chunk's past is made from the frames before it; else only the last ones that matter.
    """
    segment, named, number = None, {}, 0  # named: first slices (h w) of scenes that are remembered
    keep = Keep.of(generator, options)
    reach = math.inf if keep.as_frames else tokenizer.decoder_reach
    segments = [scene.segment for scene in plan.scenes for _ in range(scene.starts_from_file + len(scene.chunks))]
    goes_on_in = segments[len(made)] if len(made) < len(segments) else None  # of the others nothing is seen any more
    for scene in plan.scenes:
        filler = None
        if scene.starts_segment:
            segment = Segment(tokenizer, keep, scene.start_frame, plan.segment_frames[scene.segment])
        segment.past.anchor = Anchor(named[scene.recall], None) if scene.recall is not None else None
        parts = [*([None] if scene.starts_from_file else []), *scene.chunks]  # None: what it starts from
        for chunk in parts:
            if number < len(made):
                tokens = _as_planned(made[number], chunk).to(device_of(generator))
                decoded = scene.segment == goes_on_in and len(made) - number <= reach
                segment.pass_over(tokens, decoded, starts_it=chunk is None)
            elif chunk is None:
                tokens = encode_start(tokenizer, given[scene.index].start, grid)
                yield segment.show(tokens, scene, chunk)
            else:
                filler = filler or SceneFiller(generator, texts[scene.index], _own_options(scene, options))
                ends = scene.end_image is not None and chunk is scene.chunks[-1]
                known = _ending(encode_end(tokenizer, given[scene.index].end, grid), chunk) if ends else None
                tokens = filler.fill(chunk.num_slices, segment.past, grid, NoiseKey(seed, scene.index, chunk.index), known)
                yield segment.show(tokens, scene, chunk)
            if scene.remember is not None and chunk is parts[0]:
                named[scene.remember] = tokens[0] if chunk is not None else tokens[-1]  # of a video that it goes on from the last is shown
            number += 1


def _own_options(scene: ScenePlan, options: SamplingOptions) -> SamplingOptions:
    given = {"guidance_scale": scene.guidance_scale, "num_steps": scene.num_steps}
    return replace(options, **{name: value for name, value in given.items() if value is not None})


class SceneFiller:
    """Fills the chunks of one scene: its text is projected once, each chunk's context once."""

    @torch.no_grad()
    def __init__(self, generator: MaskGIT, text: SceneText, options: SamplingOptions):
        if options.correction_order == "critic" and options.num_corrections and generator.critic is None:
            raise ValueError('correction_order "critic": this model has none. Train one ([generator] critic = true), or correct by "halton"')
        self.generator, self.options = generator, options
        self.cond, self.both = generator.encode_text(*_stack((text.text, text.text_mask))), None
        if options.guidance_scale != 1:
            other = text.negative if text.negative else generator.no_text()
            self.both = generator.encode_text(*_stack((text.text, text.text_mask), other))

    @torch.no_grad()
    def fill(self, num_slices: int, past: Past, grid: tuple[int, int], key: NoiseKey, known: Tensor | None = None) -> Tensor:
        """Tokens (t h w) of a chunk of `num_slices` that follows `past`.

        known: (t h w) int64 tokens that stay as they are, -1 where there are none: a first slice to animate, slices or places
        to fill what is between or around.
        """
        generator, config = self.generator, self.generator.config
        device, shape = device_of(generator), (num_slices, *grid)
        if known is None:
            mask, tokens = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long, device=device)
        else:
            mask, tokens = known < 0, known.to(device)
        if tuple(mask.shape) != shape:
            raise ValueError(f"known tokens of shape {tuple(mask.shape)}: this chunk needs {shape}")
        prepared = prepare_rounds(mask, self.options, [key], config.token_factors, device)
        return replayed(fill_scene, generator, tokens[None], prepared, self.cond, self.both, self._context(past), past.num_slices == 0)[0]

    def _context(self, past: Past) -> Context | None:
        """The recent slices, led by the scene's first one where that is no longer among them, or by the one that it recalls."""
        slices, kinds = list(past.slices), [ORDINARY] * len(past.slices)
        if slices and past.starts_a_video:
            kinds[0] = FIRST
        anchor = past.distant_anchor if self.generator.config.anchor else None
        if anchor is not None:
            slices, kinds = [anchor, *slices], [ANCHOR, *kinds]
        if not slices:
            return None
        device = slices[0].device
        return replayed(see_context, self.generator, torch.stack(slices)[None], sent(torch.tensor(kinds), device))


def see_context(generator: MaskGIT, tokens: Tensor, kinds: Tensor) -> Context:
    """What a chunk sees of slices (1 t h w) of these kinds (t,)."""
    return generator.encode_context(tokens, kinds)


def fill_scene(
    generator: MaskGIT, tokens: Tensor, prepared: PreparedRounds, cond: TextCache, both: TextCache | None, context: Context | None, starts: bool
) -> Tensor:
    """Tokens (1 t h w) of a chunk, filled in sight of its context; both: text and what guidance leads away from, None = no guidance."""
    twice, options, heads = context.repeated(2) if context and both else context, prepared.options, generator.to_logits

    def predict(tokens: Tensor, hidden: Tensor, step: int) -> Head:
        scale = guidance_at(step, options)
        if scale == 1:
            features = generator.features(tokens, cond, context, starts).flatten(1, 3)[:, hidden]
            return lambda factors: heads(features, factors)
        features = generator.features(tokens.repeat(2, 1, 1, 1), both, twice, starts).flatten(1, 3)[:, hidden]
        return lambda factors: guided_logits(heads, features, factors, scale)

    def doubt(tokens: Tensor) -> Tensor:
        return generator.critic(generator.features(tokens, cond, context, starts))

    config = generator.config
    return fill_chunk(predict, tokens, prepared, critic=doubt, factor_size=config.factor_size, num_factors=config.token_factors)


def guided_logits(heads: FactorHeads, features: Tensor, factors: list[Tensor], scale: float) -> Tensor:
    """Guided logits (b n factor_size) of the next factor. features: (2b n dim) of both branches; factors: chosen so far, (b n) each.

    Logits are linear in the heads' states, so that guiding the states is guiding the logits, at half the work.
    """
    states = heads.states(features, [factor.repeat(2, 1) for factor in factors])
    return heads.heads[len(factors)](guided(*states.chunk(2), scale))


class Segment:
    """A stretch of a story without a cut, as far as it is told: its slices come one chunk after the other."""

    def __init__(self, tokenizer: CViViT, keep: Keep, start_frame: int, num_frames: int):
        """start_frame: in the story; num_frames: what is decoded beyond them is not shown."""
        self.tokenizer, self.keep, self.start_frame, self.num_frames, self.past = tokenizer, keep, start_frame, num_frames, Past()

    @torch.no_grad()
    def show(self, tokens: Tensor, scene: ScenePlan, chunk: Chunk | None) -> ChunkFrames:
        """Decodes the next slices (t h w) and remembers them.

        chunk None: slices that a scene starts from; of their frames only the last one is shown.
        """
        start = self.past.num_frames
        frames = self.past.decode(self.tokenizer, tokens)
        self._remember(tokens, frames, starts_it=chunk is None)
        frames = rearrange(frames, "1 c f h w -> f c h w")[self.past.num_unseen if chunk is None else 0 :]
        index = -1 if chunk is None else chunk.index
        return ChunkFrames(frames[: self.past.num_frames - start], tokens, scene.index, index, self.start_frame + start)

    @torch.no_grad()
    def pass_over(self, tokens: Tensor, decoded: bool, starts_it: bool) -> None:
        """Remembers slices (t h w) of an earlier run.

        Of slices that stay as they were made only the last chunks must be decoded, for the decoder's memory: as many as it reaches
        back in slices. Each chunk has at least one, so every layer's memory is full again, and made by the same sums, before the
        layer above takes from it what stays.
        """
        frames = None
        if decoded:
            frames = self.past.decode(self.tokenizer, tokens)
        else:
            self.past.decoder.num_slices += len(tokens)
        self._remember(tokens, frames, starts_it)

    def _remember(self, tokens: Tensor, frames: Tensor | None, starts_it: bool) -> None:
        """frames: (1 c f h w), what the tokens decode to; only needed where the past is kept as frames and something follows here."""
        past, tokenizer = self.past, self.tokenizer
        if starts_it:
            past.num_unseen = tokenizer.num_frames(len(tokens)) - 1
        if past.anchor is None:
            past.anchor = Anchor(tokens[0], past.num_slices)
        past.remember(tokens, self.keep.slices)
        past.num_frames = min(tokenizer.num_frames(past.num_slices) - past.num_unseen, self.num_frames)
        if self.keep.as_frames and frames is not None and past.num_frames < self.num_frames:
            past.encode_anew(tokenizer, frames, self.keep.slices)


def _as_planned(tokens: Tensor, chunk: Chunk | None) -> Tensor:
    """Slices (t h w) of an earlier run; ValueError where the plan has another number of them."""
    if chunk is not None and len(tokens) != chunk.num_slices:
        made = f"chunk {chunk.index} of scene {chunk.scene} was made with {len(tokens)} slices"
        raise ValueError(f"{made}, the plan has {chunk.num_slices}: begin anew")
    return tokens


@torch.no_grad()
def encode_start(tokenizer: CViViT, frames: Tensor, grid: tuple[int, int]) -> Tensor:
    """Frames (f c h w) in [-1, 1] as the slices that start a video, (t h w); f = 1 + pt*k."""
    _check_size(frames[0], tokenizer, grid)
    return tokenizer.encode(rearrange(frames, "f c h w -> 1 c f h w"))[0]


@torch.no_grad()
def encode_end(tokenizer: CViViT, picture: Tensor, grid: tuple[int, int]) -> Tensor:
    """A picture (c h w) in [-1, 1] as a slice inside a video, (h w): the second one of a video that stands still."""
    _check_size(picture, tokenizer, grid)
    still = repeat(picture, "c h w -> 1 c f h w", f=tokenizer.num_frames(2))
    return tokenizer.encode(still)[0, 1]


def _check_size(picture: Tensor, tokenizer: CViViT, grid: tuple[int, int]) -> None:
    patch = tokenizer.config.patch_size
    needed = (3, grid[0] * patch, grid[1] * patch)
    if tuple(picture.shape) != needed:
        raise ValueError(f"picture of shape {tuple(picture.shape)}: this story needs {needed}")


def _ending(tokens: Tensor, chunk: Chunk) -> Tensor:
    """A chunk of which only the last slice (h w) is known: (t h w), -1 where nothing is."""
    known = tokens.new_full((chunk.num_slices, *tokens.shape), -1)
    known[-1] = tokens
    return known


def _stack(*prompts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Encoded prompts (1 l d) and their masks (1 l) as one batch, padded to the longest."""
    length = max(text.shape[1] for text, _ in prompts)
    if prompts[0][0].is_cuda:
        length = math.ceil(length / TEXT_LENGTH_STEP) * TEXT_LENGTH_STEP
    texts = [torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1])) for text, _ in prompts]
    masks = [torch.nn.functional.pad(mask, (0, length - mask.shape[1])) for _, mask in prompts]
    return torch.cat(texts), torch.cat(masks)
