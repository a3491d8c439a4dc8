"""C-ViViT: the tokenizer of Phenaki (Villegas et al. 2022, section 2.1), causal in time, whole or streaming.

1 + pt*k frames <-> 1 + k slices of h*w tokens. Layers are named by a pattern string: `s` attends over the positions of
one slice, `t` over earlier slices at one position. Two configurations matter (docs/DESIGN.md says why): the paper's
("ssss tttt", linear patches, a stem of its own for the first frame, VQ) and the default (interleaved, convolutional
stem and head, the first frame repeated to fill a tube, windowed time, FSQ).
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from phenaki.config import check_range
from phenaki.layers import (
    MAX_LAYERS,
    Attention,
    FeedForward,
    KeysValues,
    PlaceEmbedding,
    RMSNorm,
    check_heads,
    grid_positions,
    remembered,
    rotary_turns,
    rotate,
)
from phenaki.quantizer import COMMITMENT, FSQ, VQ, Quantized

MAX_SIDE = 4096  # pixels; what is computed for a slice grows with the square of its side, whatever the weights' size
MAX_GRID = 256  # tokens a side
MAX_WINDOW = 10_000  # slices: a file may say anything, no weight depends on it

GROUPS = 8  # of a residual block's norm


@dataclass(frozen=True)
class CViViTConfig:
    """What a tokenizer is made of."""

    image_size: int = 64  # pixels a side of the videos it was trained on
    patch_size: int = 8  # pixels a side of one token
    temporal_patch_size: int = 2  # frames of one slice (the first slice is one frame)
    dim: int = 192
    heads: int = 6
    mlp_dim: int = 768
    encoder_layers: str = "st st"  # s = over space, t = over time; blanks mean nothing
    decoder_layers: str = "st st"
    window: int = 4  # slices that a slice sees in one temporal layer, itself included; 0 = all earlier ones
    stem: str = "conv"  # "conv" or "linear"
    stem_dim: int = 96  # channels of the convolutional stem and head, at half a patch a position
    stem_blocks: int = 1  # residual blocks in the stem
    head_blocks: int = 2  # residual blocks in the head
    refiner_dim: int = 0  # channels of the head's refiner, at half of the pictures' resolution; 0 = none
    refiner_blocks: int = 2  # residual blocks in the refiner
    first_frame_stem: bool = False  # True: the first frame has its own linear patches, as in the paper
    quantizer: str = "fsq"  # "fsq" or "vq"
    fsq_levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4, 4, 4, 4, 4)
    codebook_size: int = 8192  # of VQ; FSQ's is the product of its levels
    code_dim: int = 32  # of VQ
    commitment: float = COMMITMENT  # weight of VQ's commitment loss

    def __post_init__(self):
        check_range(self, "image_size", "patch_size", "temporal_patch_size", "dim", "heads", "mlp_dim", "stem_dim", at_least=1)
        check_heads(self.dim, self.heads)
        check_range(self, "codebook_size", "code_dim", at_least=1)
        check_range(self, "window", "stem_blocks", "head_blocks", "refiner_dim", "refiner_blocks", "commitment", at_least=0)
        check_range(self, "stem_blocks", "head_blocks", "refiner_blocks", at_most=MAX_LAYERS)
        check_range(self, "window", at_most=MAX_WINDOW)
        if max(len(self.encoder_layers), len(self.decoder_layers), len(self.fsq_levels)) > MAX_LAYERS:
            raise ValueError(f"encoder_layers, decoder_layers or fsq_levels: needed at most {MAX_LAYERS} of each")
        if self.quantizer == "fsq" and min(self.fsq_levels, default=0) < 2:
            raise ValueError(f"fsq_levels {self.fsq_levels}: needed one at least, and each at least 2")
        if set(self.encoder_layers + self.decoder_layers) - set("st "):
            raise ValueError(f"layers {self.encoder_layers!r} / {self.decoder_layers!r}: a pattern is made of s, t and blanks")
        if self.stem not in ("conv", "linear"):
            raise ValueError(f"stem {self.stem!r}: allowed are conv, linear")
        if self.quantizer not in ("fsq", "vq"):
            raise ValueError(f"quantizer {self.quantizer!r}: allowed are fsq, vq")
        if self.stem == "conv" and (self.patch_size % 2 or self.first_frame_stem):
            raise ValueError("a convolutional stem needs an even patch_size and no first_frame_stem")
        if self.refiner_dim and (self.stem != "conv" or self.patch_size % 4 or self.refiner_dim % GROUPS):
            raise ValueError(f"refiner_dim {self.refiner_dim}: needed a multiple of {GROUPS}, a convolutional stem and patches of a multiple of 4")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size}: needed a multiple of patch_size {self.patch_size}")
        if self.image_size > min(MAX_SIDE, MAX_GRID * self.patch_size):
            raise ValueError(
                f"image_size {self.image_size} with patch_size {self.patch_size}: needed at most {MAX_SIDE} pixels and {MAX_GRID} tokens a side"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a slice, at the size of the videos it was trained on."""
        return (self.image_size // self.patch_size,) * 2


@dataclass
class Stream:
    """What a streaming pass remembers: how many slices have passed, and the last keys and values of each temporal layer."""

    num_slices: int = 0
    memory: list[KeysValues | None] = field(default_factory=list)


@dataclass(frozen=True)
class Reconstruction:
    """video: (b c f h w), what comes back; tokens: (b t h w) int64; quantizer_loss: scalar; codes: (b t h w code_dim) of VQ."""

    video: Tensor
    tokens: Tensor
    quantizer_loss: Tensor
    codes: Tensor | None = None


class SpaceTimeLayer(nn.Module):
    """Pre-norm attention over space or over time, then the feed-forward."""

    def __init__(self, config: CViViTConfig):
        super().__init__()
        self.window = config.window
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config.dim, config.heads)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.mlp_dim)

    def over_space(self, x: Tensor, turns: Tensor) -> Tensor:
        """x: (b t h w d); turns: of the h*w positions."""
        b, _, h, w, _ = x.shape
        flat = rearrange(self.attention_norm(x), "b t h w d -> (b t) (h w) d")
        source = self.attention.keys_values(flat).turned(turns)
        out = self.attention.attend(rotate(self.attention.queries(flat), turns), source)
        return self._feed(x + rearrange(out, "(b t) (h w) d -> b t h w d", b=b, h=h))

    def over_time(self, x: Tensor, past: KeysValues | None, turns: Tensor) -> tuple[Tensor, KeysValues]:
        """x: (b t h w d); turns: of the slices of `past` and x. Keys are kept without positions: a window slides for ever in exact arithmetic."""
        b, t, h, w, _ = x.shape
        flat = rearrange(self.attention_norm(x), "b t h w d -> (b h w) t d")
        source = self.attention.keys_values(flat)
        source = past.followed_by(source) if past is not None else source
        length = source.keys.shape[2]
        queries = rotate(self.attention.queries(flat), turns[:, length - t :])
        out = self.attention.attend(queries, source.turned(turns), self._window_mask(t, length, x.device))
        out = self._feed(x + rearrange(out, "(b h w) t d -> b t h w d", b=b, h=h))
        return out, source.last(self.window - 1 if self.window else length)

    def _window_mask(self, t: int, length: int, device: torch.device) -> Tensor:
        """(t, length), True = seen: no later slice, and none further back than the window."""
        distance = torch.arange(length - t, length, device=device)[:, None] - torch.arange(length, device=device)[None]
        return (distance >= 0) & (distance < (self.window or length))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.feed_forward_norm(x))


class SpaceTimeTransformer(nn.Module):
    """A stack of layers named by a pattern string."""

    def __init__(self, pattern: str, config: CViViTConfig):
        super().__init__()
        self.kinds, self.head_dim = pattern.replace(" ", ""), config.dim // config.heads
        self.place = PlaceEmbedding(config.dim)
        self.layers = nn.ModuleList(SpaceTimeLayer(config) for _ in self.kinds)
        self.norm = RMSNorm(config.dim)
        self._known: dict[Hashable, Tensor] = {}  # turns

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """x: (b t h w d); `stream` is read and brought up to date."""
        stream.memory = stream.memory or [None] * len(self.layers)
        _, t, h, w, _ = x.shape
        x = x + self.place(h, w)
        num_known = max((past.keys.shape[2] for past in stream.memory if past is not None), default=0)  # slices, in every temporal layer
        in_space = remembered(self._known, (h, w, x.device), lambda: rotary_turns(grid_positions(h, w, x.device), self.head_dim))
        in_time = remembered(self._known, (num_known + t, x.device), lambda: self._turns_of_slices(num_known + t, x.device))
        for index, (kind, layer) in enumerate(zip(self.kinds, self.layers, strict=True)):
            if kind == "s":
                x = layer.over_space(x, in_space)
            else:
                x, stream.memory[index] = layer.over_time(x, stream.memory[index], in_time)
        stream.num_slices += x.shape[1]
        return self.norm(x)

    def _turns_of_slices(self, count: int, device: torch.device) -> Tensor:
        return rotary_turns(torch.arange(count, device=device, dtype=torch.float32)[:, None], self.head_dim)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions inside one slice, added to what came in. Starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b c h w)."""
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class ConvStem(nn.Module):
    """Tubes -> vectors: pixels folded to half a patch, convolutions, folded once more."""

    def __init__(self, config: CViViTConfig):
        super().__init__()
        self.fold = config.patch_size // 2
        self.stem = nn.Conv2d(3 * config.temporal_patch_size * self.fold**2, config.stem_dim, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.stem_dim) for _ in range(config.stem_blocks)))
        self.to_vectors = nn.Linear(4 * config.stem_dim, config.dim)

    def forward(self, tubes: Tensor) -> Tensor:
        """tubes: (b t pt c H W) -> (b t h w d)."""
        b = tubes.shape[0]
        x = F.pixel_unshuffle(rearrange(tubes, "b t p c h w -> (b t) (p c) h w"), self.fold)
        x = F.pixel_unshuffle(self.blocks(self.stem(x)), 2)
        return self.to_vectors(rearrange(x, "(b t) c h w -> b t h w c", b=b))


class Refiner(nn.Module):
    """Draws sharper what the head has drawn, frame by frame, at half the pictures' resolution. Starts as the identity.

    The head's last layer mixes a patch of as many patterns as the stem has channels, so an edge lies where one of them has it. Convolutions
    over the finer grid, of those pixels and of the channels that they were mixed of, can put it anywhere.
    """

    def __init__(self, config: CViViTConfig):
        super().__init__()
        self.frames, self.scale = config.temporal_patch_size, config.patch_size // 4  # of a position of the head, in positions here
        self.from_head = nn.Conv2d(config.stem_dim, self.frames * config.refiner_dim * self.scale**2, 1)
        self.from_pixels = nn.Conv2d(3 * 2**2, config.refiner_dim, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.refiner_dim) for _ in range(config.refiner_blocks)))
        self.to_pixels = nn.Conv2d(config.refiner_dim, 3 * 2**2, 3, padding=1)
        nn.init.zeros_(self.to_pixels.weight)
        nn.init.zeros_(self.to_pixels.bias)

    def forward(self, x: Tensor, pixels: Tensor) -> Tensor:
        """x: (n c h w), the head's channels; pixels: (n pt*3 H W), what it made of them -> as pixels."""
        frames = rearrange(pixels, "n (p c) h w -> (n p) c h w", p=self.frames)
        known = F.pixel_shuffle(rearrange(self.from_head(x), "n (p c) h w -> (n p) c h w", p=self.frames), self.scale)
        fine = self.blocks(known + self.from_pixels(F.pixel_unshuffle(frames, 2)))
        refined = frames + F.pixel_shuffle(self.to_pixels(F.silu(fine)), 2)
        return rearrange(refined, "(n p) c h w -> n (p c) h w", p=self.frames)


class ConvHead(nn.Module):
    """Vectors -> tubes, the mirror image of the stem, refined where the configuration has it so."""

    def __init__(self, config: CViViTConfig):
        super().__init__()
        self.fold, self.frames = config.patch_size // 2, config.temporal_patch_size
        self.from_vectors = nn.Linear(config.dim, 4 * config.stem_dim)
        self.blocks = nn.Sequential(*(ResidualBlock(config.stem_dim) for _ in range(config.head_blocks)))
        self.head = nn.Conv2d(config.stem_dim, 3 * self.frames * self.fold**2, 1)
        self.refiner = Refiner(config) if config.refiner_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (b t h w d) -> (b t pt c H W)."""
        b = x.shape[0]
        x = self.blocks(F.pixel_shuffle(rearrange(self.from_vectors(x), "b t h w c -> (b t) c h w"), 2))
        pixels = F.pixel_shuffle(self.head(x), self.fold)
        pixels = pixels if self.refiner is None else self.refiner(x, pixels)
        return rearrange(pixels, "(b t) (p c) h w -> b t p c h w", b=b, p=self.frames)


class LinearStem(nn.Module):
    """Patches -> vectors by one linear layer (paper section 2.1)."""

    def __init__(self, frames: int, config: CViViTConfig):
        super().__init__()
        self.patch = config.patch_size
        self.to_vectors = nn.Linear(frames * 3 * self.patch**2, config.dim)

    def forward(self, tubes: Tensor) -> Tensor:
        """tubes: (b t pt c H W) -> (b t h w d)."""
        return self.to_vectors(rearrange(tubes, "b t p c (h y) (w x) -> b t h w (p c y x)", y=self.patch, x=self.patch))


class LinearHead(nn.Module):
    """Vectors -> patches by one linear layer without activation."""

    def __init__(self, frames: int, config: CViViTConfig):
        super().__init__()
        self.patch, self.frames = config.patch_size, frames
        self.from_vectors = nn.Linear(config.dim, frames * 3 * self.patch**2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b t h w d) -> (b t pt c H W)."""
        pattern = "b t h w (p c y x) -> b t p c (h y) (w x)"
        return rearrange(self.from_vectors(x), pattern, p=self.frames, c=3, y=self.patch, x=self.patch)


class CViViT(nn.Module):
    """The tokenizer. Video is float (b c f h w) in [-1, 1] with 1 + pt*k frames; tokens are int64 (b t h w)."""

    def __init__(self, config: CViViTConfig):
        super().__init__()
        self.config = config
        frames = config.temporal_patch_size
        conv = config.stem == "conv"
        self.stem = ConvStem(config) if conv else LinearStem(frames, config)
        self.head = ConvHead(config) if conv else LinearHead(frames, config)
        self.first_stem = LinearStem(1, config) if config.first_frame_stem else None
        self.first_head = LinearHead(1, config) if config.first_frame_stem else None
        self.encoder = SpaceTimeTransformer(config.encoder_layers, config)
        self.decoder = SpaceTimeTransformer(config.decoder_layers, config)
        is_fsq = config.quantizer == "fsq"
        vq_sizes = config.dim, config.codebook_size, config.code_dim
        self.quantizer = FSQ(config.dim, config.fsq_levels) if is_fsq else VQ(*vq_sizes, config.commitment)

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def decoder_reach(self) -> float:
        """How many slices back a decoded slice can depend on; without a window there is no end to it."""
        return self.decoder.kinds.count("t") * (self.config.window - 1 if self.config.window else math.inf)

    def num_slices(self, num_frames: int) -> int:
        """Slices of a video; ValueError where its number of frames is not 1 + pt*k."""
        pt = self.config.temporal_patch_size
        slices, rest = divmod(num_frames - 1, pt)
        if num_frames < 1 or rest:
            near = 1 + pt * max(slices, 0)
            raise ValueError(f"{num_frames} frames: C-ViViT needs 1 + {pt}k frames, so {near} or {near + pt}")
        return 1 + slices

    def num_frames(self, num_slices: int) -> int:
        """Frames that `num_slices` slices from the start decode to."""
        return 1 + self.config.temporal_patch_size * (num_slices - 1)

    def encode(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        """video (b c f h w) -> tokens (b t h w). With a `stream`, f goes on from the frames encoded before (then f = pt*k)."""
        return self.quantize(video, stream).tokens

    def quantize(self, video: Tensor, stream: Stream | None = None) -> Quantized:
        """video (b c f h w) -> quantised vectors (b t h w d), tokens and loss."""
        stream = Stream() if stream is None else stream
        self._check_video(video, stream)
        return self.quantizer(self.encoder(self._embed(video, starts=stream.num_slices == 0), stream))

    def decode(self, tokens: Tensor, stream: Stream | None = None) -> Tensor:
        """tokens (b t h w) -> video (b c f h w). With a `stream`, goes on from the slices decoded before."""
        if tokens.ndim != 4:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)}: C-ViViT decodes (b t h w)")
        return self._decode(self.quantizer.vectors(tokens), Stream() if stream is None else stream)

    def forward(self, video: Tensor) -> Reconstruction:
        """A training pass: there and back."""
        quantized = self.quantize(video)
        return Reconstruction(self._decode(quantized.vectors, Stream()), quantized.tokens, quantized.loss, quantized.codes)

    def _check_video(self, video: Tensor, stream: Stream) -> None:
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(f"video of shape {tuple(video.shape)}, {video.dtype}: C-ViViT needs float (b 3 f h w) in [-1, 1]")
        if stream.num_slices == 0:
            self.num_slices(video.shape[2])
        elif video.shape[2] % self.config.temporal_patch_size:
            raise ValueError(f"{video.shape[2]} more frames: a stream goes on by multiples of {self.config.temporal_patch_size}")
        if video.shape[3] % self.config.patch_size or video.shape[4] % self.config.patch_size:
            raise ValueError(f"frames of {video.shape[4]}x{video.shape[3]}: both sides must be multiples of {self.config.patch_size}")

    def _embed(self, video: Tensor, *, starts: bool) -> Tensor:
        """Pixels -> vectors (b t h w d); the frame that starts a video becomes a slice of its own."""
        pt, vectors = self.config.temporal_patch_size, []
        if starts:
            first, video = video[:, :, :1], video[:, :, 1:]
            tube = first if self.first_stem else repeat(first, "b c 1 h w -> b c p h w", p=pt)
            if self.first_stem:
                vectors.append(self.first_stem(rearrange(tube, "b c p h w -> b 1 p c h w")))
            else:
                video = torch.cat([tube, video], dim=2)
        if video.shape[2]:
            vectors.append(self.stem(rearrange(video, "b c (t p) h w -> b t p c h w", p=pt)))
        return torch.cat(vectors, dim=1)

    def _decode(self, vectors: Tensor, stream: Stream) -> Tensor:
        starts = stream.num_slices == 0
        x = self.decoder(vectors, stream)
        if starts and self.first_head:
            parts = [self.first_head(x[:, :1])]
            if x.shape[1] > 1:
                parts.append(self.head(x[:, 1:]))
            return torch.cat([rearrange(part, "b t p c h w -> b c (t p) h w") for part in parts], dim=2)
        video = rearrange(self.head(x), "b t p c h w -> b c (t p) h w")
        return video[:, :, self.config.temporal_patch_size - 1 :] if starts else video  # of the first tube, the last copy
