"""From a script to a video, with a tiny random model and the real text encoder: exact counts, seeds, and what is refused."""

import contextlib
import itertools
import json
import math
import shutil
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

import phenaki.devices as devices
import phenaki.free_cores as free_cores
import phenaki.pipeline as pipeline
import phenaki.scene_files as scene_files
from phenaki import Scene, Story
from phenaki.checkpoint import CheckpointError, ModelInfo, load_model, read_info, save_model
from phenaki.cvivit import CViViT, Stream
from phenaki.devices import choose_device, choose_dtype, cpu_is_faster_in_bf16, has_bf16, hold_matrices
from phenaki.maskgit import MaskGIT
from phenaki.pictures import read_image
from phenaki.pipeline import Phenaki
from phenaki.recording import generate_to_file
from phenaki.retiming import Retiming
from phenaki.sampling import SamplingOptions
from phenaki.story import StoryError
from phenaki.story_for_model import checked_plan, plan_story
from phenaki.text import TextEncoder
from phenaki.training.settings import load_settings
from phenaki.video import Video, VideoError, read_video
from phenaki.video_files import resampled_indices

ROOT = Path(__file__).resolve().parents[1]
TWO = [("a bear walks", 1.5), ("a panda sleeps", 2.0)]  # 12 and 16 frames at 8 a second
NEAR = (12 + 1, 16 - 1)  # the inner boundary moves up to the end of its slice: 1 + 2k frames


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return TextEncoder.load()


def save_tiny(folder: Path, fingerprint: str, with_generator: bool = True) -> Path:
    settings = load_settings(ROOT / "configs" / "tiny.toml")
    torch.manual_seed(3)
    tokenizer, generator = CViViT(settings.tokenizer).eval(), MaskGIT(settings.generator).eval()
    with torch.no_grad():
        generator.condition_embedding.normal_()
        for head in generator.to_logits.heads:
            head.weight.normal_()
    info = ModelInfo(
        "tiny", settings.tokenizer, settings.generator if with_generator else None, settings.text, settings.world.fps,
        sampling=SamplingOptions(num_steps=2), text_encoder=fingerprint,
    )  # fmt: skip
    save_model(folder, info, tokenizer, generator if with_generator else None)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_encoder) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), text_encoder.fingerprint)


@pytest.fixture(scope="module")
def ready(folder, text_encoder) -> Phenaki:
    cpu = torch.device("cpu")
    return Phenaki(load_model(folder), text_encoder, cpu, choose_dtype("auto", cpu))


@pytest.fixture
def spied(ready, monkeypatch):
    """The SamplingOptions of every chunk that is sampled."""
    seen: list[SamplingOptions] = []
    original = pipeline.direct.__globals__["prepare_rounds"]

    def prepare_rounds(mask, options, *rest):
        seen.append(options)
        return original(mask, options, *rest)

    monkeypatch.setitem(pipeline.direct.__globals__, "prepare_rounds", prepare_rounds)
    return seen


# ---- what goes in and what comes out -------------------------------------------------------------------------------


def test_every_way_to_tell_a_story_gives_the_same_video(ready, tmp_path):
    (tmp_path / "a.txt").write_text("[1.5s] a bear walks\n[2s] a panda sleeps\n")
    dicts = [{"prompt": prompt, "seconds": seconds} for prompt, seconds in TWO]
    ways = [TWO, dicts, {"scenes": dicts}, Story.of(TWO), [Scene(**scene) for scene in dicts], tmp_path / "a.txt", str(tmp_path / "a.txt")]
    videos = [ready.generate_story(story, progress=False) for story in ways]
    assert all(np.array_equal(video.frames, videos[0].frames) and video.script == videos[0].script for video in videos)
    assert isinstance(videos[0], Video) and videos[0].frames.shape == (28, 32, 32, 3) and videos[0].fps == 8
    assert [(scene.prompt, scene.start_frame, scene.num_frames) for scene in videos[0].scenes] == [
        ("a bear walks", 0, NEAR[0]), ("a panda sleeps", NEAR[0], NEAR[1]),
    ]  # fmt: skip


def test_a_bare_prompt_lasts_four_seconds(ready):
    assert len(ready.generate_story(["a bear"], num_steps=1)) == 32


@pytest.mark.parametrize("fps", [None, 24, 5, 12.5])
def test_streamed_chunks_are_the_story(ready, fps):
    chunks = list(ready.stream_story(TWO, fps=fps))
    video = ready.generate_story(TWO, fps=fps, progress=False)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), video.frames)
    assert [chunk.start_frame for chunk in chunks] == [sum(len(earlier.frames) for earlier in chunks[:n]) for n in range(len(chunks))]
    assert {chunk.num_frames_total for chunk in chunks} == {len(video)}
    assert {(chunk.scene, chunk.prompt) for chunk in chunks} == {(0, "a bear walks"), (1, "a panda sleeps")}
    assert len(chunks) == ready.plan(TWO).num_chunks > 3


def test_streaming_makes_chunks_when_they_are_asked_for(ready, spied):
    stream = ready.stream_story([("a bear", 3600)])
    assert spied == []
    next(stream)
    assert len(spied) == 1


def test_on_chunk_is_called_in_order(ready):
    seen = []
    video = ready.generate_story(TWO, on_chunk=seen.append)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in seen]), video.frames)
    assert [chunk.frames is not None for chunk in seen] == [True] * ready.plan(TWO).num_chunks


def test_the_seed_is_the_video(ready):
    first, again, other = (ready.generate_story(TWO, seed=seed).frames for seed in (7, 7, 8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(ready.generate_story({"seed": 7, "scenes": [{"prompt": p, "seconds": s} for p, s in TWO]}).frames, first)


def test_words_that_the_model_never_learnt_are_warned_of(ready, monkeypatch):
    monkeypatch.setattr(ready, "info", replace(ready.info, words=("a", "bear", "walks")))
    with pytest.warns(UserWarning, match=r"scene 2: .* was not trained on 'panda', 'sleeps'; it may not show what that means") as told:
        ready.generate_story(TWO)
        next(ready.stream_story(TWO))
    assert len(told) == 2 and {Path(one.filename).name for one in told} == {"test_pipeline.py"}, "where the user calls"
    with warnings.catch_warnings(action="error"):
        ready.generate_story([("A bear walks", 1.0)])


def test_a_model_says_what_it_is(ready):
    assert repr(ready) == f"Phenaki({ready.info.name!r}, 32x32 at 8 fps, on cpu in float32)"


def test_a_seed_of_zero_is_an_override(ready):
    story = Story.of(TWO).model_copy(update={"seed": 7})
    assert np.array_equal(ready.generate_story(story, seed=0).frames, ready.generate_story(TWO).frames)


def test_prompts_matter_from_their_scene_on(ready):
    one, two = (ready.generate_story([TWO[0], (prompt, 2.0)]).frames for prompt in ("a panda sleeps", "a red house"))
    assert np.array_equal(one[: NEAR[0]], two[: NEAR[0]]) and not np.array_equal(one[NEAR[0] :], two[NEAR[0] :])


@pytest.mark.parametrize("fps, count", [(24, 84), (5, 18), (8, 28), (12.5, 44), (0.5, 2)])
def test_another_rate_keeps_the_duration_and_the_pictures(ready, fps, count):
    own, video = ready.generate_story(TWO), ready.generate_story(TWO, fps=fps)
    assert video.fps == fps and len(video) == count == round(3.5 * fps)
    assert np.array_equal(video.frames, own.frames[[min(int(n * 8 / fps), 27) for n in range(count)]])
    assert sum(scene.num_frames for scene in video.scenes) == count
    assert video.scenes[1].start_frame == math.ceil(NEAR[0] * fps / 8)
    assert video.script["fps"] == fps


def test_a_rate_that_leaves_no_frame_is_told_before_any_is_made(ready, spied):
    with pytest.raises(ValueError, match=r"fps 0\.1.*3\.5 s.*no frame"):
        ready.generate_story(TWO, fps=0.1)
    assert spied == []


@pytest.mark.parametrize(("fps", "seconds"), [(60, (2.06,)), (24, (3.05,)), (30, (1.0, 2.05, 1.0)), (12, (1.7,)), (60, (2.19,)), (8, (2.06,))])
def test_a_story_is_as_long_as_its_seconds_to_the_frame_of_any_rate(ready, fps, seconds):
    """Not as what it has in frames of the model's own rate."""
    video = ready.generate_story([("a bear", length) for length in seconds], fps=fps)
    count = math.floor(Fraction(str(round(sum(seconds), 2))) * fps + Fraction(1, 2))
    assert len(video) == count == sum(scene.num_frames for scene in video.scenes)
    own = ready.generate_story([("a bear", length) for length in seconds]).frames
    assert np.array_equal(video.frames, own[[min(int(n * 8 / fps), len(own) - 1) for n in range(count)]])


def shown_in_pieces(timing: Retiming, frames: np.ndarray, length: int) -> np.ndarray:
    shown = np.concatenate([timing.shown(frames[start : start + length], start) for start in range(0, len(frames), length)]).ravel()
    assert len(shown) == timing.total
    return shown


@pytest.mark.parametrize("surplus", [-4, -1, 1, 4])
def test_a_length_that_is_a_little_another_is_cut_or_ends_with_the_last_frame(surplus):
    frames, total = np.arange(21, dtype=np.uint8)[:, None, None, None], round(21 * 60 / 8) + surplus
    for length in (4, 5, 21):
        shown = shown_in_pieces(Retiming(21, 8, 60, total), frames, length)
        assert shown.tolist() == [min(n * 8 // 60, 20) for n in range(total)]


def test_no_frame_is_lost_or_moved_at_a_seam():
    frames = np.arange(101, dtype=np.uint8)[:, None, None, None]
    for own, rate in [*((8, rate) for rate in (0.5, 1, 5, 7.3, 8, 8.4, 12, 24, 23.976, 30000 / 1001, 60)), (29.97, 59.94), (8.1, 24.3), (7.3, 24)]:
        total = round(101 * rate / own)
        pace = Fraction(str(own)) / Fraction(str(rate)) if rate != 30000 / 1001 else 8 / Fraction(30000, 1001)
        for length in (4, 5, 101):
            shown = shown_in_pieces(Retiming(101, own, rate, total), frames, length)
            assert shown.tolist() == resampled_indices(Path("a.mp4"), 101, own, rate) == [min(math.floor(i * pace), 100) for i in range(total)]


def test_files_of_many_scenes_are_read_once_and_are_on_the_device_one_scene_at_a_time(ready, tmp_path, monkeypatch):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    Video(np.zeros((9, 16, 16, 3), np.uint8), 8).save(tmp_path / "b.mp4")
    reads, sent = [], []
    for name in ("read_image", "last_frames", "sha256"):
        real = getattr(scene_files, name)
        monkeypatch.setattr(scene_files, name, lambda *given, name=name, real=real: reads.append((name, Path(given[0]).name)) or real(*given))
    picture, clip = str(tmp_path / "a.png"), str(tmp_path / "b.mp4")
    scenes = [{"prompt": "a bear", "image": picture, "end_image": picture}, {"prompt": "a bear", "video": clip}] * 50
    monkeypatch.setattr(ready, "to_tensor", lambda frames, real=ready.to_tensor: sent.append(frames.shape) or real(frames), raising=False)
    prepared = ready.prepare(scenes)
    assert sorted(reads) == [("last_frames", "b.mp4"), ("read_image", "a.png")] and not sent
    assert len(ready.script(prepared)["made_with"]["files"]) == 150 and sorted(reads[2:]) == [("sha256", "a.png"), ("sha256", "b.mp4")]
    assert list(prepared.given) == list(range(100)) and prepared.given[0].start.shape == (1, 3, 32, 32) and prepared.given[0].end.shape == (3, 32, 32)
    assert len(sent) == 4, "both pictures, for who asks for the scene"
    assert prepared.given[1].end is None and len(prepared.given[1].start) > 2


def test_frames_that_would_fill_the_memory_are_refused(ready):
    with pytest.raises(ValueError, match=r"4096x4096 pixels at 240 fps: the frames of a chunk would take .* GiB of memory, at most 4"):
        ready.prepare({"size": 4096, "fps": 240, "scenes": [{"prompt": "a bear"}]})


@pytest.mark.parametrize("size", [16, 48, 64])
def test_the_storys_size(ready, size):
    story = {"size": size, "scenes": [{"prompt": "a bear", "seconds": 1}]}
    video, own = ready.generate_story(story), ready.generate_story([("a bear", 1)])
    assert video.frames.shape == (8, size, size, 3)
    assert np.abs(video.frames.mean((1, 2)) - own.frames.mean((1, 2))).max() < 6


def test_the_script_travels_without_where_its_pictures_lay(ready, tmp_path):
    Image.new("RGB", (40, 60), "red").save(tmp_path / "house.png")
    (tmp_path / "a.yaml").write_text("title: T\nscenes:\n  - {prompt: a bear, seconds: 1, image: house.png}\n")
    script = ready.generate_story(tmp_path / "a.yaml").script
    assert script["scenes"][0]["image"] == "house.png" and str(tmp_path) not in json.dumps(script)
    assert script["model"] == "tiny" and script["title"] == "T" and script["fps"] == 8 and script["seed"] == 0
    json.dumps(script)


# ---- what reaches the networks -------------------------------------------------------------------------------------


def test_overrides_reach_sampling(ready, spied):
    ready.generate_story(TWO, guidance_scale=5, num_steps=3)
    assert {(options.guidance_scale, options.num_steps) for options in spied} == {(5.0, 3)}
    spied.clear()
    ready.generate_story(TWO)
    assert {(options.guidance_scale, options.num_steps) for options in spied} == {(3.0, 2)}


def test_a_scenes_own_values_go_first(ready, spied):
    story = [{"prompt": "a bear", "seconds": 1, "guidance_scale": 1, "num_steps": 1}, {"prompt": "a panda", "seconds": 0.5}]
    ready.generate_story(story, guidance_scale=5, num_steps=3)
    assert [(options.guidance_scale, options.num_steps) for options in spied] == [(1, 1), (1, 1), (5, 3)]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"guidance_scale": 0}, ["guidance_scale = 0", "1 (guidance off) to 100"]),
        ({"guidance_scale": 1e9}, ["guidance_scale = 1000000000.0", "to 100"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale = nan"]),
        ({"num_steps": 0}, ["num_steps = 0", "1 to 256"]),
        ({"num_steps": 257}, ["num_steps = 257", "1 to 256"]),
        ({"num_steps": 2.5}, ["num_steps = 2.5", "whole"]),
        ({"fps": 0}, ["fps = 0", "above 0"]),
        ({"fps": float("inf")}, ["fps", "at most 240"]),
        ({"seed": -1}, ["seed = -1", "0 to 2**63"]),
        ({"seed": 2**63}, ["seed", "0 to 2**63"]),
        ({"negative": "x" * 1001}, ["negative", "1001 long", "1000"]),
    ],
)
def test_bad_values_are_told_before_anything_is_made(ready, spied, options, words):
    for call in (ready.stream_story, ready.generate_story):
        with pytest.raises(ValueError) as caught:
            call(TWO, **options)
        assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert spied == []


def test_an_unknown_option_is_told(ready):
    with pytest.raises(TypeError, match="steps"):
        ready.generate_story(TWO, steps=3)


def test_the_negative_prompt_reaches_the_generator(ready, monkeypatch):
    seen, original = [], ready.generator.encode_text
    monkeypatch.setattr(ready.generator, "encode_text", lambda text, mask: seen.append((text, mask)) or original(text, mask))
    story = [{"prompt": "a bear", "seconds": 0.5}, {"prompt": "a panda", "seconds": 0.5, "negative": "a red house"}]
    ready.generate_story(story, negative="blurry letters")
    pairs = [(text[1], mask[1]) for text, mask in seen if len(text) == 2]  # (prompt, negative) of each scene
    for (text, mask), negative in zip(pairs, ("blurry letters", "a red house"), strict=True):
        wanted = ready.text_encoder.encode([negative])
        assert torch.equal(text[mask], wanted.text[wanted.text_mask])


def test_a_negative_prompt_changes_the_video(ready):
    negatives = (None, "a bear", "a red house")
    videos = [ready.generate_story([("a bear", 2)], negative=negative, guidance_scale=20).frames for negative in negatives]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(videos, 2))


def test_guidance_off_forgets_the_negative(ready):
    one, other = (ready.generate_story([("a bear", 1)], negative=negative, guidance_scale=1).frames for negative in (None, "a red house"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("place", [{"prompt": "bear " * 100}, {"prompt": "a bear", "negative": "bear " * 100}])
def test_too_long_a_prompt_is_told_before_any_chunk(ready, spied, tmp_path, place):
    story = [{"prompt": "a bear", "seconds": 1}, place]
    for call in (ready.stream_story, ready.generate_story, lambda told: generate_to_file(ready, told, tmp_path / "a.mp4")):
        with pytest.raises(ValueError, match=rf"scenes\[1\].{[*place][-1]}: prompt of 102 tokens: 64 at most"):
            call(story)
    assert spied == [] and not list(tmp_path.iterdir())


def test_the_style_is_told_with_every_prompt(ready):
    chunks = ready.stream_story({"style": "a picture book", "scenes": [{"prompt": "a bear", "seconds": 1}]})
    assert next(chunks).prompt == "a bear, a picture book"


def test_a_scene_starts_from_its_picture(ready, tmp_path):
    left = np.zeros((48, 64, 3), np.uint8)
    left[:, :32], left[:, 32:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(left).save(tmp_path / "a.png")
    story = [("a panda", 1), {"prompt": "a bear", "seconds": 1.5, "image": str(tmp_path / "a.png")}]
    video = ready.generate_story(story)
    assert len(video) == 20 and video.scenes[1].start_frame == 8 and video.scenes[1].num_frames == 12
    picture = torch.from_numpy(read_image(tmp_path / "a.png", 32).copy()).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad(), ready.computing():
        shown = ready.tokenizer.decode(ready.tokenizer.encode(picture)).clamp(-1, 1)[0, :, 0].float()
    wanted = ((shown + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(video.frames[8] - wanted).max() <= 1
    alone = ready.generate_story([story[1]])
    assert np.array_equal(alone.frames[0], video.frames[8])


def grey_video(path: Path, count: int, fps: float) -> Path:
    """Frames of 48x32 pixels, each brighter than the one before."""
    frames = np.broadcast_to((np.arange(count) * 250 // count).astype(np.uint8)[:, None, None, None], (count, 32, 48, 3)).copy()
    Video(frames, fps).save(path)
    return path


def test_a_scene_goes_on_from_a_video(ready, tmp_path):
    clip = grey_video(tmp_path / "a.mp4", 31, 16)
    (tmp_path / "a.txt").write_text("[1s] a panda\n[1.5s, video a.mp4] a bear\n")
    video = ready.generate_story(tmp_path / "a.txt", progress=False)
    assert len(video) == 20 and video.scenes[1].num_frames == 12 and video.script["scenes"][1]["video"] == "a.mp4"
    last = ready.to_tensor(read_video(clip, size=32).frames[[22, 24, 26, 28, 30]])  # at 8 frames a second: two slices to remember, one before
    with torch.no_grad(), ready.computing():
        shown = ready.tokenizer.decode(ready.tokenizer.encode(last.transpose(0, 1)[None]))[0, :, -1:].clamp(-1, 1)
    wanted = pipeline.to_pixels(shown.transpose(0, 1), 32)[0].astype(int)
    assert np.abs(video.frames[8] - wanted).max() <= 6  # the codec's own scaler, frame by frame


def test_a_scene_ends_on_a_picture(ready, tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 60), colour).save(tmp_path / f"{name}.png")
    videos = [ready.generate_story([{"prompt": "a bear", "seconds": 1.5, "end_image": str(tmp_path / f"{name}.png")}]) for name in "ab"]
    assert all(len(video) == 12 for video in videos) and not np.array_equal(videos[0].frames[-1], videos[1].frames[-1])
    assert np.array_equal(videos[0].frames[0], videos[1].frames[0]), "the end is seen by the chunk before it alone"
    assert videos[0].script["scenes"][0]["end_image"] == "a.png"


@pytest.mark.parametrize(
    "field, content, words",
    [
        ("video", 2, "2 frames at 8 fps, going on from a video needs 3 at least; give a longer one, or its last frame as `image`"),
        ("video", b"no video", "not a whole video file"),
        ("video", None, "No such file"),
        ("end_image", b"no picture", "not a whole picture"),
    ],
)
def test_files_that_scenes_cannot_use_are_told_before_any_chunk(ready, spied, tmp_path, field, content, words):
    path = tmp_path / ("a.mp4" if field == "video" else "a.png")
    if isinstance(content, int):
        grey_video(path, content, 8)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=words):
        ready.stream_story([("a panda", 1), {"prompt": "a bear", field: str(path)}])
    assert spied == []


def test_a_picture_that_cannot_be_read_is_told_before_any_chunk(ready, spied, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="not a whole picture"):
        ready.stream_story([{"prompt": "a bear", "image": str(tmp_path / "a.png")}])
    assert spied == []


# ---- loading and saving --------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_tells_the_same(ready, folder, tmp_path):
    first = ready.generate_story(TWO)
    ready.save_pretrained(tmp_path / "copy")
    for name in (folder, str(folder), tmp_path / "copy"):
        again = Phenaki.from_pretrained(name, device="cpu")
        assert again.dtype == choose_dtype("auto", torch.device("cpu")) and again.info.name == "tiny"
        assert np.array_equal(again.generate_story(TWO).frames, first.frames)


def test_the_functions_of_the_package(ready, folder):
    video = ready.generate_story(TWO)
    for model in (ready, folder, str(folder)):
        assert np.array_equal(pipeline.generate_story(TWO, model=model, device="cpu").frames, video.frames)
    assert np.array_equal(next(pipeline.stream_story(TWO, model=ready)).frames, video.frames[: len(next(ready.stream_story(TWO)).frames)])
    assert pipeline.load(folder, "cpu") is pipeline.load(folder, "cpu")
    assert pipeline.load(folder, "cpu", "bfloat16").dtype is torch.bfloat16 and pipeline.load(folder, "cpu", "float32").dtype is torch.float32


def test_a_model_is_loaded_once_whatever_it_is_called_by(ready, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Phenaki, "from_pretrained", lambda name, device, dtype, compile: (name, device, dtype, compile))
    pipeline._loaded.cache_clear()
    named = [pipeline.load(), pipeline.load("storybook"), pipeline.load(device="cpu"), pipeline.load("storybook", "auto")]
    assert set(map(id, named)) == {id(named[0])} and named[0] == ("storybook", "cpu", "auto", False)
    assert pipeline.load(dtype="float32") == ("storybook", "cpu", "float32", False)
    assert pipeline.load(compile=True) == ("storybook", "cpu", "auto", True)
    monkeypatch.chdir(folder.parent)
    assert pipeline.load(folder.name) is pipeline.load(folder) is pipeline.load(str(folder), device="cpu")
    pipeline._loaded.cache_clear()


def test_a_folder_that_was_trained_on_is_loaded_anew(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "model")
    first = pipeline.load(path, "cpu")
    trained = load_model(path)
    trained.generator.null_text += 1
    save_model(path, trained.info, trained.tokenizer, trained.generator)
    again = pipeline.load(path, "cpu")
    assert torch.equal(again.generator.null_text, first.generator.null_text + 1) and pipeline.load(path, "cpu") is again


def test_options_and_devices_that_are_none_are_told(ready, folder, monkeypatch):
    with pytest.raises(TypeError, match="unknown option 'steps': allowed are seed, fps, size, style, negative, guidance_scale, num_steps, context"):
        pipeline.generate_story(TWO, model=ready, steps=2)
    monkeypatch.setattr(pipeline, "choose_device", torch.device)
    with pytest.raises(ValueError, match="device 'cuda': the model that came is on cpu"):
        pipeline.generate_story(TWO, model=ready, device="cuda")
    assert pipeline.ready_model(ready, "cpu") is pipeline.ready_model(ready, "auto") is ready


def test_another_text_encoder_is_refused(tmp_path, text_encoder):
    model = load_model(save_tiny(tmp_path, "t5 sha256:0123"))
    with pytest.raises(CheckpointError, match=r"'tiny' was trained with the text encoder t5 sha256:0123, not bert sha256:53aa"):
        Phenaki(model, text_encoder, torch.device("cpu"), torch.float32)
    with pytest.raises(CheckpointError, match="t5 sha256:0123"):
        Phenaki.from_pretrained(tmp_path, device="cpu")


def test_a_tokenizer_alone_tells_no_story(tmp_path, text_encoder):
    save_tiny(tmp_path, text_encoder.fingerprint, with_generator=False)
    with pytest.raises(CheckpointError, match=r"'tiny' holds a tokenizer alone.*phenaki train generator"):
        Phenaki(load_model(tmp_path), text_encoder, torch.device("cpu"), torch.float32)
    with pytest.raises(CheckpointError, match="phenaki train generator"):
        plan_story(Story.of(TWO), read_info(tmp_path))


@pytest.mark.parametrize("device", ["gpu", "cpux", "", "cuda:x", "meta", "xla"])
def test_an_unknown_device(device):
    with pytest.raises(ValueError, match=r"device .*: allowed are auto, cpu, cuda, cuda:N"):
        choose_device(device)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no NVIDIA GPU.*--device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"'cuda:2': this machine has cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("computes", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch, computes, dtype):
    """Every GPU of torch's can store it; those before Ampere emulate the sums, slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes or including_emulation)
    assert choose_dtype("auto", torch.device("cuda")) is dtype and has_bf16(torch.device("cuda")) is computes


@pytest.mark.parametrize(("seconds", "dtype"), [((3e-3, 1e-3), torch.bfloat16), ((1e-3, 3e-3), torch.float32), ((1e-3, 0.9e-3), torch.float32)])
def test_the_cpu_computes_in_what_it_is_measured_to_be_much_faster_in(monkeypatch, seconds, dtype):
    timed = {torch.float32: seconds[0], torch.bfloat16: seconds[1]}
    monkeypatch.setattr(devices, "_seconds", lambda one, other: timed[one.dtype])
    cpu_is_faster_in_bf16.cache_clear()
    assert choose_dtype("auto", torch.device("cpu")) is dtype
    cpu_is_faster_in_bf16.cache_clear()


@pytest.mark.parametrize("gain, chosen", [(4.5, True), (0.2, False)])
def test_other_work_on_the_cores_does_not_decide_the_numbers(monkeypatch, gain, chosen):
    runs = []

    def seconds(one, other):  # in the first runs both kinds wait for the core as long as a product takes, and longer
        runs.append(one.dtype)
        own = 1.0 if one.dtype == torch.float32 else 1.0 / gain
        return own if len(runs) > 30 else own + 20

    monkeypatch.setattr(devices, "_seconds", seconds)
    cpu_is_faster_in_bf16.cache_clear()
    threads = torch.get_num_threads()
    assert cpu_is_faster_in_bf16() is chosen and len(runs) <= 2 * devices.MOST_RUNS
    cpu_is_faster_in_bf16.cache_clear()
    assert torch.get_num_threads() == threads


def test_numbers_that_are_emulated_are_not_waited_for(monkeypatch):
    """In bfloat16 a core without the silicon takes forty times as long: a model's loading should not wait for more than a few products."""
    runs = []
    monkeypatch.setattr(devices, "_seconds", lambda one, other: runs.append(one.dtype) or (1e-3 if one.dtype == torch.float32 else 40e-3))
    cpu_is_faster_in_bf16.cache_clear()
    assert not cpu_is_faster_in_bf16() and runs.count(torch.bfloat16) == devices.HOPELESS_RUNS < devices.FEWEST_RUNS
    cpu_is_faster_in_bf16.cache_clear()


def test_a_dtype_that_is_asked_for_is_taken():
    cpu = torch.device("cpu")
    assert choose_dtype("bfloat16", cpu) is torch.bfloat16 and choose_dtype(torch.float32, cpu) is torch.float32
    for dtype in ("float8", "float64", "nn", torch.int32):
        with pytest.raises(ValueError, match="allowed are auto, float32, bfloat16, float16"):
            choose_dtype(dtype, cpu)


@pytest.mark.filterwarnings("error")
def test_half_precision_gives_whole_videos(ready):
    half = Phenaki(pipeline.Model(ready.info, ready.tokenizer, ready.generator), ready.text_encoder, ready.device, torch.bfloat16)
    video = half.generate_story([("a bear", 1)])
    assert video.frames.shape == (8, 32, 32, 3) and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("changed", [{}, {"quantizer": "vq"}, {"stem": "linear", "first_frame_stem": True}])
@torch.no_grad()
def test_matrices_held_in_bfloat16_give_what_autocast_gives_to_the_bit(changed):
    settings = load_settings(ROOT / "configs" / "tiny.toml")
    torch.manual_seed(3)
    tokenizer, generator = CViViT(replace(settings.tokenizer, **changed)).eval(), MaskGIT(replace(settings.generator, critic=True)).eval()
    for weight in [*tokenizer.parameters(), *generator.parameters()]:
        weight.add_(torch.randn_like(weight) * 0.1)  # none is 0 or of few bits
    video = torch.rand(1, 3, 1 + 2 * settings.tokenizer.temporal_patch_size, 32, 32) * 2 - 1
    text = torch.randn(1, 5, settings.generator.text_dim), torch.ones(1, 5, dtype=torch.bool)

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            tokens, stream = tokenizer.encode(video), Stream()
            known = tokens % generator.mask_token_id
            context = generator.encode_context(known[:, :2], torch.tensor([1, 0]))
            told = generator.encode_text(*text)
            features = generator.features(torch.where(known % 2 == 0, generator.mask_token_id, known), told, context, starts=False)
            digit = known % generator.config.factor_size
            logits = [generator.to_logits(features, [digit] * count) for count in range(generator.config.token_factors)]
            spoken = tokenizer.quantize(video).vectors, tokenizer.decode(tokens[:, :1], stream), tokenizer.decode(tokens[:, 1:], stream)
            kept = [tensor for layer in (*context.layers, *told.layers) for tensor in (layer.keys, layer.values)]
            return [tokens, *spoken, features, *logits, generator.critic(features), *kept]

    before = results()
    for network in (tokenizer, generator):
        hold_matrices(network, torch.bfloat16)
        for module in network.modules():
            wanted = torch.bfloat16 if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) else torch.float32
            assert all(weight.dtype is wanted for weight in module.parameters(recurse=False)), "all else has the numbers that it had"
    for found, wanted in zip(results(), before, strict=True):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)


def test_a_model_that_computes_in_bfloat16_tells_the_same_with_its_matrices_held_in_it(ready, folder, tmp_path):
    half = Phenaki(load_model(folder), ready.text_encoder, ready.device, torch.bfloat16)
    held = Phenaki.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert half.generator.to_logits.heads[0].weight.dtype is torch.float32 and held.generator.to_logits.heads[0].weight.dtype is torch.bfloat16
    one, other = (model.generate_story(TWO) for model in (half, held))
    assert np.array_equal(one.frames, other.frames) and one.script == other.script, "the weights' hash is that of the files"


def test_weights_that_were_rounded_are_not_saved_as_if_they_were_not(folder, tmp_path, monkeypatch):
    held = Phenaki.from_pretrained(folder, device="cpu", dtype="bfloat16")
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **options: pytest.fail("nothing is made on the hub before"))
    for save in (lambda: held.save_pretrained(tmp_path / "copy"), lambda: held.push_to_hub("owner/name")):
        with pytest.raises(ValueError, match=r"held in torch.bfloat16, .* load it with dtype='float32' to save it as torch.float32"):
            save()
    held.save_pretrained(tmp_path / "copy", torch.bfloat16)  # what saving rounds to
    Phenaki.from_pretrained(folder, device="cpu", dtype="float32").save_pretrained(tmp_path / "whole", torch.bfloat16)
    states = [load_model(tmp_path / name).generator.state_dict() for name in ("copy", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_scene_is_recalled_by_a_model_with_an_anchor_alone(ready, folder):
    story = Story.of([{"prompt": "a bear", "remember": "bear"}, {"prompt": "a house"}, {"prompt": "the bear", "recall": "bear"}])
    without = replace(ready.info, generator=replace(ready.info.generator, anchor=False))
    assert checked_plan(story, ready.info).scenes[2].recall == "bear"
    with pytest.raises(ValueError, match=r"scenes\[2\]\.recall: model 'tiny' was trained without an anchor slice; leave recall out"):
        checked_plan(story, without)
    checked_plan(Story.of(TWO), without)


# ---- to a file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [None, 24])
def test_a_file_with_chapters_and_script(ready, tmp_path, fps):
    written = generate_to_file(ready, TWO, tmp_path / "a.mp4", seed=3, fps=fps, num_steps=1, progress=False)
    video, read = ready.generate_story(TWO, seed=3, fps=fps, num_steps=1), read_video(tmp_path / "a.mp4")
    assert written.num_frames == len(video) == len(read) and written.video_seconds == 3.5 and written.wall_seconds > 0
    assert read.fps == video.fps and read.scenes == video.scenes and read.script == video.script and read.script["seed"] == 3
    assert np.abs(read.frames.mean((1, 2)) - video.frames.mean((1, 2))).max() < 8
    told, plain = Story.of(read.script), Story.from_dict({key: value for key, value in read.script.items() if key not in ("model", "made_with")})
    assert told.model_copy(update={"num_steps": None, "guidance_scale": None, "context": None}) == plain
    assert (told.num_steps, told.guidance_scale, told.context) == (1, ready.info.sampling.guidance_scale, ready.info.sampling.context)
    assert Story.of({**read.script, "edit": {"clip": "a.mp4"}}).seed == 3


def test_the_script_of_a_video_told_again_is_the_same_video(ready):
    """Whatever was asked for when it was made, unless something else is asked for now; a scene's own values stay what they are."""
    story = [{"prompt": "a bear", "seconds": 1}, {"prompt": "a panda", "seconds": 1, "num_steps": 1}]
    options = {"seed": 3, "guidance_scale": 4, "style": "a picture book", "size": 32, "context": "frames", "progress": False}
    video = ready.generate_story(story, num_steps=3, **options)
    again = ready.generate_story(video.script, progress=False)
    assert np.array_equal(again.frames, video.frames) and again.frames.shape[1] == 32 and again.script == video.script
    other, asked = ready.generate_story(video.script, num_steps=2, progress=False), ready.generate_story(story, num_steps=2, **options)
    assert np.array_equal(other.frames, asked.frames) and other.script == asked.script and not np.array_equal(other.frames, video.frames)
    assert not np.array_equal(ready.generate_story(story, seed=3, style="a picture book", size=32, progress=False).frames, video.frames)
    for made_with in (None, {"sampling": 3}, {"sampling": {"num_steps": 0}}):
        with pytest.raises(ValueError, match="num_steps = 0") if made_with and isinstance(made_with["sampling"], dict) else contextlib.nullcontext():
            Story.from_dict({**video.script, "made_with": made_with})


@pytest.mark.parametrize(("option", "value", "words"), [("guidance_scale", "6", "guidance_scale = '6': needs a number"), ("size", 8, "size = 8")])
def test_values_of_the_wrong_kind_are_told(ready, option, value, words):
    with pytest.raises(ValueError, match=words):
        ready.prepare(TWO, **{option: value})


@pytest.mark.parametrize("ending", [".gif", ".png"])
def test_an_interrupt_says_what_is_not_kept(ready, tmp_path, ending):
    def stop(chunk):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        generate_to_file(ready, TWO, tmp_path / f"a{ending}", on_chunk=stop)
    assert caught.value.__notes__ == [f"nothing is kept of a {ending} that is not whole; an .mp4 or .webm goes on where it was stopped"]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_what_was_made(ready, tmp_path, monkeypatch):
    original, count = pipeline.direct, []

    def direct(*arguments):
        for chunk in original(*arguments):
            count.append(len(chunk.frames))
            yield chunk
            if len(count) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "direct", direct)
    with pytest.raises(KeyboardInterrupt) as caught:
        generate_to_file(ready, [("a bear", 10)], tmp_path / "a.mp4")
    part = tmp_path / ".a.part.mp4"
    assert not (tmp_path / "a.mp4").exists() and str(part) in caught.value.__notes__[0]
    assert len(read_video(part)) == sum(count)


def test_a_bad_place_is_told_before_any_chunk(ready, spied, tmp_path):
    with pytest.raises(VideoError, match="missing does not exist"):
        generate_to_file(ready, TWO, tmp_path / "missing" / "a.mp4")
    assert spied == []


def test_progress_is_silent_without_a_terminal(ready, capfd):
    ready.generate_story(TWO, progress=True)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_prompts_as_they_are(ready, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    ready.generate_story([("a [bold]bear[/bold] [/] :bear:", 1)], num_steps=1)
    shown = capfd.readouterr().err
    assert "a [bold]bear[/bold] [/] :bear:" in shown and "8/8 frames" in shown
    ready.generate_story([("a bear", 1)], num_steps=1, progress=False)
    assert capfd.readouterr() == ("", "")


# ---- stories that make no sense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", [[], "", None, [("a bear", 0.01)], [("a bear", -1)], [("a bear", 4), 3], "no/such.yaml", {"scenes": []}])
def test_bad_stories_are_told(ready, spied, story):
    with pytest.raises(StoryError):
        ready.stream_story(story)
    assert spied == []


def test_a_story_is_the_same_to_the_bit_with_any_number_of_threads(ready):
    videos = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            videos.append(ready.generate_story([("a bear walks", 1.5)], num_steps=2, progress=False).frames)
        finally:
            torch.set_num_threads(1)
    assert np.array_equal(*videos)


def test_chunks_are_made_on_the_cores_that_others_leave_free(ready, monkeypatch):
    seen, really = [], pipeline.direct

    def direct(*args):
        for chunk in really(*args):
            seen.append(torch.get_num_threads())
            yield chunk

    monkeypatch.setattr(pipeline, "direct", direct)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(free_cores.cores, "look", lambda: 2.0)
    torch.set_num_threads(3)
    try:
        left = [torch.get_num_threads() for _ in ready.stream_story(TWO)]
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {2} and set(left) == {3} and len(seen) == len(left) > 1
