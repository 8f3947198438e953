"""A model's graph as a torch module whose shallow tensors can be trained, and how many of them to take."""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from rws.edge.onnx.graph import shallow_tensors, split_after
from rws.edge.onnx.int8 import dequantised, is_quantised
from rws.edge.onnx.torch_graph import to_torch
from rws.edge.preprocess import InputSpec
from rws.errors import InputError, OperatorError
from rws.training.adopt.graph import Runner, compare
from rws.training.models.fit import channels_last
from rws.training.signatures.tuned import train_only
from rws.training.tasks.base import Tensors

BUDGET = 0.006  # part of the model's bytes that one signature may take if no number of layers is given
_BYTES_A_CHANNEL = 9  # a weight's scale, and a bias with its scale
_BYTES_A_TENSOR = 2 * 130  # what the file's header says about a tensor and its scale


class AnyBatch(nn.Module):
    """A network whose batch may be fixed: any number of images, as the graph takes them, to a tuple of its outputs."""

    def __init__(self, network: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.network, self._batch = network, batch

    def forward(self, x: Tensor) -> Tensors:
        """Run the network, in parts if its batch is fixed; the last one is filled up."""
        if self._batch is None:
            return tuple(self.network(x))
        missing = -len(x) % self._batch
        parts = torch.split(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]), self._batch)
        outputs = zip(*(self.network(part) for part in parts), strict=True)
        return tuple(torch.cat(output)[: len(x)] for output in outputs)


def trainable(
    proto: onnx.ModelProto, tensors: Sequence[str], spec: InputSpec, batch: int | None = None
) -> tuple[AnyBatch, dict[str, Tensor]]:
    """Convert a prepared graph to a torch module in eval mode; return it and its trainable parameters by tensor name.

    Of a quantised graph that is its twin in float32, which has the same shallow tensors.
    OperatorError if operators cannot be turned into torch; BundleError if it does not give what ONNX Runtime gives.
    """
    proto = dequantised(proto) if is_quantised(proto) else proto
    images = (np.random.default_rng(1).random((batch or 2, *spec.shape)) * spec.high).astype(spec.dtype)
    try:
        module, names = to_torch(proto, tensors)
        with torch.no_grad():
            outputs = module(torch.from_numpy(images))
    except OperatorError as error:
        raise OperatorError(f"{error}, or train only its shallow part (--target shallow)") from error
    for found, expected in zip(outputs, Runner(proto)(images), strict=True):
        compare(found.numpy(), expected, "as a torch module")
    parameters = train_only(module.eval(), [names[tensor] for tensor in tensors])
    return AnyBatch(channels_last(module), batch), {tensor: parameters[names[tensor]] for tensor in tensors}


def stem(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return the part of a graph up to the input of its first deep layer; InputError if it has not one output."""
    try:
        part, _ = split_after(proto, tensors)
    except ValueError as error:
        raise InputError(f"the shallow part cannot be cut off: {error}; change fewer layers with --layers") from error
    if len(part.graph.output) != 1:
        found = f"after these layers {len(part.graph.output)} values go on, expected one"
        raise InputError(f"{found}; the shallow part ends inside a block: give another --layers")
    return part


def signature_bytes(proto: onnx.ModelProto, layers: int) -> int:
    """Estimate the bytes of a signature of the first `layers` convolutions at 8 bits, with a scale per channel."""
    sizes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    weights = [sizes[name] for name in shallow_tensors(proto, layers)[::2]]
    return sum(int(np.prod(dims)) + _BYTES_A_CHANNEL * dims[0] + 2 * _BYTES_A_TENSOR for dims in weights)


def layers_within(proto: onnx.ModelProto, share: float = BUDGET) -> int:
    """Return how many convolutions a signature may change to stay within that share of the model's bytes; at least one.

    If that ends inside a residual block, the cut moves back to a block's end: a half-trained block gains less. A
    quantised model counts as its twin in float32: what it wins back follows the signature's size, not its own.
    """
    tensors = {tensor.name for tensor in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    plain = sum(1 for _ in takewhile(lambda node: node.input[1] in tensors, convolutions))  # the others are int8
    most = max(1, min(plain, len(convolutions) - 1))
    proto = dequantised(proto) if is_quantised(proto) else proto
    limit = share * proto.ByteSize()
    within = takewhile(lambda layers: signature_bytes(proto, layers) <= limit, range(1, most + 1))
    fitting = max(within, default=1)
    whole = [layers for layers in range(1, fitting + 1) if _ends_whole(proto, layers)]
    return whole[-1] if whole and whole[-1] >= fitting / 2 else fitting


def _ends_whole(proto: onnx.ModelProto, layers: int) -> bool:
    try:
        stem(proto, shallow_tensors(proto, layers))
    except InputError:
        return False
    return True
