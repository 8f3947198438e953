"""Each operator in torch gives what ONNX Runtime gives: with its inputs as inputs, and with all but the first constant.

The full comparison is ONNX's own (`onnx.backend.test`): it takes minutes, and is run by hand.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rws.edge.onnx.torch_graph import to_torch
from rws.edge.onnx.torch_operators import find
from support.graphs import graph_of, onnx_runtime

RNG = np.random.default_rng(0)


def rand(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values) -> np.ndarray:
    return np.array(values, np.int64)


X = rand(2, 6, 9, 8)
ROWS = rand(3, 5)
W = rand(4, 6, 3, 3)
UP = np.float32([1, 1, 2, 2])


class Case(NamedTuple):
    """An operator, its inputs, attributes, opset and number of outputs."""

    kind: str
    inputs: tuple
    attributes: dict = {}  # noqa: RUF012
    opset: int = 17
    outputs: int = 1


def conv(**attributes) -> Case:
    return Case("Conv", (X, W, rand(4)), attributes)


def transposed(**attributes) -> Case:
    return Case("ConvTranspose", (X, rand(6, 4, 3, 3), rand(4)), {"strides": [2, 2]} | attributes)


def pool(kind, **attributes) -> Case:
    return Case(kind, (X,), {"kernel_shape": [3, 2]} | attributes, 19)


def resize(*last, opset=18, **attributes) -> Case:
    return Case("Resize", (X, *last), attributes, opset)


CASES = [
    conv(),
    conv(pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]),
    conv(auto_pad="SAME_UPPER", strides=[2, 2]),
    conv(auto_pad="SAME_LOWER", strides=[2, 2]),
    conv(auto_pad="VALID", kernel_shape=[3, 3]),
    Case("Conv", (X, rand(6, 1, 3, 3)), {"group": 6, "pads": [1, 1, 1, 1]}),
    Case("Conv", (X, rand(4, 6, 1, 1)), {"strides": [2, 3]}),
    Case("Conv", (rand(2, 3, 9), rand(4, 3, 3)), {"pads": [1, 1]}),
    transposed(),
    transposed(pads=[1, 0, 1, 2], output_padding=[1, 0]),
    transposed(auto_pad="SAME_UPPER"),
    transposed(output_shape=[18, 17]),
    *(
        pool(kind, strides=[2, 2], pads=pads)
        for kind in ("MaxPool", "AveragePool")
        for pads in ([1, 1, 1, 1], [0, 1, 1, 0])
    ),
    *(pool(kind, strides=[2, 3], ceil_mode=1) for kind in ("MaxPool", "AveragePool")),
    *(pool(kind, strides=[2, 2], auto_pad="SAME_UPPER") for kind in ("MaxPool", "AveragePool")),
    pool("MaxPool", dilations=[2, 2]),
    pool("AveragePool", pads=[1, 1, 1, 1], count_include_pad=1),
    *(Case(kind, (X,)) for kind in ("GlobalAveragePool", "GlobalMaxPool")),
    Case("BatchNormalization", (X, rand(6), rand(6), rand(6), np.abs(rand(6)))),
    Case("InstanceNormalization", (X, rand(6), rand(6))),
    Case("GroupNormalization", (X, rand(6), rand(6)), {"num_groups": 3}, 21),
    Case("LayerNormalization", (X, rand(8), rand(8))),
    Case("LayerNormalization", (X, rand(9, 8)), {"axis": 2}),
    Case("LRN", (X,), {"size": 3, "alpha": 0.1}),
    Case("LpNormalization", (X,), {"axis": 1}),
    Case("Gemm", (ROWS, rand(4, 5), rand(4)), {"transB": 1}),
    Case("Gemm", (ROWS, rand(3, 4), rand(1, 4)), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("MatMul", (X, rand(8, 3))),
    Case("Einsum", (ROWS, rand(5, 2)), {"equation": "ij,jk->ki"}),
    *(Case(kind, (X,)) for kind in ("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Softplus", "Softsign")),
    *(Case(kind, (X,)) for kind in ("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Tanh", "Erf", "Identity")),
    *(Case(kind, (X,)) for kind in ("Neg", "Abs", "Exp", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "Sin")),
    *(Case("Gelu", (X,), {"approximate": how}, 20) for how in ("none", "tanh")),
    Case("Mish", (X,), {}, 18),
    Case("PRelu", (X, rand(6, 1, 1))),
    *(Case("Softmax", (X,), {"axis": 1}, opset) for opset in (11, 13)),
    Case("LogSoftmax", (X,), {}, 11),
    *(
        Case("Clip", (X, *limits))
        for limits in ((np.float32(0), np.float32(6)), (None, np.float32(1)), (np.float32(-1),), ())
    ),
    Case("Clip", (X,), {"min": 0.0, "max": 1.0}, 7),
    *(
        Case(kind, (X, rand(9, 8)))
        for kind in ("Add", "Sub", "Mul", "Div", "Less", "GreaterOrEqual", "Max", "Min", "Mean")
    ),
    *(Case(kind, (X, np.float32(2))) for kind in ("Add", "Mul", "Div", "Pow", "Greater")),
    Case("Div", (ints(-7, 7, 9), ints(2, 2, 4))),
    *(Case("Mod", (ints(-7, 7), ints(3, -3)), {"fmod": how}) for how in (0, 1)),
    Case("And", (ROWS > 0, rand(5) > 0)),
    Case("Not", (ROWS > 0,)),
    Case("Where", (ROWS > 0, ROWS, rand(5))),
    *(
        Case(f"Reduce{how}", (np.abs(X),), {"axes": [1, -1]})
        for how in ("Mean", "Max", "Min", "L1", "L2", "Prod", "LogSum")
    ),
    *(Case(f"Reduce{how}", (X, ints(2)), {"keepdims": 0}, 18) for how in ("Sum", "Mean", "LogSumExp", "SumSquare")),
    Case("ReduceMean", (X,)),
    Case("ReduceSum", (X,), {"noop_with_empty_axes": 1}),
    *(Case(kind, (X,), {"axis": 1, "keepdims": keep}) for kind in ("ArgMax", "ArgMin") for keep in (0, 1)),
    Case("ArgMax", (np.round(X),), {"axis": 1, "select_last_index": 1}),
    Case("TopK", (ROWS, ints(2)), {}, 17, 2),
    Case("TopK", (ROWS, ints(2)), {"axis": 0, "largest": 0}, 17, 2),
    *(Case("Reshape", (X, ints(*shape))) for shape in ((0, -1), (2, 3, -1), (-1,))),
    Case("Reshape", (rand(0, 3), ints(3, 0)), {"allowzero": 1}),
    Case("Transpose", (X,), {"perm": [0, 2, 3, 1]}),
    Case("Transpose", (ROWS,)),
    Case("Concat", (X, X), {"axis": 1}),
    Case("Split", (X, ints(2, 4)), {"axis": 1}, 17, 2),
    Case("Split", (X,), {"axis": 2, "num_outputs": 2}, 18, 2),
    Case("Split", (X,), {"axis": 1, "split": [1, 5]}, 11, 2),
    Case("Slice", (X, ints(1, -1), ints(5, -100), ints(1, 2), ints(2, -3))),
    Case("Slice", (X,), {"starts": [1], "ends": [1000], "axes": [-1]}, 9),
    Case("Gather", (X, ints(0, -1)), {"axis": 1}),
    Case("Gather", (X, np.int64(-2)), {"axis": 2}),
    Case("GatherElements", (ROWS, ints([0, -1], [2, 1])), {"axis": 1}),
    Case("GatherND", (rand(2, 3, 4), ints([1], [-1])), {"batch_dims": 1}),
    Case("ScatterElements", (ROWS, ints([0, -1]), rand(1, 2)), {"axis": 1}),
    *(
        Case("ScatterND", (ROWS, ints([1], [-3]), rand(2, 5)), {"reduction": how}, 18)
        for how in ("none", "add", "mul", "max")
    ),
    *(
        Case("Pad", (X, ints(0, 0, 2, 1, 0, 0, 1, 3)), {"mode": mode}, 19)
        for mode in ("constant", "reflect", "edge", "wrap")
    ),
    Case("Pad", (X, ints(1, -2), np.float32(7), ints(-2)), {}, 18),
    Case("Pad", (X,), {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0}, 9),
    Case("Expand", (rand(3, 1), ints(2, 1, 4))),
    Case("Tile", (ROWS, ints(2, 3))),
    Case("Squeeze", (rand(1, 3, 1), ints(-1))),
    Case("Squeeze", (rand(1, 3, 1),)),
    Case("Unsqueeze", (ROWS, ints(0, -1))),
    Case("Unsqueeze", (ROWS,), {"axes": [1, 3]}, 11),
    *(Case("Flatten", (X,), {"axis": axis}) for axis in (0, 1, 2, -1, 4)),
    Case("Resize", (X, UP), {}, 10),
    Case("Upsample", (X, UP), {"mode": "linear"}, 9),
    *(
        resize(None, UP, mode=mode, coordinate_transformation_mode=where)
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    resize(None, UP, nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    resize(None, None, ints(2, 6, 5, 13)),
    resize(None, None, ints(2, 6, 5, 13), mode="linear"),
    resize(None, np.float32([1, 1, 0.6, 1.7]), mode="linear"),
    resize(None, None, ints(2, 6, 4, 5), mode="linear", antialias=1),
    resize(None, None, ints(4, 5), mode="cubic", antialias=1, axes=[2, 3]),
    resize(None, UP, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    *(Case("DepthToSpace", (rand(2, 8, 3, 4),), {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("SpaceToDepth", (rand(2, 3, 4, 6),), {"blocksize": 2}),
    *(
        Case("Cast", (X,), {"to": to})
        for to in (TensorProto.FLOAT16, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE)
    ),
    Case("CastLike", (X, ints(1))),
    Case("ConstantOfShape", (ints(2, 3),), {"value": numpy_helper.from_array(np.int64([7]))}),
    Case("Range", (np.float32(1), np.float32(4), np.float32(0.5))),
    Case("Shape", (X,), {"start": 1, "end": -1}),
    Case("Size", (X,)),
    Case("Dropout", (X,), {}, 13),
    *(Case("CumSum", (ROWS, np.int64(1)), {"exclusive": one, "reverse": 1 - one}) for one in (0, 1)),
    *(Case("Trilu", (ROWS, np.int64(1)), {"upper": upper}) for upper in (0, 1)),
    Case("OneHot", (ints(0, 2, -1), np.int64(3), np.float32([-1, 4])), {"axis": 0}),
    Case("NonZero", (np.float32([[0, 1], [2, 0]]),)),
    Case("GridSample", (X, np.clip(rand(2, 3, 4, 2), -1, 1)), {"align_corners": 1}),
    *(
        Case(
            "LSTM",
            (rand(5, 2, 3), rand(n, 16, 3), rand(n, 16, 4), rand(n, 32)),
            {"hidden_size": 4, "direction": way},
            14,
            3,
        )
        for n, way in ((1, "forward"), (2, "bidirectional"))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.opset}")
def test_an_operator_gives_what_onnx_runtime_gives(case: Case):
    names = ["" if value is None else f"x{place}" for place, value in enumerate(case.inputs)]
    outputs = [f"y{place}" for place in range(case.outputs)]
    node = helper.make_node(case.kind, names, outputs, **case.attributes)
    given = {name: np.asarray(value) for name, value in zip(names, case.inputs, strict=True) if name}
    constants = dict(list(given.items())[1:])
    for fixed in ({}, constants) if constants else ({},):
        model = graph_of([node], {name: given[name] for name in given if name not in fixed}, fixed, outputs, case.opset)
        values = [value for name, value in given.items() if name not in fixed]
        wanted = onnx_runtime(model, *values)
        module, _ = to_torch(model, [])
        with torch.inference_mode():
            found = [output.numpy() for output in module(*map(torch.from_numpy, values))]
        assert [(y.shape, y.dtype) for y in found] == [(y.shape, y.dtype) for y in wanted]
        for y, aim in zip(found, wanted, strict=True):
            np.testing.assert_allclose(y, aim, rtol=1e-4, atol=2e-5)


def test_an_operator_is_found_in_the_form_of_its_opset():
    assert find("Softmax", 12) is not find("Softmax", 13)
    assert find("Softmax", 13) is find("Softmax", 24)
    assert find("GroupNormalization", 18) is None
    assert find("Unique", 24) is None


def test_what_the_table_says_of_inputs_fits_the_functions():
    for kind in ("Reshape", "Slice", "Pad", "Resize", "Clip", "TopK", "Range", "OneHot"):
        form = find(kind, 24)
        names = list(inspect.signature(form.function).parameters)
        assert len(names) > max(form.host)
