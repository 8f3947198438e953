"""Models that were trained elsewhere, in any of the supported files."""

from pathlib import Path

import torch
from onnx import numpy_helper
from torch import Tensor, nn

from rws.edge.onnx.graph import prepare, read_model, shallow_tensors
from rws.errors import FormatError, InputError, UsageError
from rws.training.build.recipe import load_recipe
from rws.training.models import architectures


def folded_model(path: Path, recipe: str | None, classes: int) -> nn.Module:
    """Load the folded network of a state dict, `.pt` (also a checkpoint of `rws train`) or `.safetensors`.

    Raises UsageError without a recipe, InputError without a file; FormatError for weights of another architecture.
    """
    if recipe is None:
        raise UsageError(f"{path} is a state dict: say with --recipe which architecture it belongs to")
    network = architectures.build_model(load_recipe(recipe).model, classes)
    state = architectures.read_state_dict(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise FormatError(f"{path} does not hold the weights of {recipe}: {str(error).splitlines()[-1]}") from error
    return architectures.fold_batchnorm(network)


def folded_weights(
    path: Path, layers: int, recipe: str | None = None, classes: int = 10
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Load weights of an `.onnx` file or state dict by name, BatchNorm folded, and the names of the shallow ones.

    An `.onnx` file needs neither recipe nor classes. Errors are those of `folded_model` and `read_model`.
    """
    if path.suffix != ".onnx":
        folded = folded_model(path, recipe, classes)
        weights = {name: p.detach() for name, p in folded.named_parameters()}
        return weights, architectures.shallow_tensors(folded, layers)
    model = prepare(read_model(path))
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    names = shallow_tensors(model, convolutions)
    blocks = architectures.group_layers([name.removesuffix(".weight") for name in names[::2]])
    if not 1 <= layers <= len(blocks):
        raise InputError(f"{path} has {len(blocks)} layers, cannot take the shallowest {layers}")
    return weights, tuple(names[: 2 * sum(len(block) for block in blocks[:layers])])
