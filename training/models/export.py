"""Torch modules to ONNX bytes whose initialisers keep the parameters' names."""

import copy
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from rws.errors import InputError

OPSET = 18


def export_onnx(
    module: nn.Module,
    size: int | tuple[int, int] | Tensor,
    *,
    output_name: str = "logits",
    keep: Sequence[str] = (),
    channels: int = 3,
    batch: int | None = None,
) -> bytes:
    """Export with a dynamic batch axis, or for a fixed `batch`; `image`, float32 (N, channels, height, width), in.

    `module`: in eval mode, not moved; `size`: its side, or height and width, pixels, or a batch of it; `keep`:
    parameters to be initialisers of the graph under their own names.
    Raises InputError if one of `keep` did not survive the export.
    """
    # Weights that lie channels_last would give a graph that computes addresses (as_strided) where it should flatten.
    module = copy.deepcopy(module).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch has no such stub
    if isinstance(size, Tensor):
        example = size
    else:
        height, width = (size, size) if isinstance(size, int) else size
        example = torch.zeros(batch or 2, channels, height, width)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": ["image"], "output_names": [output_name] if output_name else None}
        shapes = None if batch else ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            module, (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False, **names
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # the exporter's notes on where each node came from are larger than the graph
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    parameters = dict(module.named_parameters())
    for node in model.graph.node:
        # The exporter drops biases that are all zero; a patch needs the slot.
        bias = node.input[1].removesuffix("weight") + "bias" if node.op_type == "Conv" else ""
        if bias in keep and len(node.input) == 2:
            model.graph.initializer.append(onnx.numpy_helper.from_array(parameters[bias].detach().numpy(), bias))
            node.input.append(bias)
    present = {tensor.name for tensor in model.graph.initializer}
    if lost := [name for name in keep if name not in present]:
        raise InputError(f"the ONNX export renamed or dropped {', '.join(lost)}; they could not be patched")
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def stored_as_half(network: bytes) -> bytes:
    """Return the same network with its weights stored in 16 bits; a Cast widens each again when a session is made."""
    model = onnx.load_from_string(network)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("float16"), name))
            tensor.name = f"{name}.half"
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
