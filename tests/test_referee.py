"""The referee: what it has names for, what each answer depends on, and the weights that ship."""

import json
from dataclasses import replace

import pytest
import torch
from referee_toys import TINY_WORLD
from safetensors import safe_open
from safetensors.torch import save_file

from phenaki.data.world import FULL_WORLD, MEDIUM_WORLD, SMALL_WORLD, WIDE_WORLD
from phenaki.evaluation import referee as module
from phenaki.evaluation.referee import (
    FRAME_REACH,
    HASHES,
    MOTION_REACH,
    SHIPPED,
    Referee,
    RefereeError,
    as_seen,
    judge,
    labels_of,
    load_referee,
    save_referee,
)


def video(b: int = 1, f: int = 3, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, 3, f, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Names


def test_labels_are_the_world_s_names_after_none():
    labels = labels_of(SMALL_WORLD)
    assert list(labels) == ["actor", "place", "time", "motion"], "one weather, no companion, no object: nothing to tell apart"
    assert labels["actor"] == ("", *SMALL_WORLD.actors) and labels["motion"] == ("", *SMALL_WORLD.motions)
    full = labels_of(FULL_WORLD)
    assert list(full) == ["actor", "place", "time", "weather", "motion", "companion", "object"]
    assert full["companion"] == ("", *FULL_WORLD.actors) and full["object"] == ("", *FULL_WORLD.objects)
    assert "weather" in labels_of(MEDIUM_WORLD)
    one = labels_of(replace(FULL_WORLD, times=("day",), objects=("tent",), companion_prob=0.0))
    assert "time" not in one and "companion" not in one and one["object"] == ("", "tent"), "there or not there is a choice"


def test_a_name_that_is_likelier_in_a_world_is_one_label():
    assert labels_of(WIDE_WORLD) == labels_of(FULL_WORLD)
    twice = labels_of(replace(WIDE_WORLD, weathers=("clear", "clear"), actors=("fox", "fox", "panda")))
    assert "weather" not in twice, "the same twice is no choice"
    assert twice["actor"] == twice["companion"] == ("", "fox", "panda")


def test_judge_says_the_names_of_the_largest_logits(referee):
    clips = video(2, 4)
    said, logits = judge(referee, clips), referee(clips)
    assert set(said) == set(logits) == set(referee.labels)
    for name, names in referee.labels.items():
        assert logits[name].shape == (2, 4, len(names))
        for clip in range(2):
            for frame in range(4):
                assert said[name][clip][frame] == names[int(logits[name][clip, frame].argmax())]


# What an answer depends on


def test_a_frame_is_judged_by_itself_and_motion_by_its_window(referee):
    clips = video(1, 2 * MOTION_REACH + 5).requires_grad_()
    middle = MOTION_REACH + 2
    for name, reach in (("actor", 0), ("place", 0), ("time", 0), ("motion", MOTION_REACH)):
        gradient = torch.autograd.grad(referee(clips)[name][0, middle].square().sum(), clips)[0].abs().sum(dim=(0, 1, 3, 4))
        seen = gradient.nonzero().flatten().tolist()
        assert seen == list(range(middle - reach, middle + reach + 1)), name


def test_the_wider_one_sees_the_frames_around(wider_referee):
    middle = FRAME_REACH + 1
    clips = video(1, 2 * middle + 1).requires_grad_()
    logits = wider_referee(clips)
    assert list(logits) == ["actor", "place", "time", "motion", "companion", "object"]
    for name in logits:
        gradient = torch.autograd.grad(logits[name][0, middle].square().sum(), clips, retain_graph=True)[0].abs().sum(dim=(0, 1, 3, 4))
        assert gradient.nonzero().flatten().tolist() == list(range(middle - FRAME_REACH, middle + FRAME_REACH + 1)), name


def test_the_wider_one_names_companions_as_actors_and_sees_them_elsewhere(wider_referee):
    assert "companion" not in wider_referee.heads and wider_referee.head_of("object") == "object"
    before = wider_referee(video())
    with torch.no_grad():
        wider_referee.heads["actor"].bias[2] += 100
    for name, logits in wider_referee(video()).items():
        assert torch.equal(logits, before[name]) == (name not in ("actor", "companion"))
    assert not torch.allclose(before["actor"], before["companion"])


def test_some_frames_are_judged_as_among_all(referee, wider_referee):
    clips, chosen = video(2, 6), torch.tensor([4, 0])
    for one in (referee, wider_referee):
        every, some = one(clips), one.see(clips, chosen)
        for name in every:
            torch.testing.assert_close(some[name], every[name] if name == "motion" else every[name][:, chosen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["referee", "wider_referee"])
@pytest.mark.parametrize("num_frames", [1, 2, 9, 20])
def test_clips_of_any_length_are_judged_alone_as_in_a_batch(kind, num_frames, request):
    judging, clips = request.getfixturevalue(kind), video(3, num_frames)
    together = judging(clips)
    for index in range(3):
        for name, logits in judging(clips[index : index + 1]).items():
            torch.testing.assert_close(logits[0], together[name][index], rtol=1e-4, atol=1e-4)


def test_videos_of_other_sizes_are_resized(referee):
    large = video(1, 2, 128)
    small = as_seen(large)
    assert small.shape == (1, 3, 2, 64, 64) and small.std() < 0.7 * large.std(), "smoothed, not picked"
    flat = as_seen(torch.full((1, 3, 2, 96, 96), 0.25))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))
    for name, logits in referee(large).items():
        torch.testing.assert_close(logits, referee(small)[name])


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 2, 64, 64), torch.zeros(1, 1, 2, 64, 64), torch.zeros(1, 3, 0, 64, 64), torch.zeros(1, 3, 2, 64, 64, dtype=torch.uint8)]
)
def test_what_is_no_video_is_refused(referee, wrong):
    with pytest.raises(ValueError, match=r"the referee needs float \(b 3 f h w\)"):
        referee(wrong)


# Files


def test_a_referee_comes_back_from_its_file(referee, tmp_path):
    path = tmp_path / "tiny.safetensors"
    digest = save_referee(referee, path)
    again = load_referee(path, digest)
    assert again.labels == referee.labels and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for name, value in referee.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float() if value.is_floating_point() else value)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_a_file_says_what_its_referee_is_made_of_where_it_is_no_first_one(referee, wider_referee, tmp_path):
    for name, one in (("first", referee), ("wider", wider_referee)):
        save_referee(one, tmp_path / name)
        again = load_referee(tmp_path / name)
        assert again.config == one.config and all(parameter.dtype == torch.float32 for parameter in again.parameters())
        for attribute, logits in one(video()).items():
            torch.testing.assert_close(again(video())[attribute], logits, rtol=0.02, atol=0.02)
    with safe_open(tmp_path / "first", framework="pt") as file:
        assert "config" not in file.metadata()
    with safe_open(tmp_path / "wider", framework="pt") as file:
        weights, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    for wrong, reason in (('{"widht": 3}', "did you mean 'width'"), ('{"width": 0}', "needed at least 1"), ("{}", "not a referee")):
        save_file(weights, tmp_path / "wrong", metadata={**said, "config": wrong})
        with pytest.raises(RefereeError, match=reason):
            load_referee(tmp_path / "wrong")


def test_damaged_and_foreign_files_are_refused(referee, tmp_path):
    path = tmp_path / "tiny.safetensors"
    digest = save_referee(referee, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefereeError, match="its SHA-256 is not the shipped one"):
        load_referee(path, digest)
    path.write_bytes(content[:100])
    with pytest.raises(RefereeError, match="not a referee"):
        load_referee(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(RefereeError, match="not a referee"):
        load_referee(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"labels": '{"actor": ["", "fox"]}'})
    with pytest.raises(RefereeError, match="not a referee"):
        load_referee(path)
    with pytest.raises(RefereeError, match="no such file"):
        load_referee(tmp_path / "none.safetensors")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(bad, tmp_path):
    referee = Referee({"actor": ("", "fox")})
    referee.frame_trunk.layers[0][1].running_var[3] = bad
    save_referee(referee, tmp_path / "one")
    with pytest.raises(RefereeError, match=r"not a referee \(frame_trunk\.layers\.0\.1\.running_var holds NaN or infinite numbers\)"):
        load_referee(tmp_path / "one")


@pytest.mark.parametrize(
    "labels",
    ["[]", "{}", "3", '{"actor": 3}', '{"actor": "abc"}', '{"actor": []}', '{"actor": ["fox"]}', '{"actor": ["", 3]}', '{"actor": ["", []]}',
     '{"actor": ["", "fox", "fox"]}', '{"colour": ["", "red"]}', "[" * 100_000],
)  # fmt: skip
def test_a_file_with_other_labels_is_refused(labels, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other", metadata={"labels": labels})
    with pytest.raises(RefereeError, match=r"not a referee \((it names no attributes|attribute '.*': needed one of|maximum recursion depth)"):
        load_referee(tmp_path / "other")


@pytest.mark.parametrize("config", [{"width": 40_000}, {"motion_width": 9000}, {"attends": True, "width": 10**9}, {"width": 10**400}])
def test_a_file_that_states_huge_sizes_takes_no_memory(referee, config, tmp_path, monkeypatch):
    """The network of the first would take 200 GB."""
    save_referee(referee, tmp_path / "one")
    with safe_open(tmp_path / "one", framework="pt") as file:
        weights, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file(weights, tmp_path / "huge", metadata={**said, "config": json.dumps(config)})
    made, load = [], module.Referee.load_state_dict

    def watched(self, *given, **named):
        made.extend(self.parameters())
        return load(self, *given, **named)

    monkeypatch.setattr(module.Referee, "load_state_dict", watched)
    with pytest.raises(RefereeError, match="not a referee"):
        load_referee(tmp_path / "huge")
    assert all(parameter.is_meta for parameter in made)


def test_a_world_without_a_referee_is_told(monkeypatch):
    monkeypatch.setattr(module, "HASHES", {"small": "0"})
    with pytest.raises(RefereeError, match=r"world 'moon': no referee ships for it \(there is one for: small\)"):
        Referee.load("moon")
    with pytest.raises(RefereeError, match="SHA-256"):
        Referee.load("small")


@pytest.mark.parametrize("world", HASHES)
def test_the_shipped_referee_is_whole_small_and_says_the_same_every_time(world):
    path = SHIPPED / f"{world}.safetensors"
    assert path.stat().st_size < 8 * 2**20
    first, second = Referee.load(world), Referee.load(world)
    clips = video(1, 3)
    for name, logits in first(clips).items():
        assert torch.equal(logits, second(clips)[name]) and logits.isfinite().all()


def test_the_small_world_s_referee_knows_its_names_and_sees_nobody_in_noise():
    referee = Referee.load("small")
    assert referee.labels == labels_of(SMALL_WORLD) != labels_of(TINY_WORLD)
    noise = judge(referee, torch.randn(4, 3, 9, 64, 64, generator=torch.Generator().manual_seed(1)).clamp(-1, 1))
    assert sum(name == "" for clip in noise["actor"] for name in clip) >= 30, "of 36 frames"
