"""What is recorded of a network for a GPU, told with a graph that is made of Python; on a GPU, with real ones."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from phenaki import cuda_graphs
from phenaki.cuda_graphs import likeness, replayed, tensors_in, with_tensors
from phenaki.cvivit import CViViT, CViViTConfig
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
def recording(graph, **_):
    Fake.recording = graph
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


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that records; yields the graphs that were made."""
    made = []

    @contextmanager
    def nothing(*_, **__):
        yield

    monkeypatch.setattr(cuda_graphs, "on_gpu", lambda tensors: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Fake()) or made[-1])
    for name, stand_in in (("graph", recording), ("device", nothing), ("current_stream", lambda device: "its stream")):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("recording_stream", "memory_pool"):
        monkeypatch.setattr(cuda_graphs, name, lambda device: None)
    monkeypatch.setattr(torch, "autocast", nothing)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@torch.no_grad()
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_a_story_on_a_gpu_is_the_same_recorded_or_not(order, monkeypatch):
    device = torch.device("cuda")
    torch.manual_seed(0)
    tokenizer = CViViT(CViViTConfig(image_size=32, patch_size=8, dim=32, heads=2, mlp_dim=48, stem_dim=16, fsq_levels=(4,) * 4)).to(device).eval()
    generator = MaskGIT(MaskGITConfig(codebook_size=256, token_factors=2, dim=32, depth=2, heads=2, mlp_dim=48, text_dim=8)).to(device).eval()
    texts = [SceneText(torch.randn(1, length, 8, device=device), torch.ones(1, length, dtype=torch.bool, device=device)) for length in (5, 9)]
    planned = plan(Story.of([("one", 6.0), ("two", 6.0)]), fps=8, temporal_patch_size=2, chunk_slices=4)
    options = SamplingOptions(num_steps=5, num_corrections=2, order=order)

    def told():
        return torch.cat([chunk.frames for chunk in direct(planned, tokenizer, generator, texts, options, 3, (4, 4))])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = told()
        assert torch.equal(told(), recorded)
    assert all(cuda_graphs._KNOWN[network].recordings for network in (tokenizer, generator))
    monkeypatch.setattr(cuda_graphs, "on_gpu", lambda tensors: False)
    assert torch.equal(told(), recorded)
