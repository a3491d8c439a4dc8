"""A clip read as a stream: the same frames as read whole, the right ones at another rate, and files that are not whole."""

import os
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import phenaki.frame_source
from phenaki.frame_source import FrameSource, uneven_times
from phenaki.video import Video, VideoError, read_video
from phenaki.video_files import resampled_indices


def frames_of(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Each frame is grey as its number says."""
    return np.broadcast_to((np.arange(count, dtype=np.uint8) * 5)[:, None, None, None], (count, height, width, 3)).copy()


def promising(path: Path, num_frames: int) -> Path:
    """A small MP4 whose header promises so many frames of a byte each (ISO/IEC 14496-12, 8.6.1.2, 8.7.3 and 8.7.4)."""
    Video(frames_of(1), 8.0).save(path)
    data = bytearray(path.read_bytes())
    for kind, place, numbers in ((b"stsz", 8, (1, num_frames)), (b"stsc", 16, (num_frames,)), (b"stts", 12, (num_frames,))):
        struct.pack_into(f">{len(numbers)}I", data, data.index(kind) + place, *numbers)
    path.write_bytes(data)
    return path


@pytest.fixture
def clip(tmp_path):
    Video(frames_of(30), 24.0).save(tmp_path / "a.mp4")
    return tmp_path / "a.mp4"


def test_a_file_is_read_as_it_is_whole(clip):
    source, whole = FrameSource.of(clip), read_video(clip)
    assert (source.num_frames, source.fps, source.height, source.width, source.video) == (30, 24, 32, 48, None)
    assert np.abs(np.stack(list(source.frames())).astype(int) - whole.frames).max() <= 1
    assert np.array_equal(np.stack(list(source.frames())), np.stack(list(source.frames())))
    assert FrameSource.of(source) is source


def test_a_picture_that_lies_down_is_stood_up_however_it_is_read(clip):
    """Phones film upright pictures lying down and say so in the track's matrix (ISO/IEC 14496-12, 8.3.2)."""
    frames = frames_of(3)
    frames[:, :, :8] = 255
    Video(frames, 8.0).save(clip)
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    source, whole = FrameSource.of(clip), read_video(clip)
    assert whole.frames.shape == (3, 48, 32, 3) and (source.height, source.width) == (48, 32)
    assert np.abs(np.stack(list(source.frames())).astype(int) - whole.frames).max() <= 1
    assert abs(whole.frames[:, :7].mean() - 255) < 3 or abs(whole.frames[:, -7:].mean() - 255) < 3


@pytest.mark.parametrize("fps", [24, 8, 5, 60])
def test_at_another_rate(clip, fps):
    shown = np.stack(list(FrameSource.of(clip).frames_at(fps)))
    whole = read_video(clip, fps=fps)
    assert len(shown) == len(whole) == len(FrameSource.of(clip).numbers(fps)) and np.abs(shown.astype(int) - whole.frames).max() <= 1


def test_frames_come_as_they_are_asked_for(clip, monkeypatch):
    read, frames = [], FrameSource.frames
    monkeypatch.setattr(FrameSource, "frames", lambda self: (read.append(1) or pixels for pixels in frames(self)))
    next(FrameSource.of(clip).frames_at(24))
    assert len(read) == 1


@pytest.mark.parametrize("fps, numbers", [(24, [26, 27, 28, 29]), (8, [20, 23, 26, 29]), (4, [11, 17, 23, 29]), (1, [5, 29])])
def test_the_last_frames_end_with_the_very_last(fps, numbers):
    video = Video(frames_of(30), 24.0)
    last = FrameSource.of(video).last_frames(4, fps)
    assert [int(pixels[0, 0, 0]) // 5 for pixels in last] == numbers


def test_pictures_gifs_and_folders_are_clips(tmp_path):
    Image.fromarray(frames_of(2)[1]).save(tmp_path / "a.png")
    Video(frames_of(6), 8.0).save(tmp_path / "a.gif")
    (tmp_path / "folder").mkdir()
    Video(frames_of(3), 8.0).save(tmp_path / "folder" / "%03d.png")
    counts = {name: FrameSource.of(tmp_path / name).num_frames for name in ("a.png", "a.gif", "folder")}
    assert counts == {"a.png": 1, "a.gif": 6, "folder": 3}
    assert len(list(FrameSource.of(tmp_path / "a.png").frames_at(8))) == 1


def test_a_gif_is_a_picture_at_a_time_in_memory(tmp_path):
    """A few bytes may stand for a picture of 50 MB."""
    Video(frames_of(50, 128, 128), 8.0).save(tmp_path / "a.gif")
    tracemalloc.start()
    try:
        source = FrameSource.of(tmp_path / "a.gif")
        assert len(source.last_frames(2, 8.0)) == 2 and sum(1 for _ in source.frames()) == source.num_frames == 50
        assert tracemalloc.get_traced_memory()[1] < 8 * 128 * 128 * 3
    finally:
        tracemalloc.stop()


def test_a_gif_is_read_as_it_is_whole(tmp_path):
    first, second, third = (Image.fromarray(pixels) for pixels in frames_of(3) * 9)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second, third], duration=[100, 10, 390])
    source, whole = FrameSource.of(tmp_path / "a.gif"), read_video(tmp_path / "a.gif")
    assert (source.num_frames, source.fps, source.height, source.width) == (50, 100, 32, 48) and source.gif.counts == (10, 1, 39)
    assert np.array_equal(np.stack(list(source.frames())), whole.frames)
    Video(frames_of(2), 8.0).save(tmp_path / "a.gif")
    with pytest.raises(VideoError, match="fewer frames than a moment ago"):
        source.last_frames(3, 100)


def timed(path: Path, seconds: list[float]) -> Path:
    """Frames shown at these seconds; the last one for as long as the one before, where the file says so."""
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream({".mp4": "libx264", ".webm": "libvpx-vp9"}[path.suffix], rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, second in zip(frames_of(len(seconds)), seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * second), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


PAUSED = [0, 0.1, 0.2, 0.3, 0.4, 4.5, 4.6, 4.7, 4.8, 4.9]


@pytest.mark.parametrize("ending", ["mp4", "webm"])
@pytest.mark.parametrize("begin", [0, 3])
def test_frames_that_come_unevenly_are_shown_when_they_were(tmp_path, ending, begin):
    """A phone that waits: half a second, four of nothing new, half a second."""
    source = FrameSource.of(timed(tmp_path / f"a.{ending}", [begin + second for second in PAUSED]))
    for fps in (10, 8, 24, 1):
        wanted = [max(n for n, second in enumerate(PAUSED) if second <= i / fps + 1e-3) for i in range(5 * fps)]
        assert source.numbers(fps) == wanted
        shown = [round(float(pixels.mean()) / 5) for pixels in source.frames_at(fps)]
        assert shown == wanted
    assert [round(float(pixels.mean()) / 5) for pixels in source.last_frames(6, 4)] == [4, 4, 4, 4, 6, 9]
    assert len(source.last_frames(99, 10)) == 50, "as many as its length holds"


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_frames_that_come_evenly_are_chosen_by_the_rate(tmp_path, ending):
    rates = [24.0, 23.976, 30000 / 1001, 8.0, 12.5]
    for fps in rates:
        Video(frames_of(40), fps).save(tmp_path / f"a.{ending}")
        assert FrameSource.of(tmp_path / f"a.{ending}").times is None
    shaken = timed(tmp_path / f"b.{ending}", [n / 10 + 0.03 * (n % 2) for n in range(20)])
    source = FrameSource.of(shaken)
    assert source.times is None and source.numbers(10) == resampled_indices(source.path, 20, source.fps, 10)


def test_a_pause_that_becomes_too_many_frames_is_told(tmp_path):
    source = FrameSource.of(timed(tmp_path / "a.mp4", [0, 0.1, 10_000]))
    with pytest.raises(VideoError, match=r"\.mp4: its frames last 1\.5e\+04 s: at 24 fps they are .*, at most 200000 are read"):
        source.numbers(24)


def test_times_that_fall_back_are_taken_as_they_are_shown():
    assert uneven_times(np.array([5.0, 5.1, 4.0, 9.0]), 2.0).tolist() == pytest.approx([0, 0.1, 0.1, 4.0])
    assert uneven_times(np.array([7.0]), 2.0) is None and uneven_times(np.array([7.0, 7.5, 8.1]), 2.0) is None


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("gone.mp4", None, "gone.mp4: "),
        ("a.mp4", b"#EXTM3U\nfile:///etc/passwd\n", "not a whole video file"),
        ("a.mkv", b"", "holds no bytes"),
        ("a.png", b"x", "not a whole picture"),
    ],
)
def test_what_is_no_clip(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=words):
        FrameSource.of(tmp_path / name)


def test_a_file_of_millions_of_frames_is_refused_before_it_is_opened_here(tmp_path, monkeypatch):
    """Less than a kilobyte whose header promises them: the list of them alone would take hundreds of megabytes."""
    monkeypatch.setattr(phenaki.frame_source, "open_strictly", lambda *given: pytest.fail("it was opened here"))
    with pytest.raises(VideoError, match=r"a\.mp4: frame 0 is damaged"):
        FrameSource.of(promising(tmp_path / "a.mp4", 3_000_000))


def test_longer_files_than_are_read_are_told(clip, monkeypatch):
    monkeypatch.setattr(phenaki.frame_source, "MAX_FRAMES", 29)
    with pytest.raises(VideoError, match=r"a\.mp4: more than 29 frames; cut it into shorter files"):
        FrameSource.of(clip)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(VideoError, match="is a pipe or a device; give a file"):
        FrameSource.of(tmp_path / name)


def test_a_device_is_no_clip():
    with pytest.raises(VideoError, match="is a pipe or a device; give a file"):
        FrameSource.of("/dev/zero")


def test_a_damaged_file_is_told_before_anything_is_made_of_it(clip):
    data = bytearray(clip.read_bytes())
    clip.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match=r"a\.mp4: "):
        FrameSource.of(clip)


def test_a_file_that_became_shorter_is_told(clip):
    source = FrameSource.of(clip)
    Video(frames_of(10), 24.0).save(clip)
    for read in (lambda: list(source.frames_at(8)), lambda: source.last_frames(3, 8)):
        with pytest.raises(VideoError, match="fewer frames than a moment ago"):
            read()
