"""Footage as training data: which clips, cut where, and what becomes of files that cannot be used."""

import json
import os
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phenaki.cvivit import CViViT
from phenaki.data.check import check_listing
from phenaki.data.decoding import ClipError
from phenaki.data.footage import Footage, FootageSettings, open_footage
from phenaki.data.listing import list_clips
from phenaki.data.tokens import make_story_tokens
from phenaki.training.parallel import Group, Part
from phenaki.training.settings import load_settings
from phenaki.training.tokenizer import TokenizerTask
from phenaki.video import Video


def coloured(value: int, num_frames: int = 20, fps: float = 8.0) -> Video:
    """Frames whose red channel is `value` and whose green channel counts them."""
    frames = np.full((num_frames, 32, 48, 3), value, np.uint8)
    frames[..., 1] = np.arange(num_frames)[:, None, None] * 5
    return Video(frames, fps)


@pytest.fixture
def footage(tmp_path):
    """Five videos of different greys, two with captions, one in a class folder."""
    (tmp_path / "riding_bikes").mkdir()
    for index in range(5):
        folder = tmp_path / "riding_bikes" if index == 4 else tmp_path
        coloured(40 * index + 20).save(folder / f"clip{index}.mp4")
    (tmp_path / "clip0.txt").write_text("a dark\n  clip ", encoding="utf-8")
    (tmp_path / "clip3.txt").write_text("a bright clip", encoding="utf-8")
    return tmp_path


@pytest.fixture
def opened(pool):
    """Opens footage at 16 pixels and 8 fps; notes go to `notes`."""

    def open_it(path, notes=None, report=None, **settings):
        said = [] if notes is None else notes
        return open_footage(path, FootageSettings(**{"size": 16, "fps": 8.0, **settings}), pool=pool, report=report, on_note=said.append)

    return open_it


def reds(video: torch.Tensor) -> list[int]:
    """Which of the fixture's videos each clip of a batch shows."""
    return [round((float(red) * 127.5 + 127.5 - 20) / 40) for red in video[:, 0].mean(dim=(1, 2, 3))]


def greens(video: torch.Tensor) -> torch.Tensor:
    """Which frame of its video each frame is, (b f)."""
    return (video[:, 1].mean(dim=(2, 3)) * 127.5 + 127.5) / 5


def test_clips_have_the_asked_shape_range_and_colour(footage, opened):
    video = opened(footage).clips(0, 0, 3, 9, 2)
    assert video.shape == (3, 3, 9, 16, 16) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    assert (video[:, 0] - video[:, 2]).abs().max() < 0.1  # red equals blue in every fixture
    steps = greens(video).diff(dim=1)
    assert (steps - 1).abs().max() < 0.7  # consecutive frames, none lost


def test_every_video_once_an_epoch_in_an_order_of_seed_and_epoch(footage, opened):
    source = opened(footage)
    shown = reds(source.clips(3, 0, 10, 5, 2))
    assert sorted(shown[:5]) == sorted(shown[5:]) == [0, 1, 2, 3, 4]
    assert shown == reds(opened(footage).clips(3, 0, 10, 5, 2))
    others = {tuple(reds(source.clips(seed, 0, 5, 5, 2))) for seed in range(8)}
    assert len(others) > 1


def test_any_split_among_processes_gives_the_same_pixels(footage, opened):
    settings = {"random_crop": True, "min_zoom": 0.6, "flip_prob": 0.5}
    whole = opened(footage, **settings).clips(3, 0, 12, 5, 2)
    first, second = opened(footage, **settings), opened(footage, **settings)
    parts = [source.clips(3, step * 6 + rank * 3, 3, 5, 2) for step in range(2) for rank, source in enumerate((first, second))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_clip_larger_than_the_memory_for_clips_is_shown_all_the_same(footage, opened, monkeypatch):
    whole = opened(footage).clips(0, 0, 4, 5)
    monkeypatch.setattr("phenaki.data.footage.CACHE_BYTES", 5 * 16 * 16 * 3 - 1)
    source = opened(footage)
    assert torch.equal(source.clips(0, 0, 4, 5), whole) and len(source._cache) == 1, "no more than the last is kept"


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 3), (2, 2)])
def test_a_step_s_parts_are_decoded_together_and_nothing_besides(footage, opened, pool, monkeypatch, processes, accumulate):
    """Each process asks once a step for all its clips, and each clip is decoded once."""
    cut, clips, decoded, calls = pool.cut, Footage.clips, [], []
    monkeypatch.setattr(pool, "cut", lambda file, how: decoded.append(how) or cut(file, how))
    monkeypatch.setattr(Footage, "clips", lambda self, *how: calls.append(how[1:3]) or clips(self, *how))
    tiny = load_settings(Path(__file__).resolve().parents[1] / "configs/tiny.toml")
    size = 2 * processes * accumulate
    own = replace(tiny.train_tokenizer, num_slices=2, optimizer=replace(tiny.train_tokenizer.optimizer, batch_size=size))
    task = TokenizerTask(CViViT(tiny.tokenizer), opened(footage), own, None)
    whole = [torch.cat(task.draw(step, [Part()])) for step in range(3)]
    first, decoded_at_first = len(calls), len(decoded)
    task.source = opened(footage)
    for step in range(3):
        drawn = [batch for rank in range(processes) for batch in task.draw(step, Group(rank, processes).parts(accumulate))]
        assert len(drawn) == processes * accumulate and torch.equal(torch.cat(drawn), whole[step])
    assert len(calls) - first == 3 * processes and len(decoded) - decoded_at_first == 3 * size


def test_a_clip_begins_anywhere_in_its_video_and_never_past_its_end(tmp_path, opened):
    coloured(100, num_frames=40).save(tmp_path / "long.mp4")
    source = opened(tmp_path)
    starts = [round(float(greens(source.clips(seed, 0, 1, 6, 1))[0, 0])) for seed in range(60)]
    assert min(starts) >= 0 and max(starts) <= 34 and len(set(starts)) > 20
    exact = opened(tmp_path).clips(0, 0, 1, 40, 1)
    assert (greens(exact)[0] - torch.arange(40)).abs().max() < 0.7  # the only clip of 40 frames is all of it


def test_seeking_gives_the_frames_that_reading_from_the_beginning_gives(tmp_path, opened):
    """The video has a keyframe a second; what is cut is compared with the whole, decoded in order."""
    draw = np.random.default_rng(0)
    Video(draw.integers(0, 255, (80, 16, 16, 3), np.uint8), 8.0).save(tmp_path / "noise.mp4")
    whole = torch.from_numpy(Video.load(tmp_path / "noise.mp4").frames).float() / 127.5 - 1
    source = opened(tmp_path)
    for seed in range(12):
        clip = source.clips(seed, 0, 1, 4, 1)[0].permute(1, 2, 3, 0)
        distances = torch.stack([(whole[start : start + 4] - clip).abs().mean() for start in range(77)])
        assert distances.min() < 0.02 and (distances < 0.1).sum() == 1


def test_captions_from_text_files_and_class_folders(footage, opened):
    captions = {file.name: file.caption for file in opened(footage).files}
    assert captions == {
        "clip0.mp4": "a dark clip", "clip1.mp4": "", "clip2.mp4": "", "clip3.mp4": "a bright clip", "riding_bikes/clip4.mp4": "riding bikes",
    }  # fmt: skip


@pytest.mark.parametrize(("fps", "step"), [(24.0, 3.0), (4.0, 0.5), (12.0, 1.5)])
def test_another_frame_rate_is_resampled(tmp_path, fps, step, opened):
    coloured(100, num_frames=48, fps=fps).save(tmp_path / "other.mp4")
    shown = greens(opened(tmp_path).clips(0, 0, 1, 13, 2))[0]
    expected = shown[0].round() + torch.floor(torch.arange(13) * step + 1e-6)
    assert (shown - expected).abs().max() < 1.1  # a start between two frames moves the floor by one at most
    assert abs(float(shown[12] - shown[0]) - 12 * step) < 1.1


def test_crops_and_flips(tmp_path, opened):
    """A video whose red grows from left to right: a crop shows its place, a flip turns it."""
    ramp = np.zeros((8, 32, 64, 3), np.uint8)
    ramp[..., 0] = np.arange(64) * 4
    Video(ramp, 8.0).save(tmp_path / "ramp.mp4")
    reds_of = lambda **settings: [opened(tmp_path, **settings).clips(seed, 0, 1, 4, 1)[0, 0].mean(dim=(0, 1)) for seed in range(8)]
    middle = reds_of()
    assert all(abs(float(row.mean())) < 0.05 and torch.equal(row, middle[0]) for row in middle)
    assert max(float(row.mean()) for row in reds_of(random_crop=True)) - min(float(row.mean()) for row in reds_of(random_crop=True)) > 0.3
    assert all(row[-1] < row[0] for row in reds_of(flip_prob=1.0)) and all(row[-1] > row[0] for row in middle)
    widths = [float(row[-1] - row[0]) for row in reds_of(min_zoom=0.3)]
    assert min(widths) < 0.7 * max(widths)


def test_pictures_are_clips_of_one_frame_and_stay_out_of_the_videos(footage, opened):
    for index in range(3):
        Image.new("RGB", (40, 30), (0, 0, 60 * index + 60)).save(footage / f"picture{index}{('.png', '.jpg', '.webp')[index]}")
    (footage / "picture1.txt").write_text("blue", encoding="utf-8")
    source = opened(footage)
    images = source.images(5, 0, 6)[0]
    assert images.shape == (6, 3, 1, 16, 16)
    blues = [round((float(blue) * 127.5 + 127.5) / 60) for blue in images[:, 2].mean(dim=(1, 2, 3))]
    assert sorted(blues[:3]) == sorted(blues[3:]) == [1, 2, 3]
    assert sorted(reds(source.clips(5, 0, 5, 5, 2))) == [0, 1, 2, 3, 4]
    told = source.images(5, 0, 3)[1]
    assert sorted(told) == ["", "", "blue"]


def test_without_pictures_images_are_frames_of_videos(footage, opened):
    images = opened(footage).images(5, 0, 5)[0]
    assert images.shape == (5, 3, 1, 16, 16) and sorted(reds(images)) == [0, 1, 2, 3, 4]


def test_pictures_alone_give_no_videos(tmp_path, opened):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="none of 1 files gives videos"):
        opened(tmp_path).clips(0, 0, 1, 5, 1)


@pytest.mark.parametrize("check", [True, False])
def test_unusable_files_are_reported_once_and_passed_over(footage, opened, check):
    (footage / "broken.mp4").write_bytes(b"not a video")
    coloured(255, num_frames=3).save(footage / "short.mp4")
    notes, report = [], footage / "run/unusable.jsonl"
    source = opened(footage, notes, report, check=check)
    shown = reds(source.clips(0, 0, 21, 9, 2))
    assert set(shown) == {0, 1, 2, 3, 4}
    assert len(notes) == 2
    assert any("broken.mp4: not a video" in note for note in notes)
    assert any("short.mp4: too short: 3 frames" in note and "9" in note for note in notes)
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert {row["name"]: row["kind"] for row in rows} == {"broken.mp4": "not a video", "short.mp4": "too short"}


def test_many_unusable_files_are_summed_up(footage, opened):
    """Five of each kind are named, the others counted; the report names all."""
    coloured(255, num_frames=3).save(footage / "short0.mp4")
    for index in range(1, 12):
        (footage / f"short{index}.mp4").write_bytes((footage / "short0.mp4").read_bytes())
    for index in range(7):
        (footage / f"notes{index}.doc").write_bytes(b"1")
    (footage / "empty.mp4").touch()
    notes, report = [], footage / "run/unusable.jsonl"
    source = opened(footage, notes, report)
    assert len(notes) == 5 + 1 + 1 and any("empty.mp4: empty" in note for note in notes)
    assert notes[-1] == f"not used: 2 more (2 not a video); all are in {report}"
    source.clips(0, 0, 5, 17, 2)
    assert len(notes) == 7 + 5 + 1 + 1 and notes[-2] == f"not used: 7 more (7 too short); all are in {report}"
    needed = "a clip needs 17 frames at 8 fps, 2.1 s (num_slices in the settings says how many)"
    assert notes[-1] == f"{footage}: 12 of 17 clips are too short: {needed}"
    source.clips(0, 5, 5, 17, 2)
    assert len(notes) == 14 and len(report.read_text().splitlines()) == 12 + 7 + 1
    opened(footage, notes := [])
    assert notes[-1] == "not used: 2 more (2 not a video)"


def test_notes_of_what_is_not_read_are_passed_on(footage, opened):
    (footage / "captions.csv").write_text("file_name,text\n", encoding="utf-8")
    opened(footage, notes := [])
    assert len(notes) == 1 and notes[0].startswith(f"{footage}: tables that are not read: captions.csv; ")


def test_every_process_reports_what_it_met_and_a_resumed_one_keeps_it(footage, opened, monkeypatch):
    """Two processes that meet one damaged file each; then the first goes on and meets none."""
    for name in ("clip1.mp4", "clip2.mp4"):
        (footage / name).write_bytes(b"not a video")
    report, places = footage / "run/unusable.jsonl", {}
    for index in range(5):
        source = opened(footage, check=False)
        source.clips(1, index, 1, 5, 2)
        places[next(iter(source.unusable), index)] = index  # by the damaged file of the sample, where it has one
    for rank, name in enumerate(("clip1.mp4", "clip2.mp4")):
        monkeypatch.setenv("RANK", str(rank))
        opened(footage, None, report, check=False).clips(1, places[name], 1, 5, 2)
    rows = lambda path: {json.loads(line)["name"] for line in path.read_text().splitlines()}
    assert "clip1.mp4" in rows(report) and "clip2.mp4" in rows(report.with_name("unusable.rank1.jsonl"))
    before = rows(report)
    report.write_text(report.read_text() + 'no JSON\n{"name": 1}\n{"name": "gone.mp4", "kind": "empty", "reason": "was"}\n', encoding="utf-8")
    (footage / "bad.mp4").touch()
    monkeypatch.setenv("RANK", "0")
    opened(footage, None, report, check=False)
    assert rows(report) == {*before, "bad.mp4"}


def test_damage_found_late_is_replaced_by_the_next_index(footage, opened):
    """Without a check every process replaces the same samples, whatever it has seen before."""
    (footage / "clip2.mp4").write_bytes((footage / "clip2.mp4").read_bytes()[:600])
    whole = opened(footage, check=False).clips(1, 0, 10, 5, 2)
    alone = torch.cat([opened(footage, check=False).clips(1, index, 1, 5, 2) for index in reversed(range(10))])
    assert torch.equal(whole, alone.flip(0)) and 2 not in reds(whole)


def test_samples_are_those_of_the_good_files_alone(footage, opened):
    good = opened(footage).clips(0, 0, 15, 9, 2)
    (footage / "clip00.mp4").write_bytes(b"\0" * 5000)
    (footage / "clip1b.mp4").write_bytes((footage / "clip1.mp4").read_bytes()[:-200])
    assert torch.equal(opened(footage).clips(0, 0, 15, 9, 2), good)


def test_a_second_run_believes_the_check_and_looks_at_changed_files(footage, opened, monkeypatch, pool):
    opened(footage)
    asked = []
    check = pool.check
    monkeypatch.setattr(pool, "check", lambda file: asked.append(file.name) or check(file))
    opened(footage)
    assert asked == []
    coloured(90, num_frames=9).save(footage / "clip1.mp4")
    source = opened(footage)
    assert asked == ["clip1.mp4"]
    assert source.facts[1].num_frames == 9


@pytest.mark.parametrize(("kind", "asked_later"), [("too slow", 1), ("crash", 1), ("damaged", 0)])
def test_a_passing_verdict_holds_for_the_processes_of_one_run(footage, pool, tmp_path, monkeypatch, kind, asked_later):
    listing, store, check, asked = list_clips(footage, pool.read_shard), tmp_path / "store.jsonl", pool.check, []

    def fails_once(file):
        asked.append(file.name)
        if len(asked) > 1:
            return check(file)
        failed = Future()
        failed.set_exception(ClipError(kind, "test"))
        return failed

    monkeypatch.setattr(pool, "check", fails_once)
    first = check_listing(listing, pool, store)
    assert len(asked) == 5 and check_listing(listing, pool, store) == first and len(asked) == 5
    os.utime(store, (0, os.path.getmtime(store) - 3600))
    later = check_listing(listing, pool, store)
    assert len(asked) == 5 + asked_later and len(later.clips) == 4 + asked_later


def test_the_fingerprint_tells_other_footage_captions_and_cuts(footage, opened):
    first = opened(footage).fingerprint
    assert first == opened(footage, num_workers=2).fingerprint
    assert first != opened(footage, flip_prob=0.5).fingerprint
    (footage / "clip1.txt").write_text("new", encoding="utf-8")
    assert first != opened(footage).fingerprint


def test_a_folder_without_videos_or_with_none_long_enough(tmp_path, opened):
    with pytest.raises(ValueError, match=r"holds no videos .*\.mp4"):
        opened(tmp_path)
    coloured(10, num_frames=4).save(tmp_path / "short.mp4")
    with pytest.raises(ValueError, match=r"none of 1 files gives videos .*4 frames"):
        opened(tmp_path).clips(0, 0, 1, 9, 2)


@pytest.mark.parametrize("settings", [{"size": 0}, {"fps": 0.0}, {"min_zoom": 0.0}, {"flip_prob": 1.5}, {"num_workers": -1}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="needed"):
        FootageSettings(**settings)


def test_captioned_clips_become_story_tokens_of_one_scene(footage, opened):
    source = opened(footage)
    stories = make_story_tokens(
        source, lambda video: torch.zeros(len(video), 5, 2, 2), lambda captions: [torch.ones(len(text) + 1, 3) for text in captions],
        seed=0, num_stories=5, num_slices=5, temporal_patch_size=2, max_scenes=3, description="test",
    )  # fmt: skip
    assert stories.tokens.shape == (5, 5, 2, 2)
    assert (stories.scene_start == 0).all() and (stories.scene_end == 5).all()
    lengths = sorted(len(stories.text(caption[None, 0])[0][0]) for caption in stories.caption)
    assert lengths == sorted(len(file.caption) + 1 for file in source.files)
