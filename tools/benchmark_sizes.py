"""The sizes at which this project and phenaki-pytorch are compared: the same picture, window, width, layers, heads and rounds on both sides."""

from dataclasses import dataclass, field
from pathlib import Path

from peer_phenaki_pytorch import PeerSize

from phenaki.cvivit import CViViTConfig
from phenaki.maskgit import MaskGITConfig
from phenaki.sampling import SamplingOptions
from phenaki.training.settings import load_settings

FSQ_LEVELS = (8, 8, 8, 4, 4)
CODES, TEXT_LENGTH = 8192, 12  # kinds of tokens, on both sides; vectors of a prompt
CONTEXT_FRAMES, NEW_FRAMES = 5, 6  # of a chunk: what it goes on from, and what it adds
FIRST_FRAMES = CONTEXT_FRAMES + NEW_FRAMES  # of a story's first chunk, which goes on from nothing
NUM_PROMPTS = 10
GUIDANCE_SCALE = 3.0


@dataclass(frozen=True)
class BenchmarkSize:
    """What both sides are made of, and how often a piece of work is timed at this size."""

    tokenizer: CViViTConfig
    generator: MaskGITConfig
    peer: PeerSize
    batch_size: int  # of a training step
    repeats: dict[str, int] = field(default_factory=dict)  # of long cases
    num_steps: int = 18  # rounds a chunk

    @property
    def options(self) -> SamplingOptions:
        """The peer's way: by confidence, guidance 3 in every round."""
        return SamplingOptions(num_steps=self.num_steps, guidance_scale=GUIDANCE_SCALE, guidance_ramp=False)

    @property
    def side(self) -> int:
        """Tokens a side of a slice."""
        return self.tokenizer.grid[0]


def _size(image_size: int, dim: int, depth: int, layers: int, mlp_dims: tuple[int, int], batch_size: int, **repeats: int) -> BenchmarkSize:
    """Heads of 64 channels in the peer, as in its README; eight on both sides. mlp_dims: of our tokenizer and our generator."""
    pattern = " ".join(["st"] * layers)
    tokenizer = CViViTConfig(
        image_size=image_size, dim=dim, heads=8, mlp_dim=mlp_dims[0], encoder_layers=pattern, decoder_layers=pattern, fsq_levels=FSQ_LEVELS,
    )  # fmt: skip
    generator = MaskGITConfig(
        codebook_size=CODES, token_factors=1, dim=dim, depth=depth, heads=8, mlp_dim=mlp_dims[1], text_dim=768, chunk_slices=6, context_slices=3,
        anchor=False,
    )  # fmt: skip
    peer = PeerSize(dim=dim, depth=layers, heads=8, dim_head=64, codebook_size=CODES, image_size=image_size)
    return BenchmarkSize(tokenizer, generator, peer, batch_size, repeats)


def _paper() -> BenchmarkSize:
    """configs/paper.toml: a generator of 1.8 billion parameters. For GPUs."""
    settings = load_settings(Path(__file__).parent.parent / "configs/paper.toml")
    peer = PeerSize(dim=settings.tokenizer.dim, depth=4, heads=8, dim_head=64, codebook_size=CODES, image_size=settings.tokenizer.image_size)
    return BenchmarkSize(settings.tokenizer, settings.generator, peer, batch_size=1, num_steps=24)


def benchmark_size(name: str, match: str = "parameters") -> BenchmarkSize:
    """A size by name; ValueError names the known ones.

    match: "parameters" chooses the hidden width of our feed-forward layers so that both networks have as many parameters,
    within 5% (of the tiny size, which is for tests, they have not); "width" makes it four times the width, as the peer's is
    called. At the large size both are the same.
    """
    makers = {
        "tiny": lambda: _size(16, 32, 1, 1, (64, 64), 2),  # for tests
        "small": lambda: _size(64, 256, 6, 4, (1536, 2560) if match == "parameters" else (1024, 1024), 2),
        "large": lambda: _size(128, 512, 12, 4, (2048, 2048), 1, chunk=3, story=1, tokenizer_step=3, generator_step=3),
        "paper": _paper,
    }
    if name not in makers:
        raise ValueError(f"size {name!r}: known are {', '.join(makers)}")
    return makers[name]()
