"""Bundles that were made to do harm, with hashes that agree: each is refused in one line before anything runs it."""

import os
import random
from itertools import product

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import FILES
from rws.edge.bundle.self_test import self_test
from rws.edge.signatures.tensor_file import read_tensors, write_tensors
from rws.errors import RwsError, SignatureError
from support.bundle_files import assert_refused, edit_network, replace_file

FLIPS = int(os.environ.get("RWS_FUZZ", "25"))  # of each file
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
value = helper.make_tensor_value_info


def outside(name: str = "c", location: str = "../../../../../../etc/hostname") -> TensorProto:
    """A tensor whose values are the bytes of another file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def constant(tensor: TensorProto, output: str = "c") -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=tensor)


def behind(proto: onnx.ModelProto, *nodes: onnx.NodeProto, initializers=()) -> None:
    """Put nodes behind the network: they read `before`, and the last one's output is the network's."""
    output = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    nodes[-1].output[:] = [output]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(initializers)


def subgraph(name: str, *nodes: onnx.NodeProto, inputs=()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, list(inputs), [value(nodes[-1].output[0], FLOAT, None)])


def branches(*nodes: onnx.NodeProto) -> onnx.NodeProto:
    other = subgraph("other", helper.make_node("Identity", ["before"], ["same"]))
    return helper.make_node("If", ["go"], ["y"], then_branch=subgraph("then", *nodes), else_branch=other)


def whole(array, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


GO = whole(True, "go")
ADD = helper.make_node("Add", ["before", "c"], ["sum"])


def function(proto, *nodes, inputs=("x",)) -> None:
    functions = [helper.make_function("odd", "F", list(inputs), [nodes[-1].output[0]], list(nodes), [OPSET])]
    proto.functions.extend(functions)
    proto.opset_import.append(helper.make_opsetid("odd", 1))
    behind(proto, helper.make_node("F", ["before"], ["y"], domain="odd"))


OPSET = helper.make_opsetid("", 18)


def in_a_function(proto):
    function(proto, constant(outside()), helper.make_node("Add", ["x", "c"], ["y"]))


def in_an_unused_function(proto):
    nodes = [constant(outside()), helper.make_node("Add", ["x", "c"], ["y"])]
    proto.functions.append(helper.make_function("odd", "F", ["x"], ["y"], nodes, [OPSET]))


def in_a_default_of_a_function(proto):
    node = helper.make_node("Identity", ["x"], ["y"])
    made = helper.make_function("odd", "F", ["x"], ["y"], [node], [OPSET])
    made.attribute_proto.append(helper.make_attribute("value", outside()))
    proto.functions.append(made)


def in_training_information(proto):
    proto.training_info.add().algorithm.initializer.append(outside())


def in_a_list_of_tensors(proto):
    proto.graph.node[0].attribute.append(AttributeProto(name="list", type=AttributeProto.TENSORS, tensors=[outside()]))


def in_a_list_of_graphs(proto):
    graph = subgraph("g", constant(outside()))
    proto.graph.node[0].attribute.append(AttributeProto(name="list", type=AttributeProto.GRAPHS, graphs=[graph]))


def sparse(indices: TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(whole(np.ones(1, np.float32), "s"), indices, [2**33])


def in_a_sparse_attribute(proto):
    attribute = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse(whole([1], "i")))
    attribute.sparse_tensor.indices.CopyFrom(outside())
    proto.graph.node[0].attribute.append(attribute)


ELSEWHERE = {
    "initializer": lambda proto: behind(proto, ADD, initializers=[outside()]),
    "initializer that nothing reads": lambda proto: proto.graph.initializer.append(outside("unused")),
    "constant": lambda proto: behind(proto, constant(outside()), ADD),
    "branch": lambda proto: behind(proto, branches(constant(outside()), ADD), initializers=[GO]),
    "branch's initializer": lambda proto: (
        behind(proto, branches(ADD), initializers=[GO]),
        proto.graph.node[-1].attribute[0].g.initializer.append(outside()),
    ),
    "function": in_a_function,
    "function that nothing calls": in_an_unused_function,
    "function's default": in_a_default_of_a_function,
    "training information": in_training_information,
    "list of tensors": in_a_list_of_tensors,
    "list of graphs": in_a_list_of_graphs,
    "sparse attribute": in_a_sparse_attribute,
    "absolute path": lambda proto: behind(proto, ADD, initializers=[outside(location="/etc/hostname")]),
}


@pytest.mark.parametrize(("case", "name"), product(ELSEWHERE, ("model.onnx", "oracle.onnx")))
def test_no_tensor_is_read_from_another_file(bundle_path, case, name):
    edit_network(bundle_path, ELSEWHERE[case], name)
    assert_refused(bundle_path, rf"{name}: tensor '\w+' is kept in another file")


def endless(proto):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Identity", ["state"], ["next"])],
        "body",
        [value("i", INT64, []), value("go_in", BOOL, []), value("state", FLOAT, None)],
        [value("go_out", BOOL, []), value("next", FLOAT, None)],
    )
    node = helper.make_node("Loop", ["count", "go", "before"], ["y"], body=body)
    behind(proto, node, initializers=[whole(2**62, "count"), GO])


def scan(proto):
    body = subgraph("body", helper.make_node("Identity", ["item"], ["out"]), inputs=[value("item", FLOAT, None)])
    behind(proto, helper.make_node("Scan", ["before"], ["y"], body=body, num_scan_inputs=1))


def loop_in_a_branch(proto):
    endless(proto)
    loop = onnx.NodeProto()
    loop.CopyFrom(proto.graph.node.pop())
    proto.graph.node.append(
        helper.make_node(
            "If",
            ["go"],
            list(proto.graph.output[0].name.split()),
            then_branch=subgraph("then", loop),
            else_branch=subgraph("other", helper.make_node("Identity", ["before"], ["same"])),
        )
    )


def deep(proto):
    node = helper.make_node("Identity", ["before"], ["same"])
    for _ in range(12):
        node = branches(node)
    behind(proto, node, initializers=[GO])


def text(proto):
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"x"]))


def unknown_field(proto):
    proto.graph.initializer[0].MergeFromString(b"\xfa\x3e\x03abc")  # field 1007


def in_a_branch(proto):
    total = helper.make_node("ReduceSum", ["big"], ["c"], keepdims=0)
    behind(
        proto,
        branches(helper.make_node("ConstantOfShape", ["shape"], ["big"]), total, ADD),
        initializers=[GO, whole([2**31], "shape")],
    )


NEEDLESS = {
    "endless loop": (endless, "a graph inside, in 'Loop'"),
    "loop in a branch": (loop_in_a_branch, "a graph inside, in 'If'"),
    "scan": (scan, "a graph inside, in 'Scan'"),
    "a function": (lambda proto: function(proto, helper.make_node("Relu", ["x"], ["y"])), "local functions"),
    "training": (lambda proto: proto.training_info.add(), "training information"),
    "a custom operator": (
        lambda proto: behind(proto, helper.make_node("F", ["before"], ["y"], domain="evil.\n\x1b[2J")),
        r"not standard, 'evil\.\\n\\x1b\[2J\.F'",
    ),
    "another provider's compiled graph": (
        lambda proto: behind(proto, helper.make_node("EPContext", ["before"], ["y"], domain="com.microsoft")),
        "not standard, 'com.microsoft.EPContext'",
    ),
    "memory in a branch": (in_a_branch, "a graph inside, in 'If'"),
    "graphs in graphs": (deep, "nested more than 24 deep"),
    "more nodes than any network": (
        lambda proto: behind(proto, *[helper.make_node("Identity", ["before"], [f"n{i}"]) for i in range(20_001)]),
        "more than 20000 nodes",
    ),
    "a long name": (
        lambda proto: behind(proto, helper.make_node("Identity", ["before"], ["y"], name="x" * 10_000)),
        "a name that is too long",
    ),
    "a name that is no UTF-8": (
        lambda proto: proto.graph.input[0].MergeFromString(b"\x0a\x02\xce\x20"),
        "too long or no UTF-8",
    ),
    "an operator's name that is no UTF-8": (
        lambda proto: proto.graph.node[0].MergeFromString(b"\x22\x02\xce\x20"),
        "too long or no UTF-8",
    ),
    "text": (text, "'words' of text"),
    "sparse weights of 32 GB": (
        lambda proto: proto.graph.sparse_initializer.append(sparse(whole([1], "i"))),
        "a sparse tensor",
    ),
    "a field that onnx does not know": (unknown_field, "fields that the installed package onnx does not know"),
    "a tensor of no type": (lambda proto: proto.graph.initializer.add(name="none", dims=[4]), "'none' of text, of no"),
    "a negative shape": (
        lambda proto: proto.graph.initializer.add(name="less", data_type=FLOAT, dims=[-1, -4]),
        "negative shape",
    ),
    "a tensor without its data": (
        lambda proto: proto.graph.initializer.add(name="less", data_type=FLOAT, dims=[2**31]),
        "'less' of shape .2147483648., larger than the file",
    ),
}


@pytest.mark.parametrize(("case", "name"), product(NEEDLESS, ("model.onnx", "oracle.onnx")))
def test_what_no_bundle_needs_is_refused(bundle_path, case, name):
    change, message = NEEDLESS[case]
    edit_network(bundle_path, change, name)
    assert_refused(bundle_path, f"{name}: (holds )?.*{message}.*export it again")


BIG = 2**31


def summed(*nodes, initializers=(), hide=False):
    """A change that sums a big value made by nodes, which name it `big`, and adds the sum to the logits."""

    def change(proto):
        total = helper.make_node("ReduceSum", ["big"], ["c"], keepdims=0)
        behind(proto, *nodes, total, helper.make_node("Add", ["before", "c"], ["y"]), initializers=initializers)
        if hide:
            proto.graph.value_info.append(value("big", FLOAT, [1]))

    return change


def node(operator: str, *inputs: str, output: str = "big", **attributes) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], **attributes)


ONE, ROW = whole(np.ones(1, np.float32), "one"), whole(np.ones((1, 60_000), np.float32), "row")
SHAPE = whole([BIG], "shape")


def as_the_output(proto):
    column = whole(np.array([2**28, 1]), "shape")
    behind(proto, node("Expand", "before", "shape"), initializers=[column])


HUGE = {
    "ConstantOfShape": summed(node("ConstantOfShape", "shape"), initializers=[SHAPE]),
    "shape from a constant": summed(constant(SHAPE, "shape"), node("ConstantOfShape", "shape")),
    "declared small": summed(node("ConstantOfShape", "shape"), initializers=[SHAPE], hide=True),
    "Expand": summed(node("Expand", "one", "shape"), initializers=[ONE, SHAPE]),
    "Tile": summed(node("Tile", "one", "shape"), initializers=[ONE, SHAPE]),
    "Range": summed(
        node("Range", "zero", "end", "step", output="whole"),
        node("Cast", "whole", to=FLOAT),
        initializers=[whole(0, "zero"), whole(BIG, "end"), whole(1, "step")],
    ),
    "broadcasting": summed(node("Transpose", "row", output="column"), node("Add", "row", "column"), initializers=[ROW]),
    "an outer product": summed(
        node("Transpose", "row", output="column"), node("MatMul", "column", "row"), initializers=[ROW]
    ),
    "Pad": summed(node("Pad", "one", "pads"), initializers=[ONE, whole([0, BIG], "pads")]),
    "RandomNormal": summed(node("RandomNormal", shape=[BIG])),
    "many of moderate size": summed(
        *[node("ConstantOfShape", "shape", output=f"v{i}") for i in range(40)],
        node("Sum", *[f"v{i}" for i in range(40)]),
        initializers=[whole([2**23], "shape")],
    ),
    "as the output": as_the_output,
}


@pytest.mark.parametrize("case", HUGE)
def test_a_small_file_takes_no_large_memory(bundle_path, case):
    edit_network(bundle_path, HUGE[case])
    assert (bundle_path / "model.onnx").stat().st_size < 2**20
    assert_refused(bundle_path, "model.onnx: holds the value '.*' of .* elements")


def test_ordinary_shapes_stay(bundle_path, tiny_bundle):
    shape = whole([1000], "shape")
    edit_network(bundle_path, summed(node("ConstantOfShape", "shape"), initializers=[shape]))
    assert len(self_test(Bundle.load(bundle_path))) == len(self_test(tiny_bundle))


@pytest.mark.parametrize("name", ["gain.alpha", "gain.accuracy"])
@pytest.mark.parametrize("number", [3e38, -3e38, 1e4, np.nan, np.inf])
def test_strengths_and_gains_are_bounded(bundle_path, parts, name, number):
    arrays = {key: array.copy() for key, array in parts.table.to_arrays().items()}
    arrays[name].reshape(-1)[-1] = number
    replace_file(bundle_path, "policy.safetensors", write_tensors(arrays, {"format": "rws-policy", "version": 1}))
    assert_refused(bundle_path, f"{name[5:]} is not finite or not in")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_actions_are_whole_numbers(bundle_path, parts, dtype):
    arrays = {**parts.table.to_arrays(), "gain.signature": np.full(7, np.nan).astype(dtype)}
    replace_file(bundle_path, "policy.safetensors", write_tensors(arrays, {"format": "rws-policy", "version": 1}))
    assert_refused(bundle_path, "holds no integers")


@pytest.mark.parametrize("scale", [2e36, 1e30, 1e5])
def test_a_patch_changes_no_weight_out_of_proportion(bundle_path, scale):
    tensors, description = read_tensors((bundle_path / "signatures.safetensors").read_bytes(), "original")
    tensors = {name: array.copy() for name, array in tensors.items()}
    tensors["fog/features.0.weight.scale"][0] = scale
    replace_file(bundle_path, "signatures.safetensors", write_tensors(tensors, description))
    assert_refused(bundle_path, "'fog' can change 'features.0.weight' by", SignatureError)


def test_signatures_are_tested_at_their_strongest(bundle_path, parts):
    arrays = {key: array.copy() for key, array in parts.table.to_arrays().items()}
    arrays["gain.alpha"][-1] = 16
    replace_file(bundle_path, "policy.safetensors", write_tensors(arrays, {"format": "rws-policy", "version": 1}))
    seen = []
    bundle = Bundle.load(bundle_path)
    model = bundle.model()
    original = model.apply
    model.apply = lambda mix: seen.append(mix) or original(mix)
    self_test(bundle, model)
    assert seen[:3] == [{"gaussian_noise": 1.0}, {"fog": 1.0}, {"contrast": 16.0}]


def test_a_header_with_a_number_without_end(bundle_path):
    data = (bundle_path / "policy.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"dtype"', b'"more":%s,"dtype"' % (b"1" * 5_000), 1)
    replace_file(bundle_path, "policy.safetensors", len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert_refused(bundle_path, "not a whole safetensors file|a number of 5000 characters", RwsError)


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_flipped_bytes_are_refused_or_harmless(bundle_path, name):
    """Nothing but a typed error in one line; what is accepted passes its self-test, or fails it with such an error."""
    original = (bundle_path / name).read_bytes()
    random_ = random.Random(name)
    outcomes = {"refused": 0, "accepted": 0}
    for _ in range(FLIPS):
        data = bytearray(original)
        for place in random_.sample(range(len(data)), random_.choice([1, 1, 1, 4])):
            data[place] ^= random_.randrange(1, 256)
        if name == "bundle.json":
            (bundle_path / name).write_bytes(data)
        else:
            replace_file(bundle_path, name, bytes(data))
        try:
            self_test(Bundle.load(bundle_path))
            outcomes["accepted"] += 1
        except RwsError as error:
            assert "\n" not in str(error)  # noqa: PT017  # what is asserted is the error of either outcome
            outcomes["refused"] += 1
    assert sum(outcomes.values()) == FLIPS
    print(name, outcomes)
