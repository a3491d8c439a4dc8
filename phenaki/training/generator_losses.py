"""What a generator is trained by and measured on: the cross-entropy of hidden tokens, and of what a critic doubts."""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from phenaki.data.tokens import StoryTokens
from phenaki.devices import device_of, sent
from phenaki.director import TEXT_LENGTH_STEP
from phenaki.maskgit import Context, MaskGIT, MaskGITConfig, TextCache
from phenaki.training.batches import Batch, draw_batch, share
from phenaki.training.parallel import Part
from phenaki.training.rollouts import own_context
from phenaki.training.settings import GeneratorTraining


def generator_loss(
    model: MaskGIT, batch: Batch, text: Tensor, text_mask: Tensor, label_smoothing: float = 0.0, num_hidden: float | None = None
) -> dict[str, Tensor]:
    """Scalars by name: "loss", the cross-entropy of the hidden tokens in nats a token, and what else the log has.

    text (b l d), text_mask (b l): as encoded, before any is dropped.
    With `batch.draws` the critic's cross-entropy ("critic") is part of "loss".
    num_hidden: what the sum over hidden tokens is divided by, the batch's own number of them by default. For one of k shares
    of a batch give the whole batch's `num_hidden / k`: then the mean over the shares, of the loss and of its gradients, is
    that of the whole batch. ("hidden" and "dropped" are means over rows, so theirs is where the shares have equally many.)
    """
    text, text_mask = model.drop_text(text, text_mask, batch.dropped)
    cache = model.encode_text(text, text_mask)
    context = model.encode_context(batch.context, batch.kinds, batch.corruption) if batch.context is not None else None
    shown = torch.where(batch.mask, model.mask_token_id, batch.tokens)
    hidden = model.features(shown, cache, context, batch.starts).flatten(0, 3)[batch.places]
    scores = model.score(hidden, batch.tokens.flatten()[batch.places], label_smoothing)
    divisor = scores.log_probs.shape[1] if num_hidden is None else num_hidden
    correct = (scores.log_probs.detach() > -0.6931).float().mean(0)  # given more than even odds
    loss = scores.cross_entropy.sum() / divisor
    judged = {} if batch.draws is None else {"critic": critic_loss(model, batch, hidden, cache, context) / divisor}
    return {
        "loss": sum(judged.values(), loss),
        **judged,
        "correct": correct.sum() / divisor,
        **batch.shares,
    }


def critic_loss(model: MaskGIT, batch: Batch, features: Tensor, cache: TextCache, context: Context | None) -> Tensor:
    """Sum over the hidden tokens of the critic's cross-entropy, in nats: is the token that the generator chooses there another than the true one?

    features: (n dim) of the hidden tokens. They are chosen at once, from what is known (Lezama et al. 2022, arXiv 2209.04439, section 3.1);
    in the whole chunk so filled each of them is judged.
    """
    with torch.no_grad():
        true = batch.tokens.flatten()[batch.places]
        drawn = model.draw_tokens(features, batch.draws.flatten(0, 3)[batch.places])
        filled = batch.tokens.flatten().index_copy(0, batch.places, drawn).view_as(batch.tokens)
        judged = model.features(filled, cache, context, batch.starts).flatten(0, 3)[batch.places]
    wrong = drawn != true
    return binary_cross_entropy_with_logits(model.critic(judged).float(), wrong.float(), reduction="sum")


@dataclass(frozen=True)
class TextBatch:
    """A batch, or a part of one, with its captions encoded: text (b l d), text_mask (b l), before any is dropped.

    rollout_text, rollout_mask: the encoded captions of its roll-out, where it has one.
    num_hidden: hidden tokens of the whole batch, divided by the number of its parts: what the loss is a mean over.
    """

    batch: Batch
    text: Tensor
    text_mask: Tensor
    num_hidden: float
    rollout_text: Tensor | None = None
    rollout_mask: Tensor | None = None


def text_batch(stories: StoryTokens, batch: Batch, part: Part, device: torch.device) -> TextBatch:
    """The part of a batch that one process takes, with its text, on the device. ValueError where the batch does not divide."""
    num_hidden = batch.num_hidden / part.count
    batch = share(batch, part.of(len(batch.tokens)))
    step = text_step(device)
    texts = stories.text(batch.captions, step)
    if batch.rollout is not None:
        texts += stories.text(batch.rollout.captions, step)
    text, text_mask, *rolled_out = (sent(one, device) for one in texts)
    return TextBatch(batch.to(device), text, text_mask, num_hidden, *rolled_out)


def text_step(device: torch.device) -> int:
    """Texts are padded to multiples of this: on a GPU as a story's are, so that kernels are chosen and layers compiled for few lengths."""
    return 1 if device.type == "cpu" else TEXT_LENGTH_STEP


def with_own_context(model: MaskGIT, given: TextBatch, num_steps: int) -> TextBatch:
    """`given` with a context that the model makes in num_steps rounds, where its batch has a roll-out; else as it is."""
    batch = given.batch
    if batch.rollout is None:
        return given
    context = own_context(model, batch.context, batch.kinds, batch.rollout, given.rollout_text, given.rollout_mask, num_steps)
    return replace(given, batch=replace(batch, context=context, rollout=None))


@torch.no_grad()
def validation_loss(
    model: MaskGIT, stories: StoryTokens, config: MaskGITConfig, training: GeneratorTraining, num_batches: int, seed: int, num_parts: int = 1
) -> dict[str, float]:
    """Means over the hidden tokens of held-out stories: nats a token ("loss") and "correct". Equal arguments give equal figures.

    The batches are those of a training with this seed (masks, tasks, corrupted contexts), but no caption is dropped, no
    target smoothed and no context made by the model, so figures of runs with other such settings can be compared.
    "loss_from_text" and "loss_continue" are of the batches without and with context, where there are some; where the training
    has roll-outs, "loss_own_context" is of the latter with contexts that the model makes. ValueError without batches.
    """
    if num_batches < 1:
        raise ValueError(f"{num_batches} batches to validate on: needed at least 1")
    device, was_training = device_of(model), model.training
    undropped = replace(config, cond_drop_prob=0.0, critic=False)
    own = replace(training, optimizer=replace(training.optimizer, seed=seed), rollout_prob=0.0)
    drawn = [draw_batch(stories, undropped, own, step) for step in range(num_batches)]
    batches = [(batch, ("loss", "loss_from_text" if batch.starts else "loss_continue")) for batch in drawn]
    if training.rollout_prob:
        rolled_out = (draw_batch(stories, undropped, replace(own, rollout_prob=1.0), step) for step in range(num_batches))
        batches += [(batch, ("loss_own_context",)) for batch in rolled_out if batch.rollout is not None]
    totals, counts = Counter(), Counter()  # by name: sums over hidden tokens, and how many these are
    model.eval()
    try:
        for batch, names in batches:
            for index in range(num_parts):
                part = with_own_context(model, text_batch(stories, batch, Part(index, num_parts), device), training.num_rollout_steps)
                losses = generator_loss(model, part.batch, part.text, part.text_mask, num_hidden=1.0)
                figures = dict.fromkeys(names, losses["loss"])
                if "loss" in names:
                    figures["correct"] = losses["correct"]
                for name, value in figures.items():
                    totals[name] += float(value)
                    counts[name] += part.batch.num_hidden
    finally:
        model.train(was_training)
    return {name: total / counts[name] for name, total in totals.items()}
