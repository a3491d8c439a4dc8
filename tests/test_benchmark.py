"""tools/benchmark.py and its parts: turns and ratios, the page, this side's work, the command; the peer's work where it is installed."""

import importlib.util
import json
import math
import runpy
import sys
import types
from pathlib import Path
from statistics import mean

import pytest
import torch

from phenaki.cvivit import CViViT
from phenaki.maskgit import MaskGIT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import alternation
import benchmark
import benchmark_training
from alternation import PEER, Times, alternate, spread, summary
from benchmark_page import TOLD, page
from benchmark_sampling import Side, our_side, peer_side, prompts
from benchmark_sizes import CODES, FIRST_FRAMES, FSQ_LEVELS, NEW_FRAMES, NUM_PROMPTS, benchmark_size
from benchmark_training import generator_steps, tokenizer_steps
from peer_phenaki_pytorch import network_size, peer_generator, peer_tokenizer

TOOL = Path(benchmark.__file__)
CPU = torch.device("cpu")
needs_peer = pytest.mark.skipif(importlib.util.find_spec("phenaki_pytorch") is None, reason="phenaki-pytorch is not installed")


# ---- turns and ratios ----------------------------------------------------------------------------------------------


class Clock:
    """In place of `time`: work of so many CPU seconds a round takes thrice as many on the clock for ours, six times for the peer's."""

    def __init__(self, cpu_seconds: dict[str, list[float]]):
        self.left, self.turns, self.cpu, self.wall = {name: list(some) for name, some in cpu_seconds.items()}, [], 0.0, 0.0
        self.work = {name: lambda name=name: self.pass_by(name) for name in cpu_seconds}

    def pass_by(self, name: str) -> None:
        seconds = self.left[name].pop(0)
        self.cpu, self.wall = self.cpu + seconds, self.wall + seconds * (6 if name == PEER else 3)
        self.turns.append(name)

    def process_time(self) -> float:
        return self.cpu

    def perf_counter(self) -> float:
        return self.wall


def test_contenders_take_turns_and_warming_up_is_not_counted(monkeypatch):
    clock = Clock({"ours": [64, 32, 1, 2, 4], PEER: [128, 128, 3, 2, 8]})
    monkeypatch.setattr(alternation, "time", clock)
    times = alternate(clock.work, rounds=3, warmup=2, device=CPU)
    assert clock.turns == ["ours", PEER] * 5
    assert times == {"ours": [Times(3, 1), Times(6, 2), Times(12, 4)], PEER: [Times(18, 3), Times(12, 2), Times(48, 8)]}


def test_ratios_are_of_each_round_by_the_clock_of_the_device():
    cpu = {"ours": (1, 2, 4), "ours compiled": (1, 1, 1), PEER: (3, 2, 8)}
    times = {name: [Times(10, seconds) for seconds in some] for name, some in cpu.items()}
    found = summary(times, CPU)
    assert list(found) == [*times, "times_faster"] and list(found["times_faster"]) == ["ours", "ours compiled"]
    assert found["times_faster"]["ours"] == {"median": 2, "low": 1.5, "high": 2.5, "rounds": [3, 1, 2]}, "that of the medians is 1.5"
    assert found["ours"] == {"wall_seconds": {"median": 10, "low": 10, "high": 10}, "cpu_seconds": {"median": 2, "low": 1.5, "high": 3}}
    assert summary(times, torch.device("cuda"))["times_faster"]["ours"]["rounds"] == [1, 1, 1]


def test_without_the_peer_there_are_no_ratios():
    assert list(summary({"ours": [Times(2, 1)]}, CPU)) == ["ours"]


def test_a_spread_is_of_five_digits_and_of_one_value_is_that_value():
    assert spread([0.123456789]) == {"median": 0.12346, "low": 0.12346, "high": 0.12346}
    assert spread([5, 1, 4, 2, 3]) == {"median": 3, "low": 2, "high": 4}


# ---- the page ------------------------------------------------------------------------------------------------------


def side(cpu: float, wall: float) -> dict:
    return {"cpu_seconds": {"median": cpu, "low": cpu / 2, "high": cpu * 2}, "wall_seconds": {"median": wall, "low": wall, "high": wall}}


def made_up(*sizes: str, peer: bool = True, **more) -> dict:
    """Results in which the peer takes four times as long, and twice the memory."""
    both = {"ours": side(0.5, 0.25), PEER: side(2, 1), "times_faster": {"ours": {"median": 4, "low": 3.9, "high": 4.1}}}
    case, memory = both if peer else {"ours": both["ours"]}, {"ours": {"peak_mib": 300}}
    if peer:
        memory |= {PEER: {"peak_mib": 600}, "share_of_peer": 0.5}
    found = {**dict.fromkeys(TOLD, case), "memory": memory, "parameters": {"ours": {"tokenizer": 1_250_000, "generator": 2_000_000}}}
    told = {"command": "python benchmark.py", "machine": "a machine", "device": "cpu", "load_before": 0.1, "match": "parameters"}
    return {**told, "peer": "phenaki-pytorch 0.5.0" if peer else None, "sizes": dict.fromkeys(sizes, found), **more}


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the page's tables."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells[1:]}


TARGETS_AT_SMALL = {"story": "3", "tokenizer_step": "1.5", "generator_step": "2"}


def test_the_page_says_a_target_only_where_there_is_one():
    small, tiny = page(made_up("small")), page(made_up("tiny"))
    spreads = ["0.5 (0.25-1)", "2 (1-4)", "0.25 (0.25-0.25)", "1 (1-1)", "4 (3.9-4.1)"]
    assert rows(small) == {told: [*spreads, TARGETS_AT_SMALL.get(case, "")] for case, told in TOLD.items()}
    assert rows(tiny) == {told: [*spreads, ""] for told in TOLD.values()}
    assert "Its share of the peer's: 0.5, target at most 0.5." in small and "Its share of the peer's: 0.5.\n" in tiny
    assert rows(page(made_up("large")))[TOLD["chunk"]][-1] == "2.5" and small.count("## ") == 1


def test_the_page_says_frames_a_second_memory_and_parameters():
    text = page(made_up("small", "large"))
    assert text.count("- story: frames a CPU second: ours 130, peer 32.5.") == 2 and "ours 300 MiB, peer 600 MiB" in text
    assert "- Parameters, ours: tokenizer 1.2 million, generator 2.0 million." in text
    assert "- story: frames a second: ours 260, peer 65." in page(made_up("paper", device="a GPU")), "of a GPU's work the CPU's seconds say nothing"
    assert "Alike are width, layers and parameters." in text and "layers and the named width of" in page(made_up("small", match="width"))


def test_the_page_without_the_peer_says_what_was_not_measured():
    text = page(made_up("small", peer=False))
    assert rows(text)[TOLD["story"]] == ["0.5 (0.25-1)", "not measured", "0.25 (0.25-0.25)", "not measured", "not measured", "3"]
    assert "The peer is" not in text and "share" not in text and "process that makes the story: ours 300 MiB." in text


def test_the_page_has_only_what_was_measured_and_a_row_for_compiled_steps():
    results, told = made_up("small", peer=False), TOLD["generator_step"]
    steps = {"ours": side(3, 3), "ours compiled": side(2, 2)}
    results["sizes"]["small"] = {"encode": {"ours": side(1, 1)}, "generator_step": steps, "parameters": {}}
    assert list(rows(page(results))) == [TOLD["encode"], told, f"{told}, compiled"] and "Peak memory" not in page(results)


# ---- the work ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours() -> Side:
    torch.manual_seed(0)
    return our_side(benchmark_size("tiny"), CPU)


def test_every_case_of_ours_makes_what_it_is_said_to(ours):
    made = {case: work() for case, work in ours.work.items()}
    assert tuple(made) == benchmark.SAMPLING
    assert made["encode"].shape == (1, 6, 2, 2) and made["encode"].dtype == torch.int64 and 0 <= made["encode"].min() <= made["encode"].max() < CODES
    assert made["decode"].shape == (1, 3, FIRST_FRAMES, 16, 16) and made["round"].shape == (1, NEW_FRAMES // 2, 2, 2, CODES)
    assert made["chunk"].shape == (1, 3, NEW_FRAMES, 16, 16) and not made["chunk"].requires_grad
    assert [frames.shape for frames in made["story"]] == [(FIRST_FRAMES, 16, 16, 3)] + [(NEW_FRAMES, 16, 16, 3)] * (NUM_PROMPTS - 1)
    assert {str(frames.dtype) for frames in made["story"]} == {"uint8"}
    assert all(400_000 < count < 800_000 for count in ours.parameters.values())


def test_each_round_of_a_case_is_the_same_work(ours):
    """A chunk goes on from the same past however often it was made: nothing grows from round to round."""
    chunk, story = ours.work["chunk"], ours.work["story"]
    assert torch.equal(chunk(), chunk())
    assert all((one == other).all() for one, other in zip(story(), story(), strict=True))


def test_both_sides_have_the_same_prompts():
    one, other = (prompts(benchmark_size("tiny"), CPU) for _ in range(2))
    assert len(one) == NUM_PROMPTS and one[0].shape == (1, 12, 768)
    assert all(map(torch.equal, one, other)) and not torch.equal(one[0], one[1])


def test_training_steps_train(monkeypatch):
    """On the same clips again and again the loss falls; that of the generator is of another mask in each step."""
    losses, our_step = [], benchmark_training.our_step

    def recorded(network, loss, settings):
        def told() -> torch.Tensor:
            value = loss()
            losses.append(float(value.detach()))
            return value

        return our_step(network, told, settings)

    monkeypatch.setattr(benchmark_training, "our_step", recorded)
    for steps, fall in ((tokenizer_steps, 0.02), (generator_steps, 0.5)):
        losses.clear()
        torch.manual_seed(0)
        work = steps(benchmark_size("tiny"), CPU, with_compiled=False, with_peer=False)
        assert list(work) == ["ours"]
        for _ in range(20):
            work["ours"]()
        first, last = mean(losses[:5]), mean(losses[-5:])
        assert len(losses) == 20 and last < first - fall, steps.__name__


def test_sizes_are_of_the_same_tokens_on_both_sides():
    for name in ("tiny", "small", "large", "paper"):
        size = benchmark_size(name)
        assert size.generator.codebook_size == size.peer.codebook_size == CODES == math.prod(FSQ_LEVELS)
        assert (size.tokenizer.image_size, size.tokenizer.patch_size) == (size.peer.image_size, size.peer.patch_size), name
        assert (size.tokenizer.dim, size.tokenizer.temporal_patch_size) == (size.peer.dim, size.peer.temporal_patch_size), name
        assert size.options.num_steps == size.num_steps == (24 if name == "paper" else 18)
    assert benchmark_size("small", "width").tokenizer.mlp_dim == 4 * 256 < benchmark_size("small").tokenizer.mlp_dim
    assert benchmark_size("large", "width") == benchmark_size("large")
    with pytest.raises(ValueError, match="size 'huge': known are tiny, small, large, paper"):
        benchmark_size("huge")


@needs_peer
@pytest.mark.parametrize("name", ["small", "large"])
def test_networks_have_as_many_parameters_as_the_peers_within_5_percent(name):
    size = benchmark_size(name)
    with torch.device("meta"):
        own = CViViT(size.tokenizer), MaskGIT(size.generator)
    generator, tokenizer = size.generator, peer_tokenizer(size.peer)
    model = peer_generator(
        tokenizer, dim=generator.dim, depth=generator.depth, heads=generator.heads, dim_head=size.peer.dim_head,
        max_seq_len=6 * size.side**2, text_dim=generator.text_dim,
    )  # fmt: skip
    for network, theirs in zip(own, (tokenizer, model.maskgit), strict=True):
        assert network_size(network) == pytest.approx(network_size(theirs), rel=0.05), type(network).__name__


@needs_peer
def test_every_case_of_the_peers_makes_what_ours_does(ours):
    size = benchmark_size("tiny")
    made = {case: work() for case, work in peer_side(size, CPU).work.items()}
    assert tuple(made) == benchmark.SAMPLING
    assert made["encode"].numel() == ours.work["encode"]().numel() and made["decode"].shape == ours.work["decode"]().shape
    assert made["chunk"].shape == (1, 3, NEW_FRAMES, 16, 16)
    video, scenes = made["story"]
    assert video.shape == (1, 3, 65, 16, 16) and len(scenes) == NUM_PROMPTS
    for steps in (tokenizer_steps, generator_steps):
        work = steps(size, CPU, with_compiled=False, with_peer=True)
        assert list(work) == ["ours", PEER]
        work[PEER](), work[PEER]()


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_figures_and_page(tmp_path, monkeypatch, capsys):
    output, told = tmp_path / "made" / "x.json", tmp_path / "made" / "x.md"
    options = ("--sizes", "tiny", "--alone", "--repeats", "1", "--threads", "1", "-o", output, "--page", told)
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, options)])
    benchmark.main()
    done = capsys.readouterr()
    results = json.loads(output.read_text())
    found = results["sizes"]["tiny"]
    assert told.read_text() == page(results) and done.out.strip() == page(results).strip()
    assert results["peer"] is None and "1 threads" in results["machine"] and list(found["parameters"]) == ["ours"]
    for case in benchmark.CASES[:-1]:
        assert list(found[case]) == ["ours"] and found[case]["ours"]["cpu_seconds"]["median"] > 0, case
        assert f"tiny {case} " in done.err
    assert 50 < found["memory"]["ours"]["with_weights_mib"] <= found["memory"]["ours"]["peak_mib"] and list(found["memory"]) == ["ours"]


@pytest.fixture
def without_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "phenaki_pytorch", None)
    monkeypatch.setitem(sys.modules, "torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--repeats 0", "--repeats 0: needed at least 1"),
        ("--threads 0", "--threads 0: needed at least 1"),
        ("--sizes paper", "--sizes paper: 1.8 billion parameters need --device cuda"),
        ("--device cuda --cases encode", "--device cuda: needs a GPU that torch can use"),
        ("--sizes huge", "invalid choice: 'huge'"),
        ("--sizes tiny --cases memory", "benchmark: phenaki-pytorch cannot be imported"),
        ("--sizes tiny --alone --cases encode -o .", "benchmark: .: is a folder; needed the name of a file"),
        ("--sizes tiny --alone --cases encode --page taken/x.md", "benchmark: [Errno"),
    ],
)
def test_mistakes_are_one_message_before_the_work(options, said, without_peer, monkeypatch, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--threads", "1", *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    told = capsys.readouterr()
    message = told.err.splitlines()[-1] if ended.value.code == 2 else ended.value.code
    assert said in message and told.err.count("error:") <= 1 and told.out == "" and "tiny encode" not in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_on_a_gpu_memory_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        benchmark.arguments()
    assert "--cases without memory" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--device", "cuda", "--cases", "round"])
    assert benchmark.arguments().device == "cuda"


def test_peak_memory_is_that_of_linux(monkeypatch, tmp_path):
    status = tmp_path / "status"
    monkeypatch.setattr(benchmark, "Path", lambda path: status)
    with pytest.raises(ValueError, match="measured on Linux only; leave `memory` out"):
        benchmark.peak_mib()
    status.write_text("VmPeak:\t 9999 kB\nVmHWM:\t    3072 kB\nVmRSS:\t 1024 kB\n")
    assert benchmark.peak_mib() == 3
