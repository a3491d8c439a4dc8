"""Clips of one's own with parts made anew, by a tiny random model: what is outside of the region is the clip's, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import phenaki
import phenaki.story_for_model
from phenaki.checkpoint import Model, ModelInfo
from phenaki.cvivit import CViViT
from phenaki.editing import Edit, check_result_path, edit, edit_to_file, stream_edit
from phenaki.frame_source import FrameSource
from phenaki.maskgit import MaskGIT
from phenaki.pictures import middle_square
from phenaki.pipeline import Phenaki
from phenaki.regions import Region, RegionError
from phenaki.repainting import Repainter
from phenaki.sampling import SamplingOptions
from phenaki.text import TextEncoder
from phenaki.training.settings import load_settings
from phenaki.video import Video, VideoError, VideoWriter, read_video

ROOT = Path(__file__).resolve().parents[1]
BOX = (8, 8, 16, 8)  # of 32x32 pixels: tokens (1, 1) and (1, 2) of 4x4
INSIDE = np.s_[:, 8:16, 8:24]


@pytest.fixture(scope="module")
def model() -> Phenaki:
    """32x32 pixels, 8 frames a second, slices of two frames, chunks of three slices. Its answers depend on all it is given."""
    settings = load_settings(ROOT / "configs" / "tiny.toml")
    torch.manual_seed(3)
    tokenizer, generator = CViViT(settings.tokenizer).eval(), MaskGIT(settings.generator).eval()
    with torch.no_grad():
        for head in generator.to_logits.heads:
            head.weight.normal_()
    info = ModelInfo("tiny", settings.tokenizer, settings.generator, settings.text, settings.world.fps, sampling=SamplingOptions(num_steps=2))
    return Phenaki(Model(info, tokenizer, generator), TextEncoder.load(), torch.device("cpu"), torch.float32)


def clip_of(num_frames: int, height: int = 32, width: int = 32, fps: float = 8.0) -> Video:
    rng = np.random.default_rng(num_frames)
    return Video(rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8), fps)


def outside(frames: np.ndarray) -> np.ndarray:
    """The frames with the box blacked out."""
    frames = frames.copy()
    frames[INSIDE] = 0
    return frames


# ---- what is kept and what is made ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 2, 3, 6, 13, 20])
def test_pixels_outside_of_the_region_are_the_clips(model, num_frames):
    clip = clip_of(num_frames)
    made = edit(clip, "a bear", box=BOX, model=model)
    assert made.frames.shape == clip.frames.shape and made.fps == 8
    assert np.array_equal(outside(made.frames), outside(clip.frames))
    assert (made.frames[INSIDE] != clip.frames[INSIDE]).mean() > 0.9


def test_around_the_box_it_is_the_other_way_round(model):
    clip = clip_of(7)
    made = edit(clip, "a bear", box=BOX, outside=True, model=model)
    assert np.array_equal(made.frames[INSIDE], clip.frames[INSIDE])
    assert (outside(made.frames) != outside(clip.frames)).mean() > 0.8


def test_a_model_that_computes_in_bfloat16_edits_too(model, tmp_path):
    model.save_pretrained(tmp_path)
    clip = clip_of(7)
    made = edit(clip, "a bear", box=BOX, model=Phenaki.from_pretrained(tmp_path, dtype="bfloat16"))
    assert np.array_equal(outside(made.frames), outside(clip.frames)) and (made.frames[INSIDE] != clip.frames[INSIDE]).mean() > 0.9


@pytest.mark.parametrize("first, last", [(0, 0), (3, 6), (5, 19), (19, 19)])
def test_frames_in_between_are_made_and_the_others_stay(model, first, last):
    clip = clip_of(20)
    made = edit(clip, "a bear", frames=(first, last), model=model)
    same = (made.frames == clip.frames).all((1, 2, 3))
    assert same.tolist() == [not first <= frame <= last for frame in range(20)]


def test_a_box_in_some_frames_and_a_mask_say_the_same(model):
    clip, mask = clip_of(9), np.zeros((9, 32, 32), bool)
    mask[3:6][INSIDE] = True
    boxed, masked = edit(clip, "a bear", box=BOX, frames=(3, 5), model=model), edit(clip, "a bear", mask=mask, model=model)
    assert np.array_equal(boxed.frames, masked.frames)
    assert np.array_equal(boxed.frames[:3], clip.frames[:3]) and not np.array_equal(boxed.frames[3:6], clip.frames[3:6])


def test_it_goes_on_after_the_end(model):
    clip = clip_of(8)
    made = edit(clip, "a bear", extend=1.1, model=model)
    assert len(made) == 8 + round(1.1 * 8) and np.array_equal(made.frames[:8], clip.frames)
    other = edit(Video(clip.frames[::-1].copy(), 8.0), "a bear", extend=1.1, model=model)
    assert not np.array_equal(made.frames[8:], other.frames[8:]), "it goes on from what was seen"


def test_a_clip_told_another_way_keeps_a_share_of_its_tokens(model, monkeypatch):
    painted, paint = [], Repainter.paint
    monkeypatch.setattr(Repainter, "paint", lambda self, video, region: painted.append(paint(self, video, region)) or painted[-1])
    made = edit(clip_of(9), "a bear", keep=0.4, model=model)
    shares = [float(chunk.known.float().mean()) for chunk in painted]
    assert len(made) == 9 and len(shares) == 2 and all(0.35 < share <= 0.4 for share in shares)


def test_without_pasting_all_of_it_has_been_through_the_tokenizer(model):
    clip = clip_of(5)
    pasted, whole = edit(clip, "a bear", box=BOX, model=model), edit(clip, "a bear", box=BOX, paste=False, model=model)
    assert np.array_equal(pasted.frames[INSIDE], whole.frames[INSIDE])
    assert (outside(whole.frames) != outside(clip.frames)).mean() > 0.8


@pytest.mark.parametrize("size", [None, 48])
def test_the_middle_square_is_what_is_seen(model, size):
    clip = clip_of(5, height=40, width=64)
    made = edit(clip, "a bear", box=(0, 0, 32, 40), size=size, model=model)
    side = size or 32
    wanted = np.stack([middle_square(Image.fromarray(pixels), side) for pixels in clip.frames])
    edge = -(-(32 - 12) * side // 40)  # the box reaches to pixel 20 of the square's 40
    assert made.frames.shape == (5, side, side, 3)
    assert np.array_equal(made.frames[:, :, edge:], wanted[:, :, edge:]) and not np.array_equal(made.frames[:, :, :edge], wanted[:, :, :edge])


def test_at_the_models_rate(model):
    clip = clip_of(30, fps=24.0)
    made = edit(clip, "a bear", frames=(12, 17), model=model)
    assert made.fps == 8 and len(made) == 10
    same = (made.frames == clip.frames[::3]).all((1, 2, 3))
    assert same.tolist() == [True] * 4 + [False] * 2 + [True] * 4


def test_the_seed_and_the_prompt_decide(model):
    clip = clip_of(7)
    told = ("a bear", 1), ("a bear", 1), ("a bear", 2), ("a panda", 1)
    runs = [edit(clip, prompt, box=BOX, seed=seed, model=model).frames for prompt, seed in told]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2]) and not np.array_equal(runs[0], runs[3])


# ---- chunk by chunk, and files -------------------------------------------------------------------------------------


def test_streamed_chunks_are_the_video(model):
    clip = clip_of(22)
    chunks = list(stream_edit(model, clip, Edit("a bear", Region(BOX), extend=1.0)))
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), edit(clip, "a bear", box=BOX, extend=1.0, model=model).frames)
    assert [chunk.start_frame for chunk in chunks] == [sum(len(earlier.frames) for earlier in chunks[:n]) for n in range(len(chunks))]
    assert {chunk.num_frames_total for chunk in chunks} == {30} and len(chunks) > 4


def test_a_long_clip_is_read_as_it_is_edited(model, monkeypatch):
    read, frames = [], FrameSource.frames
    monkeypatch.setattr(FrameSource, "frames", lambda self: (read.append(1) or pixels for pixels in frames(self)))
    stream = stream_edit(model, clip_of(401), Edit("a bear", Region(BOX)))
    assert not read
    for _ in range(3):
        next(stream)
    assert len(read) <= 3 * 6


def test_a_file_becomes_a_file(model, tmp_path):
    coarse = clip_of(12, 4, 4).frames
    Video(coarse.repeat(8, axis=1).repeat(8, axis=2), 8.0).save(tmp_path / "a.mp4")
    told = Edit("a  bear\n", Region(BOX), extend=0.5, seed=4)
    written = edit_to_file(model, tmp_path / "a.mp4", told, tmp_path / "b.mp4", progress=False)
    video, source = read_video(tmp_path / "b.mp4"), read_video(tmp_path / "a.mp4")
    assert written.num_frames == len(video) == 16 and written.video_seconds == 2 and video.fps == 8
    assert np.abs(outside(video.frames[:12]).astype(int) - outside(source.frames)).mean() < 4  # encoded once more
    assert np.abs(video.frames[:12].astype(int) - source.frames)[INSIDE].mean() > 30
    assert video.script["seed"] == 4 and video.script["scenes"][0]["prompt"] == "a bear" == video.scenes[0].prompt
    assert video.script["edit"] == {
        "clip": "a.mp4", "box": list(BOX), "outside": False, "frames": None, "mask": False, "keep": 0.0, "extend": 0.5, "paste": True,
    }  # fmt: skip


def test_what_another_run_left_unfinished_is_kept(model, tmp_path):
    left = VideoWriter(tmp_path / "b.mp4", fps=8, size=(32, 32), label={"another": "story"})
    left.write(clip_of(5).frames)
    left.encoder.abandon()
    before, notes = (tmp_path / ".b.part.mp4").read_bytes(), []
    edit_to_file(model, clip_of(3), Edit("a bear", Region(BOX)), tmp_path / "b.mp4", progress=False, on_note=notes.append)
    aside = tmp_path / ".b.part-1.mp4"
    assert notes == [f"{tmp_path / 'b.mp4'}: another run left it unfinished. What is in it plays, and is kept as {aside}"]
    assert aside.read_bytes() == before and len(read_video(tmp_path / "b.mp4")) == 3


def test_the_clip_is_not_written_over(model, tmp_path):
    clip_of(3).save(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(VideoError, match=r"would write over .*, which it is made from"):
            edit_to_file(model, tmp_path / "a.mp4", Edit("a bear", Region(BOX)), tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize("name", ["%03d.png", "sheet.png"])
def test_the_pictures_of_a_clip_are_not_written_over(tmp_path, name):
    folder = tmp_path / "clip"
    folder.mkdir()
    clip_of(3).save(folder / "%03d.png")
    with pytest.raises(VideoError, match="would lie among the pictures that it is made from"):
        check_result_path(folder / name, FrameSource.of(folder))
    assert check_result_path(folder / "a.mp4", FrameSource.of(folder)) == folder / "a.mp4"
    assert check_result_path(tmp_path / name, FrameSource.of(folder)) == tmp_path / name


def test_the_names_of_the_package():
    assert phenaki.edit is edit and phenaki.stream_edit is stream_edit and phenaki.Edit is Edit and phenaki.Region is Region


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "nothing is to be made anew: give a box, frames, a mask, keep (above 0) or extend"),
        ({"box": (0, 0, 32, 32)}, "the region is all of the clip"),
        ({"frames": (0, 8)}, "the region is all of the clip"),
        ({"mask": np.zeros((32, 32), bool)}, "the region is nowhere in what the model sees"),
        ({"mask": np.ones((9, 32, 32), bool)}, "the region is all of the clip"),
        ({"mask": np.ones((16, 16), bool)}, "mask of (16, 16): the clip has 9 frames of 32x32 pixels"),
        ({"box": (30, 0, 8, 8)}, "box 30,0,8,8"),
        ({"frames": (4, 9)}, "0-8 at most"),
        ({"keep": 1.0}, "keep 1.0"),
        ({"keep": -0.1}, "keep -0.1"),
        ({"keep": float("nan")}, "keep nan"),
        ({"extend": -1}, "extend -1: needed 0 to 3600 seconds"),
        ({"extend": 1e9}, "needed 0 to 3600"),
        ({"extend": 0.01}, "extend 0.01: needed 0.125 s at least"),
        ({"box": BOX, "size": 8}, "size = 8"),
        ({"extend": 2, "size": 4096}, "4096x4096 pixels at 8 fps: the frames of a chunk would take 0.3 GiB of memory, at most 0 are used"),
        ({"box": BOX, "seed": -1}, "seed = -1"),
        ({"box": BOX, "num_steps": 0}, "num_steps = 0"),
        ({"box": BOX, "guidance_scale": 0}, "guidance_scale = 0"),
        ({"box": BOX, "negative": "bear " * 90}, "64 at most"),
    ],
)
def test_bad_edits_are_told_before_anything_is_made(model, monkeypatch, options, words):
    monkeypatch.setattr(Repainter, "paint", lambda *_: pytest.fail("a chunk was made"))
    monkeypatch.setattr(phenaki.story_for_model, "MAX_CHUNK_BYTES", 1 << 28)
    with pytest.raises(ValueError) as caught:
        edit(clip_of(9), "a bear", model=model, **options)
    assert words in str(caught.value)


def test_a_part_that_the_models_rate_skips_is_told(model):
    with pytest.raises(RegionError, match=r"of the clip \(the middle square, x from 0 to 32 and y from 0 to 32, 8 frames a second\)"):
        edit(clip_of(30, fps=24.0), "a bear", frames=(1, 2), model=model)


def test_a_box_beside_the_middle_square_is_told(model):
    with pytest.raises(RegionError, match=r"nowhere in what the model sees of the clip \(the middle square, x from 16 to 48 and y from 0 to 32, "):
        edit(clip_of(5, width=64), "a bear", box=(0, 0, 16, 32), model=model)


@pytest.mark.parametrize("words", [{"prompt": "🐻🏖️"}, {"prompt": "a bear", "negative": "สวัสดี"}])
def test_a_prompt_of_which_nothing_is_known_is_refused(model, words):
    with pytest.raises(ValueError, match="the text encoder 'minilm' knows nothing in it"):
        edit(clip_of(5), **words, keep=0.1, model=model)


def test_an_edit_in_numpys_numbers_is_written(model, tmp_path):
    region = Region(tuple(np.array(BOX)), frames=tuple(np.arange(2)))
    told = Edit("a bear", region, keep=np.float32(0.5), extend=np.float32(0.25), paste=np.bool_(True))
    edit_to_file(model, clip_of(3), told, tmp_path / "a.mp4", progress=False)
    made = read_video(tmp_path / "a.mp4").script["edit"]
    assert made == {
        "clip": None, "box": list(BOX), "outside": False, "frames": [0, 1], "mask": False, "keep": 0.5, "extend": 0.25, "paste": True,
    }  # fmt: skip


def test_bad_clips_and_prompts(model, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for clip, words in ((tmp_path / "a.mp4", "not a whole video file"), (tmp_path / "gone.mp4", "No such file")):
        with pytest.raises(VideoError, match=words):
            edit(clip, "a bear", box=BOX, model=model)
    with pytest.raises(ValueError, match="prompt"):
        edit(clip_of(5), " ", box=BOX, model=model)
    with pytest.raises(TypeError, match="steps"):
        edit(clip_of(5), "a bear", box=BOX, steps=3, model=model)
