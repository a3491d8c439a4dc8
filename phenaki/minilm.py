"""The default text encoder, all-MiniLM-L6-v2, in torch alone: importing `transformers` takes longer than telling a short story.

It is BERT (Devlin et al. 2018) without what makes one vector of a prompt. Its states are to the bit those of `transformers`.

Axes: b prompts, l tokens, d width.
"""

from pathlib import Path
from types import SimpleNamespace

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from phenaki.outline import outline

WIDTH, HEADS, LAYERS, INNER_WIDTH = 384, 12, 6, 1536
WORDS, POSITIONS, KINDS = 30522, 512, 2
EPS = 1e-12  # of the layer norms

# A module's name here -> in the weights' file, behind "encoder.layer.3."
IN_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
IN_EMBEDDINGS = {"words": "word_embeddings", "positions": "position_embeddings", "kinds": "token_type_embeddings", "norm": "LayerNorm"}


class Layer(nn.Module):
    """One layer of BERT: attention to all tokens, then an MLP, each added and normed behind."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.attended = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attended_norm = nn.LayerNorm(WIDTH, EPS)
        self.widen, self.narrow = nn.Linear(WIDTH, INNER_WIDTH), nn.Linear(INNER_WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        x = self.attended_norm(self.attended(attended) + x)
        return self.norm(self.narrow(F.gelu(self.widen(x))) + x)


class MiniLM(nn.Module):
    """Token ids -> last hidden states, in the ways in which the encoders of `transformers` are called here."""

    config = SimpleNamespace(model_type="bert", hidden_size=WIDTH, max_position_embeddings=POSITIONS)

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.kinds = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH), nn.Embedding(KINDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPS)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    @classmethod
    def load(cls, folder: Path) -> "MiniLM":
        """The encoder, float32 on the CPU. Of the folder the weights are those of the default, as `encoder_folder` has checked by hash."""
        model = outline(cls)
        stored = load_file(folder / "model.safetensors")
        model.load_state_dict({name: stored[_stored_name(name)] for name in model.state_dict()}, assign=True)
        return model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True) -> SimpleNamespace:
        """input_ids b l int, attention_mask b l, 1 = real token -> `last_hidden_state` b l d, by name in any case."""
        x = self.words(input_ids) + self.kinds.weight[0] + self.positions.weight[: input_ids.shape[1]]
        x = self.norm(x)
        mask = None if attention_mask is None or attention_mask.all() else attention_mask.bool()[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return SimpleNamespace(last_hidden_state=x)


def _stored_name(name: str) -> str:
    """A parameter's name in the weights' file: "layers.3.query.bias" -> "encoder.layer.3.attention.self.query.bias"."""
    *where, module, kind = name.split(".")
    return f"encoder.layer.{where[1]}.{IN_LAYER[module]}.{kind}" if where else f"embeddings.{IN_EMBEDDINGS[module]}.{kind}"
