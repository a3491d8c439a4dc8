"""Threads follow the cores that other programs leave free."""

import os
import time

import pytest
import torch

from phenaki import free_cores
from phenaki.free_cores import FreeCores, Look, on_free_cores, threads_for

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are counted on Linux alone")


class Watch(FreeCores):
    """Sees a program of another's take `others` cores."""

    def __init__(self, looks):
        super().__init__()
        self.looks = iter(looks)

    def _now(self):
        return next(self.looks)


def looks(*others, span=2.0, own=1.0):
    """Look after look, each `span` s after the one before, in which this process used `own` and others so many cores."""
    moment, mine, used, seen = 100.0, 0.0, 0.0, [Look(100.0, 0.0, 0.0)]
    for cores in others:
        moment, mine, used = moment + span, mine + own, used + own + cores * span
        seen.append(Look(moment, mine, used))
    return seen


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(free_cores.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def test_what_others_take_is_not_free(eight):
    watch = Watch(looks(0, 3, 7.5))
    assert watch.look() is None  # the first look has nothing to compare with
    assert [watch.look() for _ in range(3)] == pytest.approx([8, 5, 0.5])


def test_looks_too_close_together_say_what_the_last_one_said(eight):
    seen = looks(3)
    watch = Watch([*seen, Look(seen[-1].moment + 0.01, seen[-1].own, seen[-1].all + 0.08)])
    watch.look()
    assert watch.look() == watch.look() == pytest.approx(5)


def test_a_look_long_ago_says_nothing(eight):
    watch = Watch(looks(3, span=3600))
    watch.look()
    assert watch.look() is None


def test_a_chunk_of_many_minutes_is_no_time_without_work(eight):
    watch = Watch(looks(3, span=3600))
    watch.look()
    watch.worked += 3590  # as `done` would
    assert watch.look() == pytest.approx(5)


def test_the_end_of_work_is_told(two_threads, monkeypatch):
    watch = FreeCores()
    seen_with(watch, monkeypatch)
    assert 0 <= time.monotonic() - watch.worked < 30


@pytest.mark.parametrize(
    ("free", "asked", "threads"),
    [(None, 8, 8), (8, 8, 8), (7.75, 8, 8), (7.5, 8, 7), (5, 8, 5), (0, 8, 1), (0.5, 2, 1), (1.8, 2, 2), (1.0, 2, 1), (16, 4, 4)],
)
def test_as_many_threads_as_cores_are_free(free, asked, threads):
    assert threads_for(free, asked) == threads


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def seen_with(watch, monkeypatch):
    monkeypatch.setattr(free_cores, "cores", watch)
    with on_free_cores():
        return torch.get_num_threads()


def test_threads_are_fewer_within_and_as_before_afterwards(two_threads, eight, monkeypatch):
    watch = Watch(looks(7, 0))
    watch.look()
    assert seen_with(watch, monkeypatch) == 1
    assert torch.get_num_threads() == 2
    assert seen_with(watch, monkeypatch) == 2


def test_threads_come_back_after_an_error(two_threads, eight, monkeypatch):
    watch = Watch(looks(7))
    watch.look()
    monkeypatch.setattr(free_cores, "cores", watch)
    with pytest.raises(KeyError), on_free_cores():
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_number_of_threads_of_ones_own_stays(two_threads, eight, monkeypatch):
    watch = Watch(looks(7))
    watch.look()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert seen_with(watch, monkeypatch) == 2


@pytest.mark.parametrize("text", [None, "", "something else\n"])
def test_a_system_that_does_not_tell_changes_nothing(tmp_path, two_threads, monkeypatch, text):
    stat = tmp_path / "stat"
    if text is not None:
        stat.write_text(text)
    watch = FreeCores(stat)
    watch.look()
    assert seen_with(watch, monkeypatch) == 2


@linux
def test_the_system_is_read_core_by_core(tmp_path, monkeypatch):
    """Only the cores that this process may use count; waiting for a disk is no work; guests are in user time already."""
    monkeypatch.setattr(free_cores.os, "sched_getaffinity", lambda process: {0, 2})
    stat, watch = tmp_path / "stat", None
    for step, (busy, others) in enumerate([(0, 0), (30, 999)]):
        lines = [f"{busy} {busy} 0 500 {others} 0 0 {busy} 77 0", f"{others} 0 0 0 0 0 0 0 0 0", f"0 0 {busy} 0 0 {busy} 0 0 0 0"]
        stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\n" + "".join(f"cpu{core} {line}\n" for core, line in enumerate(lines)) + "intr 1\n")
        watch = watch or FreeCores(stat)
        now = watch._now()
        assert now.all == 5 * busy / free_cores.TICKS, step


@linux
@pytest.mark.parametrize(("own", "others", "free"), [(12, 0, 8), (0, 12, 2), (6, 9, 3.5)])
def test_own_work_is_not_another_s(tmp_path, monkeypatch, eight, own, others, free):
    """Two seconds on eight cores, in which this process used `own` and others `others` seconds of CPU time."""
    stat, clocks = tmp_path / "stat", {"monotonic": 100.0, "process_time": 7.0}
    for name in clocks:
        monkeypatch.setattr(free_cores.time, name, lambda name=name: clocks[name])
    stat.write_text("cpu0 0 0 0 0\ncpu1 0 0 0 0\n")
    watch = FreeCores(stat)
    assert watch.look() is None
    clocks.update(monotonic=102.0, process_time=7.0 + own)
    stat.write_text(f"cpu0 {own * free_cores.TICKS} 0 0 0\ncpu1 {others * free_cores.TICKS} 0 0 0\n")
    assert watch.look() == pytest.approx(free)
    assert watch.last.own == 7.0 + own


@linux
def test_a_busy_program_is_seen():
    """By the real clocks and the real /proc/stat."""
    watch = FreeCores()
    watch.look()
    before, until = watch.last, time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert 0 <= watch.look() <= len(os.sched_getaffinity(0))
    assert watch.last.own - before.own >= 0.3
