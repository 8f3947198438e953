"""A patchable model on Torch: the parameters of a module, updated in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edge.errors import BundleError
from edge.extras import require
from edge.models.base import as_batch
from edge.models.onnx_graph import clean_tensors, data_input, read_model
from edge.models.patch import Arena, ArenaModel
from edge.signatures import SignatureSet

if TYPE_CHECKING:
    import torch


class TorchModel(ArenaModel):
    """A classifier on Torch; see `PatchableModel`. Its parameters are written in place and never move.

    Args:
        module: float32 (N, 3, H, W) → logits (N, K), on any device; switched to eval mode.
        signatures: what can be mixed; None for a model that is only ever clean.
        tensor_names: the patched tensors, in the order of the network.
        parameters: tensor name → the module's parameter of another name, where the names differ.
        image_shape: the module's (3, H, W); None stands for a free length.

    Raises:
        BundleError: if a parameter is missing or not float32.
        SignatureError: if the signatures are for other tensors or other weights.
        MissingExtraError: if torch is not installed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        signatures: SignatureSet | None,
        tensor_names: Sequence[str],
        parameters: Mapping[str, str] | None = None,
        image_shape: Sequence[int | None] = (3, None, None),
    ) -> None:
        with require("torch"):
            import torch
        self._torch = torch
        self._module = module.eval()
        self._shape = tuple(image_shape)
        own = dict(module.named_parameters())
        renamed = dict(parameters or {})
        missing = [name for name in tensor_names if renamed.get(name, name) not in own]
        if missing:
            raise BundleError(f"module has no parameter {missing[0]!r} to patch; it has {', '.join(own)}")
        self._parameters = [own[renamed.get(name, name)] for name in tensor_names]
        for name, parameter in zip(tensor_names, self._parameters, strict=True):
            if parameter.dtype != torch.float32:
                raise BundleError(f"module: parameter {name!r} is {parameter.dtype}, expected torch.float32")
        clean = {
            name: parameter.detach().cpu().numpy()
            for name, parameter in zip(tensor_names, self._parameters, strict=True)
        }
        self._arena = Arena(clean, signatures, publish=self._publish)
        self._weights = [torch.from_numpy(view) for view in self._arena.views.values()]

    @classmethod
    def from_onnx(
        cls,
        model: str | Path | bytes,
        signatures: SignatureSet | None,
        tensor_names: Sequence[str],
        device: str = "cpu",
        threads: int | None = None,
    ) -> TorchModel:
        """Convert an ONNX model with onnx2torch.

        Args:
            model: path or bytes of an ONNX model that went through `onnx_graph.prepare`, with one image input.
            signatures, tensor_names: as for the class; the names are those of the ONNX model.
            device: where Torch shall run it.
            threads: threads inside an operator, for the whole process; None leaves them as they are.

        Raises:
            BundleError: if the model cannot be read or converted, or a tensor is not a convolution's own.
            MissingExtraError: if torch or onnx2torch is not installed.
        """
        proto = read_model(model)
        clean_tensors(proto, tensor_names)
        parameters = _name_convolutions(proto, tensor_names)
        module = _convert(proto)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        present = dict(module.named_parameters())
        for tensor, name in parameters.items():
            if name not in present:
                # An asymmetric padding is a module of its own, in front of the convolution.
                node, _, leaf = name.rpartition(".")
                parameters[tensor] = f"{node}.1.{leaf}"
        return cls(module.to(device), signatures, tensor_names, parameters, data_input(proto)[1][1:])

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify float32 (3, H, W) or (N, 3, H, W); see `PatchableModel.predict`."""
        batch = as_batch(x, self._shape)
        self._arena.settle()
        with self._torch.inference_mode():
            logits = self._module(self._torch.tensor(batch, device=self._parameters[0].device))
        return np.asarray(logits.cpu().numpy(), np.float32)

    def _publish(self) -> None:
        with self._torch.no_grad():
            for parameter, weights in zip(self._parameters, self._weights, strict=True):
                parameter.copy_(weights)


def _name_convolutions(proto: Any, tensor_names: Sequence[str]) -> dict[str, str]:
    """Name the nodes after their place, and tell which parameter of the converted module each tensor becomes."""
    parameters: dict[str, str] = {}
    for index, node in enumerate(proto.graph.node):
        node.name = f"node{index}"
        for tensor, leaf in zip(node.input[1:], ("weight", "bias"), strict=False):
            if node.op_type == "Conv" and tensor in tensor_names:
                if tensor in parameters:
                    raise BundleError(f"model: tensor {tensor!r} is shared by two convolutions; use the onnx backend")
                parameters[tensor] = f"{node.name}.{leaf}"
    for tensor in tensor_names:
        if tensor not in parameters:
            raise BundleError(f"model: tensor {tensor!r} is not a convolution's own; use the onnx backend")
    return parameters


def _convert(proto: onnx.ModelProto) -> torch.nn.Module:
    with require("torch"):
        from edge import torchvision_compat  # noqa: F401  # onnx2torch imports torchvision

        import onnx2torch  # isort: skip
    _register_reduce_mean()
    _drop_allowzero(proto)
    try:
        module: torch.nn.Module = onnx2torch.convert(proto)
    except (NotImplementedError, RuntimeError, KeyError) as error:
        raise BundleError(f"model: onnx2torch cannot convert it ({error}); use the onnx backend") from error
    return module


def _register_reduce_mean() -> None:
    """Teach onnx2torch the ReduceMean of opset 18, torch.onnx's global average pooling, if it does not know it yet."""
    from onnx2torch.node_converters.reduce import OnnxReduceStaticAxes
    from onnx2torch.node_converters.registry import add_converter, get_converter
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult, get_const_value

    def convert(node: Any, graph: Any) -> Any:
        axes = node.input_values[1:] and get_const_value(node.input_values[1], graph).tolist()
        return OperationConverterResult(
            OnnxReduceStaticAxes(
                operation_type="ReduceMean",
                axes=axes or None,
                keepdims=node.attributes.get("keepdims", 1),
            ),
            OnnxMapping(inputs=node.input_values[:1], outputs=node.output_values),
        )

    try:
        get_converter("ReduceMean", version=18)
    except NotImplementedError:
        add_converter("ReduceMean", version=18)(convert)


def _drop_allowzero(proto: onnx.ModelProto) -> None:
    """Remove a Reshape's `allowzero`, which onnx2torch refuses, where no length is zero and it says nothing."""
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.dims}
    for node in proto.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes and shapes[node.input[1]].all():
            for attribute in [attribute for attribute in node.attribute if attribute.name == "allowzero"]:
                node.attribute.remove(attribute)
