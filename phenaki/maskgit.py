"""MaskGIT: the bidirectional masked transformer that fills one chunk of tokens (Villegas et al. 2022, section 2.2).

A chunk is told its text by cross-attention and its past by the context: slices already known. Context positions attend
only to context and never to text, so one pass (`encode_context`) serves all rounds and both branches of guidance; text
is projected once per prompt (`encode_text`). Positions are rotary in time, row and column: the chunk starts at time 0,
recent slices end at -1, the anchor (the scene's first slice) stands further back than any of them.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
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
from phenaki.sampling import choose_tokens

ORDINARY, FIRST, ANCHOR = 0, 1, 2  # kinds of slices: a tube of frames; the one frame that starts a video; the anchor

MAX_SLICES = 10_000  # of a chunk or its context: no weight depends on how many they are, so a file may say anything


@dataclass(frozen=True)
class MaskGITConfig:
    """What a generator is made of, and what it was trained to be given."""

    codebook_size: int = 4**10  # the tokenizer's
    token_factors: int = 2  # a token of a large codebook is predicted as so many digits of base codebook_size^(1/token_factors)
    dim: int = 256
    depth: int = 6
    heads: int = 8
    mlp_dim: int = 1024
    text_dim: int = 384  # width of the text encoder
    chunk_slices: int = 4  # most slices filled at once
    context_slices: int = 3  # most recent slices seen, besides the anchor
    anchor: bool = True  # the scene's first slice is kept in sight
    corruption_levels: int = 5  # steps in which the rate of corrupted context is told
    max_corruption: float = 0.2  # share of context tokens replaced in training, at most
    cond_drop_prob: float = 0.1  # share of captions dropped in training; guidance needs it above 0
    critic: bool = False  # a head that tells wrong tokens of a filled chunk from right ones; its gradient reaches nothing else

    def __post_init__(self):
        check_range(self, "codebook_size", "token_factors", "dim", "depth", "heads", "mlp_dim", "text_dim", at_least=1)
        check_heads(self.dim, self.heads)
        check_range(self, "depth", "token_factors", at_most=MAX_LAYERS)
        check_range(self, "chunk_slices", "context_slices", at_most=MAX_SLICES)
        check_range(self, "chunk_slices", "corruption_levels", at_least=1)
        check_range(self, "context_slices", at_least=0)
        check_range(self, "max_corruption", at_least=0, at_most=1)
        check_range(self, "cond_drop_prob", at_least=0, below=1)
        if self.factor_size**self.token_factors != self.codebook_size:
            raise ValueError(f"codebook_size {self.codebook_size} is not a whole number to the power of token_factors {self.token_factors}")

    @property
    def factor_size(self) -> int:
        """Values that one factor of a token can take."""
        return round(self.codebook_size ** (1 / self.token_factors))


@dataclass(frozen=True)
class Context:
    """The past as every layer sees it: rotated keys and values of the context slices."""

    layers: tuple[KeysValues, ...]

    def repeated(self, times: int) -> "Context":
        return Context(tuple(layer.repeated(times) for layer in self.layers))


@dataclass(frozen=True)
class TextCache:
    """A batch of prompts as every layer sees it: keys and values (b heads l head_dim), mask (b 1 1 l), True = real token."""

    layers: tuple[KeysValues, ...]
    mask: Tensor


class MaskedLayer(nn.Module):
    """Pre-norm: attention to context and chunk, cross-attention to text (chunk positions only), feed-forward."""

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config.dim, config.heads)
        self.text_norm = RMSNorm(config.dim)
        self.text_attention = Attention(config.dim, config.heads, source_dim=config.text_dim)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.mlp_dim)

    def forward_context(self, x: Tensor, turns: Tensor) -> tuple[Tensor, KeysValues]:
        """x: (b n d), the context alone. Returns it one layer on, and what chunks will attend to."""
        attended, own = self._attend(x, turns, None)
        return self._feed(x + attended), own

    def text_keys_values(self, text: Tensor) -> KeysValues:
        """text: (b l text_dim)."""
        return self.text_attention.keys_values(text)

    def forward(self, x: Tensor, turns: Tensor, past: KeysValues | None, text: KeysValues, text_mask: Tensor) -> Tensor:
        """x: (b n d), the chunk."""
        attended, _ = self._attend(x, turns, past)
        x = x + attended
        queries = self.text_attention.queries(self.text_norm(x))
        x = x + self.text_attention.attend(queries, text, text_mask)
        return self._feed(x)

    def _attend(self, x: Tensor, turns: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        normed = self.attention_norm(x)
        own = self.attention.keys_values(normed).turned(turns)
        queries = rotate(self.attention.queries(normed), turns)
        return self.attention.attend(queries, past.followed_by(own) if past else own), own

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.feed_forward_norm(x))


class TokenEmbedding(nn.Module):
    """Tokens -> vectors: the sum of a vector for each factor; the mask token has a vector of its own."""

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        self.factor_size, self.mask_token_id = config.factor_size, config.codebook_size
        self.factors = nn.ModuleList(nn.Embedding(config.factor_size, config.dim) for _ in range(config.token_factors))
        self.mask = nn.init.normal_(nn.Parameter(torch.empty(config.dim)), std=0.5)
        for factor in self.factors:
            nn.init.normal_(factor.weight, std=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (...) int64 in [0, codebook_size] -> (..., dim)."""
        hidden = tokens == self.mask_token_id
        digits = split_token(tokens.masked_fill(hidden, 0), self.factor_size, len(self.factors))
        vectors = sum(factor(digit) for factor, digit in zip(self.factors, digits, strict=True))
        return torch.where(hidden[..., None], self.mask.to(vectors.dtype), vectors)


class FactorHeads(nn.Module):
    """Hidden states -> logits of a token's factors, each given the ones before it, so that together they are one joint choice."""

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        later = range(config.token_factors - 1)
        self.heads = nn.ModuleList(nn.Linear(config.dim, config.factor_size) for _ in range(config.token_factors))
        self.earlier = nn.ModuleList(nn.Embedding(config.factor_size, config.dim) for _ in later)
        self.mixers = nn.ModuleList(FeedForward(config.dim, 2 * config.dim) for _ in later)
        self.norms = nn.ModuleList(RMSNorm(config.dim) for _ in later)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)

    def forward(self, features: Tensor, earlier: list[Tensor]) -> Tensor:
        """features (..., dim), earlier: the factors chosen so far, (...) int64 each -> logits (..., factor_size) of the next."""
        return self.heads[len(earlier)](self.states(features, earlier))

    def states(self, features: Tensor, earlier: list[Tensor]) -> Tensor:
        """What the next factor's logits are a linear function of, (..., dim): two of them may be mixed in place of their logits."""
        x = features
        for value, embedding, norm, mixer in zip(earlier, self.earlier, self.norms, self.mixers, strict=False):
            x = x + embedding(value)
            x = x + mixer(norm(x))
        return x


class Critic(nn.Module):
    """Last hidden states of a filled chunk -> how much each of its tokens is doubted (Token-Critic, Lezama et al. 2022, arXiv 2209.04439).

    Here the generator's own states are judged, and no gradient goes back into them, so that it stays what it is without a critic.
    """

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        self.mixer = FeedForward(config.dim, 4 * config.dim)
        self.norm = RMSNorm(config.dim)
        self.to_doubt = nn.Linear(config.dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """features (..., dim) -> logits (...) that a token is not the true one."""
        features = features.detach()
        return self.to_doubt(self.norm(features + self.mixer(features))).squeeze(-1)


@dataclass(frozen=True)
class TokenScores:
    """Of each factor of n known tokens, (token_factors, n), in nats.

    log_probs: log p(y) of the true value y. cross_entropy: of the targets smoothed by e (Szegedy et al. 2016, arXiv 1512.00567,
    section 7), which give every one of the K values a share e/K and the true one 1 - e besides:
    -(1 - e) log p(y) - e/K sum_k log p(k), the formula of torch's cross_entropy(label_smoothing=e).
    """

    log_probs: Tensor
    cross_entropy: Tensor


def split_token(tokens: Tensor, factor_size: int, num_factors: int) -> list[Tensor]:
    """A token's digits in base factor_size, the lowest first."""
    return [tokens // factor_size**i % factor_size for i in range(num_factors)]


class MaskGIT(nn.Module):
    """The generator. Tokens are int64 (b t h w) in [0, codebook_size], where codebook_size is the mask token's id."""

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        self.config = config
        self.token_embedding = TokenEmbedding(config)
        self.slice_embedding = nn.Embedding(3, config.dim)  # ORDINARY, FIRST, ANCHOR
        self.time_embedding = nn.Embedding(config.chunk_slices, config.dim)  # of a slice in its chunk
        self.place = PlaceEmbedding(config.dim)
        self.corruption_embedding = nn.Embedding(config.corruption_levels, config.dim)
        self.condition_embedding = nn.Parameter(torch.zeros(config.dim))  # marks condition tokens
        self.null_text = nn.Parameter(torch.zeros(1, 1, config.text_dim))  # stands for "no text"
        self.layers = nn.ModuleList(MaskedLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.dim)
        self.to_logits = FactorHeads(config)
        self.critic = Critic(config) if config.critic else None
        self._known: dict[Hashable, Tensor] = {}  # turns of chunks
        for embedding in (self.slice_embedding, self.time_embedding, self.corruption_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        nn.init.normal_(self.null_text, std=0.02)

    @property
    def mask_token_id(self) -> int:
        return self.config.codebook_size

    def encode_text(self, text: Tensor, text_mask: Tensor) -> TextCache:
        """text (b l text_dim), text_mask (b l), True = real token -> what every layer's cross-attention needs."""
        if text.ndim != 3 or text.shape[-1] != self.config.text_dim:
            raise ValueError(f"text of shape {tuple(text.shape)}: this generator needs (b, l, {self.config.text_dim})")
        layers = tuple(layer.text_keys_values(text) for layer in self.layers)
        return TextCache(layers, text_mask[:, None, None, :])

    def drop_text(self, text: Tensor, text_mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the null text in place of the prompts where `dropped` (b,) is True."""
        first = torch.zeros_like(text_mask)
        first[:, :1].fill_(True)
        text = torch.where(dropped[:, None, None], self.null_text.to(text.dtype), text)
        return text, torch.where(dropped[:, None], first, text_mask)

    def no_text(self) -> tuple[Tensor, Tensor]:
        """What stands for "no text", encoded: text (1 1 text_dim), text_mask (1 1)."""
        return self.null_text, torch.ones(self.null_text.shape[:2], dtype=torch.bool, device=self.null_text.device)

    def encode_context(self, tokens: Tensor, kinds: Tensor, corruption: Tensor | None = None) -> Context:
        """Context slices -> what every layer of a chunk attends to.

        tokens: (b t h w), the anchor first where there is one, then the recent slices in order of time.
        kinds: (t,) of ORDINARY, FIRST, ANCHOR. corruption: (b,) int64 level in [0, corruption_levels), 0 = clean (default).
        """
        b, _, h, w = tokens.shape
        x = self.token_embedding(tokens) + self.slice_embedding(kinds)[:, None, None] + self.place(h, w)
        level = torch.zeros(b, dtype=torch.long, device=tokens.device) if corruption is None else corruption
        x = rearrange(x, "b t h w d -> b (t h w) d") + self.corruption_embedding(level)[:, None]  # no view: layers are compiled for what they get
        turns = self._turns(self._context_times(kinds), h, w)
        layers = []
        for layer in self.layers:
            x, own = layer.forward_context(x, turns)
            layers.append(own)
        return Context(tuple(layers))

    def features(self, tokens: Tensor, text: TextCache, context: Context | None, starts: bool, condition: Tensor | None = None) -> Tensor:
        """The chunk's last hidden states (b t h w d); `to_logits` makes logits of those that are wanted.

        tokens: (b t h w) with mask_token_id where hidden. starts: slice 0 of the chunk is the first frame of a video.
        condition: (b t h w) tokens of a rough picture of what is hidden (MAGVIT's COMMIT), or -1 where there is none.
        """
        _, t, h, w = tokens.shape
        if t > self.config.chunk_slices:
            raise ValueError(f"a chunk of {t} slices: this generator fills at most {self.config.chunk_slices} at once")
        kinds = torch.full((t,), ORDINARY, device=tokens.device)
        kinds[:1].fill_(FIRST if starts else ORDINARY)
        x = self.token_embedding(tokens)
        if condition is not None:
            shown = ((tokens == self.mask_token_id) & (condition >= 0))[..., None]
            x = torch.where(shown, self.token_embedding(condition.clamp(min=0)) + self.condition_embedding, x)
        x = x + (self.slice_embedding(kinds) + self.time_embedding.weight[:t])[:, None, None]
        x = rearrange(x, "b t h w d -> b (t h w) d") + repeat(self.place(h, w), "h w d -> (t h w) d", t=t)  # no view, as above
        turns = remembered(self._known, (t, h, w, tokens.device), lambda: self._turns(torch.arange(t, device=tokens.device), h, w))
        for index, layer in enumerate(self.layers):
            x = layer(x, turns, context.layers[index] if context else None, text.layers[index], text.mask)
        return rearrange(self.norm(x), "b (t h w) d -> b t h w d", h=h, w=w)

    def score(self, features: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> "TokenScores":
        """How well known tokens are predicted, factor by factor, each given the ones before it: features (n d), tokens (n,).

        label_smoothing: e in [0, 1), 0 = off; see TokenScores.
        """
        factors = split_token(tokens, self.config.factor_size, self.config.token_factors)
        spread = [self.to_logits(features, factors[:i]).float().log_softmax(-1) for i in range(len(factors))]
        log_probs = torch.stack([one.gather(-1, factor[:, None]).squeeze(-1) for one, factor in zip(spread, factors, strict=True)])
        if not label_smoothing:
            return TokenScores(log_probs, -log_probs)
        to_all = torch.stack([one.mean(-1) for one in spread])
        return TokenScores(log_probs, -(1 - label_smoothing) * log_probs - label_smoothing * to_all)

    def draw_tokens(self, features: Tensor, draws: Tensor) -> Tensor:
        """Tokens (n,) at temperature 1 from features (n dim); draws (n token_factors) uniform in [0, 1)."""
        return choose_tokens(lambda factors: self.to_logits(features, factors), draws.T, 1.0, self.config.factor_size)[0]

    def _context_times(self, kinds: Tensor) -> Tensor:
        """Times of context slices: the recent ones end at -1, the anchor stands at -(context_slices + 1)."""
        times = torch.arange(-len(kinds), 0, device=kinds.device)
        return times.masked_fill(kinds == ANCHOR, -(self.config.context_slices + 1))

    def _turns(self, times: Tensor, height: int, width: int) -> Tensor:
        """Rotary turns of slices at `times` (t,), (2, t*h*w, head_dim / 2)."""
        grid = grid_positions(height, width, times.device)
        positions = torch.cat([times.float().repeat_interleave(len(grid))[:, None], grid.repeat(len(times), 1)], dim=-1)
        return rotary_turns(positions, self.layers[0].attention.head_dim)
