"""Quantised models: the first convolutions in float32, all else as it was; and a twin in float32 throughout."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rws.edge.live.session import LiveSession
from rws.edge.onnx.graph import clean_tensors, prepare, shallow_tensors
from rws.edge.onnx.int8 import dequantised, float_outputs, float_shallow, is_quantised
from rws.errors import BundleError
from support.quantised import INT8, quantised

RNG = np.random.default_rng(4)
X = RNG.random((4, 3, 16, 16), np.float32)


def deployed() -> onnx.ModelProto:
    """Six convolutions with what networks have: pooling, a shortcut, a Clip, groups, squeeze and excitation."""
    tensors, nodes = {}, []

    def conv(index, source, out, channels, kernel=3, group=1, bias=True):
        tensors[f"c{index}.weight"] = RNG.normal(0, 0.3, (channels, 8 // group if index else 3, kernel, kernel))
        tensors[f"c{index}.bias"] = RNG.normal(0, 0.2, channels)
        inputs = [source, f"c{index}.weight", *([f"c{index}.bias"] if bias else [])]
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [out], name=f"c{index}", pads=pads, group=group))

    conv(0, "image", "a", 8)
    nodes.append(helper.make_node("Relu", ["a"], ["a1"]))
    nodes.append(helper.make_node("MaxPool", ["a1"], ["b"], kernel_shape=[2, 2], strides=[2, 2]))
    conv(1, "b", "c", 8)
    nodes.append(helper.make_node("Clip", ["c", "zero", "six"], ["c1"]))
    conv(2, "c1", "d", 8, bias=False)
    nodes.append(helper.make_node("Add", ["d", "b"], ["e"]))
    conv(3, "e", "f", 8, group=8)
    nodes.append(helper.make_node("HardSwish", ["f"], ["f1"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["f1"], ["g"]))
    conv(4, "g", "h", 8, kernel=1, bias=False)
    nodes.append(helper.make_node("Sigmoid", ["h"], ["i"]))
    nodes.append(helper.make_node("Mul", ["f1", "i"], ["j"]))
    conv(5, "j", "k", 8)
    nodes.append(helper.make_node("GlobalAveragePool", ["k"], ["l"]))
    nodes.append(helper.make_node("Flatten", ["l"], ["m"]))
    nodes.append(helper.make_node("Gemm", ["m", "head"], ["logits"], transB=1))
    tensors |= {"head": RNG.normal(0, 1, (5, 8)), "zero": np.array(0.0), "six": np.array(1.5)}
    graph = helper.make_graph(
        nodes,
        "deployed",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("int8")
    model = deployed()
    made = {name: quantised(model, name, X, folder) for name in INT8}
    return made | {"float32": model}


def run(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    return session.run(None, {value.name: x})[0]


def apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max() / np.abs(second).max())


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("form", INT8)
def test_twin_computes_in_float32_what_the_model_does(forms, form):
    twin = dequantised(forms[form])
    kinds = operators(twin)
    assert not [kind for kind in kinds if "Quantize" in kind or kind.startswith("QLinear") or "Integer" in kind]
    assert twin.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert sum(node.op_type == "Conv" for node in twin.graph.node) == 6
    # A Relu or Clip that the quantiser dropped and the twin lacked would be off by as much as the outputs are large.
    assert apart(run(twin), run(forms["float32"])) < 0.05
    assert apart(run(twin), run(forms[form])) < 0.05


@pytest.mark.parametrize("layers", [1, 2, 4, 6])
@pytest.mark.parametrize("form", INT8)
def test_shallow_part_is_live_and_exact(forms, form, layers):
    model = float_shallow(forms[form], layers)
    assert apart(run(model), run(forms[form])) < 0.05
    session = LiveSession(model, layers=layers, strategy="live", provider="cpu", threads=1)
    assert session.strategy == "live"


@pytest.mark.parametrize("form", INT8)
def test_deep_part_stays_as_it_is(forms, form):
    model, shallow = forms[form], float_shallow(forms[form], 2)
    before = {node.SerializeToString(deterministic=True) for node in model.graph.node}
    read = {name for node in shallow.graph.node for name in node.input}
    head = [node for node in shallow.graph.node if node.output[0] in ("logits", "logits_quantized")]
    assert head
    assert head[0].SerializeToString(deterministic=True) in before
    tensors = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    deep = [tensor for tensor in shallow.graph.initializer if tensor.name in tensors]
    assert {tensor.name for tensor in deep} <= read
    assert len(deep) >= 4
    assert all(tensor.SerializeToString() == tensors[tensor.name] for tensor in deep)
    assert list(shallow.graph.input) == list(model.graph.input)
    assert list(shallow.graph.output) == list(model.graph.output)


@pytest.mark.parametrize("form", INT8)
def test_model_and_twin_share_their_shallow_tensors(forms, form):
    model = prepare(float_shallow(forms[form], 3))
    twin = prepare(dequantised(model))
    names = shallow_tensors(model, 3)
    assert shallow_tensors(twin, 3) == names
    ours, theirs = clean_tensors(model, names), clean_tensors(twin, names)
    assert all(np.array_equal(ours[name], theirs[name]) for name in names)
    assert apart(run(twin), run(forms[form])) < 0.05


@pytest.mark.parametrize(
    ("form", "word"),
    [("qdq", "QDQ"), ("qoperator", "QOperator"), ("dynamic", "dynamic"), ("float32", "")],
)
def test_kind_is_said_in_words(forms, form, word):
    assert word in is_quantised(forms[form])
    assert bool(word) == bool(is_quantised(forms[form]))


def by_hand(nodes, tensors, kind=TensorProto.FLOAT, opset=18) -> onnx.ModelProto:
    """A small graph of nodes by hand, of x (N, 3, 8, 8) to y."""
    tensors = {
        "s": np.float32(0.05),
        "z": np.uint8(3),
        "w": RNG.integers(-9, 9, (4, 3, 1, 1)).astype(np.int8),
    } | tensors
    inputs = [helper.make_tensor_value_info("x", kind, ["N", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", inputs, outputs, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


WEIGHT = ("DequantizeLinear", ["w", "ws"], ["wf"], {"axis": 0})
CONV = ("Conv", ["xf", "wf"], ["y"], {})
SCALES = {"ws": np.linspace(0.01, 0.04, 4).astype(np.float32)}


def test_integers_that_the_model_is_given_are_widened():
    model = by_hand([("DequantizeLinear", ["x", "s", "z"], ["xf"], {}), WEIGHT, CONV], SCALES, TensorProto.UINT8)
    x = RNG.integers(0, 255, (2, 3, 8, 8)).astype(np.uint8)
    for changed in (float_shallow(model, 1), dequantised(model)):
        assert operators(changed) == {"Cast", "Sub", "Mul", "Conv"}
        np.testing.assert_allclose(run(changed, x), run(model, x), rtol=1e-4, atol=1e-5)


def test_float_weights_that_are_quantised_in_the_graph_keep_their_rounding():
    pair = [("QuantizeLinear", ["w", "s"], ["wq"], {}), ("DequantizeLinear", ["wq", "s"], ["wf"], {})]
    weight = RNG.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)
    model = by_hand([*pair, ("Conv", ["x", "wf"], ["y"], {})], {"w": weight})
    changed = float_shallow(model, 1)
    assert operators(changed) == {"Conv"}
    np.testing.assert_allclose(run(changed, X[:, :, :8, :8]), run(model, X[:, :, :8, :8]), atol=1e-5)


PAIR = [("QuantizeLinear", ["x", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["xf"], {})]
THREE = np.full(3, 0.1, np.float32)
LOOP = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["r"])], "inner", [], [helper.make_empty_tensor_value_info("r")]
)
Q, DQ = "QuantizeLinear", "DequantizeLinear"
CHANNELS = [(Q, ["r", "three"], ["q"], {"axis": 1}), (DQ, ["q", "three"], ["xf"], {"axis": 1})]
COMPUTED = [(Q, ["x", "m", "z"], ["q"], {}), (DQ, ["q", "m", "z"], ["xf"], {})]
DYNAMIC = [("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"], {}), ("ConvInteger", ["q", "w", "qz"], ["i"], {})]
REFUSED = {
    "channel": ([("Relu", ["x"], ["r"], {}), *CHANNELS, WEIGHT, CONV], "per channel"),
    "scale": ([("ReduceMax", ["x"], ["m"], {"keepdims": 0}), *COMPUTED, WEIGHT, CONV], "expected a constant"),
    "other": ([PAIR[0], (DQ, ["q", "s2", "z"], ["xf"], {}), WEIGHT, CONV], "another scale"),
    "integers": ([PAIR[0], ("Cast", ["q"], ["xf"], {"to": 1}), WEIGHT, CONV], "are integers"),
    "tail": ([*DYNAMIC, ("Cast", ["i"], ["y"], {"to": 1})], "stands between"),
    "branch": ([("If", ["c"], ["xf"], {"then_branch": LOOP, "else_branch": LOOP}), WEIGHT, CONV], "holds a graph"),
    "inputs": ([("QLinearConv", ["x", "s"], ["y"], {})], "malformed"),
    "axis": ([(DQ, ["w", "three"], ["wf"], {"axis": 0}), ("Conv", ["x", "wf"], ["y"], {})], "malformed"),
    "nowhere": ([*PAIR, ("Conv", ["xf", "gone"], ["y"], {})], "computed nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_its_node(case):
    nodes, words = REFUSED[case]
    model = by_hand(nodes, SCALES | {"three": THREE, "s2": np.float32(0.1), "c": np.bool_(True)})
    for change in (lambda: float_shallow(model, 1), lambda: dequantised(model)):
        with pytest.raises(BundleError, match=words) as caught:
            change()
        assert "node '" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_number_of_convolutions_is_checked(forms):
    for layers in (0, 7):
        with pytest.raises(BundleError, match="has 6 convolutions"):
            float_shallow(forms["qdq"], layers)


def test_outputs_are_not_rounded_last(forms):
    for form in ("qdq", "qoperator", "dynamic"):
        changed = float_outputs(forms[form])
        assert apart(run(changed), run(forms[form])) < 0.02
        assert changed.graph.node[-1].op_type != "DequantizeLinear" or form == "qoperator"


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("kind", ["Softmax", "Sigmoid"])
def test_a_softmax_that_is_rounded_last_computes_in_float32(tmp_path, kind, form):
    model = deployed()
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node(kind, ["before"], ["logits"]))
    model = quantised(model, form, X, tmp_path)
    changed = float_outputs(model)
    last = {name: node for node in changed.graph.node for name in node.output}["logits"]
    while last.op_type == "Identity":
        last = {name: node for node in changed.graph.node for name in node.output}[last.input[0]]
    assert last.op_type == kind
    assert apart(run(changed), run(model)) < 0.02
