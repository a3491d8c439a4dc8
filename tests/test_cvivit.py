"""C-ViViT: causal by gradient, streaming equal to the whole, and errors that say what to do."""

from dataclasses import replace

import pytest
import torch
from conftest import TOKENIZERS, build_tokenizer

from phenaki.cvivit import CViViT, CViViTConfig, Stream

SPLITS = [[1] * 9, [9], [4, 5], [1, 8], [8, 1], [2, 3, 4], [3, 1, 1, 4], [1, 1, 7]]  # slices of each part


def random_video(num_frames: int, height: int = 32, width: int = 32, batch_size: int = 2) -> torch.Tensor:
    return torch.rand(batch_size, 3, num_frames, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def vectors_of(tokenizer: CViViT, video: torch.Tensor, stream: Stream) -> torch.Tensor:
    """What the quantizer is given, (b t h w d)."""
    return tokenizer.encoder(tokenizer._embed(video, starts=stream.num_slices == 0), stream)


def frames_seen(tokenizer: CViViT, video: torch.Tensor, index: int) -> torch.Tensor:
    """Which frames slice `index` of the encoder depends on, (f,)."""
    video = video.clone().requires_grad_()
    vectors = vectors_of(tokenizer, video, Stream())
    (vectors[:, index] * torch.randn_like(vectors[:, index])).sum().backward()
    return video.grad.abs().amax(dim=(0, 1, 3, 4)) > 0


def test_no_slice_depends_on_a_later_frame(any_tokenizer):
    video = random_video(9)
    for index in range(5):
        last_of_slice = 2 * index
        seen = frames_seen(any_tokenizer, video, index)
        assert not seen[last_of_slice + 1 :].any()
        assert seen[max(last_of_slice - 1, 0) : last_of_slice + 1].all()


def test_no_frame_depends_on_a_later_slice(any_tokenizer):
    for frame in range(9):
        vectors = torch.randn(1, 5, 4, 4, 32, requires_grad=True)
        video = any_tokenizer._decode(vectors, Stream())
        assert video.shape == (1, 3, 9, 32, 32)
        (video[:, :, frame] * torch.randn(1, 3, 32, 32)).sum().backward()
        seen = vectors.grad.abs().amax(dim=(0, 2, 3, 4)) > 0
        own_slice = (frame + 1) // 2
        assert seen[own_slice] and not seen[own_slice + 1 :].any()


def test_first_slice_is_that_of_its_frame_alone_and_a_prefix_keeps_its_tokens(any_tokenizer):
    video = random_video(9)
    tokens = any_tokenizer.encode(video)
    assert tokens.shape == (2, 5, 4, 4) and tokens.unique().numel() > 10
    assert frames_seen(any_tokenizer, video, 0).tolist() == [True] + [False] * 8
    assert torch.equal(any_tokenizer.encode(video[:, :, :1]), tokens[:, :1])
    changed = torch.cat([video[:, :, :5], -video[:, :, 5:]], dim=2)
    assert torch.equal(any_tokenizer.encode(changed)[:, :3], tokens[:, :3])
    assert not torch.equal(any_tokenizer.encode(changed)[:, 3:], tokens[:, 3:])


def test_the_past_is_seen_as_far_as_the_window_and_no_further():
    for window, layers in [(1, "st st"), (2, "st"), (2, "st st"), (3, "s t t")]:
        tokenizer = build_tokenizer(replace(TOKENIZERS["default"], window=window, encoder_layers=layers))
        reach = layers.count("t") * (window - 1)  # slices back
        seen = frames_seen(tokenizer, random_video(17, batch_size=1), 8)
        first = 2 * (8 - reach) - 1  # first frame of the last slice in reach
        assert seen.tolist() == [frame >= first for frame in range(17)]
    unlimited = build_tokenizer(replace(TOKENIZERS["default"], window=0))
    assert frames_seen(unlimited, random_video(17, batch_size=1), 8).all()


@torch.no_grad()
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_streaming_equals_the_whole(any_tokenizer, split):
    video = random_video(17)  # 9 slices, three windows
    whole = vectors_of(any_tokenizer, video, Stream())
    tokens, decoded = any_tokenizer.encode(video), any_tokenizer.decode(any_tokenizer.encode(video))
    assert decoded.shape == video.shape

    encoder, quantizer, decoder, start, parts = Stream(), Stream(), Stream(), 0, []
    for num_slices in split:
        end = start + num_slices
        part = video[:, :, max(2 * start - 1, 0) : 2 * end - 1]
        parts.append(
            (
                vectors_of(any_tokenizer, part, encoder),
                any_tokenizer.encode(part, quantizer),
                any_tokenizer.decode(tokens[:, start:end], decoder),
            )
        )
        start = end
    vectors, streamed_tokens, frames = zip(*parts, strict=True)
    torch.testing.assert_close(torch.cat(vectors, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(frames, dim=2), decoded, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat(streamed_tokens, dim=1), tokens)
    assert encoder.num_slices == quantizer.num_slices == decoder.num_slices == 9


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 4])
def test_streams_equal_the_whole_at_other_windows_and_tube_lengths(window):
    tokenizer = build_tokenizer(replace(TOKENIZERS["default"], window=window, temporal_patch_size=3))
    video = random_video(22, height=16, width=48)
    whole, stream = vectors_of(tokenizer, video, Stream()), Stream()
    parts = [vectors_of(tokenizer, video[:, :, start:end], stream) for start, end in [(0, 4), (4, 7), (7, 19), (19, 22)]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_memory_of_a_stream_is_bounded_by_the_window(tokenizer):
    stream, held = Stream(), []
    video = random_video(41, batch_size=1)
    for start in range(21):
        tokenizer.encode(video[:, :, max(2 * start - 1, 0) : 2 * start + 1], stream)
        memory = [past for past in stream.memory if past is not None]
        assert len(memory) == 2 and all(past.keys.shape[2] == past.values.shape[2] == min(start + 1, 2) for past in memory)
        held.append(sum(x.untyped_storage().nbytes() for past in memory for x in (past.keys, past.values)))
    assert held[-1] == max(held) == held[3]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 48), (64, 32), (8, 8)])
def test_other_resolutions_than_the_trained_one(any_tokenizer, height, width):
    video = random_video(5, height, width)
    tokens = any_tokenizer.encode(video)
    assert tokens.shape == (2, 3, height // 8, width // 8)
    assert any_tokenizer.decode(tokens).shape == video.shape
    reconstruction = any_tokenizer(video)
    assert torch.equal(reconstruction.tokens, tokens)
    torch.testing.assert_close(reconstruction.video, any_tokenizer.decode(tokens), atol=1e-5, rtol=1e-5)


def test_slices_count_frames(tokenizer):
    assert [tokenizer.num_slices(frames) for frames in (1, 3, 5, 21)] == [1, 2, 3, 11]
    assert all(tokenizer.num_slices(tokenizer.num_frames(slices)) == slices for slices in range(1, 20))


@pytest.mark.parametrize(("num_frames", "near"), [(12, "11 or 13"), (2, "1 or 3"), (0, "1 or 3")])
def test_wrong_number_of_frames_is_told_the_nearest(tokenizer, num_frames, near):
    with pytest.raises(ValueError, match=rf"^{num_frames} frames: .* 1 \+ 2k frames, so {near}$"):
        tokenizer.encode(torch.zeros(1, 3, num_frames, 32, 32))


def test_a_stream_goes_on_by_whole_slices(tokenizer):
    stream = Stream()
    tokenizer.encode(torch.zeros(1, 3, 3, 32, 32), stream)
    with pytest.raises(ValueError, match="3 more frames: a stream goes on by multiples of 2"):
        tokenizer.encode(torch.zeros(1, 3, 3, 32, 32), stream)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(3, 5, 32, 32), r"shape \(3, 5, 32, 32\).*needs float \(b 3 f h w\)"),
        (torch.zeros(1, 4, 5, 32, 32), r"shape \(1, 4, 5, 32, 32\).*needs float"),
        (torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8), r"torch.uint8.*needs float .* in \[-1, 1\]"),
        (torch.zeros(1, 3, 5, 32, 36), "frames of 36x32: both sides must be multiples of 8"),
        (torch.zeros(1, 3, 5, 30, 32), "frames of 32x30: both sides must be multiples of 8"),
    ],
)
def test_wrong_videos_are_refused(tokenizer, video, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(video)


def test_wrong_tokens_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"tokens of shape \(5, 16\): C-ViViT decodes \(b t h w\)"):
        tokenizer.decode(torch.zeros(5, 16, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_layers": "sx"}, "made of s, t and blanks"),
        ({"decoder_layers": "S"}, "made of s, t and blanks"),
        ({"stem": "dense"}, "stem 'dense': allowed are conv, linear"),
        ({"quantizer": "lfq"}, "quantizer 'lfq': allowed are fsq, vq"),
        ({"patch_size": 7}, "even patch_size"),
        ({"first_frame_stem": True}, "no first_frame_stem"),
        ({"refiner_dim": 12}, "refiner_dim 12: needed a multiple of 8, a convolutional stem and patches of a multiple of 4"),
        ({"refiner_dim": 16, "patch_size": 6, "image_size": 12}, "refiner_dim 16: needed a multiple of 8"),
        ({"refiner_dim": 16, "stem": "linear"}, "refiner_dim 16: needed a multiple of 8, a convolutional stem"),
    ],
)
def test_wrong_configurations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CViViTConfig(**settings)


def test_a_training_pass_reaches_every_weight(any_tokenizer):
    reconstruction = any_tokenizer(random_video(9))
    (reconstruction.video.square().mean() + reconstruction.quantizer_loss).backward()
    zero_at_first = {"first.weight", "first.bias", "norm.weight", "norm.bias"}  # behind a convolution that starts at zero
    for name, parameter in any_tokenizer.named_parameters():
        if "blocks" in name and name.split(".", 3)[-1] in zero_at_first:
            continue
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def refined_tokenizer() -> CViViT:
    """One whose refiner says something, as it does once it is trained."""
    tokenizer = build_tokenizer(replace(TOKENIZERS["default"], refiner_dim=8, refiner_blocks=1))
    for layer in (tokenizer.head.refiner.to_pixels, tokenizer.head.refiner.blocks[0].second):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return tokenizer


@torch.no_grad()
def test_a_refiner_sees_a_frame_alone_and_neither_its_slice_nor_its_past():
    refiner = refined_tokenizer().head.refiner
    channels, pixels = torch.randn(2, 16, 8, 8), torch.randn(2, 6, 32, 32)  # two slices of two frames
    refined = refiner(channels, pixels)
    assert refined.shape == pixels.shape and (refined - pixels).abs().mean() > 0.01
    changed = pixels.clone()
    changed[1, :3] += 1
    other = refiner(channels, changed)
    assert torch.equal(other[0], refined[0]) and torch.equal(other[1, 3:], refined[1, 3:]) and not torch.equal(other[1, :3], refined[1, :3])


@torch.no_grad()
def test_a_refined_tokenizer_streams_and_takes_other_sizes():
    tokenizer = refined_tokenizer()
    tokens = torch.randint(256, (1, 5, 2, 6), generator=torch.Generator().manual_seed(0))
    whole, stream = tokenizer.decode(tokens), Stream()
    assert whole.shape == (1, 3, 9, 16, 48)
    torch.testing.assert_close(torch.cat([tokenizer.decode(part, stream) for part in tokens.split(2, dim=1)], dim=2), whole)


def test_training_reaches_every_weight_of_a_refiner():
    tokenizer = refined_tokenizer()
    tokenizer(random_video(9)).video.square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in tokenizer.head.refiner.parameters())
