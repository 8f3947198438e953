"""Residual signatures: what in a robust model's direction is orthogonal to the standard one's (Cai et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor

from rws.errors import InputError
from rws.training.signatures.deltas import Deltas

Projection = Literal["per_tensor", "whole", "plain"]


def residual_signature(
    init: Mapping[str, Tensor],
    std: Mapping[str, Tensor],
    robust: Mapping[str, Tensor],
    tensors: Sequence[str],
    projection: str = "per_tensor",
) -> Deltas:
    """Return R = v_c − v_base·⟨v_c, v_base⟩/⟨v_base, v_base⟩, with v_c = θ_r − θ_init and v_base = θ_std − θ_init.

    Cai et al. 2023, Sec. 3.2, Eq. 3. If θ_std is the init, v_base is 0 and R = θ_r − θ_std.
    Weights are folded. `projection`: `per_tensor` flattens each, as in the authors' code; `whole` projects the
    concatenation of all `tensors` at once; `plain` is θ_r − θ_std.
    Raises InputError if a tensor is missing, the shapes differ, or the projection is unknown.
    """
    if projection not in get_args(Projection):
        raise InputError(f"projection {projection!r} is not one of {', '.join(get_args(Projection))}")
    for name in tensors:
        for role, weights in (("init", init), ("std", std), ("robust", robust)):
            if name not in weights:
                raise InputError(f"the {role} model has no tensor {name!r}; are all three of one architecture, folded?")
            if weights[name].shape != std[name].shape:
                raise InputError(f"{name}: {role} has shape {tuple(weights[name].shape)}, std {tuple(std[name].shape)}")
    if projection == "plain":
        return {name: (robust[name] - std[name]).detach() for name in tensors}
    corrupted = {name: (robust[name] - init[name]).detach().double() for name in tensors}
    base = {name: (std[name] - init[name]).detach().double() for name in tensors}
    groups = [list(tensors)] if projection == "whole" else [[name] for name in tensors]
    deltas: Deltas = {}
    for group in groups:
        norm = sum(float(base[name].square().sum()) for name in group)
        inner = sum(float((base[name] * corrupted[name]).sum()) for name in group)
        along = inner / norm if norm > 0 else 0.0
        deltas |= {name: (corrupted[name] - along * base[name]).float() for name in group}
    return deltas
