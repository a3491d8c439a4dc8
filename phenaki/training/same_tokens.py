"""What tokens depend on: of a tokenizer's weights and settings all but its decoder's. Tokens outlive a decoder that is trained on."""

from dataclasses import asdict

from phenaki.checkpoint import Model, state_sha256
from phenaki.cvivit import CViViT, CViViTConfig
from phenaki.training.checkpoints import changed

DECODER = ("decoder.", "head.", "first_head.", "quantizer.project_out.")  # what stands between tokens and pixels
OF_DECODER = ("decoder_layers", "head_blocks", "refiner_dim", "refiner_blocks")  # settings that tokens do not depend on


def freeze_tokens(tokenizer: CViViT) -> None:
    """Leaves only what stands between tokens and pixels to be trained."""
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(name.startswith(DECODER))


def check_same_tokens(config: CViViTConfig, origin: Model) -> None:
    """ValueError where a tokenizer of these settings would make other tokens than that of `origin`, whatever its decoder."""
    if other := changed_tokens(config, origin):
        raise ValueError(f"decoder_only = true: {origin.info.name} has other tokens: {', '.join(other)}. Set it as it is there")


def changed_tokens(config: CViViTConfig, origin: Model) -> list[str]:
    """What tokens of these settings depend on that is otherwise in `origin`: "name old -> new"."""
    return [one for one in changed(asdict(origin.info.tokenizer), asdict(config)) if one.split()[0] not in OF_DECODER]


def tokens_sha256(tokenizer: CViViT) -> str:
    """The hash of the weights that tokens come from, however stored."""
    return state_sha256([tokenizer], without=DECODER)
