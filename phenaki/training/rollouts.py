"""Contexts that the network has made itself, so that it learns to continue from its own mistakes, as it must in a long story.

The chunk before a chunk is filled from the recent slices before that one; its last slices take the place of the true ones, and
what must come next is still the truth (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099, by whole chunks). It is filled
without an anchor and without guidance, so a little worse than in a story; the anchor of the chunk itself stays the true one.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from phenaki.data.tokens import StoryTokens
from phenaki.devices import sent
from phenaki.maskgit import ANCHOR, MaskGIT, MaskGITConfig
from phenaki.sampling import Head, NoiseKey, SamplingOptions, sample_chunk

TEMPERATURE = 0.6  # of the tokens


@dataclass(frozen=True)
class Rollout:
    """What the chunks before a batch's chunks are made from.

    context: (b c h w) int64, the slices before them; captions: (b,) indices, theirs; chosen: (b,) True = what is made takes the
    place of the true context; seeds: (b,) of the noise.
    """

    context: Tensor
    captions: Tensor
    chosen: Tensor
    seeds: Tensor

    def rows(self, rows: slice) -> "Rollout":
        """The roll-outs of some examples."""
        return Rollout(**{name: value[rows] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> "Rollout":
        """The roll-out on another device; the seeds stay here, where they are read."""
        moved = {name: sent(value, torch.device(device)) for name, value in vars(self).items() if name != "seeds"}
        return replace(self, **moved)


def least_slices(config: MaskGITConfig) -> int:
    """The least number of slices of a story for a chunk of it to have a context made by the network."""
    return config.chunk_slices + config.context_slices + 2


def draw_rollout(stories: StoryTokens, config: MaskGITConfig, story: Tensor, begin: Tensor, rng: torch.Generator) -> Rollout:
    """For chunks that begin at slices begin (b,) of stories story (b,).

    Chosen are those before which a whole chunk lies in one scene, after a whole context that does not begin the video: a slice
    that does has another kind, and a batch has one list of kinds.
    """
    before = begin - config.chunk_slices
    here = before.clamp(min=0)
    chosen = (before > config.context_slices) & (stories.scene_end[story, here] >= begin)
    index = (before[:, None] + torch.arange(-config.context_slices, 0)).clamp(min=0)
    seeds = torch.randint(2**62, (len(story),), generator=rng)
    return Rollout(stories.tokens[story[:, None], index].long(), stories.caption[story, here], chosen, seeds)


@torch.no_grad()
def own_context(
    model: MaskGIT, context: Tensor, kinds: Tensor, rollout: Rollout, text: Tensor, text_mask: Tensor, num_steps: int
) -> Tensor:
    """Contexts (b c h w), of slices of `kinds` (c,), with what the model makes in place of the chosen rows' recent slices.

    text (b l d), text_mask (b l): the rollout's captions, encoded. num_steps: rounds in which the chunk before is filled.
    """
    config = model.config
    count = min(context.shape[1], config.chunk_slices)
    past = model.encode_context(rollout.context, torch.zeros(rollout.context.shape[1], dtype=torch.long, device=kinds.device))
    cache = model.encode_text(text, text_mask)

    def predict(tokens: Tensor, hidden: Tensor, step: int) -> Head:
        features = model.features(tokens, cache, past, starts=False).flatten(1, 3)[:, hidden]
        return lambda factors: model.to_logits(features, factors)

    b, _, h, w = context.shape
    blank = torch.zeros(b, config.chunk_slices, h, w, dtype=torch.long, device=context.device)
    keys = [NoiseKey(seed, scene=0, chunk=0) for seed in rollout.seeds.tolist()]
    everywhere = torch.ones(blank.shape[1:], dtype=torch.bool)
    sizes = {"factor_size": config.factor_size, "num_factors": config.token_factors}
    options = SamplingOptions(num_steps, guidance_scale=1, temperature=TEMPERATURE, order="halton")
    made = sample_chunk(predict, blank, everywhere, options, keys, **sizes)
    torch.clear_autocast_cache()  # or what is learnt from would use weights that were cast here, in older torch without gradients
    replaced = rollout.chosen[:, None] & (kinds[-count:] != ANCHOR)
    recent = torch.where(replaced[:, :, None, None], made[:, -count:], context[:, -count:])
    return torch.cat([context[:, :-count], recent], dim=1)
