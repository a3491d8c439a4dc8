"""What is recorded of a network for a GPU, told with a graph that is made of Python; on a GPU, with real ones."""

import gc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from phenaki import cuda_graphs
from phenaki.compiling import compile_layers
from phenaki.cuda_graphs import likeness, replayed, tensors_in, with_tensors
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.devices import hold_matrices
from phenaki.director import SceneText, direct
from phenaki.maskgit import MaskGIT, MaskGITConfig
from phenaki.sampling import SamplingOptions
from phenaki.story import Story
from phenaki.story_plan import plan


@dataclass(frozen=True)
class Pair:
    first: Tensor
    rest: list
    name: str = ""


def test_tensors_are_found_and_put_back():
    value = (torch.ones(2), [None, Pair(torch.zeros(3), [torch.ones(1)], "a")], 5)
    found = list(tensors_in(value))
    assert [tuple(one.shape) for one in found] == [(2,), (3,), (1,)]
    made = with_tensors(value, [one + 1 for one in found])
    assert torch.equal(made[1][1].rest[0], torch.full((1,), 2.0)) and made[1][1].name == "a" and made[1][0] is None and made[2] == 5
    assert torch.equal(value[0], torch.ones(2)), "the value itself stays as it is"


def test_likeness_is_of_shapes_and_plain_values():
    one = Pair(torch.zeros(3), [2], "a")
    assert likeness(one) == likeness(replace(one, first=torch.ones(3)))
    assert hash(likeness(one)) == hash(likeness(replace(one, first=torch.ones(3))))
    others = [replace(one, first=first) for first in (torch.zeros(4), torch.zeros(3, dtype=torch.long))]
    for other in (*others, replace(one, rest=[3]), (torch.zeros(3), [2], "a")):
        assert likeness(other) != likeness(one)


class Fake:
    """As torch's graphs: what is called while one records is done again at replay, on the same tensors, into the same tensors."""

    recording = None

    def __init__(self):
        self.calls, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for function, inputs, output in self.calls:
            output.copy_(function(*inputs))


@contextmanager
def recording(graph, pool, **_):
    Fake.recording, graph.pool = graph, pool
    yield
    Fake.recording = None


class Doubler(nn.Module):
    def forward(self, x: Tensor, by: float) -> Tensor:
        output = x * by
        if Fake.recording is not None:
            Fake.recording.calls.append((lambda seen: seen * by, (x,), output))
        return output


class Weighted(Doubler):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


AUTOCAST = torch.autocast


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that records; yields the graphs that were made."""
    made = []

    class Nothing:
        """A class: torch.cuda.device is one, and torch asks what is of it."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(cuda_graphs, "on_gpu", lambda tensors: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Fake()) or made[-1])
    for name, stand_in in (("graph", recording), ("device", Nothing), ("current_stream", lambda device: "its stream")):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    handles = count()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(cuda_graphs, "recording_stream", lambda device: None)
    monkeypatch.setattr(cuda_graphs, "_LIVING", {})
    monkeypatch.setattr(torch, "autocast", Nothing)
    return made


@torch.no_grad()
def test_the_second_time_is_recorded_and_each_has_its_own_answer(fake_gpu):
    network, call = Doubler(), lambda value, by=2.0: replayed(Doubler.forward, network, torch.full((3,), value), by)
    first = call(1.0)
    assert not fake_gpu
    second, third = call(2.0), call(3.0)
    assert len(fake_gpu) == 1 and fake_gpu[0].replays == 2
    assert [one.tolist() for one in (first, second, third)] == [[2.0] * 3, [4.0] * 3, [6.0] * 3]
    assert call(1.0, by=5.0).tolist() == [5.0] * 3 and len(fake_gpu) == 1, "another plain value is another kind"
    assert call(2.0, by=5.0).tolist() == [10.0] * 3 and len(fake_gpu) == 2
    assert replayed(Doubler.forward, Doubler(), torch.ones(3), 2.0).tolist() == [2.0] * 3 and fake_gpu[0].replays == 2, "another network"


@torch.no_grad()
def test_graphs_share_their_memory_and_the_last_one_takes_it_along(fake_gpu):
    """torch records nothing more in a pool whose graphs are all gone; seen on a GPU where one model was dropped and another one loaded."""
    first, second = Doubler(), Doubler()
    for network, by in ((first, 2.0), (first, 2.0), (first, 3.0), (first, 3.0), (second, 2.0), (second, 2.0)):
        replayed(Doubler.forward, network, torch.ones(3), by)
    assert [graph.pool for graph in fake_gpu] == [0, 0, 0]
    del network, first, second
    gc.collect()
    third = Doubler()
    for _ in range(2):
        replayed(Doubler.forward, third, torch.ones(3), 2.0)
    assert [graph.pool for graph in fake_gpu] == [0, 0, 0, 1]


@torch.no_grad()
def test_the_memory_that_a_graph_is_recorded_in_stays_until_it_is(fake_gpu, monkeypatch):
    """Networks with compiled layers go when Python collects what refers to itself: at any time, just before torch records, say."""
    first, alive = Doubler(), []
    first.itself = {"network": first}
    for _ in range(2):
        replayed(Doubler.forward, first, torch.ones(3), 2.0)
    del first

    def late(device):
        gc.collect()
        alive.extend(recording for recordings in cuda_graphs._LIVING.values() for recording in recordings)

    monkeypatch.setattr(cuda_graphs, "recording_stream", late)
    second = Doubler()
    for _ in range(2):
        replayed(Doubler.forward, second, torch.ones(3), 2.0)
    assert [graph.pool for graph in fake_gpu] == [0, 0] and [recording.graph for recording in alive] == fake_gpu[:1]


@torch.no_grad()
def test_what_was_not_used_for_longest_is_forgotten(fake_gpu, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_RECORDINGS", 2)
    network, call = Doubler(), lambda by: replayed(Doubler.forward, network, torch.ones(1), by)
    for by in (1.0, 1.0, 2.0, 2.0, 1.0, 3.0, 3.0):
        call(by)
    assert len(fake_gpu) == 3
    call(1.0)
    assert len(fake_gpu) == 3, "still known"
    call(2.0), call(2.0)
    assert len(fake_gpu) == 4, "forgotten, and recorded anew"


def refuses(error):
    def refused():
        raise error

    return refused


@torch.no_grad()
def test_what_cannot_be_recorded_is_done_each_time(fake_gpu, monkeypatch):
    streams, network = [], Doubler()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuses(RuntimeError("no such thing in a graph")))
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    assert replayed(Doubler.forward, network, torch.ones(1), 3.0).item() == 3.0
    with pytest.warns(UserWarning, match="forward is not recorded as a CUDA graph, which is slower: no such thing in a graph"):
        assert replayed(Doubler.forward, network, torch.full((1,), 2.0), 3.0).item() == 6.0
    assert streams == ["its stream"]
    assert replayed(Doubler.forward, network, torch.full((1,), 4.0), 3.0).item() == 12.0, "and nothing is said again"


@torch.no_grad()
def test_where_memory_was_short_it_is_tried_again(fake_gpu, monkeypatch):
    network, works = Doubler(), torch.cuda.CUDAGraph
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    call = lambda value: replayed(Doubler.forward, network, torch.full((1,), value), 3.0).item()
    call(1.0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuses(torch.cuda.OutOfMemoryError("full")))
    with pytest.warns(UserWarning, match="full"):
        assert call(2.0) == 6.0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", works)
    assert call(4.0) == 12.0 and len(fake_gpu) == 1


@torch.no_grad()
def test_weights_that_lie_elsewhere_are_recorded_anew(fake_gpu):
    network = Weighted()
    call = lambda value: replayed(Doubler.forward, network, torch.full((1,), value), 3.0).item()
    call(1.0), call(2.0)
    network.weight = nn.Parameter(torch.ones(1))
    assert call(3.0) == 9.0 and len(fake_gpu) == 1
    assert call(4.0) == 12.0 and len(fake_gpu) == 2


@torch.no_grad()
def test_kinds_that_come_once_do_not_pile_up(fake_gpu, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_MET", 5)
    network = Doubler()
    replayed(Doubler.forward, network, torch.ones(1), 0.5)
    replayed(Doubler.forward, network, torch.ones(1), 0.5)
    for by in range(50):
        replayed(Doubler.forward, network, torch.ones(1), float(by))
    known = cuda_graphs._KNOWN[network]
    assert len(known.met) == 5 and len(known.recordings) == 1, "and push no recording out"


def test_threads_record_and_replay_one_after_the_other(fake_gpu):
    network = Doubler()

    @torch.no_grad()
    def tell(value):
        return [replayed(Doubler.forward, network, torch.full((4,), value), 2.0).tolist() for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for value, told in zip(range(8), pool.map(tell, map(float, range(8))), strict=True):
            assert told == [[2.0 * value] * 4] * 50
    assert len(fake_gpu) == 1


def test_nothing_is_recorded_where_gradients_are_wanted_or_there_is_no_gpu(fake_gpu, monkeypatch):
    network = Doubler()
    for _ in range(3):
        assert replayed(Doubler.forward, network, torch.ones(1, requires_grad=True), 2.0).requires_grad
    monkeypatch.undo()
    with torch.no_grad():
        for _ in range(3):
            replayed(Doubler.forward, network, torch.ones(1), 2.0)
    assert not fake_gpu


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def double(self, x: Tensor) -> Tensor:
        return self.layers[0](x) * 2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_compiled_is_made_before_anything_is_recorded(dtype, fake_gpu, monkeypatch):
    """Code is compiled anew for tensors that lie otherwise or are views, and where autocast keeps what it casts: not while one records."""
    made, compiled = [], torch.compile

    def backend(graph, inputs):
        made.append("recording" if Fake.recording else "before")
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend=backend, **options))
    monkeypatch.setattr(torch, "autocast", AUTOCAST)
    torch._dynamo.reset()
    plain, network = Layered(), Layered()
    network.load_state_dict(plain.state_dict())
    compile_layers(network, dynamic=True)
    inputs = [torch.rand(4, 3).T, torch.rand(3, 4), torch.rand(3, 8)[:, :4]]
    with AUTOCAST("cpu", dtype, enabled=dtype != torch.float32):
        first, *_ = [replayed(Layered.double, network, x) for x in inputs]
        torch.testing.assert_close(first, plain.double(inputs[0]))
    assert made == ["before"] and len(fake_gpu) == 1 and fake_gpu[0].replays == 2


@torch.no_grad()
def test_compiled_layers_are_made_in_any_thread_and_a_copy_has_its_own(monkeypatch):
    """In newer versions of torch the limit of what is made belongs to the thread that set it; from there on layers ran as they are."""
    made, compiled = [], torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend=backend, **options))
    torch._dynamo.reset()
    network = Layered()
    compile_layers(network, dynamic=False)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.no_grad()(lambda: [network.double(torch.rand(size, 4)) for size in range(2, 14)])).result()
    assert len(made) == 12, "one for each shape"
    copy = deepcopy(network)
    copy.layers[0].weight.zero_()
    copy.layers[0].bias.zero_()
    assert copy.double(torch.ones(2, 4)).count_nonzero() == 0 < network.double(torch.ones(2, 4)).count_nonzero()


PAPERS = {"stem": "linear", "first_frame_stem": True, "quantizer": "vq", "codebook_size": 256, "window": 0}


@torch.no_grad()
def small_story(order: str, context: str) -> tuple[Callable[[], Tensor], list[nn.Module]]:
    """What tells a story on a GPU, whose frames it returns, and the networks that do."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    config = CViViTConfig(image_size=32, patch_size=8, dim=32, heads=2, mlp_dim=48, stem_dim=16, fsq_levels=(4,) * 4)
    tokenizer = CViViT(replace(config, **PAPERS) if context == "frames" else config).to(device).eval()
    generator = MaskGIT(MaskGITConfig(codebook_size=256, token_factors=2, dim=32, depth=2, heads=2, mlp_dim=48, text_dim=8)).to(device).eval()
    texts = [SceneText(torch.randn(1, length, 8, device=device), torch.ones(1, length, dtype=torch.bool, device=device)) for length in (5, 9)]
    planned = plan(Story.of([("one", 6.0), ("two", 6.0)]), fps=8, temporal_patch_size=2, chunk_slices=4)
    options = SamplingOptions(num_steps=5, num_corrections=2, order=order, context=context)

    def told() -> Tensor:
        with torch.no_grad():
            return torch.cat([chunk.frames for chunk in direct(planned, tokenizer, generator, texts, options, 3, (4, 4))])

    return told, [tokenizer, generator]


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@on_a_gpu
@pytest.mark.parametrize("context", ["tokens", "frames"])
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_a_story_on_a_gpu_is_the_same_recorded_or_not(order, context, monkeypatch):
    told, networks = small_story(order, context)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = told()
        assert torch.equal(told(), recorded)
    assert all(cuda_graphs._KNOWN[network].recordings for network in networks)
    monkeypatch.setattr(cuda_graphs, "on_gpu", lambda tensors: False)
    assert torch.equal(told(), recorded)


@on_a_gpu
@pytest.mark.parametrize("context", ["tokens", "frames"])
def test_a_story_by_compiled_layers_is_recorded_on_a_gpu(context):
    told, networks = small_story("halton", context)
    torch._dynamo.reset()
    for network in networks:
        hold_matrices(network, torch.bfloat16)
        compile_layers(network, dynamic=True)
    graphs = lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with warnings.catch_warnings(), torch.autocast("cuda", torch.bfloat16):
        warnings.filterwarnings("error", message=".*is not recorded")
        told()
        made = graphs()
        recorded = told()
        assert graphs() == made, "all is made the first time"
        assert torch.equal(told(), recorded)
    assert all(cuda_graphs._KNOWN[network].recordings for network in networks)
