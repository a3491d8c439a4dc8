"""What the comparisons with a peer stand on: the same clips for both sides, in the same order, and an advantage with its interval."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from phenaki.video import Video

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from clip_array import ClipArray, open_folder
from compare_peer_tokenizer import advantage
from peer_phenaki_pytorch import VGGFeatures, network_size


@pytest.fixture
def array(tmp_path, capsys) -> ClipArray:
    """Four videos of different greys; a short one and a damaged one are left out."""
    for index, length in enumerate((12, 15, 9, 12, 4)):
        Video(np.full((length, 32, 48, 3), 40 * index + 20, np.uint8), 8.0).save(tmp_path / f"{index}.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    array = open_folder(tmp_path, tmp_path / "clips.safetensors", size=16, fps=8.0, num_frames=7)
    told = capsys.readouterr().out
    assert "4.mp4: 4 frames, a clip needs 7" in told and "broken.mp4" in told
    return array


def greys(clips: torch.Tensor) -> list[int]:
    return [round((float(clip.mean()) * 127.5 + 127.5 - 20) / 40) for clip in clips]


def test_every_video_once_an_epoch_whatever_the_batch(array):
    whole = array.clips(3, 0, 8, 7, 2)
    assert whole.shape == (8, 3, 7, 16, 16) and float(whole.std(dim=(1, 2, 3, 4)).max()) < 0.05  # no clip runs into the next video
    assert sorted(greys(whole[:4])) == sorted(greys(whole[4:])) == [0, 1, 2, 3]
    assert torch.equal(whole, torch.cat([array.clips(3, first, 2, 7, 2) for first in range(0, 8, 2)]))
    assert len({tuple(greys(array.clips(seed, 0, 4, 7, 2))) for seed in range(6)}) > 1


def test_videos_are_decoded_once_and_other_settings_are_refused(array, tmp_path):
    for video in tmp_path.glob("*.mp4"):
        video.unlink()
    again = open_folder(tmp_path, tmp_path / "clips.safetensors", size=16, fps=8.0, num_frames=7)
    assert torch.equal(again.frames, array.frames) and len(again) == 4
    with pytest.raises(ValueError, match="other settings"):
        open_folder(tmp_path, tmp_path / "clips.safetensors", size=32, fps=8.0, num_frames=7)


def test_an_advantage_is_in_decibels_with_an_interval_around_it():
    rng = torch.Generator().manual_seed(0)
    errors = 0.01 + 0.01 * torch.rand(60, generator=rng)
    found = advantage(errors, 2 * errors)
    assert found == {"decibels": 3.01, "low": 3.01, "high": 3.01}  # the same clips are drawn for both, so a constant factor is certain
    noisy = advantage(errors, 2 * errors * (0.5 + torch.rand(60, generator=rng)))
    assert noisy["low"] < noisy["decibels"] < noisy["high"] and noisy["high"] - noisy["low"] < 1.5


def test_vgg_features_are_those_of_its_last_pooling():
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    features = VGGFeatures([nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)])
    assert features(torch.rand(1, 3, 32, 32)).shape == (1, 512)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in features.layers) == 5
    assert network_size(features) == 14_714_688  # VGG16's, without its classifier
