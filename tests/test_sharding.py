"""`phenaki data check` and `phenaki data shard`, and training from what they make."""

import errno
import io
import json
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import phenaki.data.check
import phenaki.data.sharding
from phenaki.atomic import put
from phenaki.cli import app
from phenaki.data.check import PASSING, check_source
from phenaki.data.clip_decoder import reencode_clip
from phenaki.data.clip_files import clip_file
from phenaki.data.decoding import ClipError, DecodingPool
from phenaki.data.decoding_worker import safe_answer
from phenaki.data.footage import FootageSettings, open_footage
from phenaki.data.sharding import ShardSettings, make_shards, settled
from phenaki.data.shards import ShardWriter
from phenaki.locks import BusyError
from phenaki.video import Video
from phenaki.video_encoders import StreamEncoder


@pytest.fixture
def footage(tmp_path):
    """Six videos of smooth colours at two rates, a picture, and one file that is none."""
    folder = tmp_path / "footage"
    folder.mkdir()
    rows, columns = np.mgrid[0:48, 0:80]
    for index in range(6):
        frames = np.stack([np.stack([rows * 4, columns * 2 + frame, np.full_like(rows, 40 * index)], axis=-1) for frame in range(30)])
        Video(frames.astype(np.uint8), 24.0 if index % 2 else 8.0).save(folder / f"clip{index}.mp4")
        (folder / f"clip{index}.txt").write_text(f"clip number {index}", encoding="utf-8")
    Image.new("RGB", (60, 40), (10, 200, 30)).save(folder / "green.png")
    (folder / "broken.mp4").write_bytes(b"<html>")
    return folder


def open_quietly(path, pool, **settings):
    return open_footage(path, FootageSettings(**{"size": 16, "fps": 8.0, **settings}), pool=pool, on_note=lambda note: None)


def test_shards_show_what_the_footage_shows(footage, tmp_path, pool):
    out = tmp_path / "shards"
    made = make_shards(footage, out, ShardSettings(size=16, shard_bytes=8_000), on_note=lambda note: None)
    assert made.num_clips == 7 and made.num_shards >= 2 and [entry.name for entry in made.unusable] == ["broken.mp4"]
    assert json.loads((out / "unusable.jsonl").read_text())["kind"] == "not a video"
    source, shards = open_quietly(footage, pool), open_quietly(out, pool)
    assert sorted(file.caption for file in shards.files) == sorted(file.caption for file in source.files)
    assert [fact.fps for fact in shards.facts if fact.fps] == [fact.fps for fact in source.facts if fact.fps]
    assert {(fact.width, fact.height) for fact in shards.facts} == {(26, 16), (24, 16)}
    original, again = source.clips(0, 0, 6, 8, 1), shards.clips(0, 0, 6, 8, 1)
    assert (original - again).abs().mean() < 0.06  # neighbouring clips differ by 0.1, colour is kept at half the size
    assert (source.images(0, 0, 1)[0] - shards.images(0, 0, 1)[0]).abs().mean() < 0.01


def test_a_shard_is_not_written_through_a_link(tmp_path):
    (tmp_path / "a.part").symlink_to(tmp_path / "victim")
    ShardWriter(tmp_path / "a.part").close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part"] and not (tmp_path / "a.part").is_symlink()


def test_shards_at_another_rate_have_short_gops(footage, tmp_path, pool):
    make_shards(footage, tmp_path / "out", ShardSettings(size=16, fps=12.0), on_note=lambda note: None)
    source = open_quietly(tmp_path / "out", pool)
    assert {fact.fps for fact in source.facts} == {0.0, 12.0}
    assert sorted(fact.num_frames for fact in source.facts) == [1, 15, 15, 15, 45, 45, 45]
    longest = max(zip(source.facts, source.files, strict=True), key=lambda pair: pair[0].num_frames)[1]
    data = Path(longest.path).read_bytes()[longest.offset : longest.offset + longest.num_bytes]
    (tmp_path / "one.mp4").write_bytes(data)
    with av.open(str(tmp_path / "one.mp4")) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert keys[0] == 0 and max(np.diff(keys)) <= 12 and len(keys) >= 4


def test_an_interrupted_run_goes_on_to_the_same_bytes(footage, tmp_path):
    settings, notes = ShardSettings(size=16, shard_bytes=6_000), []
    make_shards(footage, tmp_path / "whole", settings, on_note=lambda note: None)

    def stop_after_two(note: str) -> None:
        notes.append(note)
        if note.startswith("00001.tar"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shards(footage, tmp_path / "parts", settings, on_note=stop_after_two)
    assert sorted(file.name for file in (tmp_path / "parts").glob("*.tar")) == ["00000.tar", "00001.tar"]
    kept = (tmp_path / "parts/00000.tar").stat().st_mtime_ns
    make_shards(footage, tmp_path / "parts", settings, on_note=notes.append)
    assert (tmp_path / "parts/00000.tar").stat().st_mtime_ns == kept
    whole, parts = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.is_file()} for name in ("whole", "parts"))
    assert whole == parts and len(whole) >= 5


def test_a_run_that_is_killed_before_its_first_shard_is_noted_goes_on(footage, tmp_path, monkeypatch):
    settings, silent = ShardSettings(size=16, shard_bytes=8_000), lambda note: None
    make_shards(footage, tmp_path / "whole", settings, on_note=silent)

    def killed(part: Path, final: Path) -> None:
        put(part, final)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(phenaki.data.sharding, "put", killed)
        make_shards(footage, tmp_path / "parts", settings, on_note=silent)
    assert [file.name for file in (tmp_path / "parts").glob("*.tar")] == ["00000.tar"]
    make_shards(footage, tmp_path / "parts", settings, on_note=silent)
    whole, parts = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.is_file()} for name in ("whole", "parts"))
    assert whole == parts


def test_a_run_that_is_killed_before_its_first_shard_may_begin_anew_with_other_settings(footage, tmp_path, monkeypatch):
    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(phenaki.data.sharding, "write_shard", killed)
        make_shards(footage, tmp_path / "out", ShardSettings(size=32), on_note=lambda note: None)
    assert json.loads((tmp_path / "out/shards.json").read_text())["settings"]["size"] == 32
    make_shards(footage, tmp_path / "out", ShardSettings(size=16), on_note=lambda note: None)
    assert json.loads((tmp_path / "out/shards.json").read_text())["settings"]["size"] == 16


def failed(kind: str) -> Future:
    answer = Future()
    answer.set_exception(ClipError(kind, "test"))
    return answer


@pytest.fixture
def fail(monkeypatch):
    """Has the encoding of clip3.mp4 fail so many times, as it does by a fault of the machine."""
    encode, kinds = DecodingPool.reencode, []
    choose = lambda file: kinds and file.name == "clip3.mp4"
    monkeypatch.setattr(DecodingPool, "reencode", lambda pool, file, *more: failed(kinds.pop()) if choose(file) else encode(pool, file, *more))
    return lambda kind, times: kinds.extend([kind] * times)


def test_a_fault_of_the_machine_costs_no_clip(footage, tmp_path, fail):
    """Once, the clip is tried again; where that fails too, the run stops, and the next one has all clips."""
    settings, silent, out = ShardSettings(size=16, shard_bytes=6_000), lambda note: None, tmp_path / "out"
    fail("crash", 1)
    assert make_shards(footage, tmp_path / "whole", settings, on_note=silent).num_clips == 7
    fail("crash", 2)
    with pytest.raises(ValueError, match=r"clip3\.mp4: could not be encoded, tried twice \(crash: test\); .* and run the same command again"):
        make_shards(footage, out, settings, on_note=silent)
    state = json.loads((out / "shards.json").read_text())
    assert state["unusable"] == [] and state["files_done"] == sum(shard["clips"] for shard in state["shards"]) < 7
    assert make_shards(footage, out, settings, on_note=silent).num_clips == 7
    whole, again = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (tmp_path / "whole", out))
    assert whole == again


def test_a_clip_that_is_too_much_for_the_machine_is_left_out_where_that_is_asked_for(footage, tmp_path, fail):
    fail("too slow", 2)
    notes = []
    made = make_shards(footage, tmp_path / "out", ShardSettings(size=16), leave_out_failing=True, on_note=notes.append)
    assert made.num_clips == 6 and [entry.name for entry in made.unusable] == ["broken.mp4", "clip3.mp4"]
    assert "not used: clip3.mp4: too slow: test" in notes


@pytest.mark.parametrize("kind", [*PASSING, "no room", "damaged"])
def test_which_faults_are_tried_again_and_stop_the_run(tmp_path, kind):
    file, target = clip_file(Path(__file__), "a.mp4", ""), tmp_path / "a.mp4"
    good, again = Future(), []
    good.set_result("facts")
    encode = lambda answer: lambda *asked: again.append(asked) or answer
    settle = lambda answer, leave_out: settled(file, target, failed(kind), encode(answer), leave_out)[2]
    if kind == "damaged":
        assert settle(good, False).exception().kind == kind and not again
        return
    assert settle(good, False) is good and again == [(file, target)]
    for leave_out in (False, True):
        if leave_out and kind != "no room":  # for want of room all clips after it would be lost, too
            assert settle(failed(kind), leave_out).exception().kind == kind
        else:
            with pytest.raises(ValueError, match=rf"a\.mp4: could not be encoded, tried twice \({kind}: test\)"):
                settle(failed(kind), leave_out)


@pytest.mark.parametrize("call", ["write", "finish"])
def test_a_clip_that_cannot_be_written_leaves_nothing(footage, tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StreamEncoder, call, full)
    request = {"do": "reencode", "file": asdict(clip_file(footage / "clip0.mp4", "clip0.mp4", "")), "size": 16, "fps": None}
    answer, _ = safe_answer({**request, "target": str(tmp_path / "a.mp4")}, io.BytesIO())
    assert answer["kind"] == "no room" and answer["reason"] == "No space left on device"
    assert not list(tmp_path.glob("*a*.mp4"))


def test_each_frame_that_is_encoded_anew_is_told(footage, tmp_path):
    """A clip is given no less time than the check that it passed."""
    told = []
    reencode_clip(clip_file(footage / "clip0.mp4", "clip0.mp4", ""), 16, 1.0, tmp_path / "a.mp4", lambda: told.append(1))
    assert len(told) >= 30


def test_two_processes_do_not_make_shards_in_one_folder(footage, tmp_path, held_elsewhere):
    out = tmp_path / "out"
    (out / ".phenaki-shard-work-other").mkdir(parents=True)
    with held_elsewhere(out), pytest.raises(BusyError, match="out: another process makes shards in this folder; wait for it, or give another --out"):
        make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None)
    assert sorted(file.name for file in out.iterdir()) == [".lock", ".phenaki-shard-work-other"]
    assert make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None).num_clips == 7
    assert not list(out.glob(".phenaki-shard-work-*"))


def test_shards_of_something_else_are_left_alone(footage, tmp_path):
    out = tmp_path / "out"
    make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None)
    before = (out / "00000.tar").read_bytes()
    with pytest.raises(ValueError, match="other footage or with other settings"):
        make_shards(footage, out, ShardSettings(size=32), on_note=lambda note: None)
    for content in ("[]", "[" * 100_000):
        (out / "shards.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="is damaged"):
            make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None)
    (out / "shards.json").unlink()
    with pytest.raises(ValueError, match="not made by phenaki data shard"):
        make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None)
    assert (out / "00000.tar").read_bytes() == before


def test_any_damaged_byte_of_a_shards_clip_is_found(footage, tmp_path, pool):
    out = tmp_path / "out"
    make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None)
    clip = open_quietly(out, pool).files[2]
    data = bytearray((out / "00000.tar").read_bytes())
    data[clip.offset + clip.num_bytes // 2] ^= 1
    (out / "00000.tar").write_bytes(data)
    assert {entry.kind for entry in open_quietly(out, pool).unusable.values()} == {"checksum"}


def test_footage_of_which_nothing_can_be_used_makes_no_shards(tmp_path):
    folder, notes = tmp_path / "footage", []
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.mp4").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"footage: none of 2 files can be used; look at what phenaki data check says of it"):
        make_shards(folder, tmp_path / "out", ShardSettings(16), on_note=notes.append)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_shards_do_not_land_in_the_footage(footage, tmp_path):
    before = sorted(footage.rglob("*"))
    (tmp_path / "link").symlink_to(footage)
    for out in (footage, footage / "shards", tmp_path / "link" / "a" / "b"):
        with pytest.raises(ValueError, match="lies in the footage itself"):
            make_shards(footage, out, ShardSettings(size=16), on_note=lambda note: None)
    assert sorted(footage.rglob("*")) == before


def test_a_size_that_no_clip_can_have_is_told():
    with pytest.raises(ValueError, match="size 100000: needed at least 2 and at most 4096"):
        ShardSettings(size=100_000)
    assert ShardSettings(size=4096).size == 4096


@pytest.mark.parametrize("settings", [{"size": 15}, {"size": 0}, {"size": 16, "fps": 0.0}, {"size": 16, "shard_bytes": 0}])
def test_shard_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="needed"):
        ShardSettings(**settings)


def test_the_commands(footage, tmp_path):
    run = lambda *arguments: CliRunner().invoke(app, ["data", *map(str, arguments)])
    done = run("check", footage, "--json", tmp_path / "check.json")
    assert done.exit_code == 0, done.output
    told = ("6 videos, 1 pictures", "80x48 (6)", "8 (3), 24 (3)", "captions: 6, 6 of them different", "not usable: 1 (1 not a video)", "broken.mp4")
    for words in told:
        assert words in done.output
    values = json.loads((tmp_path / "check.json").read_text())
    assert values["frames"] == 180 and values["seconds"] == pytest.approx(3 * 30 / 8 + 3 * 30 / 24) and len(values["unusable"]) == 1
    assert run("shard", footage, "-o", tmp_path / "out", "--size", 16, "--fps", 8).exit_code == 0
    assert run("check", tmp_path / "out").output.count("6 videos, 1 pictures") == 1
    wrong = (["check", tmp_path / "missing"], ["shard", footage, "-o", tmp_path / "out", "--size", 15], ["check", footage, "--num-workers", -1])
    for arguments in wrong:
        failed = run(*arguments)
        assert failed.exit_code == 2 and "Traceback" not in failed.output and "needed" in failed.output


def test_what_is_found_is_not_written_over_a_clip(footage, monkeypatch):
    before = (footage / "clip0.mp4").read_bytes()
    (footage / "folder.json").mkdir()
    monkeypatch.setattr(phenaki.data.check, "list_clips", lambda *_: pytest.fail("the work began"))
    for name, words in [("clip0.mp4", "must end in .json"), ("folder.json", "is a folder"), ("none/a.json", "no folder")]:
        with pytest.raises(ValueError, match=words):
            check_source(footage, 1, footage / name)
    assert (footage / "clip0.mp4").read_bytes() == before


def test_no_other_folder_is_cleared_away(footage, tmp_path):
    (tmp_path / "out/.workspace").mkdir(parents=True)
    (tmp_path / "out/.workspace/notes.txt").write_text("mine")
    make_shards(footage, tmp_path / "out", ShardSettings(size=16), on_note=lambda note: None)
    assert (tmp_path / "out/.workspace/notes.txt").read_text() == "mine"


def test_shards_that_are_gone_or_cut_short_are_told(footage, tmp_path):
    again = lambda: make_shards(footage, tmp_path / "out", ShardSettings(size=16), on_note=lambda note: None)
    again()
    shard = tmp_path / "out/00000.tar"
    whole = shard.read_bytes()
    for content in (whole[:-512], None):
        shard.unlink() if content is None else shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"00000\.tar: is missing or not whole; delete .* and make the shards anew"):
            again()
    shard.write_bytes(whole)
    again()


@pytest.mark.parametrize(("name", "value"), [("unusable", [{"x": 1}]), ("shards", [1]), ("shards", [{"bytes": "x", "clips": 1}]), ("files_done", -1)])
def test_damaged_notes_of_shards_are_told(footage, tmp_path, name, value):
    make_shards(footage, tmp_path / "out", ShardSettings(size=16), on_note=lambda note: None)
    path = tmp_path / "out/shards.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=r"shards\.json: is damaged"):
        make_shards(footage, tmp_path / "out", ShardSettings(size=16), on_note=lambda note: None)
