"""Footage: a folder of videos as training data."""

import numpy as np
import pytest
import torch
from phenaki.data.folder import ClipFolder

from phenaki.data.tokens import make_story_tokens
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


def reds(video: torch.Tensor) -> list[int]:
    """Which of the fixture's videos each clip of a batch shows."""
    return [round((float(red) * 127.5 + 127.5 - 20) / 40) for red in video[:, 0].mean(dim=(1, 2, 3))]


def test_clips_have_the_asked_shape_range_and_colour(footage):
    video = ClipFolder(footage, 16, 8.0).clips(0, 0, 3, 9, 2)
    assert video.shape == (3, 3, 9, 16, 16) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    assert (video[:, 0] - video[:, 2]).abs().max() < 0.1  # red equals blue in every fixture
    steps = (video[:, 1, 1:] - video[:, 1, :-1]).mean(dim=(2, 3)) * 127.5
    assert (steps - 5).abs().max() < 2  # consecutive frames, none lost


def test_every_video_once_an_epoch_in_an_order_of_seed_and_epoch(footage):
    folder = ClipFolder(footage, 16, 8.0)
    shown = reds(folder.clips(3, 0, 10, 5, 2))
    assert sorted(shown[:5]) == sorted(shown[5:]) == [0, 1, 2, 3, 4]
    assert shown == reds(ClipFolder(footage, 16, 8.0).clips(3, 0, 10, 5, 2))
    by_steps = [index for step in range(5) for index in reds(folder.clips(3, 2 * step, 2, 5, 2))]
    assert by_steps == shown  # whatever the batch size
    others = {tuple(reds(folder.clips(seed, 0, 5, 5, 2))) for seed in range(8)}
    assert len(others) > 1


def test_captions_from_text_files_and_class_folders(footage):
    folder = ClipFolder(footage, 16, 8.0)
    captions = {file.stem: folder.caption(file) for file in folder.files}
    assert captions == {"clip0": "a dark clip", "clip1": "", "clip2": "", "clip3": "a bright clip", "clip4": "riding bikes"}


def test_another_frame_rate_is_resampled(tmp_path):
    coloured(100, num_frames=48, fps=24.0).save(tmp_path / "fast.mp4")
    video = ClipFolder(tmp_path, 16, 8.0).clips(0, 0, 1, 15, 2)
    steps = (video[:, 1, 1:] - video[:, 1, :-1]).mean(dim=(2, 3)) * 127.5
    assert (steps - 15).abs().max() < 4  # every third frame of the file


def test_unusable_files_are_reported_once_and_passed_over(footage):
    (footage / "broken.mp4").write_bytes(b"not a video")
    coloured(255, num_frames=3).save(footage / "short.mp4")
    notes = []
    folder = ClipFolder(footage, 16, 8.0, on_note=notes.append)
    shown = reds(folder.clips(0, 0, 21, 9, 2))
    assert set(shown) == {0, 1, 2, 3, 4}
    assert len(notes) == 2
    assert any("broken.mp4" in note for note in notes) and any("short.mp4" in note and "3 frames" in note and "9" in note for note in notes)


def test_a_folder_without_videos_or_with_none_long_enough(tmp_path):
    with pytest.raises(ValueError, match=r"holds no videos .*\.mp4"):
        ClipFolder(tmp_path, 16, 8.0)
    coloured(10, num_frames=4).save(tmp_path / "short.mp4")
    with pytest.raises(ValueError, match=r"none of 1 videos can be used .*4 frames"):
        ClipFolder(tmp_path, 16, 8.0, on_note=lambda note: None).clips(0, 0, 1, 9, 2)


def test_told_clips_become_story_tokens_of_one_scene(footage):
    folder = ClipFolder(footage, 16, 8.0)
    stories = make_story_tokens(
        folder, lambda video: torch.zeros(len(video), 5, 2, 2), lambda captions: [torch.ones(len(text) + 1, 3) for text in captions],
        seed=0, num_stories=5, num_slices=5, temporal_patch_size=2, max_scenes=3, description="test",
    )  # fmt: skip
    assert stories.tokens.shape == (5, 5, 2, 2)
    assert (stories.scene_start == 0).all() and (stories.scene_end == 5).all()
    lengths = sorted(len(stories.text(caption[None, 0])[0][0]) for caption in stories.caption)
    assert lengths == sorted(len(folder.caption(file)) + 1 for file in folder.files)
