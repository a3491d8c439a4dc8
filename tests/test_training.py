"""Truths of training: it resumes to the bit after anything, the network sees what it is said to see, and the loss falls."""

import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from training_toys import PLAIN, Stop, Toy, little, log, newest, settings, state

from phenaki.checkpoint import ModelInfo, load_model, save_model, sha256
from phenaki.contact_sheet import LABEL_HEIGHT
from phenaki.cvivit import CViViT, Reconstruction
from phenaki.data.clip_source import ClipSource
from phenaki.data.storybook import StorybookWorld, open_world
from phenaki.data.tokens import StoryTokens
from phenaki.locks import BusyError
from phenaki.maskgit import ANCHOR, FIRST, ORDINARY, Context, MaskGIT, MaskGITConfig, TokenScores
from phenaki.text import TextEncoder
from phenaki.training import batches as batches_module
from phenaki.training import generator as generator_module
from phenaki.training import tokenizer as tokenizer_module
from phenaki.training.batches import Batch, check_lengths, corrupt, draw_batch, draw_windows
from phenaki.training.beginning import note_warmup, override
from phenaki.training.checkpoints import changed
from phenaki.training.generator import GeneratorTask, run_generator_training
from phenaki.training.generator_losses import generator_loss, validation_loss
from phenaki.training.losses import TokenizerLosses, with_psnr
from phenaki.training.optimizers import OptimizerSettings, generator_for, make_optimizers
from phenaki.training.parallel import Group
from phenaki.training.run import Run, TrainingError
from phenaki.training.same_tokens import freeze_tokens
from phenaki.training.samples import save_video_rows
from phenaki.training.settings import GeneratorTraining, ModelSettings, TokenizerTraining, load_settings
from phenaki.training.start import start_from
from phenaki.training.tasks import PLAIN as PLAIN_TASK
from phenaki.training.tokenizer import TokenizerTask, data_hash, distinct_share, run_tokenizer_training
from phenaki.video import read_video

pytestmark = pytest.mark.usefixtures("synced")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY: ModelSettings = load_settings(CONFIGS / "tiny.toml")
DATA = {"tokenizer_data": data_hash(open_world(replace(TINY.world, size=TINY.tokenizer.image_size)))}  # what both programs are trained on here
GENERATOR = MaskGITConfig(codebook_size=4096, dim=16, depth=2, heads=2, mlp_dim=24, text_dim=8, chunk_slices=3, context_slices=2)


@pytest.fixture(scope="module")
def world() -> StorybookWorld:
    return open_world(TINY.world)


def numbered_stories(count: int = 40, slices: int = 17, side: int = 2, cut: int | None = None) -> StoryTokens:
    """Stories whose every token says which story and slice it belongs to: story * slices + slice. Two or three scenes each."""
    rng = random.Random(0)
    tokens = torch.arange(count * slices, dtype=torch.int32).reshape(count, slices, 1, 1).expand(-1, -1, side, side).contiguous()
    starts, ends, said = (torch.zeros(count, slices, dtype=torch.int64) for _ in range(3))
    number = 0
    for story in range(count):
        cuts = [cut] if cut else sorted(rng.sample(range(1, slices), rng.randint(1, 2)))
        for first, end in zip([0, *cuts], [*cuts, slices], strict=True):
            starts[story, first:end], ends[story, first:end], said[story, first:end] = first, end, number
            number += 1
    lengths = torch.tensor([3 + index % 4 for index in range(number)])
    stops = lengths.cumsum(0)
    texts = torch.randn(int(stops[-1]), GENERATOR.text_dim, generator=torch.Generator().manual_seed(0)).half()
    return StoryTokens(tokens, starts, ends, said, texts, torch.stack([stops - lengths, stops], dim=1), "numbered")


STORIES = numbered_stories()


def training(**changes) -> GeneratorTraining:
    return GeneratorTraining(num_slices=17, optimizer=settings(**changes))


def draws(count: int, batch_size: int = 8, stories: StoryTokens = STORIES, config: MaskGITConfig = GENERATOR) -> Iterator[Batch]:
    return (draw_batch(stories, config, training(batch_size=batch_size, num_steps=count), step) for step in range(count))


# Both networks, the same way


def losses_of(network: nn.Module, video: Tensor, **changes: float) -> dict[str, Tensor]:
    return TokenizerLosses(replace(PLAIN, **changes))(network(video), video, 0, torch.Generator().manual_seed(0))


def source_of(clips) -> ClipSource:
    source = ClipSource()
    source.clips, source.fingerprint = clips, "made for a test"
    return source


def tokenizer_task(network: CViViT, source, own: TokenizerTraining) -> TokenizerTask:
    return TokenizerTask(network, source, own, ModelInfo("tiny", network.config, None, TINY.text, 8.0))


def generator_task(network: MaskGIT, stories: StoryTokens, own: GeneratorTraining, on_sample=lambda model, path: None) -> GeneratorTask:
    config = replace(TINY.tokenizer, fsq_levels=(4,) * 6)  # as many codes as the generator knows
    info = ModelInfo("tiny", config, network.config, TINY.text, 8.0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GeneratorTask(network, stories, own, info, CViViT(config), None, on_sample)


@dataclass
class Trainee:
    """A network and how it is trained."""

    name: str
    world: StorybookWorld

    def network(self) -> nn.Module:
        return CViViT(TINY.tokenizer) if self.name == "tokenizer" else MaskGIT(GENERATOR)

    def train(self, folder: Path, stop_at: int | None = None, weights_seed: int = 0, on_sample=None, **changes) -> Run | None:
        """Trains 10 steps, or until the power is cut at a step."""
        torch.manual_seed(weights_seed)
        network, own = self.network(), settings(**changes)
        lines = []
        with pytest.MonkeyPatch.context() as patch:
            if stop_at is not None:
                self._cut(patch, stop_at)
            try:
                run = Run(folder, self.task(network, own, on_sample), own)
                run.train(lines.append)
                return run
            except Stop:
                return None

    def task(self, network: nn.Module, own: OptimizerSettings, on_sample=None) -> TokenizerTask | GeneratorTask:
        if self.name == "tokenizer":
            return tokenizer_task(network, self.world, TokenizerTraining(num_slices=2, losses=PLAIN, optimizer=own))
        return generator_task(network, STORIES, GeneratorTraining(num_slices=17, optimizer=own), on_sample or (lambda model, path: None))

    def _cut(self, patch: pytest.MonkeyPatch, stop_at: int) -> None:
        module, name = (TokenizerLosses, "forward") if self.name == "tokenizer" else (generator_module, "generator_loss")
        loss, left = getattr(module, name), [stop_at]

        def until(*arguments):
            if left[0] == 0:
                raise Stop
            left[0] -= 1
            return loss(*arguments)

        patch.setattr(module, name, until)


@pytest.fixture(params=["tokenizer", "generator"])
def trainee(request, world) -> Trainee:
    return Trainee(request.param, world)


@pytest.mark.parametrize("stop_at", [5, 8, 2])
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(trainee, tmp_path, stop_at):
    """Cut at a checkpoint, after one, and before the first; other initial weights do not matter after a checkpoint."""
    whole = trainee.train(tmp_path / "whole")
    assert trainee.train(tmp_path / "cut", stop_at=stop_at) is None
    resumed = trainee.train(tmp_path / "cut", weights_seed=0 if stop_at < 5 else 99)
    assert state(tmp_path / "cut") == state(tmp_path / "whole") and whole.step == resumed.step == 10
    assert log(tmp_path / "cut") == log(tmp_path / "whole") and [line["step"] for line in log(tmp_path / "whole")] == [5, 10]
    assert not torch.equal(*(load_file(newest(tmp_path / "whole") / f"{name}.safetensors")["norm.weight" if trainee.name == "generator" else
                             "encoder.norm.weight"] for name in ("weights", trainee.name)))  # fmt: skip


def test_a_run_that_is_done_does_nothing_more(trainee, tmp_path):
    first = trainee.train(tmp_path)
    before = state(tmp_path)
    again = trainee.train(tmp_path, stop_at=0, weights_seed=5)
    assert again is not None and again.step == 10 and state(tmp_path) == before
    for name, tensor in again.averaged().state_dict().items():
        assert torch.equal(tensor, first.averaged().state_dict()[name]), "the averaged weights are handed over"


def test_another_seed_is_another_run(trainee, tmp_path):
    trainee.train(tmp_path / "a")
    trainee.train(tmp_path / "b", seed=1)
    weights = [state(tmp_path / name)["sha256"]["weights.safetensors"] for name in "ab"]  # a manifest names the seed itself
    assert weights[0] != weights[1]


def test_the_optimizer_has_every_trainable_parameter_once_in_the_order_of_names(trainee):
    network = trainee.network()
    (optimizer,) = make_optimizers(network, settings(weight_decay=0.5))
    matrices, vectors = optimizer.param_groups
    named = [parameter for _, parameter in network.named_parameters()]
    assert [id(p) for p in matrices["params"]] == [id(p) for p in named if p.ndim >= 2]
    assert [id(p) for p in vectors["params"]] == [id(p) for p in named if p.ndim < 2]
    assert matrices["weight_decay"] == 0.5 and vectors["weight_decay"] == 0
    frozen = named[0].requires_grad_(False)
    held = [id(p) for group in make_optimizers(network, settings())[0].param_groups for p in group["params"]]
    assert id(frozen) not in held and len(held) == len(named) - 1


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(trainee):
    network = trainee.network()
    adamw, of_layers = make_optimizers(network, settings(optimizer="muon"))
    named = dict(network.named_parameters())
    wanted = [id(parameter) for name, parameter in named.items() if ".layers." in f".{name}" and parameter.ndim == 2]
    assert wanted and [id(p) for group in of_layers.param_groups for p in group["params"]] == wanted
    rest = sorted(id(parameter) for parameter in named.values() if id(parameter) not in wanted)
    assert sorted(id(p) for group in adamw.param_groups for p in group["params"]) == rest
    with pytest.raises(ValueError, match=r"optimizer 'sgd': allowed are adamw, muon"):
        make_optimizers(network, settings(optimizer="sgd"))


def test_a_run_starts_from_the_weights_of_a_model_and_added_layers_start_as_the_identity():
    torch.manual_seed(0)
    config = TINY.tokenizer
    grown = replace(config, head_blocks=config.head_blocks + 1, decoder_layers=config.decoder_layers + " st", refiner_dim=8)
    small, large = CViViT(config), CViViT(grown)
    note = start_from(large, small.state_dict(), "old")
    assert all(torch.equal(value, large.state_dict()[name]) for name, value in small.state_dict().items())
    added = len(large.state_dict()) - len(small.state_dict())
    assert added > 0 and note == f"starting from old: {len(small.state_dict())} tensors copied, {added} start afresh, 0 not used"
    video = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(large(video).video, small(video).video)
    deeper, shallower = MaskGIT(replace(GENERATOR, depth=GENERATOR.depth + 1)), MaskGIT(GENERATOR)
    start_from(deeper, shallower.state_dict(), "old")
    shown = torch.full((1, 2, 2, 2), GENERATOR.codebook_size)
    text, mask = torch.randn(1, 3, GENERATOR.text_dim), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        one, other = (network.features(shown, network.encode_text(text, mask), None, starts=True) for network in (deeper, shallower))
    torch.testing.assert_close(one, other)


def test_weights_of_another_width_are_no_start():
    torch.manual_seed(0)
    wide = CViViT(replace(TINY.tokenizer, dim=2 * TINY.tokenizer.dim))
    with pytest.raises(ValueError, match=r"--init-from old: .+ is \(.+\) there and \(.+\) here\. Start from a model of the same widths"):
        start_from(wide, CViViT(TINY.tokenizer).state_dict(), "old")
    with pytest.raises(ValueError, match="no weight has a name in common"):
        start_from(wide, {"something": torch.zeros(2)}, "old")


# Parameters that get no gradient, and why.
UNUSED = {"condition_embedding"}  # reserved for the tasks that show a rough picture; today's training shows none


def test_every_parameter_of_the_generator_is_trained():
    torch.manual_seed(0)
    model = MaskGIT(replace(GENERATOR, cond_drop_prob=0.5))
    total = {name: 0.0 for name, _ in model.named_parameters()}
    for batch in draws(24, config=model.config):
        model.zero_grad()
        generator_loss(model, batch, *STORIES.text(batch.captions))["loss"].backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.abs().sum().item() if parameter.grad is not None else 0.0
    assert {name for name, amount in total.items() if amount == 0} == UNUSED


@pytest.mark.parametrize("kind", ["default", "paper"])
def test_every_parameter_of_the_tokenizer_is_trained(kind, world):
    config = TINY.tokenizer
    if kind == "paper":
        config = replace(config, stem="linear", first_frame_stem=True, quantizer="vq", codebook_size=32, code_dim=8, window=0)
    torch.manual_seed(0)
    model = CViViT(config)
    (optimizer,) = make_optimizers(model, settings())
    total = {name: 0.0 for name, _ in model.named_parameters()}
    for step in range(3):  # residual branches start as zero: what stands before them moves from the second step on
        optimizer.zero_grad()
        losses_of(model, world.clips(0, 2 * step, 2, model.num_frames(3), 2))["loss"].backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.abs().sum().item() if parameter.grad is not None else 0.0
        optimizer.step()
    assert not {name for name, amount in total.items() if amount == 0}


def test_every_parameter_that_is_trained_has_moved(trainee, tmp_path):
    torch.manual_seed(0)
    before = trainee.network().state_dict()
    trainee.train(tmp_path, learning_rate=1e-2)
    after = load_file(newest(tmp_path) / "weights.safetensors")
    unused = UNUSED | {"corruption_embedding.weight", "null_text"}  # not met in so few batches of two
    assert {name for name in before if torch.equal(before[name], after[name])} <= unused


# What the generator sees


def test_a_tenth_of_the_captions_is_dropped():
    dropped = torch.cat([batch.dropped for batch in draws(400)])
    assert abs(dropped.float().mean() - 0.1) < 0.025
    assert torch.cat([batch.dropped for batch in draws(20, config=replace(GENERATOR, cond_drop_prob=0.0))]).sum() == 0
    many = torch.cat([batch.dropped for batch in draws(100, config=replace(GENERATOR, cond_drop_prob=0.9))])
    assert abs(many.float().mean() - 0.9) < 0.05


def test_the_network_sees_the_null_text_for_dropped_captions_and_only_for_them(monkeypatch):
    torch.manual_seed(0)
    model, seen = MaskGIT(replace(GENERATOR, cond_drop_prob=0.4)), []
    encode_text = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda text, mask: (seen.append((text, mask)), encode_text(text, mask))[1])
    dropped_rows = 0
    for batch in draws(12, config=model.config):
        text, mask = STORIES.text(batch.captions)
        loss = generator_loss(model, batch, text, mask)
        shown, shown_mask = seen.pop()
        assert not seen, "text is encoded once"
        for row, dropped in enumerate(batch.dropped):
            if dropped:
                assert torch.equal(shown[row][shown_mask[row]], model.null_text[0]) and model.null_text.abs().sum() != 0
            else:
                assert torch.equal(shown[row][shown_mask[row]], text[row][mask[row]])
        assert loss["dropped"] == batch.dropped.float().mean()
        dropped_rows += int(batch.dropped.sum())
    assert dropped_rows > 15


def test_the_null_branch_of_sampling_is_the_one_that_was_trained():
    """drop_text in training and no_text in sampling give the same keys and values."""
    model = MaskGIT(GENERATOR)
    text, mask = STORIES.text(torch.tensor([0, 1]))
    trained = model.encode_text(*model.drop_text(text, mask, torch.tensor([True, True])))
    sampled = model.encode_text(*model.no_text())
    for one, two in zip(trained.layers, sampled.layers, strict=True):
        torch.testing.assert_close(one.keys[:, :, :1], two.keys.expand(2, -1, -1, -1))
        torch.testing.assert_close(one.values[:, :, :1], two.values.expand(2, -1, -1, -1))
    assert trained.mask[:, 0, 0].sum(1).tolist() == [1, 1]


class Spy:
    """Stands for the network in `generator_loss` and keeps what it is shown."""

    mask_token_id = GENERATOR.codebook_size

    def drop_text(self, text, mask, dropped):
        return text, mask

    def encode_text(self, text, mask):
        return None

    def encode_context(self, tokens, kinds, corruption):
        self.context, self.kinds, self.corruption = tokens, kinds, corruption
        return Context(())

    def features(self, tokens, cache, context, starts):
        self.shown, self.has_context, self.starts = tokens, context is not None, starts
        return torch.zeros(*tokens.shape, 1)

    def score(self, features, tokens, label_smoothing):
        self.targets = tokens
        return TokenScores(torch.zeros(2, len(tokens)), torch.zeros(2, len(tokens)))


def test_the_share_of_hidden_tokens_follows_the_cosine():
    """In what the network sees: P(share <= r) = 1 - 2/pi arccos r, for each slice by itself."""
    stories, shares = numbered_stories(side=12), []
    for batch in draws(150, stories=stories):
        spy = Spy()
        generator_loss(spy, batch, *stories.text(batch.captions))
        hidden = spy.shown == spy.mask_token_id
        assert torch.equal(hidden, batch.mask) and torch.equal(spy.shown[~hidden], batch.tokens[~hidden])
        assert torch.equal(spy.targets, batch.tokens[batch.mask]), "the loss is of the hidden tokens, all of them and no others"
        assert hidden.flatten(1).any(1).all()
        shares.append(hidden[batch.tasks == PLAIN_TASK].float().mean((2, 3)).flatten())
    shares = torch.cat(shares).sort().values
    assert abs(shares.mean() - 2 / math.pi) < 0.03
    for share in (0.2, 0.5, 0.8, 0.95):
        wanted = 1 - 2 / math.pi * math.acos(share)
        assert abs((shares <= share).float().mean() - wanted) < 0.04


def test_half_of_the_samples_have_one_share_for_all_slices():
    stories = numbered_stories(side=12)
    spreads = [batch.mask[batch.tasks == PLAIN_TASK].float().mean((2, 3)).std(1) for batch in draws(100, stories=stories) if batch.mask.shape[1] == 3]
    even = (torch.cat(spreads) < 0.07).float().mean()
    assert 0.4 < even < 0.75  # half, and those whose own shares happen to be alike


def place_of(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(story, slice) that each slice of numbered tokens (b t h w) came from."""
    number = tokens[:, :, 0, 0]
    assert (tokens == number[..., None, None]).all(), "a slice is of one piece"
    return number // 17, number % 17


def clean(batches: Iterator[Batch]) -> list[Batch]:
    return [batch for batch in batches if batch.corruption.sum() == 0]


def test_a_chunk_lies_in_one_scene_and_has_its_caption():
    lengths, slices = [], set()
    for batch in draws(300):
        story, place = place_of(batch.tokens)
        assert (story == story[:, :1]).all() and (place.diff(dim=1) == 1).all()
        assert (STORIES.scene_start[story, place] == STORIES.scene_start[story, place][:, :1]).all()
        assert torch.equal(batch.captions, STORIES.caption[story[:, 0], place[:, -1]])
        assert batch.starts == (batch.context is None) and (not batch.starts or (place[:, 0] == 0).all())
        lengths.append(batch.tokens.shape[1])
        slices |= set(place[:, 0].tolist())
    counts = [lengths.count(length) / len(lengths) for length in (1, 2, 3)]
    assert sum(counts) == 1 and min(counts) > 0.1 and counts[2] > 0.5, "half of the batches have whole chunks, the others any length"
    assert slices == set(range(17))


def test_the_share_of_batches_without_context_is_as_set():
    shares = []
    for prob in (0.0, 0.3, 1.0):
        own = replace(training(num_steps=400), from_text_prob=prob, image_prob=0.0)
        shares.append(sum(draw_batch(STORIES, GENERATOR, own, step).context is None for step in range(400)) / 400)
    assert shares[0] == 0 and shares[2] == 1 and abs(shares[1] - 0.3) < 0.07


def test_context_is_what_came_before_and_the_anchor_is_the_scene_s_first_slice():
    """No context shows a slice of its own chunk, nor the anchor a slice that is there already: the director never does either."""
    seen = {"anchor": 0, "earlier scene": 0, "one scene": 0, 1: 0, 2: 0}
    for batch in clean(draws(500)):
        if batch.context is None:
            continue
        story, place = place_of(batch.tokens)
        context_story, context_place = place_of(batch.context)
        assert (context_story == story[:, :1]).all()
        anchored = bool(batch.kinds[0] == ANCHOR)
        assert (batch.kinds[1:] != ANCHOR).all() and len(batch.kinds) == batch.context.shape[1]
        recent = context_place[:, 1:] if anchored else context_place
        assert torch.equal(recent, place[:, :1] + torch.arange(-recent.shape[1], 0))
        scene_start = STORIES.scene_start[story[:, 0], place[:, 0]]
        if anchored:
            assert torch.equal(context_place[:, 0], scene_start)
            assert (scene_start < place[:, 0]).all(), "the anchor is the answer"
            assert (scene_start < recent[:, 0]).all(), "the anchor is among the recent slices"
        seen["anchor"] += anchored
        seen["earlier scene"] += int((recent[:, 0] < scene_start).sum())
        seen["one scene"] += int((recent[:, 0] >= scene_start).sum())
        seen[recent.shape[1]] += 1
    assert min(seen.values()) > 10, seen


def test_no_anchor_where_the_configuration_has_none():
    assert not any((batch.kinds == ANCHOR).any() for batch in draws(100, config=replace(GENERATOR, anchor=False)))
    assert all(batch.context is None for batch in draws(50, config=replace(GENERATOR, context_slices=0)))


def test_stories_too_short_to_train_on_are_refused():
    with pytest.raises(ValueError, match=r"no scene of the stories .* make the stories longer"):
        list(draws(30, stories=numbered_stories(slices=3)))


def test_stories_too_short_for_what_some_step_may_draw_are_told_before_the_first():
    begins_short, long = numbered_stories(slices=9, cut=2), numbered_stories(slices=9, cut=4)
    own = training()
    check_lengths(long, GENERATOR, own, "training")
    with pytest.raises(ValueError, match="no scene of the held-out stories has room for a chunk of 3 slices after 2 slices of context: make"):
        check_lengths(numbered_stories(slices=4, cut=3), GENERATOR, own, "held-out")
    with pytest.raises(ValueError, match="no scene of the training stories has room for a chunk of 3 slices that begins a video"):
        check_lengths(begins_short, GENERATOR, own, "training")
    check_lengths(begins_short, GENERATOR, replace(own, from_text_prob=0.0), "training")
    check_lengths(numbered_stories(slices=4, cut=3), GENERATOR, replace(own, from_text_prob=1.0), "training")
    for stories, probs in ((long, {}), (begins_short, {"from_text_prob": 0.0})):
        assert len([draw_batch(stories, GENERATOR, replace(own, **probs), step) for step in range(200)]) == 200, "what passes can be drawn"
    none = long.stories(slice(0, 0))
    check_lengths(none, GENERATOR, replace(own, image_prob=1.0), "training")
    with pytest.raises(ValueError, match="no scene of the training stories"):
        check_lengths(none, GENERATOR, own, "training")


@pytest.mark.parametrize("where", ["video start", "scene start", "deep in scene", ""])
def test_windows_are_drawn_evenly_of_all_places_and_only_the_drawn_stories_are_looked_at(monkeypatch, where):
    """The same to the bit as a draw from the list of all places; after the first draw nothing is done for every story."""
    stories, windows, looked_at = numbered_stories(), batches_module._windows, []
    for length, recent in [(1, 0), (3, 0), (1, 1), (2, 1), (3, 2), (9, 8)]:
        masks = windows(stories.scene_start, stories.scene_end, length, recent, where)
        places = next(mask for mask in masks if mask.any()).nonzero()
        for seed in range(3):
            listed = places[torch.randint(len(places), (50,), generator=torch.Generator().manual_seed(seed))]
            story, begin = draw_windows(stories, length, recent, where, 50, torch.Generator().manual_seed(seed))
            assert torch.equal(story, listed[:, 0]) and torch.equal(begin, listed[:, 1])
        with monkeypatch.context() as patch:
            patch.setattr(batches_module, "_windows", lambda start, *rest: looked_at.append(len(start)) or windows(start, *rest))
            draw_windows(stories, length, recent, where, 5, torch.Generator())
    assert looked_at == [5] * 6


def test_contexts_that_begin_a_video_occur_whatever_the_batch_size():
    """The director marks them FIRST (a story that starts from a picture), so the network must have met that."""
    batches = [batch for batch in draws(400, batch_size=12) if batch.context is not None]
    marked = [batch for batch in batches if (batch.kinds == FIRST).any()]
    assert 0.05 < len(marked) / len(batches) < 0.15
    assert {batch.context.shape[1] for batch in marked} == {1, 2}


@pytest.mark.parametrize("batch_size", [1, 6])
def test_a_context_that_begins_a_video_is_marked(batch_size):
    """FIRST where the contexts of a batch begin their videos, all or none of them; the other kinds are ORDINARY."""
    marked = 0
    for batch in draws(600, batch_size=batch_size):
        if batch.context is None or batch.corruption.sum():
            continue
        first = place_of(batch.context)[1][:, batch.kinds.tolist().count(ANCHOR)] == 0
        kinds = batch.kinds[batch.kinds != ANCHOR]
        assert ((kinds[0] == FIRST) == first).all() and (kinds[1:] == ORDINARY).all()
        marked += bool(first[0])
    assert marked > 5


# Corrupted context


def test_half_of_the_contexts_are_left_clean():
    with_context = [batch for batch in draws(600) if batch.context is not None]
    corrupted = sum(bool(batch.corruption.any()) for batch in with_context) / len(with_context)
    assert 0.42 < corrupted < 0.58
    levels = torch.cat([batch.corruption for batch in with_context if batch.corruption.any()])
    assert [int((levels == level).sum()) > 0.12 * len(levels) for level in range(5)] == [True] * 5


def test_the_share_of_replaced_tokens_is_the_told_one():
    """Level 0 is untouched, level l has l/4 of max_corruption; the loss's targets are never touched."""
    config = replace(GENERATOR, max_corruption=0.4)
    stories, replaced, total = numbered_stories(side=6), torch.zeros(5), torch.zeros(5)
    rows = torch.arange(8)
    for batch in draws(400, stories=stories, config=config):
        story, place = place_of(batch.tokens)  # asserts that chunks are whole
        if batch.context is None:
            continue
        recent = batch.context.shape[1] - int(batch.kinds[0] == ANCHOR)
        true = stories.tokens[story[:, :1], place[:, :1] + torch.arange(-recent, 0)].long()
        changed = (batch.context[:, -recent:] != true).flatten(1).float().mean(1)
        assert (changed[batch.corruption == 0] == 0).all()
        for row in rows:
            replaced[batch.corruption[row]] += changed[row]
            total[batch.corruption[row]] += 1
    shares = replaced / total
    wanted = torch.arange(5) / 4 * 0.4 * (1 - 0.5 / 8)  # one time in 16 a token is replaced by itself (shuffled onto its own row)
    assert (shares - wanted).abs().max() < 0.03, shares


def test_replacements_are_any_code_or_another_sample_s():
    tokens = torch.arange(64)[:, None, None, None].expand(64, 2, 4, 4)
    rng = torch.Generator().manual_seed(0)
    bad = corrupt(tokens, torch.ones(64), 4096, rng)
    others = (bad < 64).float().mean()
    assert 0.45 < others < 0.55 and bad.max() < 4096 and bad.max() > 4000
    assert torch.equal(corrupt(tokens, torch.zeros(64), 4096, rng), tokens)


def test_the_network_is_told_the_context_it_gets():
    for batch in draws(40):
        spy = Spy()
        generator_loss(spy, batch, *STORIES.text(batch.captions))
        assert spy.has_context == (batch.context is not None) and spy.starts == batch.starts
        if batch.context is not None:
            assert torch.equal(spy.context, batch.context) and torch.equal(spy.corruption, batch.corruption)
            assert torch.equal(spy.kinds, batch.kinds)


def test_a_step_s_batch_depends_on_seed_and_step_alone():
    own = training()
    one = draw_batch(STORIES, GENERATOR, own, 7)
    torch.manual_seed(3)
    list(draws(3))
    two = draw_batch(STORIES, GENERATOR, own, 7)
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(two, name)) if isinstance(value, Tensor) else value == getattr(two, name)
    assert not torch.equal(one.captions, draw_batch(STORIES, GENERATOR, own, 8).captions)
    assert len({generator.initial_seed() for generator in (generator_for(1, 2), generator_for(12, 0), generator_for(1, 2, "x"))}) == 3


def test_the_generator_s_loss_is_the_cross_entropy_of_hidden_tokens():
    torch.manual_seed(0)
    model = MaskGIT(replace(GENERATOR, codebook_size=4096, token_factors=1))
    batch = next(batch for batch in draws(20) if batch.context is not None and not batch.dropped.any())
    text, mask = STORIES.text(batch.captions)
    shown = batch.tokens.clone()
    shown[batch.mask] = model.mask_token_id
    context = model.encode_context(batch.context, batch.kinds, batch.corruption)
    logits = model.to_logits(model.features(shown, model.encode_text(text, mask), context, False), [])
    slow = -torch.stack([logits[place].log_softmax(-1)[batch.tokens[place]] for place in map(tuple, batch.mask.nonzero())]).mean()
    torch.testing.assert_close(generator_loss(model, batch, text, mask)["loss"], slow)


# What the tokenizer learns


def test_the_gradient_passes_through_the_quantiser(world):
    for config in (TINY.tokenizer, replace(TINY.tokenizer, quantizer="vq", codebook_size=32, code_dim=8)):
        torch.manual_seed(0)
        model = CViViT(config)
        losses_of(model, world.clips(0, 0, 2, 5, 2))["l2"].backward()
        for name in ("stem.to_vectors.weight", "encoder.layers.0.attention.to_queries.weight", "quantizer.project_in.weight"):
            assert model.get_parameter(name).grad.abs().max() > 1e-7, (config.quantizer, name)


class Copier(nn.Module):
    """A perfect tokenizer but for what is added to its answer."""

    def __init__(self, fault: Tensor):
        super().__init__()
        self.fault = fault

    def forward(self, video: Tensor) -> Reconstruction:
        return Reconstruction(video + self.fault, torch.arange(4), torch.tensor(2.0))


def test_every_frame_row_and_colour_enters_the_loss_alike(world):
    video = world.clips(0, 0, 2, 5, 2)
    losses = []
    for frame, row, colour in [(0, 0, 0), (1, 5, 1), (2, 31, 2), (3, 7, 0), (4, 31, 2)]:
        fault = torch.zeros_like(video)
        fault[:, colour, frame, row] = 0.5
        losses.append(losses_of(Copier(fault), video, l1_weight=0.1, quantizer_weight=0.0)["loss"].item())
    share = 1 / (3 * 5 * 32)
    assert losses == pytest.approx([share * (0.25 + 0.1 * 0.5)] * 5, rel=1e-4)


def test_the_parts_of_the_loss_are_weighted_and_named(world):
    video = world.clips(0, 0, 2, 5, 2)
    losses = losses_of(Copier(torch.full_like(video, 0.2)), video, l1_weight=0.3, quantizer_weight=0.7)
    assert losses["l2"].item() == pytest.approx(0.04, rel=1e-4) and losses["l1"].item() == pytest.approx(0.2, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(0.04 + 0.3 * 0.2 + 0.7 * 2.0, rel=1e-4)
    assert with_psnr({name: value.item() for name, value in losses.items()})["psnr"] == pytest.approx(20.0, abs=1e-3)  # 0.1 in [0, 1]


def test_distinct_tokens_are_counted_by_clip_whatever_the_split():
    tokens = torch.tensor([[0, 0, 0, 0], [3, 1, 3, 2], [5, 6, 7, 8]]).view(3, 1, 2, 2)
    assert distinct_share(tokens).item() == pytest.approx((1 + 3 + 4) / 12)
    assert sum(distinct_share(one[None]).item() for one in tokens) / 3 == pytest.approx(distinct_share(tokens).item())


def test_how_much_changes_is_compared_block_by_block():
    still = torch.zeros(1, 3, 5, 16, 16)
    flicker = torch.zeros_like(still)
    flicker[:, :, 2] = 0.2  # one frame of five: two of four changes are wrong
    weights = {"change_weight": 0.5, "l1_weight": 0.0, "quantizer_weight": 0.0}
    losses = losses_of(Copier(flicker), still, **weights)
    assert losses["change"].item() == pytest.approx(0.1, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(0.04 / 5 + 0.5 * 0.1, rel=1e-4)
    moved = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=3)
    assert losses_of(Copier(torch.full_like(moved, 0.2)), moved, **weights)["change"].item() == pytest.approx(0, abs=1e-6), "a steady fault"
    held = moved[:, :, [0, 0, 2, 2, 4]]
    same_amount = losses_of(Copier(moved.flip(3) - moved), moved, **weights)["change"]
    assert same_amount < 0.5 * losses_of(Copier(held - moved), moved, **weights)["change"], "standing still is worse than moving otherwise"
    assert losses_of(Copier(flicker[:, :, 2:3]), still[:, :, :1], change_weight=0.5)["change"] == 0, "a picture does not change"
    assert "change" not in losses_of(Copier(flicker), still)


def test_errors_that_come_and_go_are_weighed_and_steady_ones_are_not():
    still = torch.zeros(1, 3, 5, 16, 16)
    flicker = torch.zeros_like(still)
    flicker[:, :, 2] = 0.2  # there in one frame of five: two of four changes are wrong
    losses = losses_of(Copier(flicker), still, motion_weight=2.0, l1_weight=0.0, quantizer_weight=0.0)
    assert losses["motion"].item() == pytest.approx(0.02, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(0.04 / 5 + 2 * 0.02, rel=1e-4)
    assert losses_of(Copier(torch.full_like(still, 0.2)), still, motion_weight=2.0)["motion"].item() == pytest.approx(0, abs=1e-9)
    assert losses_of(Copier(flicker[:, :, 2:3]), still[:, :, :1], motion_weight=2.0)["motion"] == 0, "a picture does not move"


def test_flicker_is_weighed_where_nothing_moves_and_there_alone():
    truth = torch.zeros(1, 3, 5, 16, 16)
    truth[:, :, 2, :, 8:] = 1.0  # the right half changes twice
    flicker = torch.zeros_like(truth)
    flicker[:, :, 1] = 0.2  # comes and goes: two of four changes are wrong, one of them where the right half changes
    losses = losses_of(Copier(flicker), truth, still_weight=0.5, quantizer_weight=0.0, l1_weight=0.0)
    assert losses["still"].item() == pytest.approx(0.2 * (1 + 0.5) / 4, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(0.04 / 5 + 0.5 * 0.075, rel=1e-4)
    assert losses_of(Copier(torch.full_like(truth, 0.2)), truth, still_weight=0.5)["still"].item() == pytest.approx(0, abs=1e-6), "a steady fault"
    fading = (torch.arange(200, 195, -1) / 127.5 - 1)[:, None, None].expand(1, 3, 5, 16, 16)
    assert losses_of(Copier(flicker), fading, still_weight=0.5)["still"].item() == 0, "a change of one level is a change"
    assert losses_of(Copier(flicker[:, :, 2:3]), truth[:, :, :1], still_weight=0.5)["still"] == 0, "a picture does not change"


def test_the_first_frame_has_the_weight_that_is_set(world):
    video = world.clips(0, 0, 2, 5, 2)
    parts = []
    for frame in (0, 3):
        fault = torch.zeros_like(video)
        fault[:, :, frame] = 0.5
        parts.append(losses_of(Copier(fault), video, first_frame_weight=0.5, quantizer_weight=0.0)["l2"].item())
    assert parts == pytest.approx([0.5 / 4.5 * 0.25, 1 / 4.5 * 0.25], rel=1e-4)


def test_decoder_only_training_keeps_the_tokens(world, tmp_path):
    torch.manual_seed(0)
    network = CViViT(TINY.tokenizer)
    video = world.clips(7, 0, 2, 5, 2)
    before, tokens = network.state_dict(), network.encode(video)
    before = {name: value.clone() for name, value in before.items()}
    freeze_tokens(network)
    own = TokenizerTraining(num_slices=2, losses=PLAIN, decoder_only=True, optimizer=settings(learning_rate=1e-2))
    run = Run(tmp_path, tokenizer_task(network, world, own), own.optimizer)
    run.train(lambda line: None)
    after = run.averaged()
    moved = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(("decoder.", "head.", "quantizer.project_out.")) for name in moved)
    assert torch.equal(after.encode(video), tokens) and not torch.equal(after.decode(tokens), before_decode(before, tokens))


def before_decode(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    network = CViViT(TINY.tokenizer)
    network.load_state_dict(weights)
    return network.decode(tokens)


def test_red_stays_red_in_a_picture(tmp_path):
    videos = torch.full((2, 3, 4, 8, 8), -1.0)
    videos[0, 0], videos[1, 2] = 1.0, 1.5  # red; more than blue
    save_video_rows(videos, tmp_path / "rows.png")
    pixels = np.asarray(Image.open(tmp_path / "rows.png"))
    assert pixels.shape == (16, 32, 3) and pixels.dtype == np.uint8
    assert (pixels[:8] == (255, 0, 0)).all() and (pixels[8:] == (0, 0, 255)).all()


def test_a_red_clip_trains_to_red(tmp_path):
    red = torch.tensor([1.0, -1.0, -0.5])[None, :, None, None, None]
    source = source_of(lambda seed, step, count, frames, align: red.expand(count, 3, frames, 32, 32))
    fast = settings(num_steps=40, learning_rate=1e-2, ema_decay=0.5, save_every=40, sample_every=40)
    own = TokenizerTraining(num_slices=2, losses=PLAIN, optimizer=fast)
    run = Run(tmp_path, tokenizer_task(CViViT(TINY.tokenizer), source, own), fast)
    run.train(lambda line: None)
    trained = run.averaged()
    made = trained.decode(trained.encode(red.expand(1, 3, 3, 32, 32)))
    assert (made.mean((0, 2, 3, 4)) - red.flatten()).abs().max() < 0.3
    pixels = np.asarray(Image.open(tmp_path / "sample-0000040.png")).reshape(-1, 3).mean(0)
    assert np.abs(pixels - (255, 0, 64)).max() < 40


def test_codes_of_a_step_without_a_number_are_not_revived_onto(tmp_path):
    def clips(seed: int, first: int, count: int, frames: int, align: int) -> torch.Tensor:
        video = torch.rand(count, 3, frames, 32, 32, generator=torch.Generator().manual_seed(first)) * 2 - 1
        return video * torch.nan if first == 2 * count else video

    own = settings(num_steps=5, log_every=1)
    losses = replace(PLAIN, revive_after=1)
    torch.manual_seed(0)
    network = CViViT(replace(TINY.tokenizer, quantizer="vq", codebook_size=300, code_dim=4))
    lines = []
    training = TokenizerTraining(num_slices=2, losses=losses, optimizer=own)
    run = Run(tmp_path, tokenizer_task(network, source_of(clips), training), own)
    run.train(lines.append)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 0]
    assert network.quantizer.codebook.isfinite().all()


def test_the_discriminator_stays_as_it_is_until_it_starts(world, tmp_path):
    """Weight decay, too, waits; a checkpoint of before, without a state of its optimiser, is gone on from to the bit."""
    losses = replace(PLAIN, adversarial_weight=0.1, start_step=2, discriminator_dim=8, discriminator_stages=1)

    def weights(folder: Path, num_steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        own = settings(num_steps=num_steps, weight_decay=1.0, save_every=2, final_lr_ratio=1.0)
        task = tokenizer_task(CViViT(TINY.tokenizer), world, TokenizerTraining(num_slices=2, losses=losses, optimizer=own))
        before = {name: tensor.clone() for name, tensor in task.discriminator.state_dict().items()}
        Run(folder, task, own).train(lambda line: None)
        after = task.discriminator.state_dict()
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        assert changed == (set() if num_steps == 2 else set(after))
        return after

    weights(tmp_path / "cut", 2)
    resumed, whole = weights(tmp_path / "cut", 4), weights(tmp_path / "whole", 4)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_tokenizer_s_loss_falls(world, tmp_path):
    lines = []
    fast = settings(num_steps=60, log_every=1, save_every=60, learning_rate=3e-3)
    own = TokenizerTraining(num_slices=2, losses=replace(PLAIN, quantizer_weight=0.1), optimizer=fast)
    torch.manual_seed(0)
    Run(tmp_path, tokenizer_task(CViViT(TINY.tokenizer), world, own), fast).train(lines.append)
    l2 = [line["l2"] for line in lines]
    assert sum(l2[-5:]) / 5 < 0.5 * l2[0]


def test_the_generator_s_loss_falls(tmp_path):
    """It learns a caption's chunk where all stories are one story."""
    one = numbered_stories(count=1, cut=8)
    torch.manual_seed(0)
    model, lines = MaskGIT(GENERATOR), []
    own = GeneratorTraining(num_slices=17, optimizer=settings(num_steps=80, log_every=20, save_every=80, learning_rate=1e-2))
    Run(tmp_path, generator_task(model, one, own), own.optimizer).train(lines.append)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]


# The loop


def test_the_averaged_weights_load_into_the_network_strictly(trainee, tmp_path):
    """The file is the network's own state, not a wrapper's; the run hands these weights over."""
    run = trainee.train(tmp_path)
    network = trainee.network()
    network.load_state_dict(load_file(newest(tmp_path) / f"{trainee.name}.safetensors"), strict=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, run.averaged().state_dict()[name])


def test_a_run_of_a_given_length_warms_up_for_a_tenth_of_it_at_most():
    base = OptimizerSettings(num_steps=1000, warmup_steps=100, seed=3)
    assert override(base, None, None) == base
    assert override(base, 50, 7) == replace(base, num_steps=50, warmup_steps=5, seed=7)
    assert override(base, 3, None).warmup_steps == 1 and override(base, 5000, None).warmup_steps == 100
    long = replace(base, warmup_steps=400)
    assert override(long, None, None) == long, "what a settings file says is what is done"
    notes = []
    for set_to, steps in ((long, None), (base, 5000), (long, 50), (replace(base, num_steps=80), None)):
        note_warmup(set_to, override(set_to, steps, None), notes.append)
    assert [note.split(":")[0] for note in notes] == ["warmup_steps 400 -> 5", "warmup_steps 100 of 80 steps"]
    with pytest.raises(ValueError, match="0 steps: needed at least 1"):
        override(base, 0, None)
    with pytest.raises(ValueError, match="seed 777: that of clips which models are measured by, and not trained on; give another"):
        override(base, None, 777)


def test_looking_at_samples_changes_nothing(trainee, tmp_path):
    """The network stays in training mode, and no randomness of training is used up."""
    looks = []

    def sample(model: nn.Module, path: Path) -> None:
        looks.append(model.training)
        torch.rand(5)

    trainee.train(tmp_path / "never")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerTask, "sample", lambda self, model, path: sample(model, path))
        run = trainee.train(tmp_path / "often", on_sample=sample, sample_every=1)
    assert looks[:10] == [False] * 10 and run.task.model.training
    assert state(tmp_path / "often") == state(tmp_path / "never") and log(tmp_path / "often") == log(tmp_path / "never")


# The whole programs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """Both programs from configs/tiny.toml with two steps and shorter stories: settings file, run folder, notes."""
    folder, notes = tmp_path_factory.mktemp("run"), []
    text = (CONFIGS / "tiny.toml").read_text().replace("num_stories = 8", "num_stories = 3")
    assert "num_stories = 3" in text
    (folder / "tiny.toml").write_text(text)
    assert run_tokenizer_training(folder / "tiny.toml", folder / "out", steps=2, on_log=notes.append, on_note=notes.append) == folder / "out/model"
    assert load_model(folder / "out/model").generator is None
    told = run_generator_training(folder / "tiny.toml", folder / "out", steps=2, on_log=notes.append, on_note=notes.append)
    assert told == folder / "out/model"
    return folder / "tiny.toml", folder / "out", notes


def test_both_programs_end_in_a_model_that_loads(trained):
    model = load_model(trained[1] / "model")
    assert model.info.name == "tiny" and model.info.fps == 8
    assert model.info.training == {"tokenizer_steps": 2, "tokenizer_seed": 0, "generator_steps": 2, "generator_seed": 0, **DATA}
    for network, part in ((model.tokenizer, "tokenizer"), (model.generator, "generator")):
        averaged = load_file(trained[1] / part / "checkpoints/step-0000002" / f"{part}.safetensors")
        assert all(torch.equal(tensor, averaged[name]) for name, tensor in network.state_dict().items()), part
        shape = {"tokenizer": (8 * 32, 5 * 32, 3), "generator": (4 * (LABEL_HEIGHT + 32), 13 * 32, 3)}[part]  # truth and made; prompts and made
        sample, video = (trained[1] / part / f"sample-0000002.{ending}" for ending in ("png", "mp4"))
        assert np.asarray(Image.open(sample)).shape == shape and read_video(video).frames.shape[2:] == (32, 3)
    assert model.info.text_encoder.startswith("bert sha256:")
    assert [line["step"] for line in trained[2] if isinstance(line, dict)] == [2, 2]


def test_a_run_that_goes_on_is_not_begun_again_from_another_model(trained, tmp_path, monkeypatch):
    """It says so, and what the model says of its beginning stays."""
    config, out, _ = trained
    for program, part in ((run_tokenizer_training, "tokenizer"), (run_generator_training, "generator")):
        notes, run = [], tmp_path / part
        monkeypatch.setattr(TokenizerTask if part == "tokenizer" else GeneratorTask, "sample", lambda self, model, path: None)
        options = {"on_log": lambda line: None, "on_note": notes.append} | ({} if part == "tokenizer" else {"tokenizer": out / "model"})
        program(config, run, steps=1, init_from=str(out / "model"), **options)
        assert any(note.startswith("starting from") for note in notes)
        begun = load_model(run / "model").info.training[f"{part}_init"]
        notes.clear()
        program(config, run, steps=2, init_from=str(out / "model"), **options)
        assert f"{run / part}: goes on from its own step-0000001; --init-from {out / 'model'} counts at the beginning alone" in notes
        assert load_model(run / "model").info.training[f"{part}_init"] == begun and not any("starting from" in note for note in notes)


def test_a_run_whose_only_checkpoint_is_damaged_begins_anew_from_the_model_that_is_named(trained, tmp_path, monkeypatch):
    config, out, _ = trained
    monkeypatch.setattr(TokenizerTask, "sample", lambda self, model, path: None)
    shutil.copytree(out / "tokenizer", tmp_path / "out/tokenizer")
    weights, notes = newest(tmp_path / "out/tokenizer") / "weights.safetensors", []
    weights.write_bytes(weights.read_bytes()[:-1])
    run_tokenizer_training(config, tmp_path / "out", steps=1, init_from=str(out / "model"), on_log=lambda line: None, on_note=notes.append)
    assert any(note.startswith("starting from") for note in notes) and not any("goes on from its own" in note for note in notes)
    assert f"{tmp_path / 'out/tokenizer'}: none of its checkpoints is whole, so it begins anew, at step 0" in notes


def test_what_was_off_and_is_no_setting_any_more_stops_no_run():
    assert changed({"old": False, "kept": 1}, {"kept": 1}) == [] and changed({"old": True}, {}) == ["old True -> None"]
    assert changed({"kept": False}, {"kept": None}) == ["kept False -> None"]
    (told,) = changed({"data": "x" * 1000}, {"data": "y"})
    assert len(told) < 120 and told.endswith(" ... -> y")


def test_both_programs_start_from_a_model_that_is_named(trained, tmp_path):
    config, out, _ = trained
    (tmp_path / "out").mkdir()
    shutil.copytree(out / "model", tmp_path / "parent")
    notes, parent = [], load_model(out / "model")
    run_tokenizer_training(config, tmp_path / "out", steps=1, init_from=str(tmp_path / "parent"), on_log=notes.append, on_note=notes.append)
    run_generator_training(config, tmp_path / "out", steps=1, init_from=str(tmp_path / "parent"), on_log=notes.append, on_note=notes.append)
    assert sum(str(note).startswith(f"starting from {tmp_path / 'parent'}: ") for note in notes) == 2
    model = load_model(tmp_path / "out/model")
    for part, own in (("tokenizer", DATA), ("generator", {})):
        assert model.info.training[f"{part}_init"] == {"name": "tiny", f"{part}_steps": 2, f"{part}_seed": 0, **own}, "not how the other came to be"
    for network, before in ((model.tokenizer, parent.tokenizer), (model.generator, parent.generator)):
        moved = [(value - before.state_dict()[name]).abs().max() for name, value in network.state_dict().items() if value.is_floating_point()]
        assert 0 < max(moved) < 0.05, "one step away from where it started"


def test_a_decoder_trained_alone_keeps_its_generator_and_may_have_more_layers(trained, tmp_path):
    config, out, _ = trained
    own = tmp_path / "decoder.toml"
    text = config.read_text().replace("[train_tokenizer]", "[train_tokenizer]\ndecoder_only = true")
    own.write_text(text.replace("head_blocks = 1", "head_blocks = 2\nrefiner_dim = 8"))
    with pytest.raises(ValueError, match=r"decoder\.toml: decoder_only = true needs --init-from MODEL, whose tokens are kept"):
        run_tokenizer_training(own, tmp_path / "out", steps=2)
    run_tokenizer_training(own, tmp_path / "out", steps=2, init_from=str(out / "model"), on_log=lambda line: None)
    before, after = load_model(out / "model"), load_model(tmp_path / "out/model")
    assert after.info.name == "decoder" and after.info.text_encoder == before.info.text_encoder and after.info.sampling == before.info.sampling
    assert all(torch.equal(value, after.generator.state_dict()[name]) for name, value in before.generator.state_dict().items())
    assert after.tokenizer.head.refiner.to_pixels.weight.abs().max() > 0, "trained"
    video = torch.rand(1, 3, 3, 32, 32) * 2 - 1
    assert torch.equal(before.tokenizer.encode(video), after.tokenizer.encode(video))
    save_model(tmp_path / "other", replace(before.info, name="other"), before.tokenizer, MaskGIT(before.generator.config))
    for steps, init_from in ((3, str(tmp_path / "other")), (4, None)):
        run_tokenizer_training(own, tmp_path / "out", steps=steps, init_from=init_from, on_log=lambda line: None)
        gone_on = load_model(tmp_path / "out/model")
        assert all(torch.equal(value, gone_on.generator.state_dict()[name]) for name, value in before.generator.state_dict().items())
        assert gone_on.info.training == after.info.training | {"tokenizer_steps": steps}, "it goes on as it began, whatever model is named later"


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_a_checkpoint_is_a_model_folder(trained, part):
    """With the averaged weights; the whole model where there is a generator."""
    folder = trained[1] / part / "checkpoints/step-0000002"
    model, whole = load_model(folder), load_model(trained[1] / "model")
    assert (model.generator is None) == (part == "tokenizer")
    for name, value in getattr(model, part).state_dict().items():
        assert torch.equal(value, getattr(whole, part).state_dict()[name])


def test_a_tokenizer_that_is_trained_again_keeps_its_generator_where_nothing_changed(trained, tmp_path):
    config, out, _ = trained
    shutil.copytree(out, tmp_path / "out")
    notes = []
    run_tokenizer_training(config, tmp_path / "out", steps=2, on_log=notes.append, on_note=notes.append)
    assert load_model(tmp_path / "out/model").generator is not None and not any("left out" in str(note) for note in notes)
    run_tokenizer_training(config, tmp_path / "out", steps=3, on_log=notes.append, on_note=notes.append)
    assert load_model(tmp_path / "out/model").generator is None and any("the generator that was there" in str(note) for note in notes)
    assert not (tmp_path / "out/model/generator.safetensors").exists()


def test_a_run_does_not_go_on_as_another(trained, tmp_path):
    """Another network is refused; other losses are told."""
    config, out, _ = trained
    shutil.copytree(out, tmp_path / "out")
    text, notes = config.read_text(), []
    (tmp_path / "tiny.toml").write_text(text.replace("fsq_levels = [4, 4, 4, 4]", "fsq_levels = [2, 8, 4, 4]"))
    with pytest.raises(ValueError, match=r"was saved by a run that was not this one: fsq_levels \[4, 4, 4, 4\] -> \[2, 8, 4, 4\]"):
        run_tokenizer_training(tmp_path / "tiny.toml", tmp_path / "out", steps=3)
    (tmp_path / "tiny.toml").write_text(text.replace("l1_weight = 0.1", "l1_weight = 0.2"))
    run_tokenizer_training(tmp_path / "tiny.toml", tmp_path / "out", steps=3, on_log=lambda line: None, on_note=notes.append)
    assert any("going on with other settings: l1_weight 0.1 -> 0.2" in note for note in notes)


def test_a_decoder_of_other_tokens_is_refused(trained, tmp_path):
    config, out, _ = trained
    own = tmp_path / "decoder.toml"
    text = config.read_text().replace("[train_tokenizer]", "[train_tokenizer]\ndecoder_only = true")
    own.write_text(text.replace("window = 3", "window = 2"))
    with pytest.raises(ValueError, match="decoder_only = true: tiny has other tokens: window 3 -> 2"):
        run_tokenizer_training(own, tmp_path / "out", steps=1, init_from=str(out / "model"), on_note=lambda note: None)


@pytest.mark.parametrize(
    ("keys", "losses", "optimizer", "told"),
    [
        ("", "revive_after = 5", "sharded = true", "revive_after needs the whole codebook in every process: not with sharded = true"),
        ("decoder_only = true", "revive_after = 5", "", "decoder_only = true keeps the tokens, revive_after changes them"),
        ("decoder_only = true", "", "", "decoder_only = true needs --init-from MODEL"),
    ],
)
def test_settings_of_a_tokenizer_that_exclude_each_other_are_told_before_any_work(tmp_path, keys, losses, optimizer, told):
    text = (CONFIGS / "tiny.toml").read_text()
    for section, lines in (("train_tokenizer", keys), ("train_tokenizer.losses", losses), ("train_tokenizer.optimizer", optimizer)):
        text = text.replace(f"[{section}]\n", f"[{section}]\n{lines}\n")
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"odd\.toml: {told}"):
        run_tokenizer_training(tmp_path / "odd.toml", tmp_path / "out", steps=1, on_note=print)
    assert not (tmp_path / "out").exists()


def test_a_run_folder_that_other_processes_see_elsewhere_is_refused(tmp_path):
    class Apart(Group):
        """Its other processes stand at no step of this one's."""

        def agrees(self, value: float) -> bool:
            return value == 1234

    little(tmp_path, num_steps=5)
    told = r"here it stands at step 5, in other processes elsewhere: all must see the same run folder"
    with pytest.raises(TrainingError, match=told):
        Run(tmp_path, Toy(), settings(num_steps=5), group=Apart())


def test_validation_in_parts_is_that_of_the_whole(world, monkeypatch):
    torch.manual_seed(0)
    own = TokenizerTraining(num_slices=2, losses=PLAIN, optimizer=settings(batch_size=4))
    task = replace(tokenizer_task(CViViT(TINY.tokenizer).eval(), world, own), held_out=world)
    whole, parts = task.validate(task.model, 2, 1), task.validate(task.model, 2, 4)
    assert whole["loss"] == pytest.approx(whole["l2"] + 0.1 * whole["l1"])
    assert parts["l2"] == pytest.approx(whole["l2"], rel=1e-5) and parts["psnr"] == pytest.approx(whole["psnr"], abs=1e-5)
    seeds, held_out = [], type(task.criterion).held_out
    with monkeypatch.context() as patched:
        noted = lambda self, result, video, rng: seeds.append(rng.initial_seed()) or held_out(self, result, video, rng)
        patched.setattr(type(task.criterion), "held_out", noted)
        task.validate(task.model, 2, 4)
    assert seeds == [seeds[0]] * 4 + [seeds[4]] * 4 and seeds[0] != seeds[4], "LPIPS sees the same frames, however a batch is shared out"
    model = MaskGIT(GENERATOR).eval()
    whole, parts = (validation_loss(model, STORIES, GENERATOR, training(batch_size=4), 3, 7, num_parts) for num_parts in (1, 2))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_validation_is_of_other_clips_and_the_same_each_time(trained, world):
    notes = [note for note in trained[2] if str(note).startswith("step 2, held-out clips: loss")]
    assert len(notes) == 2, "one for each network"
    torch.manual_seed(0)
    task = tokenizer_task(CViViT(TINY.tokenizer), world, TokenizerTraining(num_slices=2, losses=PLAIN, optimizer=settings()))
    assert task.validate(task.model, 2, 1) == {}
    task.held_out = world
    assert task.validate(task.model, 2, 1) == task.validate(task.model, 2, 1) != task.validate(task.model, 1, 1)


def test_a_generator_does_not_start_from_a_tokenizer_and_that_is_told_before_the_tokenising(trained, tmp_path):
    config, out, _ = trained
    run_tokenizer_training(config, tmp_path / "alone", steps=1, on_log=lambda line: None)
    with pytest.raises(ValueError, match="holds a tokenizer alone; a generator starts from a whole model"):
        run_generator_training(
            config, tmp_path / "new", tokenizer=out / "model", init_from=str(tmp_path / "alone/model"), steps=1, on_note=lambda note: None
        )
    assert not (tmp_path / "new/generator/stories.safetensors").exists()


def test_the_stored_texts_are_the_encoder_s(trained):
    """By the real encoder: the caption of a story's first scene, as it is said."""
    settings, _, _ = load_settings(trained[0]), *trained[1:]
    stories = StoryTokens.load(trained[1] / "generator/stories.safetensors")
    assert stories.tokens.shape == (3, 9, 4, 4)
    story = open_world(settings.world).story(0, 1, 17, max_scenes=2, align=2)
    encoded = TextEncoder.load(settings.text).encode([story.scenes[0].caption])
    text, mask = stories.text(stories.caption[1, :1])
    torch.testing.assert_close(text[0][mask[0]], encoded.text[0][encoded.text_mask[0]], atol=2e-3, rtol=1e-2)


def test_stories_are_made_anew_for_other_weights_and_only_then(trained, tmp_path, monkeypatch):
    config, out, _ = trained
    shutil.copytree(out, tmp_path / "out")
    encoder = TextEncoder.load(load_settings(config).text)
    monkeypatch.setattr(generator_module.TextEncoder, "load", lambda *_, **__: encoder)
    monkeypatch.setattr(generator_module, "show_stories", lambda *_: None)
    path, notes = tmp_path / "out/generator/stories.safetensors", []
    before = sha256(path)

    def go(steps: int) -> bool:
        notes.clear()
        run_generator_training(config, tmp_path / "out", steps=steps, on_log=lambda line: None, on_note=notes.append)
        return any("tokenising" in note for note in notes)

    assert not go(2) and not go(3) and sha256(path) == before, "made anew though nothing changed"
    shutil.rmtree(tmp_path / "out/tokenizer")
    run_tokenizer_training(config, tmp_path / "out", steps=3, seed=5, on_log=lambda line: None)
    with pytest.raises(ValueError, match=r"was saved by a run that was not this one: tokens and texts .+ begin in another run folder"):
        go(3)
    assert sha256(path) == before, "a run that is refused leaves what is there"
    shutil.rmtree(tmp_path / "out/generator/checkpoints")
    assert go(3) and "other weights or settings" in " ".join(notes) and sha256(path) != before
    before = sha256(path)
    assert not go(3) and sha256(path) == before


def test_a_folder_in_which_another_process_trains_is_refused_before_any_data_is_made(tmp_path, monkeypatch, held_elsewhere):
    monkeypatch.setattr(tokenizer_module, "open_source", lambda *_: pytest.fail("the work began"))
    with held_elsewhere(tmp_path / "tokenizer"), pytest.raises(BusyError, match="another process trains in this folder"):
        run_tokenizer_training(CONFIGS / "tiny.toml", tmp_path, steps=1)


def test_a_generator_that_no_checkpoint_has_is_kept_with_its_model(trained, tmp_path):
    config, out, _ = trained
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/generator")
    whole, notes = load_model(tmp_path / "out/model"), []
    (tmp_path / "out/model/generator-backup.safetensors").write_bytes(b"the user's own")
    run_tokenizer_training(config, tmp_path / "out", steps=3, on_log=notes.append, on_note=notes.append)
    assert load_model(tmp_path / "out/model").generator is None and any("model-before-1" in str(note) for note in notes)
    kept = load_model(tmp_path / "out/model-before-1")
    assert all(torch.equal(value, kept.generator.state_dict()[name]) for name, value in whole.generator.state_dict().items())
    assert (tmp_path / "out/model/generator-backup.safetensors").read_bytes() == b"the user's own"


@pytest.mark.parametrize("program", [run_tokenizer_training, run_generator_training])
def test_a_model_of_another_program_is_not_replaced(trained, tmp_path, program):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds what is no model of this program's, and would be replaced; move it away"):
        program(trained[0], tmp_path, steps=2, on_log=lambda line: None)
    assert [file.name for file in tmp_path.iterdir()] == ["model"] and (tmp_path / "model/config.json").read_text() == '{"model_type": "bert"}'
