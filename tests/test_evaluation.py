"""`phenaki evaluate tokenizer`: the figures against slow ones over the whole set, what is said, the page, the command."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from phenaki.checkpoint import Model, ModelInfo, load_model, save_model
from phenaki.cli import app
from phenaki.data.clip_source import ClipSource
from phenaki.data.storybook import open_world
from phenaki.data.world import WORLDS
from phenaki.evaluation.frechet import frechet_distance
from phenaki.evaluation.metrics import changes, psnr, squared_error, ssim
from phenaki.evaluation.networks import MetricNetworks, load_networks
from phenaki.evaluation.tokenizer import TRAINED_ON, EvaluationSettings, Example, as_shown, evaluate_tokenizer
from phenaki.evaluation.tokenizer_program import Wishes, run_tokenizer_evaluation, settings_for, summary
from phenaki.evaluation.tokenizer_report import curve, html_report, side_by_side
from phenaki.evaluation.weights import MetricWeightsError
from phenaki.maskgit import MaskGITConfig
from phenaki.text import TextConfig
from phenaki.training.tokenizer import run_tokenizer_training
from phenaki.video import Video

ROOT = Path(__file__).resolve().parents[1]
FAKE = MetricNetworks(
    lpips=lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)),
    i3d=lambda video: torch.stack([video.mean(dim=(1, 2, 3, 4)), video.std(dim=(1, 2, 3, 4)), video[:, 0, -1].mean(dim=(1, 2))], dim=1),
)
NONE = MetricNetworks(missing={"lpips": "not measured: run `phenaki metrics install`", "i3d": "not measured: run `phenaki metrics install`"})
EVIL = "<script>alert('x')</script>\"'&"


class Clips(ClipSource):
    """Random videos, numbered; writes down what it was asked for. count: of its videos; None = as many as it is asked for."""

    def __init__(self, count: int | None = None):
        self.asked: list[tuple[int, int, int]] = []
        self.count = count

    def num_clips(self, num_frames: int) -> int | None:
        return self.count

    def clips(self, seed: int, first: int, count: int, num_frames: int, align: int) -> torch.Tensor:
        self.asked.append((seed, first, count))
        return torch.stack([self.clip(seed, index, num_frames) for index in range(first, first + count)])

    def clip(self, seed: int, index: int, num_frames: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(1000 * seed + index)
        return torch.rand(3, num_frames, 32, 32, generator=rng) * 2 - 1


@pytest.fixture
def model(tokenizer) -> Model:
    info = ModelInfo("tiny", tokenizer.config, MaskGITConfig(codebook_size=256, token_factors=2), TextConfig(), 8.0, training={"steps": 3})
    return Model(info, tokenizer.requires_grad_(False), None)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """The model's tokenizer on the disk, under a name that would be markup."""
    save_model(tmp_path / "model", ModelInfo(EVIL, model.info.tokenizer, None, TextConfig(), 8.0), model.tokenizer, None)
    return tmp_path / "model"


def evaluated(model, source, clips=7, batch_size=3, networks=FAKE, frames=9):
    return evaluate_tokenizer(model, source, EvaluationSettings(clips, frames, 32, batch_size, seed=5), networks)


def test_streamed_figures_are_those_of_the_whole_set_at_once(model):
    """Seven clips in batches of three, against all of them in one tensor."""
    source = Clips()
    found = evaluated(model, source).figures
    truth = torch.stack([source.clip(5, index, 9) for index in range(7)])
    made = as_shown(model.tokenizer.decode(model.tokenizer.encode(truth)))
    errors, changed = squared_error(made, truth), changes(made, truth)
    assert found["psnr"] == pytest.approx(float(psnr(errors.mean())), abs=1e-3)
    assert found["ssim"] == pytest.approx(float(ssim(made, truth).mean()), abs=1e-3)
    assert found["lpips"] == pytest.approx(float((made - truth).abs().mean()), abs=1e-3)
    assert found["by_frame"]["psnr"] == pytest.approx(psnr(errors.mean(dim=0)).tolist(), abs=1e-3)
    assert found["flicker"]["flicker"] == pytest.approx(float(changed.flicker.mean()), abs=1e-2)
    assert found["flicker"]["true_change"] == pytest.approx(float(changed.truth.mean()), abs=1e-2)
    assert found["rfvd"]["value"] == pytest.approx(frechet_distance(FAKE.i3d(truth), FAKE.i3d(made)), abs=1e-2)
    tokens = model.tokenizer.encode(truth)
    assert found["codebook"]["tokens"] == tokens.numel()
    assert found["codebook"]["use"][0]["used"] == tokens.unique().numel()
    assert [use["name"] for use in found["codebook"]["use"]] == ["whole token", "factor 1", "factor 2", *(f"channel {i}" for i in (1, 2, 3, 4))]


def test_batch_size_changes_no_figure_but_time(model):
    figures = [evaluated(model, Clips(), batch_size=size).figures for size in (1, 7)]
    for found in figures:
        assert found.pop("seconds_per_clip")["decode"] > 0
    approximate = [json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 2)) for found in figures]
    assert approximate[0] == approximate[1]


def test_each_clip_once_with_a_seed_of_its_own_and_no_more_than_there_are(model):
    source = Clips(count=5)
    found = evaluated(model, source, clips=8, batch_size=2).figures
    assert source.asked == [(5, 0, 2), (5, 2, 2), (5, 4, 1)]
    assert found["clips"] == {"measured": 5, "asked": 8, "available": 5, "replaced": 0}
    assert any("8 clips were asked for; the data has 5" in caution for caution in found["cautions"])
    assert settings_for(2, 32, Wishes()).seed == 777


def test_frechet_distance_says_what_it_is_of_and_warns_of_few_clips(model):
    found = evaluated(model, Clips()).figures
    assert {key: found["rfvd"][key] for key in ("clips", "frames", "size")} == {"clips": 7, "frames": 9, "size": 32}
    assert 0 <= found["rfvd"]["low"] <= found["rfvd"]["value"] <= found["rfvd"]["high"]
    assert any("rFVD is of 7 clips: it is biased upward" in caution for caution in found["cautions"])
    assert any("rFVD" in line and "95%" in line for line in summary(found))


def test_a_perfect_tokenizer_has_no_error(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "decode", lambda tokens: truth)
    truth = as_shown(torch.rand(4, 3, 9, 32, 32) * 2 - 1)
    source = Clips()
    source.clips = lambda seed, first, count, num_frames, align: truth
    found = evaluated(model, source, clips=4, batch_size=4).figures
    assert found["psnr"] is None and set(found["by_frame"]["psnr"]) == {None}  # infinite, which JSON has not
    assert found["ssim"] == 1 and found["lpips"] == 0 and found["flicker"]["flicker"] == 0 and found["rfvd"]["value"] == 0
    assert "infinite" in summary(found)[1] and "infinite" in html_report({**found, "data": "", "machine": ""}, [], [])


def test_without_networks_the_other_figures_still_come_out(model):
    found = evaluated(model, Clips(), networks=NONE).figures
    assert found["rfvd"] is None and "lpips" not in found and found["psnr"] > 0
    assert found["not_measured"] == {"lpips": NONE.missing["lpips"], "rfvd": NONE.missing["i3d"]}
    page = html_report({**found, "data": "", "machine": ""}, [], [])
    assert page.count("not measured: run `phenaki metrics install`") == 2
    assert sum("phenaki metrics install" in line for line in summary(found)) == 2


def test_clips_too_short_for_a_network_cost_that_figure_alone(model):
    found = evaluated(model, Clips(), frames=5).figures
    assert found["rfvd"] is None and "9 frames" in found["not_measured"]["rfvd"] and found["lpips"] > 0


def test_a_network_that_cannot_be_loaded_is_named_with_what_to_do(monkeypatch):
    def refuses(device):
        raise MetricWeightsError("weights: not here. Run `phenaki metrics install`")

    monkeypatch.setattr("phenaki.evaluation.lpips.load_lpips", refuses)
    monkeypatch.setattr("phenaki.evaluation.i3d.load_i3d", refuses)
    found = load_networks("cpu")
    assert found.lpips is None and found.i3d is None and set(found.missing) == {"lpips", "i3d"}
    assert all("phenaki metrics install" in reason for reason in found.missing.values())


def test_the_worst_clips_are_shown(model):
    source = Clips()
    found = evaluated(model, source, clips=9)
    truth = torch.stack([source.clip(5, index, 9) for index in range(9)])
    made = as_shown(model.tokenizer.decode(model.tokenizer.encode(truth)))
    order = squared_error(made, truth).mean(dim=1).argsort(descending=True)
    assert [example.index for example in found.first] == [0, 1, 2, 3]
    assert [example.index for example in found.worst] == order[:4].tolist()
    assert torch.equal(found.worst[0].truth, truth[order[0]])


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_runs_nothing(folder, tmp_path):
    html = tmp_path / "report.html"
    run_tokenizer_evaluation(folder, lambda fps, size: Clips(), tmp_path / "a.json", html=html, wishes=Wishes(5, 9), networks=FAKE)
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert EVIL in page.text and EVIL not in text  # shown as it is written, escaped where it stands
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://", text)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8 and all(image.startswith("data:image/png;base64,") for image in images)
    picture = Image.open(io.BytesIO(base64.b64decode(images[0].split(",")[1])))
    assert picture.size == (8 * 32, 2 * 32)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    assert "5 clips, 9 frames each at 32x32 pixels" in page.text and "5 clips of 9 frames at 32x32" in page.text


def test_truth_stands_above_the_reconstruction():
    truth, made = torch.ones(3, 4, 16, 16), -torch.ones(3, 4, 16, 16)
    pixels = side_by_side([truth, made])
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8
    assert (pixels[:16] == 255).all() and (pixels[16:] == 0).all()
    shown = side_by_side([torch.linspace(-1, 1, 30).view(1, 30, 1, 1).expand(3, 30, 4, 4)])
    assert shown.shape == (4, 32, 3) and shown[0, 0, 0] == 0 and shown[0, -1, 0] == 255  # the first and the last frame are shown


def test_a_curve_goes_from_its_first_point_to_its_last():
    drawn = curve("PSNR", [10.0, None, 30.0, 20.0])
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', drawn)[1].split()]
    assert len(points) == 3 and points[0][0] < points[1][0] < points[2][0]
    assert points[0][1] > points[2][1] > points[1][1]  # higher values stand higher, so nearer to 0
    assert ">10<" in drawn and ">30<" in drawn
    assert curve("nothing", [None]) == "" and EVIL not in curve(EVIL, [1.0])


def test_files_found_damaged_on_the_way_are_told(model):
    source = Clips(count=6)
    source.unusable = {"known": "before the evaluation"}
    good = source.clips

    def clips(seed, first, count, num_frames, align):
        if first == 2:
            source.unusable["late"] = "cut short"
        return good(seed, first, count, num_frames, align)

    source.clips = clips
    found = evaluated(model, source, clips=6, batch_size=2, networks=NONE).figures
    assert found["clips"]["replaced"] == 1
    assert any("found damaged on the way: 1" in caution for caution in found["cautions"])


def test_a_source_may_count_its_own_clips(model):
    source = Clips(count=6)
    source.num_clips = lambda num_frames: {9: 2}[num_frames]  # the others are shorter
    assert evaluated(model, source, clips=4, networks=NONE).figures["clips"]["measured"] == 2


def test_a_folder_of_videos_is_measured_once_through(folder, tmp_path):
    (tmp_path / "videos").mkdir()
    for index in range(3):
        frames = np.random.default_rng(index).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
        Video(frames, 8.0).save(tmp_path / "videos" / f"{index}.mp4")
    code, said = run("--model", folder, "--data", tmp_path / "videos", "--clips", 9, "--frames", 5, "-o", tmp_path / "a.json")
    assert code == 0 and "9 clips were asked for; the data has 3" in said
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["clips"] == {"measured": 3, "asked": 9, "available": 3, "replaced": 0} and figures["psnr"] > 0


def make_clips(folder: Path, seed: int) -> Path:
    """Three noisy videos of one length, with captions."""
    folder.mkdir()
    for index in range(3):
        frames = np.random.default_rng(seed + index).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
        Video(frames, 8.0).save(folder / f"{index}.mp4")
        (folder / f"{index}.txt").write_text("noise")
    return folder


def test_clips_that_the_tokenizer_was_trained_on_are_told(tmp_path, monkeypatch):
    """However they were cut, wherever they lie now, and by whatever has been trained from it since; other clips are not."""
    monkeypatch.setenv("PHENAKI_CACHE", str(tmp_path / "cache"))
    seen, other, text = make_clips(tmp_path / "seen", 0), make_clips(tmp_path / "other", 9), (ROOT / "configs/tiny.toml").read_text()
    (tmp_path / "tiny.toml").write_text(text + "[footage]\nrandom_crop = true\nmin_zoom = 0.7\n")
    train = lambda name, data, **more: run_tokenizer_training(
        tmp_path / "tiny.toml", tmp_path / name, data=data, steps=1, **more, on_log=lambda line: None, on_note=lambda note: None
    )
    cautions = lambda model, data: run("--model", model, "--data", data, "--clips", 3, "--frames", 5, "-o", tmp_path / "a.json")[1].count(TRAINED_ON)
    first = train("first", seen)
    shutil.move(seen, tmp_path / "moved")
    (tmp_path / "moved/0.txt").write_text("other words")
    assert [cautions(first, data) for data in (tmp_path / "moved", other)] == [1, 0]
    second = train("second", other, init_from=str(first))
    assert [cautions(second, data) for data in (tmp_path / "moved", other)] == [1, 1]
    assert load_model(second).info.training["tokenizer_data"] != load_model(first).info.training["tokenizer_data"]
    third = train("third", None, init_from=str(second))
    assert [cautions(third, data) for data in (tmp_path / "moved", other)] == [1, 1]


@pytest.mark.parametrize("facts", [{}, {"tokenizer_init": {"name": "a"}}, {"tokenizer_init": "a model", "tokenizer_data": 3}])
def test_models_that_do_not_say_what_they_were_trained_on_are_measured_as_before(model, facts):
    source = Clips(count=3)
    source.clips_hash = "footage 0123456789abcdef"
    found = evaluated(replace(model, info=replace(model.info, training=facts)), source, clips=3, networks=NONE).figures
    assert found["cautions"] == []


def test_storybook_world_is_endless(model):
    found = evaluated(model, open_world(replace(WORLDS["small"], size=32)), clips=3, networks=NONE).figures
    assert found["clips"]["measured"] == 3 and found["clips"]["available"] is None and found["cautions"] == []


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (Wishes(num_frames=10), "10 frames: C-ViViT needs 1 \\+ 2k frames, so 9 or 11"),
        (Wishes(size=36), "size 36.*so the size may be 32 or 40"),
        (Wishes(size=8), "at least 11 pixels"),
        (Wishes(num_clips=0), "clips 0: needed at least 1"),
        (Wishes(batch_size=-1), "batch_size -1"),
        (Wishes(num_frames=1), "at least 2 frames"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_work(folder, tmp_path, wishes, said):
    def never(fps, size):
        raise AssertionError("the data was opened")

    with pytest.raises(ValueError, match=said):
        run_tokenizer_evaluation(folder, never, tmp_path / "a.json", wishes=wishes, networks=NONE)
    assert not (tmp_path / "a.json").exists()


def test_default_frames_suit_the_model():
    assert [settings_for(pt, 64, Wishes()).num_frames for pt in (1, 2, 3, 4, 20)] == [17, 17, 16, 17, 21]


def run(*arguments) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["evaluate", "tokenizer", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_writes_figures_and_page(folder, tmp_path):
    output, html = tmp_path / "a.json", tmp_path / "a.html"
    code, said = run("--model", folder, "--clips", 3, "--frames", 5, "-o", output, "--html", html)
    assert code == 0, said
    figures = json.loads(output.read_text())
    assert figures["clips"]["measured"] == 3 and figures["size"] == 32 and figures["fps"] == 8.0
    assert f"PSNR {figures['psnr']} dB" in said and "3 clips of 5 frames at 32x32" in said
    assert html.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"-o": "a.txt"}, "must end in .json"),
        ({"-o": "folder.json"}, "folder.json: is a folder"),
        ({"-o": "/proc/t.json"}, "cannot write in /proc"),
        ({"-o": "nowhere/a.json"}, "there is no folder"),
        ({"--html": "a.pdf"}, "must end in .html"),
        ({"--model": "missing"}, "no such folder"),
        ({"--data": "missing"}, "no such file or folder"),
        ({"--frames": "4"}, "so 3 or 5"),
    ],
)
def test_mistakes_are_one_message(folder, tmp_path, monkeypatch, changed, said):
    monkeypatch.chdir(tmp_path)
    Path("folder.json").mkdir()
    Path("file.txt").write_text("a file")
    options = {"--model": folder, "--clips": 2, "-o": "a.json"} | changed
    code, output = run(*(word for pair in options.items() for word in pair))
    assert code == 2 and said in output and output.count("error:") == 1 and "Traceback" not in output


def test_examples_are_plain_tensors_on_the_cpu(model):
    example = evaluated(model, Clips(), clips=1).first[0]
    assert isinstance(example, Example) and example.truth.shape == example.made.shape == (3, 9, 32, 32)
    assert example.truth.device.type == "cpu"


def test_a_world_draws_as_many_clips_as_it_is_asked_for():
    assert open_world(WORLDS["small"]).num_clips(9) is None
