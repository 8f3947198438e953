"""Folded weights of a trained model, whichever file it lies in."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor

from edge.models.onnx_graph import prepare, read_model
from edge.models.onnx_graph import shallow_tensors as shallow_onnx
from oracle.errors import FormatError, InputError
from training.models import ModelSpec, build_model, fold_batchnorm, shallow_tensors
from training.recipe import load_recipe


def folded_weights(
    path: Path, layers: int, recipe: str | None = None, classes: int = 10
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights by name after folding BatchNorm, and the names of the shallow ones.

    Args:
        path: `.onnx`; or a state dict (`.pt`, also one of `rws build`, or `.safetensors`), which needs `recipe`.
        layers: the shallowest n layers.
        recipe: recipe that names the architecture of a state dict.
        classes: number of classes of a state dict's model.

    Raises:
        InputError: if the file is missing or its architecture is not told.
        FormatError: if it does not hold what it should.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    if path.suffix == ".onnx":
        model = prepare(read_model(path))
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, shallow_onnx(model, layers)
    if recipe is None:
        raise InputError(f"{path} is a state dict: say with --recipe which architecture it belongs to")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
            state = state.get("model", state)
        network = build_model(ModelSpec(classes=classes, **load_recipe(recipe).to_dict()["model"]))
        network.load_state_dict(state)
    except (RuntimeError, KeyError, OSError, AttributeError) as error:
        raise FormatError(f"{path} does not hold the weights of {recipe}: {str(error).splitlines()[0]}") from error
    folded = fold_batchnorm(network)
    return {name: p.detach() for name, p in folded.named_parameters()}, shallow_tensors(folded, layers)
