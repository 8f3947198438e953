"""Tune the shallow tensors of a frozen network in units of the weights' own size."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rws.training.signatures.deltas import Deltas


def distil(student: Tensor, teacher: Tensor, soft: float, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of two networks' answers, plus `soft` times that of both softened.

    Both are float32 (N, C) logits. The temperature's square keeps the gradient's size (Hinton et al. 2015, Sec. 2).
    """
    softened = _divergence(student / temperature, teacher / temperature)
    return _divergence(student, teacher) + soft * temperature**2 * softened


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")


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

    def forward(self, x: Tensor) -> Tensor:
        """Run the patched network."""
        patched = {self._parameter[t]: self._clean[t] + delta for t, delta in self.deltas().items()}
        return cast(Tensor, functional_call(self._network[0], patched, x)[0])
