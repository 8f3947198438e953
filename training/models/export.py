"""Torch modules to ONNX bytes whose initialisers keep the parameters' names."""

import copy
import logging
import warnings
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from rws.edge.signatures.quantization import dequantise, quantise
from rws.errors import InputError

OPSET = 18
Stored = Literal[8, 16, 32]


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


def narrowed(network: bytes, bits: Stored, keep: Collection[str] = ()) -> bytes:
    """Return the same network with its weights, but those to `keep`, stored in 16 or 8 bits, as `rounded` makes them.

    A Cast widens each again when a session is made, and a Mul by its scale if they have 8; `read_model` does, too.
    """
    model = onnx.load_from_string(network)
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []

    def widen(kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))

    for tensor in model.graph.initializer:
        weight = tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and tensor.dims[0] > 1
        if not weight or tensor.name in keep or bits == 32:
            continue
        name, exact = tensor.name, onnx.numpy_helper.to_array(tensor)
        codes = quantise(exact) if bits == 8 else None
        stored = exact.astype(np.float16) if codes is None else codes.values
        tensor.CopyFrom(onnx.numpy_helper.from_array(stored, f"{name}.stored"))
        widen("Cast", [tensor.name], f"{name}.codes" if codes else name, to=onnx.TensorProto.FLOAT)
        if codes is not None:
            added.append(onnx.numpy_helper.from_array(codes.columns, f"{name}.scale"))
            widen("Mul", [f"{name}.codes", f"{name}.scale"], name)
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(added)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def rounded(weight: Tensor, bits: Stored) -> Tensor:
    """Return a float32 weight (out, …) as it is after `narrowed`: 8 bits have one scale for each index of `out`."""
    if bits == 8:
        return torch.from_numpy(dequantise(quantise(weight.detach().cpu().numpy()))).to(weight)
    return weight.half().float() if bits == 16 else weight
