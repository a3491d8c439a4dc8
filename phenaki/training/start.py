"""Fine-tuning: a network that starts from the weights of a trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from phenaki.checkpoint import Model, read_info


def start_from(model: nn.Module, weights: dict[str, Tensor], source: str) -> str:
    """Copies the weights of a trained model into `model`; parts that it lacks keep their fresh start, added layers start as the identity.

    Returns a line that says what was copied. ValueError where a shape differs or nothing fits.
    """
    own = model.state_dict()
    shared = {name: value for name, value in weights.items() if name in own}
    wrong = [name for name, value in shared.items() if value.shape != own[name].shape]
    if wrong or not shared:
        what = "no weight has a name in common"
        if wrong:
            what = f"{wrong[0]} is {tuple(shared[wrong[0]].shape)} there and {tuple(own[wrong[0]].shape)} here"
        raise ValueError(f"--init-from {source}: {what}. Start from a model of the same widths, or change the settings to its own")
    model.load_state_dict(shared, strict=False)
    for name, parameter in model.named_parameters():
        if name not in shared and "layers." in name and name.endswith("to_out.weight"):  # what the layer adds to what comes in
            nn.init.zeros_(parameter)
    fresh, left = len(own) - len(shared), len(weights) - len(shared)
    return f"starting from {source}: {len(shared)} tensors copied, {fresh} start afresh, {left} not used"


def start_network(
    network: nn.Module, part: str, begun: Path | None, model: Model | None, source: str | None, on_note: Callable[[str], None]
) -> dict[str, Any]:
    """Starts `network` from the weights of a model's `part`, "tokenizer" or "generator"; returns facts of it for config.json.

    model, source: None where it starts afresh. begun: the run's own checkpoint that it resumes from; then nothing is
    copied, and what it said when it was begun is returned. ValueError where the model lacks the part or does not fit.
    """
    if begun is not None:
        if source is not None:
            on_note(f"{begun.parents[1]}: goes on from its own {begun.name}; --init-from {source} counts at the beginning alone")
        return {name: value for name, value in read_info(begun).training.items() if name == f"{part}_init"}
    if model is None:
        return {}
    trained = getattr(model, part)
    if trained is None:
        raise ValueError(f"--init-from {source}: holds a tokenizer alone; a generator starts from a whole model")
    on_note(start_from(network, trained.state_dict(), source))
    lineage = {name: value for name, value in model.info.training.items() if name.startswith(f"{part}_")}  # both parts' would double each time
    return {f"{part}_init": {"name": model.info.name, **lineage}}
