"""ONNX operators on what is known without a tensor: the lengths of a shape, as Python numbers and lists.

So `torch.compile` and CUDA graphs see no shape that a device computes.
"""

import operator
from collections.abc import Callable
from math import ceil, floor, frexp, ldexp, prod, sqrt
from typing import Any

from onnx import TensorProto

Function = Callable[..., Any]


def _single(value: Any) -> Any:
    """Round a float to what float32 holds."""
    if not isinstance(value, float):
        return value
    fraction, exponent = frexp(value)
    return ldexp(round(ldexp(fraction, 24)), exponent - 24)


def _each(function: Function) -> Function:
    """Return the function for numbers and lists, whose lengths are equal or 1."""

    def run(*values: Any, **how: Any) -> Any:
        lengths = [len(value) for value in values if isinstance(value, list)]
        if not lengths:
            return _single(function(*values, **how))
        count = max(lengths) if all(lengths) else 0
        at = [[value[i % len(value)] if isinstance(value, list) else value for value in values] for i in range(count)]
        return [run(*one, **how) for one in at]

    return run


def _flat(value: Any) -> list[Any]:
    return [number for each in value for number in _flat(each)] if isinstance(value, list) else [value]


def _div(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return a // b if a * b >= 0 else -(-a // b)


def _cast(value: Any, to: int) -> Any:
    if to == TensorProto.BOOL:
        return bool(value)
    return float(value) if to in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16) else int(value)


def _shape(value: Any, start: int = 0, end: int | None = None) -> list[int]:
    lengths = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else 0
    return lengths[start:end]


def _reshape(value: Any, shape: Any, allowzero: int = 0) -> Any:
    flat = _flat(value)
    if len(shape) < 2:
        return flat if shape else flat[0]
    columns = shape[1] if shape[1] > 0 else len(flat) // shape[0]
    return [flat[start : start + columns] for start in range(0, len(flat), columns)]


def _slice(value: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    return value[starts[0] : ends[0] : steps[0] if steps else 1]


def _split(value: Any, split: Any = None, axis: int = 0, outputs: int = 1) -> tuple[Any, ...]:
    split = split or [-(-len(value) // outputs)] * outputs
    return tuple(value[sum(split[:i]) : sum(split[: i + 1])] for i in range(len(split)))


def _reduction(function: Function) -> Function:
    return lambda value, axes=None, keepdims=1: [function(value)] if keepdims else function(value)


NUMBERS: dict[str, Function] = {
    "Shape": _shape,
    "Size": lambda value: len(_flat(value)),
    "Identity": lambda value: value,
    "Gather": lambda value, index, axis=0: _each(value.__getitem__)(index),
    "Concat": lambda *values, axis=0: [number for value in values for number in value],
    "Unsqueeze": lambda value, axes: [value],
    "Squeeze": lambda value, axes=None: value[0],
    "Transpose": lambda value, perm=None: [list(row) for row in zip(*value, strict=True)],
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "ConstantOfShape": lambda shape, value=(0,): list(value) * shape[0],
    "Cast": _each(_cast),
    "Add": _each(operator.add),
    "Sub": _each(operator.sub),
    "Mul": _each(operator.mul),
    "Div": _each(_div),
    "Mod": _each(lambda a, b, fmod=0: a % b),
    "Pow": _each(operator.pow),
    "Neg": _each(operator.neg),
    "Abs": _each(abs),
    "Sqrt": _each(sqrt),
    "Floor": _each(lambda value: float(floor(value))),
    "Ceil": _each(lambda value: float(ceil(value))),
    "Round": _each(lambda value: float(round(value))),
    "Max": _each(max),
    "Min": _each(min),
    "Equal": _each(operator.eq),
    "Greater": _each(operator.gt),
    "GreaterOrEqual": _each(operator.ge),
    "Less": _each(operator.lt),
    "LessOrEqual": _each(operator.le),
    "Not": _each(operator.not_),
    "And": _each(lambda a, b: a and b),
    "Or": _each(lambda a, b: a or b),
    "Where": _each(lambda condition, a, b: a if condition else b),
    "ReduceProd": _reduction(prod),
    "ReduceSum": _reduction(sum),
    "ReduceMax": _reduction(max),
    "ReduceMin": _reduction(min),
}
for _name, _function in NUMBERS.items():
    _function.__name__ = _function.__qualname__ = f"number_{_name}"  # torch.fx writes code that calls it by name
