"""A signature of a model that is deployed already: how it is trained, and where its training begins."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rws.training.signatures.deltas import Deltas
from rws.training.tasks.base import Tensors

_MOST = 5.0  # what a channel is scaled by, or divided


def unit_of(clean: Tensor) -> Tensor:
    """Return what one unit of a step changes each value of a tensor by: about the size of its channel's weights.

    With BatchNorm folded in, channels and tensors of one network differ a thousandfold: too much for one rate.
    """
    if clean.ndim < 2:
        return clean.square().mean().sqrt().clamp(min=1e-3).expand_as(clean).clone()
    size = clean.square().mean(tuple(range(1, clean.ndim)), keepdim=True).sqrt()
    return (size + 0.1 * size.mean()).clamp(min=1e-6).expand_as(clean).clone()


class Tuned(nn.Module):
    """A frozen network under a signature that is trained from `start` (empty: none).

    Its state is the signature alone, in units of the weights; `tensors` are the parameters that it changes.
    """

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor], start: Deltas) -> None:
        super().__init__()
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        self._parameter = {tensor: names[id(parameter)] for tensor, parameter in tensors.items()}
        self._clean = {tensor: parameter.detach() for tensor, parameter in tensors.items()}
        self._unit = {tensor: unit_of(clean.contiguous()) for tensor, clean in self._clean.items()}
        self._network = (network,)  # not a part of this module, whose state and mode are the signature's alone
        moved = {t: start[t] / unit if start else torch.zeros_like(unit) for t, unit in self._unit.items()}
        self.moved = nn.ParameterList(moved.values())

    def deltas(self) -> Deltas:
        """Return the signature, float32, by tensor name."""
        return {t: unit * moved for (t, unit), moved in zip(self._unit.items(), self.moved, strict=True)}

    def forward(self, x: Tensor) -> Tensors:
        """Run the patched network."""
        patched = {self._parameter[t]: self._clean[t] + delta for t, delta in self.deltas().items()}
        outputs: Tensors = functional_call(self._network[0], patched, x)
        return outputs


@torch.no_grad()
def recalibrated(
    network: nn.Module, tensors: Mapping[str, Tensor], clean: Tensor, corrupted: Tensor, strength: float = 1.0
) -> Deltas:
    """Return a signature that gives the patched channels their clean mean and spread back, without any training.

    This is what BatchNorm's statistics of corrupted images would do (Schneider et al. 2020), layer by layer.

    Args:
        tensors: the parameters, a convolution's weight and then its bias.
        clean, corrupted: the same images, as the network takes them; more than a dozen.
        strength: 1 or a part of it.
    """
    weights = list(tensors)[::2]
    with _Statistics({id(tensors[name]): name for name in weights}) as seen:
        network(clean)
    with _Statistics(seen.names, seen.found, strength) as corrected:
        network(corrupted)
    changed = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}  # what is no 2-D convolution stays
    for weight, bias in zip(weights, list(tensors)[1::2], strict=True):
        changed |= zip((weight, bias), corrected.deltas.get(weight, ()), strict=False)
    return {name: delta.contiguous() for name, delta in changed.items()}


class _Statistics(TorchFunctionMode):
    """Notes mean and spread of each channel of some convolutions; with `aim`, gives them those while a network runs."""

    def __init__(self, names: Mapping[int, str], aim: Mapping[str, Tensors] | None = None, strength: float = 0) -> None:
        super().__init__()
        self.names, self._aim, self._strength = names, aim, strength
        self.found: dict[str, Tensors] = {}
        self.deltas: dict[str, Tensors] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch; of a convolution that is noted, see above."""
        output = func(*args, **(kwargs or {}))
        name = self.names.get(id(args[1])) if func is F.conv2d else None
        if name is None or (self._aim is not None and name not in self._aim):
            return output
        mean, spread = output.mean((0, 2, 3)), output.std((0, 2, 3))
        if self._aim is None:
            self.found[name] = mean, spread
            return output
        aim, aim_spread = self._aim[name]
        scale = ((aim_spread + 1e-4) / (spread + 1e-4)).clamp(1 / _MOST, _MOST)
        scale = 1 + self._strength * (scale - 1)
        shift = self._strength * (aim - mean * scale)
        columns = scale.view(-1, 1, 1, 1)
        self.deltas[name] = args[1] * (columns - 1), args[2] * (scale - 1) + shift
        return output * columns.transpose(0, 1) + shift.view(1, -1, 1, 1)
