"""What each ONNX operator of vision models is in torch, from opset 7 on: a table.

The functions take inputs and attributes as https://onnx.ai/onnx/operators names and orders them, an absent input as
None; what was an attribute once and is an input today has one name.
"""

import operator as python
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

Ints = Sequence[int]
Function = Callable[..., Any]

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
}
IDLE = frozenset(
    (
        *("kernel_shape", "storage_order", "spatial", "momentum", "seed", "sorted", "stash_type", "saturate"),
        *("round_mode", "precision", "num_outputs", "extrapolation_value"),
    )
)
"""Attributes that say nothing new, or nothing about inference; a function without such a parameter ignores them."""


@dataclass(frozen=True)
class Operator:
    """How an operator is computed.

    Args:
        function: its parameter `outputs`, if it has one, is the number of outputs; `like` is a tensor on the device.
        since: the opset from which on it holds.
        host: places of inputs that it takes as Python numbers or lists.
        scalars: places of inputs that may be numbers, too.
        many: whether it returns a tuple, an element for each output.
    """

    function: Function
    since: int = 1
    host: Ints = ()
    scalars: Ints = ()
    many: bool = False


OPERATORS: dict[str, list[Operator]] = {}
"""Name → its forms, in the order of the opsets."""


def find(name: str, opset: int) -> Operator | None:
    """Return an operator in the form that it has in an opset, or None if it is not in the table."""
    forms = [form for form in OPERATORS.get(name, ()) if form.since <= opset]
    return max(forms, key=lambda form: form.since, default=None)


def operator(*names: str, **how: Any) -> Callable[[Function], Function]:
    """Add a function to the table, under each of the names; `how`: see `Operator`."""

    def add(function: Function) -> Function:
        if function.__name__ == "<lambda>":
            function.__name__ = function.__qualname__ = f"onnx_{names[0]}"  # torch.fx writes code that calls it by name
        for name in names:
            OPERATORS.setdefault(name, []).append(Operator(function, **how))
        return function

    return add


def _wrapped(index: Tensor, length: int) -> Tensor:
    return torch.where(index < 0, index + length, index).long()


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _flatten(x: Tensor, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    right = x.flatten(axis) if axis < x.dim() else x.unsqueeze(-1)
    return right.flatten(0, axis - 1) if axis else right.unsqueeze(0)


for _name in (
    *("Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "IsNaN", "Log", "MatMul", "Neg", "Reciprocal", "Relu"),
    *("Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Tan", "Tanh", "Where"),
):
    operator(_name)(getattr(torch, _name.lower()))

_ARITHMETIC: dict[str, Function] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
}
for _name, _function in _ARITHMETIC.items():
    operator(_name, scalars=(0, 1))(_function)

_PLAIN: dict[str, Function] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "Mod": lambda a, b, fmod=0: torch.fmod(a, b) if fmod else torch.remainder(a, b),
    "Max": lambda *x: reduce(torch.maximum, x),
    "Min": lambda *x: reduce(torch.minimum, x),
    "Sum": lambda *x: reduce(torch.add, x),
    "Mean": lambda *x: reduce(torch.add, x) / len(x),
    "Identity": lambda x: x,
    "Cast": lambda x, to: x.to(DTYPES[to]),
    "CastLike": lambda x, target: x.to(target.dtype),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Selu": lambda x, alpha=1.6732632, gamma=1.050701: gamma * F.elu(x, alpha),
    "Celu": lambda x, alpha=1.0: F.celu(x, alpha),
    "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, 0),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: F.hardtanh(alpha * x + beta, 0.0, 1.0),
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Swish": lambda x, alpha=1.0: x * torch.sigmoid(alpha * x),
    "Softmax": lambda x, axis=1: _flatten(x, axis).softmax(1).reshape(x.shape),
    "LogSoftmax": lambda x, axis=1: _flatten(x, axis).log_softmax(1).reshape(x.shape),
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.dim())), True),
    "LpNormalization": lambda x, axis=-1, p=2: F.normalize(x, p, axis),
    "Einsum": lambda *x, equation: torch.einsum(equation, *x),
    "Flatten": _flatten,
    "Transpose": lambda x, perm=None: x.permute(perm or list(range(x.dim()))[::-1]),
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "GatherElements": lambda x, index, axis=0: x.gather(axis, _wrapped(index, x.shape[axis])),
    "NonZero": lambda x: torch.nonzero(x).t(),
    "Shape": lambda x, start=0, end=None: list(x.shape)[start:end],
    "Size": lambda x: x.numel(),
}
for _name, _function in _PLAIN.items():
    operator(_name)(_function)

operator("Softmax", since=13)(lambda x, axis=-1: x.softmax(axis))
operator("LogSoftmax", since=13)(lambda x, axis=-1: x.log_softmax(axis))
operator("Pow", scalars=(1,))(lambda a, b: torch.pow(a, b).to(a.dtype))
operator("Dropout", many=True)(lambda x, ratio=None, training=None: (x, torch.ones_like(x, dtype=torch.bool)))

# Those with inputs that are numbers: shapes, axes, limits.
_WITH_NUMBERS: dict[str, Function] = {
    "Squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)),
    "Tile": lambda x, repeats: x.tile(tuple(repeats)),
    "Trilu": lambda x, k=None, upper=1: x.triu(k or 0) if upper else x.tril(k or 0),
}
for _name, _function in _WITH_NUMBERS.items():
    operator(_name, host=(1,))(_function)
operator("Range", host=(0, 1, 2))(
    lambda start, limit, delta, like: torch.arange(start, limit, delta, device=like.device)
)


def _register_reduction(name: str, function: Function) -> None:
    def reduction(x: Tensor, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if not axes and noop_with_empty_axes:
            return function(x.unsqueeze(0), (0,), False).to(x.dtype)  # type: ignore[no-any-return]
        return function(x, tuple(axes or range(x.dim())), bool(keepdims)).to(x.dtype)  # type: ignore[no-any-return]

    operator(name, host=(1,))(reduction)


_REDUCTIONS: dict[str, Function] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),  # its gradient at zero is finite
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}
for _name, _function in _REDUCTIONS.items():
    _register_reduction(_name, _function)


@operator("ReduceProd", host=(1,))
def _reduce_product(x: Tensor, axes: Any = None, keepdims: int = 1) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes or range(x.dim())), reverse=True):
        x = torch.prod(x, axis, bool(keepdims), dtype=x.dtype)
    return x


@operator("Clip", host=(1, 2))
def _clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002  # ONNX's names
    low, high = _first(min), _first(max)
    if low is None or high is None or low > high or not x.is_floating_point():
        return x if low is high is None else x.clamp(low, high)
    return F.hardtanh(x, low, high)  # as clamp, but its gradient takes a third of the time


@operator("Div", scalars=(0, 1))
def _div(a: Any, b: Any) -> Tensor:
    if (a if isinstance(a, Tensor) else b).is_floating_point():
        return a / b  # type: ignore[no-any-return]
    return torch.div(torch.as_tensor(a), b, rounding_mode="trunc")


@operator("ArgMax")
def _argmax(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    place = (x.flip(axis) if select_last_index else x).argmax(axis, bool(keepdims))
    return x.shape[axis] - 1 - place if select_last_index else place


operator("ArgMin")(lambda x, **how: _argmax(-x, **how))


@operator("TopK", host=(1,), many=True)
def _topk(x: Tensor, k: Any, axis: int = -1, largest: int = 1) -> tuple[Tensor, Tensor]:
    values, places = torch.sort(x, stable=True, dim=axis, descending=bool(largest))
    return values.narrow(axis, 0, _first(k)), places.narrow(axis, 0, _first(k))


@operator("CumSum", host=(1,))
def _cumsum(x: Tensor, axis: Any, exclusive: int = 0, reverse: int = 0) -> Tensor:
    x = x.flip(_first(axis)) if reverse else x
    y = x.cumsum(_first(axis), dtype=x.dtype) - (x if exclusive else 0)
    return y.flip(_first(axis)) if reverse else y


# Shapes and places.


@operator("Reshape", host=(1,))
def _reshape(x: Tensor, shape: Ints, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(shape)])


@operator("Unsqueeze", host=(1,))
def _unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    return reduce(torch.unsqueeze, sorted(axis % (x.dim() + len(axes)) for axis in axes), x)


@operator("Expand", host=(1,))
def _expand(x: Tensor, shape: Ints) -> Tensor:
    own = [1] * (len(shape) - x.dim()) + list(x.shape)
    wanted = [1] * (x.dim() - len(shape)) + list(shape)
    return x.expand([length if new == 1 else new for length, new in zip(own, wanted, strict=True)])


@operator("ConstantOfShape", host=(0,))
def _constant_of_shape(shape: Ints, like: Tensor, value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape, device=like.device) if value is None else value.reshape(()).expand(shape)


@operator("Split", host=(1,), many=True)
def _split(x: Tensor, split: Any = None, axis: int = 0, outputs: int = 1) -> tuple[Tensor, ...]:
    return torch.split(x, list(split) if split else -(-x.shape[axis] // outputs), axis)


@operator("Slice", host=(1, 2, 3, 4))
def _slice(x: Tensor, starts: Ints, ends: Ints, axes: Any = None, steps: Any = None) -> Tensor:
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[place] if axes else place) % x.dim()
        step, last = steps[place] if steps else 1, x.shape[axis] - 1
        if step < 0:
            start, end, _ = slice(start, end, step).indices(last + 1)
            x, start, end, step = x.flip(axis), last - start, last - end, -step
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


@operator("Pad", host=(1, 2, 3))
def _pad(x: Tensor, pads: Ints, value: Any = None, axes: Any = None, mode: str = "constant") -> Tensor:
    places = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
    sides = dict(zip(places, zip(pads, pads[len(places) :], strict=False), strict=True))
    if mode == "constant":
        around = [side for axis in range(x.dim() - 1, -1, -1) for side in sides.get(axis, (0, 0))]
        return F.pad(x, around, value=_first(value) or 0)
    for axis, (before, after) in sides.items():
        if before or after:
            length = x.shape[axis]
            index = torch.arange(-before, length + after, device=x.device)
            if mode == "reflect":
                index = length - 1 - (length - 1 - index % max(2 * length - 2, 1)).abs()
            x = x.index_select(axis, index.clamp(0, length - 1) if mode == "edge" else index % length)
    return x


@operator("Gather", scalars=(1,))
def _gather(x: Tensor, index: Any, axis: int = 0) -> Tensor:
    if isinstance(index, int):
        return x.select(axis, index)
    return x[(slice(None),) * (axis % x.dim()) + (index.long(),)]


@operator("GatherND")
def _gather_nd(x: Tensor, index: Tensor, batch_dims: int = 0) -> Tensor:
    own = [torch.arange(n, device=x.device) for n in x.shape[:batch_dims]]
    shapes = [[1] * axis + [-1] + [1] * (index.dim() - 2 - axis) for axis in range(batch_dims)]
    batch = [each.reshape(shape) for each, shape in zip(own, shapes, strict=True)]
    return x[tuple(batch) + index.long().unbind(-1)]


_HOW = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Scatter", "ScatterElements")
def _scatter_elements(x: Tensor, index: Tensor, new: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    index, new = _wrapped(index, x.shape[axis]), new.to(x.dtype)
    return x.scatter(axis, index, new) if reduction == "none" else x.scatter_reduce(axis, index, new, _HOW[reduction])


@operator("ScatterND")
def _scatter_nd(x: Tensor, index: Tensor, new: Tensor, reduction: str = "none") -> Tensor:
    places, new = index.long().unbind(-1), new.to(x.dtype)
    if reduction in ("none", "add"):
        return x.index_put(places, new, accumulate=reduction == "add")
    rows = torch.zeros_like(places[0])
    for length, place in zip(x.shape, places, strict=False):
        rows = rows * length + _wrapped(place, length)
    flat = x.reshape(prod(x.shape[: len(places)]), -1)
    where = rows.reshape(-1, 1).expand(-1, flat.shape[1])
    return flat.scatter_reduce(0, where, new.reshape(where.shape), _HOW[reduction]).reshape(x.shape)


@operator("OneHot", host=(1,))
def _one_hot(index: Tensor, depth: Any, values: Tensor, axis: int = -1) -> Tensor:
    axis, count = axis % (index.dim() + 1), int(_first(depth))
    classes = torch.arange(count, device=index.device).reshape(-1, *[1] * (index.dim() - axis))
    return torch.where(_wrapped(index, count).unsqueeze(axis) == classes, values[1], values[0])


@operator("Constant")
def _constant(value: Tensor | None = None, **numbers: Any) -> Tensor:
    return torch.tensor(*numbers.values()) if value is None else value
