"""Decoding in processes of their own: hangs, crashes and hunger for memory cost a file, never the run."""

import errno
import os
import resource
import signal
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

from phenaki.child_process import start_module
from phenaki.data import clip_decoder, decoding, decoding_worker
from phenaki.data.check import PASSING
from phenaki.data.clip_decoder import Cut, frames_at
from phenaki.data.clip_files import ClipFile, clip_file
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.listing import list_clips
from phenaki.nal_units import damage_of, length_size
from phenaki.video import Video
from phenaki.video_files import VideoError


@pytest.fixture
def good(tmp_path) -> ClipFile:
    Video(np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8), 8.0).save(tmp_path / "good.mp4")
    return clip_file(tmp_path / "good.mp4", "good.mp4", "")


@pytest.fixture
def pipe(tmp_path) -> ClipFile:
    """A pipe that nobody writes to, given out for a file: whoever opens it waits for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    return ClipFile("pipe.mp4", str(tmp_path / "pipe.mp4"), 0, 1000, 0, False, "")


def test_a_file_that_hangs_is_given_up_and_the_next_one_decoded(good, pipe):
    with DecodingPool(1, time_limit=0.5) as pool:
        before = pool.check(good).result()
        first, started = pool.workers[0].process, time.monotonic()
        with pytest.raises(ClipError, match="too slow") as error:
            pool.cut(pipe, Cut(5, 8.0, 16)).result()
        assert error.value.kind == "too slow" and time.monotonic() - started < 5
        assert pool.check(good).result() == before and before.num_frames == 12
        assert first.poll() is not None and pool.workers[0].process is not first


def test_a_crash_is_the_files_fault_and_another_worker_starts(good, pipe):
    with DecodingPool(1) as pool:
        pool.check(good).result()
        killed = pool.workers[0].process
        threading.Timer(0.3, os.kill, (killed.pid, signal.SIGSEGV)).start()
        with pytest.raises(ClipError, match="SIGSEGV") as error:
            pool.check(pipe).result()
        assert error.value.kind == "crash"
        assert pool.cut(good, Cut(5, 8.0, 16)).result().shape == (5, 16, 16, 3)


def test_a_file_that_wants_more_memory_than_there_is(tmp_path, good):
    Image.new("L", (7900, 7900)).save(tmp_path / "wide.png")
    with DecodingPool(1, memory_limit=600 << 20) as pool:
        with pytest.raises(ClipError) as error:
            pool.check(clip_file(tmp_path / "wide.png", "wide.png", "")).result()
        assert error.value.kind == "too much memory"
        assert pool.check(good).result().num_frames == 12


def test_a_worker_that_cannot_start_is_told_from_a_file_that_is_bad(good, monkeypatch):
    monkeypatch.setattr(decoding, "start_module", lambda *words: start_module("phenaki.no_such_module", *words))
    with DecodingPool(1) as pool, pytest.raises(ChildProcessError, match=r"does not start: .+ -P -m phenaki\.no_such_module"):
        pool.check(good).result()


@pytest.mark.parametrize("refusal", [None, ValueError("current limit exceeds maximum limit"), OSError("not permitted")], ids=repr)
def test_memory_and_core_dumps_are_bounded_where_the_system_takes_it(monkeypatch, refusal):
    """A system that does not take one bound is not in the way of the other."""
    asked = []

    def setrlimit(kind, bounds):
        asked.append((kind, bounds))
        if refusal is not None:
            raise refusal

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    decoding_worker.limit_memory(1 << 30)
    assert asked == [(resource.RLIMIT_AS, (1 << 30, 1 << 30)), (resource.RLIMIT_CORE, (0, 0))]


def test_a_codec_that_gets_no_memory_says_nothing_of_the_file(good, monkeypatch):
    def starved(*_):
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(clip_decoder, "whole_frames", starved)
    with pytest.raises(VideoError, match="Cannot allocate memory") as error:
        clip_decoder.check_clip(good, lambda: None)
    assert error.value.kind in PASSING


def test_workers_end_with_their_pool(good):
    with DecodingPool(1) as pool:
        pool.check(good).result()
        process = pool.workers[0].process
    assert process.poll() is not None


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:10,\n{}\n", "ffconcat version 1.0\nfile '{}'\n"])
def test_a_playlist_under_a_videos_name_opens_no_other_file(tmp_path, good, pool, text):
    (tmp_path / "list.mp4").write_text(text.format(good.path), encoding="utf-8")
    file = clip_file(tmp_path / "list.mp4", "list.mp4", "")
    for answer in (pool.check(file), pool.cut(file, Cut(2, 8.0, 16))):
        with pytest.raises(ClipError, match="not a video"):
            answer.result()


def test_a_picture_that_is_cut_off(tmp_path, pool):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    with pytest.raises(ClipError, match=r"damaged picture: not a whole picture"):
        pool.check(clip_file(tmp_path / "a.jpg", "a.jpg", "")).result()


@pytest.mark.parametrize("ending", [".webm", ".gif"])
def test_other_containers(tmp_path, pool, ending):
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    frames[..., 1] = np.arange(16)[:, None, None] * 10
    Video(frames, 10.0).save(tmp_path / f"a{ending}")
    file = clip_file(tmp_path / f"a{ending}", f"a{ending}", "")
    facts = pool.check(file).result()
    assert facts.num_frames == 16 and facts.seconds == pytest.approx(1.6, abs=0.01)
    shown = pool.cut(file, Cut(8, 5.0, 16, seconds=facts.seconds)).result()[..., 1].mean(axis=(1, 2)) / 10
    assert np.abs(shown - np.arange(0, 16, 2)).max() < 0.6


@pytest.mark.parametrize(("ending", "container"), [(".3gp", "3gp"), (".3g2", "3g2"), (".mts", "mpegts"), (".m2ts", "mpegts"), (".mpg", "mpeg")])
def test_containers_of_cameras(tmp_path, pool, ending, container):
    path = tmp_path / f"clip{ending}"
    with av.open(str(path), "w", format=container, options={"mpegts_m2ts_mode": "1"} if ending == ".m2ts" else {}) as file:
        stream = file.add_stream("mpeg2video" if ending == ".mpg" else "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(0, 250, 10):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")))
        file.mux(stream.encode())
    listing = list_clips(tmp_path, pool.read_shard)
    if ending == ".mpg":  # its format is not among READ_FORMATS
        assert [entry.kind for entry in listing.unusable] == ["not a video"]
    else:
        facts = pool.check(listing.clips[0]).result()
        assert (facts.width, facts.height, facts.num_frames) == (64, 48, 25)


def test_frames_are_chosen_by_their_time_stamps():
    """A film that stands still for a second in its middle."""
    timed = [(0.0, "a"), (0.1, "b"), (1.1, "c"), (1.2, "d")]
    assert list(frames_at(timed, [0.0, 0.2, 0.9, 1.15, 5.0])) == ["a", "b", "b", "c", "d"]
    assert list(frames_at(iter([(1.0, "a")]), [0.0, 2.0])) == ["a", "a"]


def test_zeros_and_lengths_in_units():
    whole = b"\0\0\0\3abc" + b"\0\0\0\2xy"
    assert length_size("h264", bytes([1, 0, 0, 0, 0xFF, 0, 0])) == 4 and length_size("h264", b"\0\0\0\1abc") == 0 and length_size("vp9", None) == 0
    assert damage_of(whole, 4) is None
    assert "zeros" in damage_of(b"\0\0\0\5a\0\0\0b", 4) and "zeros" in damage_of(b"\0\0\0\2a\0", 4)
    assert "3 bytes where 2" in damage_of(whole[:6], 4)
    assert damage_of(b"\0\0\0\0", 4)
    assert damage_of(b"\0\0\0\5a\0\0\3b", 4) is None  # as the standard writes zeros
