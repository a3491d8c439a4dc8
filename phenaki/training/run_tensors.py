"""The tensors of a run: gathered whole for the files of a checkpoint, and filled in from them, however many processes share them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from phenaki.training.checkpoints import DISCRIMINATOR, OPTIMIZER, WEIGHTS, read_part
from phenaki.training.optimizers import EMA
from phenaki.training.parallel import Group, shared_as, whole


@dataclass
class RunTensors:
    """The tensors of the network that is trained, a discriminator, the average and the optimisers."""

    model: nn.Module
    discriminator: nn.Module | None
    ema: EMA
    optimizers: list[torch.optim.Optimizer]
    group: Group

    def gathered(self) -> dict[str, dict[str, Tensor]]:
        """What is saved besides the average, by file; {} on processes that do not lead. All must call this."""
        states = {WEIGHTS: self.model.state_dict(), OPTIMIZER: self.optimizer_state()}
        if self.discriminator is not None:
            states[DISCRIMINATOR] = self.discriminator.state_dict()
        files = {name: self.whole(tensors) for name, tensors in states.items()}
        return {name: tensors for name, tensors in files.items() if tensors is not None}

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Whole tensors in the memory of the process that leads, one gathered after the other; None on the others."""
        gathered = {}
        for name, tensor in tensors.items():
            one = whole(tensor)
            if self.group.leads:
                gathered[name] = one.cpu()
        return gathered if self.group.leads else None

    def load(self, folder: Path, part: str) -> None:
        """Fills all tensors in from a checkpoint. part: names the file of the averaged weights."""
        _fill(self.model, read_part(folder, "weights"))
        if self.discriminator is not None:
            _fill(self.discriminator, read_part(folder, "discriminator"))
        self.ema.load(read_part(folder, part))
        self._load_optimizer(read_part(folder, "optimizer"))

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimisers' tensors of each parameter, by "PARAMETER|STATE"."""
        names = {parameter: name for name, parameter in self._parameters().items()}
        found = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                found |= {f"{names[parameter]}|{key}": value for key, value in state.items()}
        return found

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = self._parameters()
        owners = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                owners |= dict.fromkeys(group["params"], optimizer)
        for key, value in tensors.items():
            name, field = key.split("|")
            parameter = parameters[name]
            moved = shared_as(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
            owners[parameter].state[parameter][field] = moved

    def _parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that the optimisers change, by name."""
        discriminator = [] if self.discriminator is None else self.discriminator.named_parameters(prefix="discriminator")
        return dict([*self.model.named_parameters(), *discriminator])


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = network.state_dict()
    network.load_state_dict({name: shared_as(value, own[name]) if name in own else value for name, value in tensors.items()})
