"""Video files: what is written comes back frame for frame, half a file never bears its final name, bad files are told why."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

import phenaki.video
import phenaki.video_files
from phenaki.contact_sheet import LABEL_HEIGHT, contact_sheet
from phenaki.frame_source import FrameSource
from phenaki.output_paths import check_output_path, check_spares
from phenaki.pictures import pictures_in, read_image
from phenaki.story import MAX_SIZE
from phenaki.story_formats import FILE_FIELDS
from phenaki.video import Video, VideoError, VideoWriter, read_video
from phenaki.video_encoders import part_path
from phenaki.video_files import FRAMES_TAG, MAX_SIDE, VideoScene, parse_script, resampled_indices, stacked

FILES = ("mp4", "webm", "gif")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SCENES = (VideoScene("a bear", 0, 5), VideoScene("a panda", 5, 7))
SCRIPT = {"title": "Two", "fps": 8, "scenes": [{"prompt": "a bear"}, {"prompt": "a panda"}], "model": "none"}


def gradient(num_frames: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Red grows to the right, green downwards, blue with time: uint8 (f h w 3)."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width)
    frames[..., 1] = np.linspace(0, 255, height)[:, None]
    frames[..., 2] = np.linspace(0, 255, num_frames)[:, None, None]
    return frames


def noise(num_frames: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num_frames, size, size, 3), dtype=np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


def encoded(container, frames, codec: str = "mpeg4", rate: int = 8, metadata: dict | None = None) -> None:
    """Writes frames (f h w 3) into an open file, as another program might."""
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = frames.shape[1:3] if len(frames) else (32, 32)
    stream.pix_fmt = "yuv420p"
    stream.metadata.update(metadata or {})
    container.start_encoding()
    for frame in [*(av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in frames), *[None] * bool(len(frames))]:
        container.mux(stream.encode(frame))


def frames_before_the_end(path: Path) -> int:
    """What a player shows of a file, however it ends."""
    count = 0
    try:
        with av.open(str(path)) as container:
            for _ in container.decode(video=0):
                count += 1
    except (av.error.FFmpegError, EOFError):
        pass
    return count


def refused(path: Path, *words: str, **options) -> None:
    """The file is refused with a VideoError that names it and has all the words."""
    with pytest.raises(VideoError) as caught:
        read_video(path, **options)
    assert not [word for word in (str(path), *words) if word not in str(caught.value)], str(caught.value)


# ---- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("colour", COLOURS)
def test_pure_colours_come_back(tmp_path, ending, colour):
    frames = np.full((3, 32, 32, 3), COLOURS[colour], np.uint8)
    Video(frames, 8).save(tmp_path / f"a.{ending}")
    assert difference(read_video(tmp_path / f"a.{ending}").frames, frames).max() <= 12


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("num_frames", [1, 2, 17])
def test_a_gradient_comes_back_frame_for_frame(tmp_path, ending, num_frames):
    frames = gradient(num_frames)
    Video(frames, 8).save(tmp_path / f"a.{ending}")
    read = read_video(tmp_path / f"a.{ending}")
    assert read.frames.shape == frames.shape and read.frames.dtype == np.uint8 and read.fps == 8
    assert difference(read.frames, frames).mean() < 4
    nearest = [int(difference(frames, frame).mean((1, 2, 3)).argmin()) for frame in read.frames]
    assert difference(np.array(nearest), np.arange(num_frames)).max() <= 1


@pytest.mark.parametrize("ending", FILES)
def test_equal_frames_are_counted(tmp_path, ending):
    frames = np.repeat(gradient(4), [1, 6, 1, 9], axis=0)
    Video(frames, 12).save(tmp_path / f"a.{ending}")
    read = read_video(tmp_path / f"a.{ending}")
    assert len(read) == 17 and difference(read.frames, frames).mean() < 4


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("fps", [1, 8, 12, 12.5, 23.976, 24, 30000 / 1001, 60, 100])
def test_the_rate_is_kept_however_short_the_video(tmp_path, ending, fps):
    for num_frames in (1, 2, 9):
        Video(gradient(num_frames), fps).save(tmp_path / f"a.{ending}")
        read = read_video(tmp_path / f"a.{ending}")
        assert len(read) == num_frames and read.fps == pytest.approx(fps, rel=1e-6)


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("height, width", [(33, 65), (65, 32), (1, 1)])
def test_odd_sizes(tmp_path, ending, height, width):
    frames = gradient(9, height, width)
    Video(frames, 8).save(tmp_path / f"a.{ending}")
    read = read_video(tmp_path / f"a.{ending}").frames
    assert read.shape == frames.shape and difference(read, frames).mean() < 4


def test_single_frames_come_back_to_the_bit(tmp_path):
    frames = noise(12)
    Video(frames, 8).save(tmp_path / "frame_%05d.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"frame_{n:05d}.png" for n in range(12)]
    read = read_video(tmp_path, fps=12)
    assert np.array_equal(read.frames, frames) and read.fps == 12


@pytest.mark.parametrize("ending", FILES)
def test_names_that_look_like_addresses_and_patterns(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    for name in ("night:bear", "http:x", "100% bear", 'b "c" \'d\'', "熊"):
        Video(gradient(3), 8).save(f"{name}.{ending}")
        assert len(read_video(f"{name}.{ending}")) == 3
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_chapters_and_script_come_back(tmp_path, ending):
    prompts = ["“naïve” 'q' \"d\" \\ 熊 🐻 [b] a=b;c#d", "x" * 1000, "熊" * 1000, ""]
    scenes = tuple(VideoScene(prompt, 3 * n, 3) for n, prompt in enumerate(prompts))
    script = {"title": "熊 = ;#\\", "fps": 23.976, "scenes": [{"prompt": prompt} for prompt in prompts]}
    Video(gradient(12), 23.976, scenes, script).save(tmp_path / f"a.{ending}")
    read = read_video(tmp_path / f"a.{ending}")
    assert read.scenes == scenes and read.script == script


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_scenes_without_a_frame_have_their_chapter(tmp_path, ending):
    scenes = (VideoScene("a", 0, 8), VideoScene("b", 8, 0), VideoScene("c", 8, 4), VideoScene("d", 12, 0))
    Video(gradient(12), 8.0, scenes).save(tmp_path / f"a.{ending}")
    assert read_video(tmp_path / f"a.{ending}").scenes == scenes


@pytest.mark.parametrize("scene", [VideoScene("a\0b", 0, 8), VideoScene("a", -1, 8), VideoScene("a", 0, -1), VideoScene("a", 0, 10**15)])
@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_scenes_that_cannot_be_chapters_are_told_before_anything_is_written(tmp_path, scene, ending):
    with pytest.raises(VideoError, match="cannot be a chapter; needed frames from 0"):
        Video(gradient(8), 8.0, (scene,)).save(tmp_path / f"a.{ending}")
    assert not list(tmp_path.iterdir())


def test_many_chapters_come_back(tmp_path):
    scenes = tuple(VideoScene(f"scene {n}", n, 1) for n in range(300))
    Video(gradient(300, 16, 16), 24, scenes).save(tmp_path / "a.mp4")
    assert read_video(tmp_path / "a.mp4").scenes == scenes


def test_a_gif_and_a_contact_sheet_carry_the_script(tmp_path):
    video = Video(gradient(12), 8, SCENES, SCRIPT)
    video.save(tmp_path / "a.gif")
    video.save(tmp_path / "a.png")
    assert read_video(tmp_path / "a.gif").script == SCRIPT
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.text["phenaki_script"]) == SCRIPT


NO_SCRIPTS = ["", "hello", "[1, 2]", "{}", '{"scene": 1}', '{"scenes"', "[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"scenes": 1}']
ELSEWHERE = ["/etc/passwd", "../a.png", "sub/a.png", "..", "C:a.png", "sub\\a.png", 3]
NO_SCRIPTS += [json.dumps({"scenes": [{"prompt": "a bear"}, {"prompt": "a bear", "image": name}]}) for name in ELSEWHERE]


@pytest.mark.parametrize("comment", NO_SCRIPTS, ids=range(len(NO_SCRIPTS)))
def test_a_comment_that_is_no_script(tmp_path, comment):
    path = tmp_path / "a.mp4"
    with av.open(str(path), mode="w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(gradient(1)[0], format="rgb24")), *stream.encode(None)])
    read = read_video(path)
    assert len(read) == 1 and read.script is None and parse_script(comment) is None


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_a_script_in_a_file_names_pictures_beside_it_alone(tmp_path, ending):
    """Whoever tells the story of a video from elsewhere opens what it names."""
    for field in FILE_FIELDS:
        script = {"scenes": [{"prompt": "a bear", field: "a.png"}]}
        Video(gradient(2), 8, (), script).save(tmp_path / f"good{ending}")
        assert read_video(tmp_path / f"good{ending}").script["scenes"] == script["scenes"]
        Video(gradient(2), 8, (), {"scenes": [{"prompt": "a bear", field: "/home/me/a.png"}]}).save(tmp_path / f"bad{ending}")
        assert read_video(tmp_path / f"bad{ending}").script is None


def test_a_video_of_the_largest_story_can_be_read():
    assert MAX_SIZE == MAX_SIDE


# ---- reading at another size and rate ------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(32, 96), (96, 32), (2, 6), (40, 40)])
def test_size_crops_the_middle_square(tmp_path, height, width):
    frames = np.zeros((2, height, width, 3), np.uint8)  # black, with a green square in the middle
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frames[:, top : top + side, left : left + side] = (0, 255, 0)
    Video(frames, 8).save(tmp_path / "frame_%05d.png")
    read = read_video(tmp_path, size=24).frames
    assert read.shape == (2, 24, 24, 3)
    assert difference(read, np.full_like(read, (0, 255, 0))).max() <= 3


@pytest.mark.parametrize("ending", FILES)
def test_every_format_is_resized(tmp_path, ending):
    Video(gradient(4, 32, 64), 8).save(tmp_path / f"a.{ending}")
    read = read_video(tmp_path / f"a.{ending}", size=16).frames
    assert read.shape == (4, 16, 16, 3)
    assert difference(read[..., 1].mean(2), gradient(4, 16, 16)[..., 1].mean(2)).mean() < 8


def test_a_sliver_is_resized_in_little_memory(tmp_path):
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 512), np.full((512, 512, 3), (255, 0, 0), np.uint8))


@pytest.mark.parametrize("fps, count", [(8, 17), (4, 8), (16, 34), (24, 51), (5, 11), (0.1, 1)])
def test_another_rate_has_the_exact_number_of_frames(tmp_path, fps, count):
    Video(gradient(17), 8).save(tmp_path / "a.mp4")
    read = read_video(tmp_path / "a.mp4", fps=fps)
    assert len(read) == count and read.fps == fps
    assert resampled_indices(Path("a.mp4"), 17, 8, fps) == [min(int(n * 8 / fps), 16) for n in range(count)]


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": -8}, {"fps": 1e-6}, {"fps": float("nan")}, {"fps": 1e9}, {"size": 0}])
def test_impossible_rates_and_sizes(tmp_path, options):
    Video(gradient(3), 8).save(tmp_path / "a.gif")
    with pytest.raises(VideoError, match=next(iter(options))):
        read_video(tmp_path / "a.gif", **options)


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


# ---- while it is written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_the_part_file_plays_while_it_grows(tmp_path, ending):
    frames = gradient(48)
    with VideoWriter(tmp_path / f"a.{ending}", fps=8, size=(32, 32)) as writer:
        part = part_path(writer.path)
        for end in (16, 17, 32):
            writer.write(frames[writer.num_frames : end])
            assert frames_before_the_end(part) == end and not writer.path.exists()
        writer.write(frames[32:])
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]
    assert len(read_video(tmp_path / f"a.{ending}")) == 48


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "png"])
def test_an_exception_leaves_the_old_file(tmp_path, ending, error):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"something old")
    with pytest.raises(error) as caught, VideoWriter(path, fps=8, size=(32, 32)) as writer:
        writer.write(gradient(10))
        raise error("in the middle")
    assert path.read_bytes() == b"something old"
    part = part_path(path)
    if ending in ("gif", "png"):
        assert sorted(tmp_path.iterdir()) == [path]
    else:
        assert str(part) in "".join(caught.value.__notes__) and len(read_video(part)) == 10


def test_saving_keeps_what_a_generation_left_unfinished_there(tmp_path):
    path, aside = tmp_path / "a.mp4", tmp_path / ".a.part-1.mp4"
    left = VideoWriter(path, fps=8, size=(32, 32), label={"a": "story"})
    left.write(noise(5))
    left.encoder.abandon()
    before = part_path(path).read_bytes()
    with pytest.warns(UserWarning, match=f"a generation was not finished there; what it has made is kept as {aside}"):
        Video(noise(3), 8.0).save(path)
    assert aside.read_bytes() == before and len(read_video(path)) == 3

    stopped = VideoWriter(path, fps=8, size=(32, 32))  # a saving that was killed: nobody goes on with it
    stopped.write(noise(5))
    stopped.encoder.abandon()
    Video(noise(4), 8.0).save(path)
    assert len(read_video(path)) == 4 and sorted(tmp_path.iterdir()) == [aside, path]


def test_an_exception_before_the_first_frame_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", fps=8, size=(32, 32)):
        raise RuntimeError
    with pytest.raises(VideoError, match="no frames"), VideoWriter(tmp_path / "a.mp4", fps=8, size=(32, 32)):
        pass
    assert not list(tmp_path.iterdir())


def test_work_is_kept_where_the_last_step_fails(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(OSError) as caught, VideoWriter(path, fps=8, size=(32, 32)) as writer:
        writer.write(gradient(10))
        path.mkdir()  # what stands there now cannot be replaced
    part = tmp_path / ".a.part.mp4"
    assert str(part) in "".join(caught.value.__notes__) and len(read_video(part)) == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".a.part.mp4", "a.mp4"]


KILLED = """
import sys, time, numpy as np
from phenaki.video import VideoWriter
writer = VideoWriter(sys.argv[1], fps=8, size=(32, 32)).__enter__()
writer.write(np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8))
print("written", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_the_old_file_and_a_part_that_plays(tmp_path):
    writers = []
    for name in ("new.mp4", "old.mp4", "new.webm"):
        if name.startswith("old"):
            (tmp_path / name).write_bytes(b"something old")
        writers.append(subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / name)], stdout=subprocess.PIPE, text=True))
    for writer in writers:
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert not (tmp_path / "new.mp4").exists() and not (tmp_path / "new.webm").exists()
    assert (tmp_path / "old.mp4").read_bytes() == b"something old"
    for name in (".new.part.mp4", ".old.part.mp4", ".new.webm.part.mp4"):
        assert frames_before_the_end(tmp_path / name) == 40
    Video(gradient(9), 8).save(tmp_path / "new.mp4")  # what was left behind is in nobody's way
    assert len(read_video(tmp_path / "new.mp4")) == 9 and not (tmp_path / ".new.part.mp4").exists()


@contextmanager
def files_at_most(num_bytes: int):
    """No file grows beyond so many bytes: a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def whole_or_nothing(path: Path, frames: np.ndarray, script: dict | None = None) -> bool:
    """Writes; whether it went well. If not: a clear error, the final name as before, and any part that is left plays."""
    before = path.read_bytes() if path.exists() else None
    try:
        with VideoWriter(path, fps=8, size=frames.shape[1:3], script=script) as writer:
            for start in range(0, len(frames), 8):
                writer.write(frames[start : start + 8])
    except (OSError, ValueError) as error:
        assert "No space left" in str(error) or "too large" in str(error) or "is the disk full" in str(error), error
        assert (path.read_bytes() if path.exists() else None) == before
        left = [other for other in path.parent.iterdir() if other != path]
        assert left in ([], [part_path(path)])
        if left:
            assert frames_before_the_end(left[0]) > 0 and str(left[0]) in "".join(error.__notes__)
            left[0].unlink()
        return False
    assert path.suffix == ".png" or len(read_video(path)) == len(frames)
    return True


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "png"])
def test_no_half_file_when_files_cannot_grow(tmp_path, ending):
    frames = noise(40)
    wrote = []
    for number, kilobytes in enumerate((1, 8, 20, 30, 38, 42, 44, 46, 48, 200)):
        path = tmp_path / f"{number}.{ending}"
        if number % 2:
            path.write_bytes(b"old")
        with files_at_most(kilobytes << 10):
            wrote.append(whole_or_nothing(path, frames))
        path.unlink(missing_ok=True)
    assert not wrote[0] and wrote[-1]


def test_no_half_file_when_the_disk_is_full_at_the_end(tmp_path):
    script = {"scenes": [{"prompt": str(n) * 900} for n in range(200)]}  # the part file fits, the whole one with its script does not
    with files_at_most(60 << 10):
        assert not whole_or_nothing(tmp_path / "a.mp4", noise(24), script)
        assert whole_or_nothing(tmp_path / "a.mp4", noise(24))
        assert not whole_or_nothing(tmp_path / "a.mp4", noise(24), script)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 80 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    tools = shutil.which("mount") and shutil.which("umount")
    if not tools or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "png"])
def test_no_half_file_on_a_full_disk(tiny_disk, ending):
    wrote = [whole_or_nothing(tiny_disk / f"a.{ending}", noise(40)[:count]) for count in (8, 40)]
    assert wrote == [True, False]
    (tiny_disk / f"a.{ending}").unlink()
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(64 << 10))
    with pytest.raises(OSError, match="No space left"):
        Video(noise(24), 8).save(tiny_disk / f"a.{ending}")
    filler.unlink()
    assert not (tiny_disk / f"a.{ending}").exists()


def test_single_frames_are_whole_on_a_full_disk(tiny_disk):
    frames = noise(40)
    with pytest.raises(OSError, match="No space left"):
        Video(frames, 8).save(tiny_disk / "frame_%05d.png")
    read = read_video(tiny_disk).frames
    assert 0 < len(read) < 40 and np.array_equal(read, frames[: len(read)])


def test_two_runs_that_write_the_same_single_frames_do_not_take_each_other_s_parts(tmp_path):
    program = "import sys, numpy, pathlib; from phenaki.video_encoders import SequenceEncoder\n"
    program += "encoder = SequenceEncoder(pathlib.Path(sys.argv[1]), 8.0, (8, 8))\n"
    program += "for _ in range(500): encoder.count = 0; encoder.write(numpy.zeros((1, 8, 8, 3), numpy.uint8))"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "%d.png")]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_a_single_frame_that_could_not_be_written_leaves_no_part(tmp_path, monkeypatch):
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, file, **options: (save(self, file, **options), os.stat(tmp_path / "none")))
    with pytest.raises(FileNotFoundError):
        Video(gradient(2), 8).save(tmp_path / "%d.png")
    assert not list(tmp_path.iterdir())


MEMORY = """
import numpy as np
from pathlib import Path
from phenaki.video import VideoWriter
def resident():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])
frames = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
import sys
with VideoWriter(sys.argv[1], fps=24, size=(64, 64)) as writer:
    for n in range(150):
        writer.write(frames)
        if n == 24:
            before = resident()
    print(resident() - before)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count")
def test_memory_does_not_grow_with_length(tmp_path):
    """500 frames are written, then 2500 more, and then the whole file is made of the part."""
    told = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "a.mp4")], capture_output=True, text=True, check=True).stdout
    assert all(int(kilobytes) < 30 << 10 for kilobytes in told.split()), told


# ---- where it is written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words",
    [
        ("folder", ["folder", "give a file name", "story.mp4"]),
        ("missing/a.mp4", ["missing does not exist", "make it"]),
        ("file.txt/a.mp4", ["file.txt does not exist"]),
        ("a.avi", ["unknown ending '.avi'", ".mp4", ".webm", ".gif", ".png"]),
        ("a", ["unknown ending ''", ".mp4"]),
        (".mp4", ["unknown ending ''"]),
        ("a.mp4.", ["unknown ending"]),
        ("x" * 300 + ".mp4", ["cannot write"]),
    ],
)
def test_bad_places(tmp_path, name, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("a file")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VideoError) as caught:
        check_output_path(tmp_path / name)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    with pytest.raises(VideoError):
        Video(gradient(1), 8).save(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_to():
    with pytest.raises(VideoError, match=r"cannot write in /proc .*choose another folder"):
        check_output_path("/proc/a.mp4")


NO_NUMBERS = [
    "%d_%d.png", "%.png", "100%.png", "%%.png", "%%d.png", "%d%%.png", "%q.png", "%i.png", "%s.png", "%u.png", "%x.png", "%.0f.png", "%-1d.png",
    "% d.png", "%+d.png", "%#d.png", "%ld.png", "%.3d.png", "%100d.png", "%\u0663d.png", "%D.png", "%(a)d.png",
]  # fmt: skip


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_a_name_without_one_place_for_the_number(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_0.png")
    for ask in (check_output_path, Video(gradient(1), 8).save):
        with pytest.raises(VideoError, match=r"one number in the name of single frames, as in frame_%05d\.png"):
            ask(tmp_path / f"frame_{name}")
    assert [path.name for path in tmp_path.iterdir()] == ["frame_0.png"]


@pytest.mark.parametrize("number", ["%d", "%5d", "%05d", "%1d", "%0d", "%00d", "%12d"])
def test_single_frames_never_take_the_place_of_what_they_are_made_from(tmp_path, number):
    path = check_output_path(tmp_path / f"f{number}.PNG")
    Video(gradient(3), 8).save(path)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 3
    for source in made:
        with pytest.raises(VideoError, match=f"would write over {source.name}"):
            check_spares(path, [source])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(made[0])
    with pytest.raises(VideoError, match="would write over link"):
        check_spares(path, [tmp_path / "folder" / "link"])
    (tmp_path / "fx.PNG").touch()
    assert check_spares(path, [tmp_path / "fx.PNG"]) == path


def test_other_files_have_no_place_for_a_number(tmp_path):
    (tmp_path / "a1.mp4").touch()
    assert check_spares(tmp_path / "a%d.mp4", [tmp_path / "a1.mp4"]) == tmp_path / "a%d.mp4"


def test_a_small_gif_that_is_shown_for_long_does_not_fill_the_memory(tmp_path, monkeypatch):
    """Two frames, the second a minute long: at the rate of the first they are 6001."""
    first, second = (Image.fromarray(pixels) for pixels in gradient(2))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=[10, 60_000])
    monkeypatch.setattr(phenaki.video_files, "MAX_BYTES", 6001 * 32 * 32 * 3)
    assert len(read_video(tmp_path / "a.gif")) == 6001
    monkeypatch.setattr(phenaki.video_files, "MAX_BYTES", 6001 * 32 * 32 * 3 - 1)
    with pytest.raises(VideoError, match=r"a\.gif: its frames take more than .*cut it into shorter files"):
        read_video(tmp_path / "a.gif")
    assert len(read_video(tmp_path / "a.gif", size=8)) == 6001, "of smaller frames more fit"


def test_frames_are_let_go_as_they_are_stacked():
    """Or they would take their memory twice, and it may be gigabytes."""
    frames, pictures = list(gradient(9)), gradient(9)
    assert np.array_equal(stacked(frames), pictures) and frames == []


def test_a_gif_whose_frames_outgrow_its_screen_is_refused(tmp_path):
    """Pillow takes them for a larger screen, so that 14 kB would unfold to 54 MB each."""
    first, second = (Image.new("RGB", (1, 1), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    block = data.rindex(b"\x2c" + struct.pack("<4H", 0, 0, 1, 1))  # a picture: x, y, width, height
    data[block + 5 : block + 9] = struct.pack("<2H", 6000, 3000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(VideoError, match=r"a frame of 6000x3000 pixels in a GIF of 1x1"):
        read_video(tmp_path / "a.gif")


def test_a_gif_cut_anywhere_is_refused_or_read(tmp_path):
    first, second = (Image.fromarray(pixels) for pixels in gradient(2, 8, 8))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], comment=b"{}")
    data = (tmp_path / "a.gif").read_bytes()
    refusals = 0
    for length in range(1, len(data)):
        (tmp_path / "cut.gif").write_bytes(data[:length])
        try:
            assert len(read_video(tmp_path / "cut.gif")) in (1, 2), length
        except VideoError as error:
            assert "not a whole GIF" in str(error), length
            refusals += 1
    assert refusals > len(data) // 2


@pytest.mark.parametrize("error", [AssertionError(), TypeError("no palette"), AttributeError("palette")], ids=repr)
def test_a_gif_that_pillow_stumbles_over_is_refused(tmp_path, monkeypatch, error):
    """As over one whose first picture has no colours while a later one has."""
    Image.new("RGB", (9, 11)).save(tmp_path / "a.gif")

    def convert(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(VideoError, match=r"a\.gif: not a whole GIF"):
        read_video(tmp_path / "a.gif")


def test_a_gif_whose_colours_are_said_to_be_others_is_refused_or_read(tmp_path):
    grey, other = (Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 11, 3), np.uint8)).quantize(16) for seed in (0, 1))
    grey.save(tmp_path / "a.gif", save_all=True, append_images=[other])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    for bits in range(256):
        data[10] = bits
        (tmp_path / "a.gif").write_bytes(data)
        with contextlib.suppress(VideoError):
            read_video(tmp_path / "a.gif")


def test_a_gif_of_billions_of_pixels_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "a.gif")
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<2H", 60_000, 60_000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.gif: too many pixels; at most 4096 a side are read"):
        read_video(tmp_path / "a.gif")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_picture_stands_as_its_camera_was_held(tmp_path, ending):
    """Orientation 6: what is stored lies on its left side, so its left edge is the upright picture's top."""
    stored, exif = np.zeros((16, 32, 3), np.uint8), Image.Exif()
    stored[:, :16] = 255
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / f"a.{ending}", exif=exif)
    upright = read_image(tmp_path / f"a.{ending}")
    assert upright.shape == (32, 16, 3) and upright[:12].min() > 200 and upright[20:].max() < 55
    exif[0x0112] = 1
    Image.fromarray(stored).save(tmp_path / f"b.{ending}", exif=exif)
    assert read_image(tmp_path / f"b.{ending}").shape == (16, 32, 3)


def test_a_picture_is_turned_though_its_exif_block_cannot_be_written_anew(tmp_path):
    """Its compression is a text where Pillow needs a number."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "as told"
    block = exif.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x03\x00\x02")
    Image.new("RGB", (32, 16)).save(tmp_path / "a.jpg", exif=block)
    with Image.open(tmp_path / "a.jpg") as picture, pytest.raises(struct.error):
        ImageOps.exif_transpose(picture)
    assert read_image(tmp_path / "a.jpg").shape == (32, 16, 3)


def test_a_picture_with_a_senseless_exif_block_is_read_as_stored(tmp_path):
    Image.fromarray(gradient(1, 16, 32)[0]).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (16, 32, 3)


@pytest.mark.parametrize("fps", [8, 60])
def test_frames_that_last_for_days_are_not_written_out(tmp_path, monkeypatch, fps):
    Video(gradient(3), 0.01).save(tmp_path / "a.mp4")
    monkeypatch.setattr(phenaki.video_files, "MAX_FRAMES", 2000)
    with pytest.raises(VideoError, match=rf": 3 frames at 0\.01 fps last 300 s: at {fps} fps they are {300 * fps}, at most 2000 are read"):
        read_video(tmp_path / "a.mp4", fps=fps)
    with pytest.raises(VideoError, match="at most 2000"):
        FrameSource.of(tmp_path / "a.mp4").numbers(fps)
    monkeypatch.setattr(phenaki.video_files, "MAX_FRAMES", 300 * fps)
    monkeypatch.setattr(phenaki.video_files, "MAX_BYTES", 299 * fps * 32 * 32 * 3)
    with pytest.raises(VideoError, match="take more than"):
        read_video(tmp_path / "a.mp4", fps=fps)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("o.mp4", ".o.whole.mp4"), ("o.webm", ".o.whole.webm"),
        ("%d.png", ".0.png.part-{}"), ("o.gif", ".o.gif.part-{}"), ("o.png", ".o.png.part-{}"),
    ],
)  # fmt: skip
def test_nothing_is_written_through_a_link_that_has_a_parts_name(tmp_path, name, part):
    (tmp_path / "victim").write_text("not ours")
    part = part.format(os.getpid())
    with VideoWriter(tmp_path / name, fps=8, size=(32, 32)) as writer:
        (tmp_path / part).symlink_to(tmp_path / "victim")
        writer.write(gradient(2))
    assert (tmp_path / "victim").read_text() == "not ours" and not (tmp_path / part).is_symlink()
    assert not any(path.is_symlink() for path in tmp_path.iterdir())


@pytest.mark.parametrize(("fps", "told"), [(120, "120"), (0.001, "0.001")])
def test_a_gif_of_more_than_a_hundred_frames_a_second_or_hardly_any(tmp_path, fps, told):
    with pytest.raises(VideoError, match=rf"{told} frames a second.*at least 0\.002 and at most 100.*mp4"):
        Video(gradient(3), fps).save(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ending", "fps"), [("mp4", 1e-5), ("webm", 1e-4), ("gif", 0.002)])
def test_the_slowest_videos(tmp_path, ending, fps):
    Video(gradient(3), fps).save(tmp_path / f"a.{ending}")
    assert read_video(tmp_path / f"a.{ending}").fps == pytest.approx(fps)


def test_a_writer_of_an_impossible_rate(tmp_path):
    for fps in (0, 1e-6, float("nan"), 1000):
        with pytest.raises(VideoError, match="fps"):
            VideoWriter(tmp_path / "a.mp4", fps=fps, size=(32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [{"seed": np.int64(3)}, {"title": {1, 2}}, {"title": "\ud800"}], ids=["int64", "set", "surrogate"])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.png", "%d.png"])
def test_a_script_that_json_cannot_hold_is_told_before_anything_is_written(tmp_path, name, script):
    with pytest.raises(VideoError, match=r"its script cannot be written as JSON \("):
        VideoWriter(tmp_path / name, fps=8, size=(32, 32), script=script)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", FILES)
def test_a_rate_of_numpys_is_a_rate(tmp_path, ending):
    Video(gradient(2), np.float32(12.5)).save(tmp_path / f"a.{ending}")
    assert read_video(tmp_path / f"a.{ending}").fps == 12.5


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 32), np.uint8),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 16, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
    ],
    ids=lambda frames: f"{frames.dtype}{frames.shape}",
)
def test_the_writer_takes_only_frames_of_its_own_kind(tmp_path, frames):
    with pytest.raises(VideoError) as caught, VideoWriter(tmp_path / "a.mp4", fps=8, size=(32, 32)) as writer:
        writer.write(frames)
    assert f"{frames.dtype} {frames.shape}" in str(caught.value) and "uint8 (f, 32, 32, 3)" in str(caught.value)


@pytest.mark.parametrize(
    "frames, fps, words",
    [
        ([[1]], 8, ["list", "uint8 (f, h, w, 3)"]),
        (np.zeros((1, 2, 2, 3)), 8, ["float64 (1, 2, 2, 3)", "uint8"]),
        (np.zeros((2, 2, 3), np.uint8), 8, ["uint8 (2, 2, 3)"]),
        (np.zeros((0, 2, 2, 3), np.uint8), 8, ["(0, 2, 2, 3)", "at least one frame"]),
        (gradient(1), 0, ["fps 0", "0.00001 or more"]),
        (gradient(1), 1e-6, ["fps 1e-06", "0.00001 or more"]),
        (gradient(1), -1, ["fps -1"]),
        (gradient(1), float("nan"), ["fps nan"]),
        (gradient(1), 1000, ["fps 1000", "less than 1000"]),
    ],
)
def test_what_a_video_is_made_of(frames, fps, words):
    with pytest.raises(VideoError) as caught:
        Video(frames, fps)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_a_video_tells_of_itself():
    video = Video(gradient(12), 8, SCENES, SCRIPT)
    assert len(video) == 12 and video.seconds == 1.5
    assert repr(video) == "Video(12 frames of 32x32, 1.50 s at 8 fps, 2 scenes)"
    page = Video(gradient(3), 8, (VideoScene("<script>alert(1)</script>", 0, 3),))._repr_html_()
    assert "<script>" not in page and "data:video/mp4;base64," in page


# ---- files that cannot be trusted ----------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path) -> Path:
    Video(noise(24), 8).save(tmp_path / "good.mp4")
    return tmp_path / "good.mp4"


def test_playlists_do_not_lead_to_other_files(tmp_path, good):
    playlists = {
        "concat": f"ffconcat version 1.0\nfile {good.name}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{good.name}\n#EXT-X-ENDLIST\n",
        "hls-file": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{good}\n#EXT-X-ENDLIST\n",
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{good}</BaseURL></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    os.utime(good, (1, 1))  # read at the beginning of time
    for name, text in playlists.items():
        for ending in ("mp4", "webm", "mov", "m3u8", "ffconcat", "gif"):
            path = tmp_path / f"{name}.{ending}"
            path.write_text(text)
            refused(path)
            assert good.stat().st_atime == 1
    with av.open(str(tmp_path / "concat.mp4"), options={"safe": "0"}):  # as it would be without the list of allowed formats
        assert good.stat().st_atime != 1 or os.statvfs(tmp_path).f_flag & os.ST_NOATIME


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.mp4", "concat:good.mp4|good.mp4", "data:video/mp4;base64,AA", "file:good.mp4"])
def test_addresses_are_names_of_files(tmp_path, monkeypatch, good, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="No such file"):
        read_video(address)


@pytest.mark.parametrize("ending", FILES)
def test_a_truncated_file_is_refused(tmp_path, ending):
    Video(noise(24), 8).save(tmp_path / f"a.{ending}")
    whole = (tmp_path / f"a.{ending}").read_bytes()
    for twentieths in range(20):
        (tmp_path / f"b.{ending}").write_bytes(whole[: len(whole) * twentieths // 20])
        refused(tmp_path / f"b.{ending}")


@pytest.mark.parametrize("ending", FILES)
def test_a_damaged_file_never_has_another_number_of_frames(tmp_path, ending):
    Video(noise(24), 8, SCENES, SCRIPT).save(tmp_path / f"a.{ending}")
    whole, draw, told = (tmp_path / f"a.{ending}").read_bytes(), random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        start = draw.randrange(len(whole) // 4, 3 * len(whole) // 4)
        for at in range(start, start + draw.choice([1, 4, 64])):
            damaged[at] ^= draw.randrange(1, 256)
        (tmp_path / f"b.{ending}").write_bytes(damaged)
        try:
            assert len(read_video(tmp_path / f"b.{ending}")) == 24
        except VideoError:
            told += 1
    assert told > 0 or ending == "webm"  # VP9 has no checksums


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.mp4", b"this is a text, not a video\n" * 100),
        ("a.mp4", b""),
        ("a.webm", b""),
        ("a.gif", b""),
        ("a.gif", b"GIF89a"),
        ("a.png", b""),
        ("a.jpg", b"not a picture"),
        ("a.mp4", b"\0" * 5000),
        ("a.xyz", b"<?php"),
    ],
)
def test_what_is_no_video_at_all(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not a whole")


@pytest.mark.parametrize("ending", ["mp4", "gif", "png"])
def test_what_is_not_there(tmp_path, ending):
    refused(tmp_path / f"a.{ending}", "No such file")


def test_a_picture_under_a_videos_name_is_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
        shutil.copy(tmp_path / name, tmp_path / "b.mp4")
        refused(tmp_path / "b.mp4", "not a whole video file")


def test_a_video_under_a_pictures_name_is_refused(tmp_path, good):
    shutil.copy(good, tmp_path / "a.png")
    refused(tmp_path / "a.png", "not a whole picture")


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), mode="w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    refused(tmp_path / "a.mp4", "no video stream")


def test_another_programs_video_is_read(tmp_path):
    """B-frames, no comment, no chapters, a size of its own."""
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mov", "mpeg4")):
        with av.open(str(tmp_path / name), mode="w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for pixels in gradient(30, 32, 48):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        read = read_video(tmp_path / name)
        assert read.frames.shape == (30, 32, 48, 3) and read.fps == 25 and read.script is None and read.scenes == ()


def test_a_video_without_a_frame_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        encoded(container, [])
    refused(tmp_path / "a.avi", "holds no frames")


def test_fewer_or_more_frames_than_the_header_promises_are_refused(tmp_path):
    for promised in (4, 5, 6):
        with av.open(str(tmp_path / "a.webm"), "w") as container:
            encoded(container, gradient(5), "libvpx", metadata={FRAMES_TAG: str(promised)})
        if promised == 5:
            assert len(read_video(tmp_path / "a.webm")) == 5
        else:
            refused(tmp_path / "a.webm", f"its header promises {promised} frames, 5 could be decoded: it is damaged")


def test_frames_that_change_their_size_are_refused(tmp_path):
    whole = b""
    for side in (32, 48):
        with av.open(str(tmp_path / "part.ts"), "w") as container:
            encoded(container, gradient(3, side, side), "libx264")
        whole += (tmp_path / "part.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(whole)
    refused(tmp_path / "a.ts", "its frames change their size")


@pytest.mark.parametrize(("rate", "told"), [(2000, "2000.0 frames a second is not a rate"), (1000, "1000.0 frames a second is not a rate")])
def test_a_rate_that_no_video_has_is_refused(tmp_path, rate, told):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        encoded(container, gradient(3), "libx264", rate=rate)
    refused(tmp_path / "a.mkv", told)


def test_words_in_another_encoding_do_not_keep_a_video_from_being_read(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["title"] = "CaféXY"
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        for frame in [*(av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in gradient(5)), None]:
            container.mux(stream.encode(frame))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data.replace("CaféXY".encode(), b"Caf\xe9\xe9XY"))
    assert data != (tmp_path / "b.mp4").read_bytes()
    assert np.array_equal(read_video(tmp_path / "b.mp4").frames, read_video(tmp_path / "a.mp4").frames)


def test_more_frames_than_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("phenaki.video_files.MAX_BYTES", 20_000)
    monkeypatch.setattr("phenaki.video.MAX_BYTES", 20_000)
    for name in ("a.mp4", "a.gif", "frame_%05d.png"):
        Video(noise(24), 8).save(tmp_path / name)
    for path in (tmp_path / "a.mp4", tmp_path / "a.gif", tmp_path):
        refused(path, "memory")
        if path != tmp_path:
            assert len(read_video(path, size=16)) == 24  # what counts is what is kept


def png_header(width: int, height: int) -> bytes:
    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = block(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + block(b"IDAT", zlib.compress(b"\0" * 1000)) + block(b"IEND", b"")


@pytest.mark.parametrize("width, height", [(60_000, 60_000), (10_000, 8_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_enormous_size_is_refused_unread(tmp_path, width, height):
    (tmp_path / "a.png").write_bytes(png_header(width, height))
    started = time.perf_counter()
    refused(tmp_path / "a.png", "pixels", "at most 64000000 are read")
    assert time.perf_counter() - started < 2


def test_a_picture_with_a_text_bomb_is_refused(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (2 << 20), zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    refused(tmp_path / "a.png", "not a whole picture")


def test_folders_without_pictures_and_of_several_sizes(tmp_path):
    refused(tmp_path, "holds no pictures", ".png")
    (tmp_path / "notes.txt").write_text("a")
    Image.new("RGB", (8, 8)).save(tmp_path / ".hidden.png")
    refused(tmp_path, "holds no pictures")
    Image.new("RGB", (32, 16)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    with pytest.raises(VideoError, match=r"b\.png: 16x16 pixels, a\.png has 32x16.*size="):
        read_video(tmp_path)
    assert read_video(tmp_path, size=8).frames.shape == (2, 8, 8, 3)


# ---- contact sheets ------------------------------------------------------------------------------------------------


def test_a_row_holds_its_own_scenes_frames():
    shades = np.array([10] * 5 + [200] * 7, np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (12, 16, 16, 3)).copy()
    sheet = contact_sheet(frames, SCENES, columns=4, scale=2)
    label = LABEL_HEIGHT
    assert sheet.shape == (2 * (32 + label), 4 * 32, 3) and sheet.dtype == np.uint8
    assert (sheet[label : label + 32] == 10).all() and (sheet[2 * label + 32 :] == 200).all()
    for top in (0, label + 32):  # the prompts: dark letters on white
        assert sheet[top : top + label].max() == 255 and sheet[top : top + label].min() < 100


def test_a_sheet_without_scenes_has_every_frame():
    frames = gradient(10)
    sheet = contact_sheet(frames, columns=4)
    assert sheet.shape == (3 * 32, 4 * 32, 3)
    for n, pixels in enumerate(frames):
        row, column = divmod(n, 4)
        assert np.array_equal(sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32], pixels)
    assert (sheet[64:, 64:] == 255).all()


def test_every_nth_frame():
    sheet = Video(gradient(12), 8, SCENES).contact_sheet(columns=2, every=3)  # frames 0 3, and 5 8, 11
    frames, label = gradient(12), LABEL_HEIGHT
    assert sheet.shape == (3 * 32 + 2 * label, 64, 3)
    assert np.array_equal(sheet[label : label + 32], np.concatenate([frames[0], frames[3]], axis=1))
    assert np.array_equal(sheet[-32:, :32], frames[11])


def test_a_saved_sheet_is_twice_the_size_and_whole(tmp_path):
    Video(gradient(12), 8, SCENES, SCRIPT).save(tmp_path / "a.png")
    label = LABEL_HEIGHT
    assert read_image(tmp_path / "a.png").shape == (2 * (64 + label), 8 * 64, 3)


def test_a_grey_picture_of_16_bits_keeps_its_brightness(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((16, 16), 32768, np.uint16)).save(path)
    assert (read_image(path) == 127).all()


@pytest.mark.parametrize("name", ["frame_%d.png", "frame_%02d.png", "%d of 12.png"])
def test_pictures_of_a_folder_are_in_the_order_of_their_numbers(tmp_path, name):
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3)
    Video(frames, 8.0).save(tmp_path / name)
    assert np.array_equal(read_video(tmp_path).frames, frames)


def test_names_without_numbers_or_with_equal_ones_have_an_order_too(tmp_path):
    for name in ("b.png", "a.png", "a1.png", "a01.png", "2.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    assert [file.name for file in pictures_in(tmp_path)] == ["2.png", "a01.png", "a1.png", "a.png", "b.png"]


def test_single_frames_of_a_longer_video_go_away(tmp_path):
    for number in (5, 3):
        Video(np.full((number, 16, 16, 3), number, np.uint8), 8.0).save(tmp_path / "f_%d.png")
    (tmp_path / "f_9.png").write_bytes(b"of something else")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f_0.png", "f_1.png", "f_2.png", "f_9.png"]


def test_a_gif_that_stands_still_for_too_long_is_told(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"as it was")
    with pytest.raises(VideoError, match=r"a.gif: a picture stands still for longer than the 655 s that a GIF can tell; write .mp4 or .webm"):
        Video(np.zeros((2, 16, 16, 3), np.uint8), 0.002).save(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").read_bytes() == b"as it was" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("options", [{"columns": 0}, {"every": 0}, {"every": -1}, {"scale": 0}], ids=str)
def test_a_contact_sheet_of_no_size_is_refused(options):
    (name, value), = options.items()
    with pytest.raises(VideoError, match=f"{name} {value}: needed at least 1"):
        Video(np.zeros((2, 16, 16, 3), np.uint8), 8.0).contact_sheet(**options)


def test_a_gif_of_more_pixels_than_are_decoded_in_minutes_is_refused(tmp_path, monkeypatch):
    Video(np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8), 8.0).save(tmp_path / "a.gif")
    assert len(read_video(tmp_path / "a.gif")) == 5
    monkeypatch.setattr("phenaki.gif_files.MAX_PIXELS", 5 * 16 * 16 - 1)
    with pytest.raises(VideoError, match="5 frames of 16x16; that is more than is read"):
        read_video(tmp_path / "a.gif")
