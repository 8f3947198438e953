"""A signature in memory: {tensor: float32 change of the shallow weights}, in BatchNorm-folded weight space."""

import copy
from collections.abc import Sequence

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from rws.training.jobs.store import Codec

Deltas = dict[str, Tensor]

DELTAS: Codec[Deltas] = Codec(
    lambda deltas: save({name: delta.float().contiguous() for name, delta in deltas.items()}), load
)  # float32 `.safetensors`


def composed(deltas: Sequence[tuple[Deltas, float]]) -> Deltas:
    """Return Σ α_c·R_c of several signatures over the same tensors."""
    return {name: sum((alpha * delta[name] for delta, alpha in deltas), torch.zeros(())) for name in deltas[0][0]}


def patched(std: nn.Module, deltas: Deltas) -> nn.Module:
    """Return a copy of the folded standard model with W = W_std + R."""
    model = copy.deepcopy(std)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name].add_(delta.to(parameters[name]))
    return model
