"""Every tensor of a training step is on the device of its network, and a step is compiled where it is counted, too.

Told without a GPU: on torch's "meta" device there are no numbers, so whatever meets a tensor of the CPU, or asks for a number, fails.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_toys import PLAIN, Toy, little

import phenaki.training.losses as losses_module
import phenaki.training.run as run_module
from phenaki.compiling import compile_layers
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.data.art import draw_art
from phenaki.data.storybook import StorybookWorld
from phenaki.data.tokens import StoryTokens
from phenaki.data.world import SMALL_WORLD
from phenaki.director import fill_scene, see_context
from phenaki.evaluation.i3d import I3D
from phenaki.evaluation.lpips import LPIPS
from phenaki.evaluation.referee import Referee, labels_of
from phenaki.layers import short_attention
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.past import begin_with, decode_after
from phenaki.sampling import NoiseKey, SamplingOptions, prepare_rounds
from phenaki.training.batches import draw_batch
from phenaki.training.generator_losses import generator_loss, text_batch, with_own_context
from phenaki.training.journal import Meter
from phenaki.training.losses import LossSettings, TokenizerLosses
from phenaki.training.optimizers import EMA, OptimizerSettings, generator_for
from phenaki.training.parallel import Part
from phenaki.training.referee import RefereeBatch, RefereeTask, as_batch, referee_losses
from phenaki.training.referee_augmentation import blurred, in_blocks, noisy
from phenaki.training.referee_examples import Examples, reconstructed
from phenaki.training.settings import GeneratorTraining

META = torch.device("meta")
TOKENIZER = CViViTConfig(image_size=16, patch_size=8, dim=16, heads=2, mlp_dim=24, stem_dim=8, head_blocks=1, fsq_levels=(4, 4))


def test_what_meets_a_tensor_of_the_cpu_fails_here():
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device=META) + torch.ones(3)


def test_a_tokenizers_step():
    network, video = CViViT(TOKENIZER).to(META), torch.zeros(2, 3, 5, 16, 16, device=META)
    losses = TokenizerLosses(PLAIN)(network(video), video, 0, generator_for(0, 0))
    losses["loss"].backward()
    EMA(network, 0.9).update(3)
    assert {value.device for value in losses.values()} == {META}
    assert network.decode(network.encode(video)).shape == video.shape


def test_a_generators_step():
    config = MaskGITConfig(codebook_size=16, token_factors=2, dim=16, depth=1, heads=2, mlp_dim=24, text_dim=8, critic=True)
    network, tokens = MaskGIT(config).to(META), torch.zeros(2, 4, 2, 2, dtype=torch.long, device=META)
    text, mask = torch.zeros(2, 5, 8, device=META), torch.ones(2, 5, dtype=torch.bool, device=META)
    cache = network.encode_text(*network.drop_text(text, mask, mask[:, 0]))
    context = network.encode_context(tokens[:, :3], tokens.new_zeros(3), tokens.new_zeros(2))
    features = network.features(tokens, cache, context, False, condition=tokens).flatten(0, 3)
    loss = network.score(features, tokens.flatten(), 0.1).cross_entropy.sum() + network.critic(features).sum()
    loss.backward()
    assert loss.device == META and network.draw_tokens(features.detach(), torch.zeros(len(features), 2, device=META)).device == META


class MeetsTheCpu(TorchDispatchMode):
    """Notes what copies into a tensor (`x[0] = 1` makes one on the CPU first) or is done with tensors of the CPU: no CUDA graph records that."""

    def __init__(self):
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        places = {value.device.type for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        if "cpu" in places or "copy_." in str(function):
            self.met.append(str(function))
        return function(*args, **(kwargs or {}))


class IsWaitedFor(MeetsTheCpu):
    """Notes what takes a GPU numbers of the CPU by a copy that is waited for: in a step only `sent` may, which pins them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        places = {value.device.type for value in tree_leaves((args, kwargs, made)) if isinstance(value, torch.Tensor)}
        if len(places) > 1 or ("copy_." in str(function) and not any(args[1].stride())):  # one number
            self.met.append(str(function))
        return made


def pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In place of `sent`."""
    return torch.empty(values.shape, dtype=values.dtype, device=device)


@pytest.mark.parametrize("balance", ["constant", "adaptive"])
def test_a_tokenizers_losses_are_not_waited_for(monkeypatch, balance):
    monkeypatch.setattr(losses_module, "sent", pinned)
    weights = {f"{name}_weight": 0.1 for name in ("l1", "change", "motion", "still", "lpips", "i3d", "adversarial", "lecam")}
    own = LossSettings(**weights, first_frame_weight=0.5, start_step=0, balance=balance, r1_weight=0, discriminator_dim=8, discriminator_stages=1)
    with META:
        losses = TokenizerLosses(own, LPIPS(), I3D())
    network, video = CViViT(TOKENIZER).to(META), torch.zeros(2, 3, 5, 16, 16, device=META)
    with IsWaitedFor() as seen:
        said = losses(network(video), video, 0, generator_for(0, 0))
        (said["loss"] + said["discriminator_loss"]).backward()
    assert seen.met == [] and said["lecam"].device == META
    with seen:
        video[0] = 5
    assert seen.met


@pytest.mark.parametrize("anchored", [False, True])
def test_a_generators_loss_is_not_waited_for(monkeypatch, anchored):
    """Nor are the contexts that it makes itself."""
    config = MaskGITConfig(codebook_size=16, token_factors=2, dim=16, depth=1, heads=2, mlp_dim=24, text_dim=8, critic=True)
    network, (stories, training) = MaskGIT(config).to(META), stories_for(config)
    batch = next(one for one in (draw_batch(stories, config, training, step) for step in range(99)) if one.rollout and (2 in one.kinds) == anchored)
    given = text_batch(stories, batch, Part(), META)
    assert given.batch.places.device == META and {one.device.type for one in given.batch.shares.values()} == {"cpu"}, "which costs the device nothing"
    own = with_own_context(network, given, 2)
    with IsWaitedFor() as seen:
        losses = generator_loss(network, own.batch, own.text, own.text_mask, 0.1, own.num_hidden)
        losses["loss"].backward()
    assert seen.met == [] and losses["critic"].device == META and own.batch.context.shape == batch.context.shape


def stories_for(config: MaskGITConfig) -> tuple[StoryTokens, GeneratorTraining]:
    """Of one long scene each, and a training with contexts that the network makes."""
    spans = torch.tensor([[0, 5], [5, 12]])
    starts, ends, said = torch.zeros(4, 20, dtype=torch.long), torch.full((4, 20), 20), torch.arange(4)[:, None].expand(4, 20) % 2
    stories = StoryTokens(torch.zeros(4, 20, 2, 2, dtype=torch.int32), starts, ends, said, torch.zeros(12, config.text_dim).half(), spans, "zeros")
    return stories, GeneratorTraining(rollout_prob=1.0, image_prob=0.0, from_text_prob=0.0, optimizer=OptimizerSettings(batch_size=2))


class Counted(TorchDispatchMode):
    """How often a device is given something to do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(value.is_meta for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor))
        return function(*args, **(kwargs or {}))


def test_what_a_log_tells_of_a_step_is_summed_at_once():
    meter, values = Meter(), {f"loss {number}": torch.zeros((), device=META) for number in range(20)} | {"skipped": torch.tensor(0.0)}
    meter.add(values, 1, 0.0)
    with Counted() as counted:
        meter.add(values, 1, 0.0)
    assert counted.count <= 2 + 20, "each is detached; one stack, one sum"
    assert list(meter.sums) == list(values) and meter.sums["skipped"].device.type == "cpu"


def test_an_average_moves_all_weights_at_once():
    network = CViViT(TOKENIZER).to(META)
    average = EMA(network, 0.9)
    with Counted() as counted:
        average.update(3)
    assert counted.count == 1 + sum(not one.is_floating_point() for one in network.state_dict().values())


def test_where_tokens_stand_is_reckoned_once_for_all_steps():
    config = MaskGITConfig(codebook_size=16, token_factors=2, dim=16, depth=1, heads=2, mlp_dim=24, text_dim=8)
    network, tokens = MaskGIT(config).to(META), torch.zeros(2, 4, 2, 2, dtype=torch.long, device=META)
    text = network.encode_text(torch.zeros(2, 5, 8, device=META), torch.ones(2, 5, dtype=torch.bool, device=META))
    tokenizer, video = CViViT(TOKENIZER).to(META), torch.zeros(1, 3, 5, 16, 16, device=META)
    for forward, least in ((lambda: network.features(tokens, text, None, True), 40), (lambda: tokenizer(video), 80)):
        counts = []
        for _ in range(3):
            with Counted() as counted:
                forward()
            counts.append(counted.count)
        assert counts[1] == counts[2] < counts[0] - least


@torch.no_grad()
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_what_a_chunk_takes_asks_the_host_for_nothing(order):
    tokenizer, papers = (CViViT(config).to(META) for config in (TOKENIZER, replace(TOKENIZER, stem="linear", first_frame_stem=True)))
    config = MaskGITConfig(codebook_size=16, token_factors=2, dim=16, depth=1, heads=2, mlp_dim=24, text_dim=8, critic=True)
    network = MaskGIT(config).to(META)
    options = SamplingOptions(num_steps=3, num_corrections=2, correction_order="critic", order=order)
    prepared = prepare_rounds(torch.ones(3, 2, 2, dtype=torch.bool), options, [NoiseKey(0, 0, 0)], 2, META)
    cond, both = (network.encode_text(torch.zeros(b, 5, 8, device=META), torch.ones(b, 5, dtype=torch.bool, device=META)) for b in (1, 2))
    tokens = torch.zeros(1, 3, 2, 2, dtype=torch.long, device=META)
    with MeetsTheCpu() as seen:
        context = see_context(network, tokens, torch.zeros(3, dtype=torch.long, device=META))
        fill_scene(network, tokens, prepared, cond, both, context, False)
        fill_scene(network, tokens, prepared, cond, both, None, True)
        _, memory = decode_after(tokenizer, tokens, [], True)
        decode_after(tokenizer, tokens, memory, False)
        begin_with(tokenizer, torch.zeros(1, 3, 5, 16, 16, device=META))
        begin_with(papers, torch.zeros(1, 3, 5, 16, 16, device=META))
        short_attention(*torch.zeros(3, 2, 2, 4, 8, device=META), attn_mask=torch.ones(4, 4, dtype=torch.bool, device=META))
    assert seen.met == []
    with seen:
        tokens[0] = 5
    assert seen.met


def test_clips_are_painted_where_the_pictures_are():
    art = draw_art(SMALL_WORLD.actors, SMALL_WORLD.places)
    world = StorybookWorld(SMALL_WORLD, art, META)
    assert world.clips(0, 0, 2, 5, 2).device == META


def test_a_referees_step_takes_examples_of_the_cpu():
    referee = Referee(labels_of(SMALL_WORLD)).to(META)
    labels, near = torch.zeros(2, 9, len(referee.labels), dtype=torch.long), torch.zeros(2, 9, dtype=torch.bool)
    batch = RefereeBatch(torch.zeros(2, 3, 9, 64, 64), labels, labels, torch.ones(2), near, torch.arange(4))
    assert referee_losses(referee, batch)["loss"].device == META


def test_a_referees_clips_are_blended_and_changed_where_it_is():
    """From bytes of the CPU to losses, and no answer of the device is waited for: on "meta" there is none."""
    referee = Referee(labels_of(SMALL_WORLD)).to(META)
    labels, near = torch.zeros(6, 9, len(referee.labels), dtype=torch.int16), torch.zeros(6, 9, dtype=torch.bool)
    task = RefereeTask(referee, Examples(torch.zeros(6, 3, 9, 64, 64, dtype=torch.uint8), labels, near), OptimizerSettings(batch_size=8), {})
    assert task.bank.video.device == META
    for step in range(8):  # with blends and without
        batches = task.draw(step, [Part(0, 2), Part(1, 2)])
        assert {value.device for batch in batches for value in vars(batch).values()} == {META}
        assert task.losses(batches[1], step)["loss"].device == META
    assert referee_losses(referee, as_batch(task.bank, slice(2)))["loss"].device == META
    for change in (blurred, noisy, in_blocks):
        assert change(task.draw(0, [Part()])[0].video, generator_for(0, 0)).device == META


def test_what_a_tokenizer_gives_back_is_in_full_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):  # halves cannot be resized everywhere
        assert reconstructed(CViViT(TOKENIZER), torch.zeros(1, 3, 5, 16, 16)).dtype == torch.float32


class Layered(nn.Module):
    """A network of one layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 2)])

    def reset_parameters(self) -> None:
        self.layers[0].reset_parameters()


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What torch.compile has made, run as it is."""
    made, compiled = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend=backend, **options))
    torch._dynamo.reset()
    return made


def test_layers_of_a_kind_share_few_graphs_whatever_the_shapes(graphs):
    config = MaskGITConfig(codebook_size=16, token_factors=2, dim=16, depth=3, heads=2, mlp_dim=24, text_dim=8)
    plain, network = MaskGIT(config), MaskGIT(config)
    network.load_state_dict(plain.state_dict())
    compile_layers(network)
    for slices, recent, length in ((4, 3, 5), (2, 1, 6), (4, 0, 7), (3, 2, 4), (3, 0, 5), (2, 3, 9)):
        tokens = torch.arange(2 * slices * 4).view(2, slices, 2, 2) % 16
        made = []
        for one in (plain, network):
            cache = one.encode_text(torch.ones(2, length, 8), torch.ones(2, length, dtype=torch.bool))
            context = one.encode_context(tokens[:, :1].expand(-1, recent, -1, -1), torch.zeros(recent, dtype=torch.long)) if recent else None
            made.append(one.features(tokens, cache, context, not recent))
        torch.testing.assert_close(*made)
    assert 0 < len(graphs) <= 7  # not one for each of three layers and six shapes


def test_every_step_is_compiled_the_first_of_a_process_too(tmp_path, monkeypatch):
    """On a GPU whose use is told, too: run another way, as while operations are counted, a step rounds otherwise, and a resumed run is another."""
    monkeypatch.setattr(run_module, "peak_operations", lambda device: 1e12)
    calls, compiled = [], torch.compile
    backend = lambda graph, _: lambda *args: calls.append(graph) or graph(*args)
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled(function, backend=backend))
    torch._dynamo.reset()
    for num_steps in (2, 4):
        task = Toy(model=Layered())
        task.build = Layered
        task.rehearse = lambda network, num_rows: network.layers[0](torch.zeros(num_rows, 3)).mean()
        task.loss_at = lambda step, task=task: {"loss": task.model.layers[0](torch.ones(4, 3)).square().mean()}
        lines = []
        little(tmp_path, num_steps=num_steps, task=task, on_log=lines.append, compile=True)
        assert len(calls) == num_steps and lines[-1]["mfu"] > 0
