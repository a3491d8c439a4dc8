"""A story into a file: killed at any moment it plays to its last chunk, and goes on to the file of a run that was never killed."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import save_tiny

import phenaki.video
from phenaki.checkpoint import Model, load_model, weights_hash
from phenaki.locks import BusyError
from phenaki.part_file import PartFile, PartFileError
from phenaki.pipeline import Phenaki
from phenaki.recording import MadeTokens, generate_to_file, keep_unfinished, label_of, note_of
from phenaki.scene_files import content_hash
from phenaki.story import Story, StoryError
from phenaki.text import TextEncoder
from phenaki.video import Video, VideoError, VideoWriter, read_video
from phenaki.video_encoders import StreamEncoder, part_path

STORY = [("a bear walks", 3.5), ("a panda sleeps", 2.0), {"prompt": "a red house", "seconds": 3.0, "cut": True}]


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Phenaki:
    text_encoder = TextEncoder.load()
    model = load_model(save_tiny(tmp_path_factory.mktemp("model"), text_encoder.fingerprint))
    return Phenaki(model, text_encoder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module", params=["mp4", "webm"])
def unkilled(request, ready, tmp_path_factory) -> Path:
    """The video of a run that nobody stopped."""
    path = tmp_path_factory.mktemp("unkilled") / f"a.{request.param}"
    generate_to_file(ready, STORY, path)
    return path


def played(path: Path) -> np.ndarray:
    """What a player shows of a file, however it ends: (f h w 3) uint8; no frames where it does not open."""
    frames = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, EOFError):
        pass
    return np.stack(frames) if frames else np.zeros((0, 32, 32, 3), np.uint8)


def in_a_process(work) -> int:
    """The id of a child that does `work()`, and ends with status 0 where it went well."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- killed --------------------------------------------------------------------------------------------------------


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(ready, unkilled, tmp_path):
    whole, path, draw = played(unkilled), tmp_path / unkilled.name, random.Random(3)
    part, seen, ended = part_path(path), [0], 0
    while not ended and not path.exists():
        child = in_a_process(lambda: generate_to_file(ready, STORY, path, resume=True))
        enough = size_of(part) + draw.randrange(12_000)  # bytes: a few chunks
        while size_of(part) < enough and not (ended := os.waitpid(child, os.WNOHANG)[0]):
            time.sleep(0.005)
        if not ended:
            time.sleep(draw.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        shown = whole if path.exists() else played(part)
        assert np.array_equal(shown, whole[: len(shown)]) and len(shown) >= seen[-1]
        seen.append(len(shown))
    assert path.read_bytes() == unkilled.read_bytes() and len(set(seen)) > 3


def killed_in_a_write(nth: int, share: float):
    """SIGKILL when a share of the nth piece is written."""

    def install():
        append, count = PartFile.append, []

        def appending(self, piece, num_frames, note=b""):
            count.append(num_frames)
            if len(count) == nth + 2:  # the first is the label
                self.file.seek(self.end)
                self.file.write(piece[: int(share * len(piece))])
                kill_self()
            append(self, piece, num_frames, note)

        PartFile.append = appending

    return install


def killed_in(owner, name: str, before: bool):
    """SIGKILL just before a function, or just after."""

    def install():
        function = getattr(owner, name)

        def called(*arguments, **options):
            if not before:
                function(*arguments, **options)
            kill_self()

        setattr(owner, name, called)

    return install


MOMENTS = {
    "before the label": (killed_in(PartFile, "begin", before=True), 0),
    "after the label": (killed_in(PartFile, "begin", before=False), 0),
    "in the first piece": (killed_in_a_write(0, 0.5), 0),
    "in the third piece": (killed_in_a_write(2, 0.99), 2),
    "in the last piece": (killed_in_a_write(12, 0.3), 12),
    "before it is whole": (killed_in(StreamEncoder, "finish", before=True), None),
    "before it is renamed": (killed_in(phenaki.video, "put", before=True), None),
    "after it is renamed": (killed_in(phenaki.video, "put", before=False), None),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_bad_moment(ready, unkilled, tmp_path, moment):
    path, whole, num_chunks = tmp_path / unkilled.name, played(unkilled), ready.plan(STORY).num_chunks
    install, kept = MOMENTS[moment]
    assert num_chunks == 13

    def work():
        install()
        generate_to_file(ready, STORY, path)

    _, status = os.waitpid(in_a_process(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and path.exists() == (moment == "after it is renamed")
    chunks = list(ready.stream_story(STORY))
    wanted = sum(len(chunk.frames) for chunk in chunks[:kept])
    shown = played(part_path(path))  # of a piece that is half there a player may try the beginning
    assert np.array_equal(shown[:wanted], whole[:wanted]) and (len(shown) == wanted or "piece" in moment)
    notes = []
    written = generate_to_file(ready, STORY, path, resume=True, on_note=notes.append)
    assert written.num_frames == len(whole) and path.read_bytes() == unkilled.read_bytes()
    told = f"goes on after {wanted} frames, {num_chunks if kept is None else kept} of {num_chunks} chunks"
    assert notes == [f"{path}: {told if wanted else 'there is nothing to go on with, so it begins at the first frame'}"]
    assert list(tmp_path.iterdir()) == [path]


def stopped(ready, path: Path, monkeypatch, after: int, **options) -> None:
    """Leaves the part file of a run that was interrupted after some chunks."""
    stream = Phenaki.stream

    def stopping(self, *arguments):
        for number, chunk in enumerate(stream(self, *arguments)):
            yield chunk
            if number == after - 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Phenaki, "stream", stopping)
        with pytest.raises(KeyboardInterrupt) as caught:
            generate_to_file(ready, options.pop("story", STORY), path, **options)
    assert any(str(part_path(path)) in note and "goes on from there" in note for note in caught.value.__notes__)


def test_a_part_file_cut_or_damaged_anywhere_is_gone_on_with(ready, unkilled, tmp_path, monkeypatch):
    path, draw = tmp_path / unkilled.name, random.Random(0)
    stopped(ready, path, monkeypatch, after=6)
    left = part_path(path).read_bytes()
    for _ in range(4):
        data = bytearray(left[: draw.randrange(len(left) + 1)])
        for _ in range(draw.randrange(2)):
            data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        part_path(path).write_bytes(data)
        generate_to_file(ready, STORY, path, resume=True)
        assert path.read_bytes() == unkilled.read_bytes()
        path.unlink()


def test_a_run_goes_on_by_itself_where_it_is_the_same_and_else_begins_anew(ready, unkilled, tmp_path, monkeypatch):
    path = tmp_path / unkilled.name
    notes = []
    stopped(ready, path, monkeypatch, after=3)
    generate_to_file(ready, STORY, path, on_note=notes.append)
    assert path.read_bytes() == unkilled.read_bytes() and len(notes) == 1 and "goes on after" in notes.pop()
    generate_to_file(ready, STORY, path, on_note=notes.append)
    assert path.read_bytes() == unkilled.read_bytes() and not notes

    stopped(ready, path, monkeypatch, after=3, seed=8)
    generate_to_file(ready, STORY, path, on_note=notes.append)
    assert path.read_bytes() == unkilled.read_bytes() and len(notes) == 1 and notes[0].startswith("begins anew: ") and "seed = 8" in notes.pop()

    stopped(ready, path, monkeypatch, after=3)
    generate_to_file(ready, STORY, path, on_note=notes.append, resume=False)
    assert path.read_bytes() == unkilled.read_bytes() and not notes


def test_what_another_run_left_unfinished_is_kept(ready, tmp_path, monkeypatch):
    path, notes, kept = tmp_path / "a.mp4", [], []
    part = part_path(path)
    for number in (1, 2):
        stopped(ready, path, monkeypatch, after=3, seed=8)
        before = part.read_bytes()
        generate_to_file(ready, STORY, path, on_note=notes.append)
        kept.append(tmp_path / f".a.part-{number}.mp4")
        told = f"{part}: was begun with seed = 8, not 0. What is in it plays, and is kept as {kept[-1]}; to go on with it, name it .a.part.mp4 again"
        assert notes.pop() == f"begins anew: {told}" and not notes
        assert kept[-1].read_bytes() == before and len(played(kept[-1])) > 3
    kept[0].rename(part)
    generate_to_file(ready, STORY, path, on_note=notes.append, seed=8)
    assert "goes on after" in notes.pop() and sorted(tmp_path.iterdir()) == sorted([kept[1], path])

    PartFile(part).begin(b"", {"another": "label"})
    generate_to_file(ready, STORY, path, on_note=notes.append)
    assert notes[0].startswith("begins anew: ") and "kept" not in notes.pop(), "no frames were in it"
    assert sorted(tmp_path.iterdir()) == sorted([kept[1], path])


def test_what_is_being_written_is_not_moved_away(ready, tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    stopped(ready, path, monkeypatch, after=3)
    held = PartFile(part_path(path))
    with pytest.raises(BusyError, match="another run is writing this video"):
        keep_unfinished(path)
    held.close()
    assert part_path(path).exists() and "is kept as" in keep_unfinished(path) and not part_path(path).exists()
    assert keep_unfinished(path) == ""


def test_a_full_disk_leaves_what_can_be_gone_on_with(ready, unkilled, tmp_path, monkeypatch):
    path, append = tmp_path / unkilled.name, PartFile.append

    def full(self, piece, num_frames, note=b""):
        if self.num_frames > 20:
            raise OSError(28, "No space left on device")
        append(self, piece, num_frames, note)

    with monkeypatch.context() as patched:
        patched.setattr(PartFile, "append", full)
        with pytest.raises(OSError, match="No space left") as caught:
            generate_to_file(ready, STORY, path)
    assert str(part_path(path)) in caught.value.__notes__[0] and len(played(part_path(path))) > 20
    generate_to_file(ready, STORY, path, resume=True)
    assert path.read_bytes() == unkilled.read_bytes()


REMEMBERING = [
    {"prompt": "a bear walks", "seconds": 2.5, "remember": "bear"},
    {"prompt": "a red house", "seconds": 2.0, "cut": True},
    {"prompt": "a bear sleeps", "seconds": 3.0, "recall": "bear", "cut": True},
]


@pytest.mark.parametrize("context", ["tokens", "frames"])
def test_memories_and_frames_are_found_again(ready, tmp_path, monkeypatch, context):
    generate_to_file(ready, REMEMBERING, tmp_path / "whole.mp4", context=context)
    for after in (3, 8):
        path = tmp_path / f"{after}.mp4"
        stopped(ready, path, monkeypatch, after=after, story=REMEMBERING, context=context)
        other = "frames" if context == "tokens" else "tokens"
        with pytest.raises(PartFileError, match=rf'sampling\.context = "{context}", not "{other}"'):
            generate_to_file(ready, REMEMBERING, path, resume=True, context=other)
        generate_to_file(ready, REMEMBERING, path, resume=True, context=context)
        assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_model_may_be_given_by_its_name(ready, tmp_path):
    ready.save_pretrained(tmp_path / "model")
    generate_to_file(tmp_path / "model", STORY, tmp_path / "a.mp4", seed=3)
    generate_to_file(ready, STORY, tmp_path / "b.mp4", seed=3)
    assert np.array_equal(read_video(tmp_path / "a.mp4").frames, read_video(tmp_path / "b.mp4").frames)


@pytest.mark.parametrize("fps", [1.0, 24.0])
def test_at_another_rate_it_goes_on_too(ready, tmp_path, monkeypatch, fps):
    """At one frame a second some chunks have no frame."""
    generate_to_file(ready, STORY, tmp_path / "whole.mp4", fps=fps)
    stopped(ready, tmp_path / "a.mp4", monkeypatch, after=4, fps=fps)
    generate_to_file(ready, STORY, tmp_path / "a.mp4", fps=fps, resume=True)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert len(read_video(tmp_path / "a.mp4")) == int(8.5 * fps + 0.5), "halves go up, as of a plan"


def test_the_file_in_the_end_is_a_plain_one(unkilled):
    video = read_video(unkilled)
    assert [scene.prompt for scene in video.scenes] == ["a bear walks", "a panda sleeps", "a red house"] and video.script["seed"] == 0
    with av.open(str(unkilled)) as container:
        container.seek(7 * av.time_base, backward=True)
        frame = next(container.decode(video=0))
        assert 5.9 <= frame.time <= 7 and np.array_equal(frame.to_ndarray(format="rgb24"), played(unkilled)[round(frame.time * 8)])
    if unkilled.suffix == ".mp4":
        data = unkilled.read_bytes()
        assert b"moof" not in data and data.index(b"moov") < data.index(b"mdat")  # not in fragments; it can be played while it is fetched


# ---- refused -------------------------------------------------------------------------------------------------------


def test_another_story_or_setting_is_refused(ready, tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    stopped(ready, path, monkeypatch, after=2)
    before = part_path(path).read_bytes()
    other = [*STORY[:2], {"prompt": "a blue house", "seconds": 3.0, "cut": True}]
    for story, options, words in [
        (other, {}, r'scenes\[2\]\.prompt = "a red house", not "a blue house"'),
        (STORY[:2], {}, r"scenes\[2\] = "),
        (STORY, {"seed": 1}, "seed = 0, not 1"),
        (STORY, {"num_steps": 3}, r"sampling\.num_steps = 2, not 3"),
        (STORY, {"guidance_scale": 1}, r"sampling\.guidance_scale = 3\.0, not 1"),
        (STORY, {"fps": 24}, r"fps = 8\.0, not 24"),
        (STORY, {"negative": "letters"}, 'negative = "", not "letters"'),
    ]:
        with pytest.raises(PartFileError, match=words):
            generate_to_file(ready, story, path, resume=True, **options)
    with pytest.raises(StoryError):
        generate_to_file(ready, [], path, resume=True)
    assert part_path(path).read_bytes() == before


def test_other_weights_and_another_picture_are_refused(ready, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "house.png")
    (tmp_path / "a.yaml").write_text("scenes:\n  - {prompt: a bear, seconds: 2, image: house.png}\n")
    stopped(ready, tmp_path / "a.mp4", monkeypatch, after=2, story=tmp_path / "a.yaml")
    info = replace(ready.info, files={name: value[::-1] for name, value in ready.info.files.items()})
    changed = Phenaki(Model(info, ready.tokenizer, ready.generator), ready.text_encoder, ready.device, ready.dtype)
    with pytest.raises(PartFileError, match=r"weights = \""):
        generate_to_file(changed, tmp_path / "a.yaml", tmp_path / "a.mp4", resume=True)
    half = Phenaki(Model(ready.info, ready.tokenizer, ready.generator), ready.text_encoder, ready.device, torch.bfloat16)
    with pytest.raises(PartFileError, match=r"dtype = \"torch\.float32\", not \"torch\.bfloat16\""):
        generate_to_file(half, tmp_path / "a.yaml", tmp_path / "a.mp4", resume=True)
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "house.png")
    with pytest.raises(PartFileError, match=r"scenes\[0\]\.image = "):
        generate_to_file(ready, tmp_path / "a.yaml", tmp_path / "a.mp4", resume=True)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "house.png")
    assert generate_to_file(ready, tmp_path / "a.yaml", tmp_path / "a.mp4", resume=True).num_frames == 16


def test_the_weights_of_a_model_that_was_never_saved_are_hashed_too(ready):
    info, networks = replace(ready.info, files={}), (ready.tokenizer, ready.generator)
    before = weights_hash(info, networks)
    assert before == weights_hash(info, networks) != weights_hash(ready.info, networks)
    with torch.no_grad():
        weight = next(ready.generator.parameters())
        weight.flatten()[0] += 1
        assert weights_hash(info, networks) != before
        weight.flatten()[0] -= 1


@pytest.mark.parametrize("name", ["a.gif", "a.png", "frame_%05d.png"])
def test_what_cannot_be_gone_on_with(ready, tmp_path, name):
    with pytest.raises(VideoError, match=r"only \.mp4 and \.webm"):
        generate_to_file(ready, STORY, tmp_path / name, resume=True)
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_write_one_video(ready, tmp_path, monkeypatch):
    path, stream = tmp_path / "a.mp4", Phenaki.stream

    def meanwhile(self, *arguments):
        for number, chunk in enumerate(stream(self, *arguments)):
            if number == 1:
                before = part_path(path).read_bytes()
                for resume in (False, True):
                    with pytest.raises(BusyError, match="another run is writing this video"):
                        generate_to_file(ready, STORY, path, resume=resume)
                assert part_path(path).read_bytes() == before
            yield chunk

    monkeypatch.setattr(Phenaki, "stream", meanwhile)
    assert generate_to_file(ready, STORY, path).num_frames == len(read_video(path)) == 68


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_tokens_come_back_from_their_notes():
    tokens = torch.randint(2**20, (3, 4, 5))
    made = MadeTokens([note_of(tokens), note_of(tokens[:1])], (4, 5), 2**20)
    assert len(made) == 2 and torch.equal(made[0], tokens) and torch.equal(made[1], tokens[:1]) and made[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (b"", "a note of 0 bytes, a slice has 80"), (bytes(79), "79 bytes"), (bytes(81), "81 bytes"),
        (note_of(torch.full((1, 4, 5), 9)), "none of the model's 9"), (note_of(torch.full((1, 4, 5), -1)), "none of the model's 9"),
    ],
)  # fmt: skip
def test_a_note_that_holds_no_tokens_is_told(note, words):
    with pytest.raises(PartFileError, match=words):
        _ = MadeTokens([note], (4, 5), 9)[0]


@pytest.mark.parametrize(
    ("num_frames", "num_slices", "words"),
    [(0, 3, "has 0 frames where its chunks have"), (99, 3, "has 99 frames where"), (5, 2, "made with 2 slices, the plan has 3")],
)
def test_a_part_file_of_the_right_label_and_wrong_pieces_is_refused(ready, tmp_path, num_frames, num_slices, words):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, fps=8, size=(32, 32)) as writer:
        part = PartFile(tmp_path / "b.mp4")
        part.begin(writer.encoder.start, label_of(ready, ready.prepare(STORY)))
        part.append(b"", num_frames, note_of(torch.zeros(num_slices, *ready.grid)))
        part.close()
        writer.write(np.zeros((1, 32, 32, 3), np.uint8))
    (tmp_path / "b.mp4").rename(part_path(path))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words):
        generate_to_file(ready, STORY, path, resume=True)
    assert path.read_bytes() == before


def test_a_disk_that_fails_when_it_goes_on_costs_nothing(ready, unkilled, tmp_path, monkeypatch):
    path = tmp_path / unkilled.name
    stopped(ready, path, monkeypatch, after=3)
    before = part_path(path).read_bytes()

    def failing(self, start, label):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(PartFile, "go_on", failing)
        with pytest.raises(OSError, match="Input/output"):
            generate_to_file(ready, STORY, path, resume=True)
    assert part_path(path).read_bytes() == before


@pytest.mark.parametrize(("field", "output"), [("image", "house.png"), ("end_image", "house.png"), ("image", "h%d.png"), ("video", "clip.mp4")])
def test_what_a_story_is_made_from_is_not_written_over(ready, tmp_path, field, output):
    given = {"h%d.png": "h7.png"}.get(output, output)
    (Image.new("RGB", (40, 40), "red") if given.endswith("png") else Video(np.zeros((9, 32, 32, 3), np.uint8), 8.0)).save(tmp_path / given)
    before, names = (tmp_path / given).read_bytes(), sorted(tmp_path.iterdir())
    story = Story.of([{"prompt": "a bear", "seconds": 2.0, field: str(tmp_path / given)}])
    with pytest.raises(VideoError, match=f"would write over {given}, which it is made from"):
        generate_to_file(ready, story, tmp_path / output)
    assert (tmp_path / given).read_bytes() == before and sorted(tmp_path.iterdir()) == names


def test_a_folder_is_hashed_as_it_is_shown(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "notes.txt").write_text("one")
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    before = content_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("two")
    assert content_hash(tmp_path) == before
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    assert content_hash(tmp_path) != before


def test_what_a_scene_starts_from_counts_as_a_chunk(ready, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "house.png")
    story, notes = [{"prompt": "a bear", "seconds": 2.0, "image": str(tmp_path / "house.png")}], []
    count = len(list(ready.stream_story(story)))
    stopped(ready, tmp_path / "a.mp4", monkeypatch, after=2, story=story)
    generate_to_file(ready, story, tmp_path / "a.mp4", resume=True, on_note=notes.append)
    assert notes[0].endswith(f"2 of {count} chunks") and count == ready.plan(story).num_chunks + 1


def test_the_label_is_json_and_says_nothing_of_places(ready, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "house.png")
    story = Story.of([{"prompt": "a bear", "image": str(tmp_path / "house.png")}])
    label = label_of(ready, ready.prepare(story))
    assert str(tmp_path) not in json.dumps(label) and len(label["scenes"][0]["image"]) == 64


def test_a_part_file_whose_beginning_is_damaged_is_kept_and_that_is_told(ready, tmp_path, monkeypatch):
    monkeypatch.setattr("phenaki.part_file.MAX_BEGUN_BYTES", 1000)
    path, notes, story = tmp_path / "a.mp4", [], [("a bear walks", 2.0)]
    chunks = []
    with pytest.raises(KeyboardInterrupt):
        generate_to_file(ready, story, path, progress=False, on_chunk=lambda chunk: chunks.append(1) or stop(len(chunks) == 2))
    part = part_path(path)
    damaged = bytearray(part.read_bytes())
    damaged[40] ^= 1
    part.write_bytes(damaged)
    generate_to_file(ready, story, path, progress=False, on_note=notes.append)
    assert "begins anew" in notes[0] and "its beginning is damaged" in notes[0] and ".a.part-1.mp4" in notes[0]
    assert (tmp_path / ".a.part-1.mp4").read_bytes() == damaged and path.exists()


def stop(now: bool) -> None:
    if now:
        raise KeyboardInterrupt
