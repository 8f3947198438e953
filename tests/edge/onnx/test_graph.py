import os
import tracemalloc

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rws.edge.onnx.graph import (
    clean_tensors,
    data_input,
    fold_batchnorm,
    prepare,
    read_model,
    shallow_tensors,
    value_shape,
    weights_to_inputs,
)
from rws.errors import BundleError
from support.tiny import network

RNG = np.random.default_rng(7)
X = RNG.random((2, 3, 6, 6), np.float32)


def tensor(name, *shape, low=-1.0, high=1.0):
    return numpy_helper.from_array(RNG.uniform(low, high, shape).astype(np.float32), name)


def batchnorm_tensors(name, channels):
    parts = {"scale": (0.5, 2), "beta": (-1, 1), "mean": (-1, 1), "var": (0.1, 3)}
    return [tensor(f"{name}.{part}", channels, low=low, high=high) for part, (low, high) in parts.items()]


def batchnorm(name, source, output):
    inputs = [source, *(f"{name}.{part}" for part in ("scale", "beta", "mean", "var"))]
    return helper.make_node("BatchNormalization", inputs, [output], epsilon=1e-3)


def model_of(nodes, tensors, outputs=("y",), opset=17, ir_version=8):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "C", "H", "W"]) for name in outputs],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run(model, x=X):
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


def operators(model):
    return [node.op_type for node in model.graph.node]


def assert_same_function(first, second):
    for one, other in zip(run(first), run(second), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def plain(bias=True):
    """conv → BatchNorm → relu → grouped conv → BatchNorm."""
    first = ["x", "c1.weight", *(["c1.bias"] if bias else [])]
    nodes = [
        helper.make_node("Conv", first, ["a"], name="c1"),
        batchnorm("b1", "a", "b"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "c2.weight"], ["d"], name="c2", group=2),
        batchnorm("b2", "d", "y"),
    ]
    biases = [tensor("c1.bias", 4)] if bias else []
    tensors = [tensor("c1.weight", 4, 3, 3, 3), *biases, tensor("c2.weight", 6, 2, 3, 3)]
    return model_of(nodes, [*tensors, *batchnorm_tensors("b1", 4), *batchnorm_tensors("b2", 6)])


class TestFolding:
    @pytest.mark.parametrize("bias", [True, False])
    def test_it_computes_the_same_without_batchnorm(self, bias):
        model = plain(bias)
        before = model.SerializeToString()
        folded = fold_batchnorm(model)
        assert operators(folded) == ["Conv", "Relu", "Conv"]
        assert_same_function(model, folded)
        assert model.SerializeToString() == before
        names = [tensor.name for tensor in folded.graph.initializer]
        assert sorted(names) == ["c1.bias", "c1.weight", "c2.bias", "c2.weight"]

    def test_opset_and_ir_version_stay(self):
        folded = fold_batchnorm(plain())
        assert (folded.opset_import[0].version, folded.ir_version) == (17, 8)

    def test_a_result_with_two_readers_stays(self):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            batchnorm("b", "a", "n"),
            helper.make_node("Add", ["a", "n"], ["y"]),
        ]
        model = model_of(nodes, [tensor("w", 4, 3, 3, 3), *batchnorm_tensors("b", 4)])
        assert operators(fold_batchnorm(model)) == ["Conv", "BatchNormalization", "Add"]

    def test_a_result_that_is_an_output_stays(self):
        nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), batchnorm("b", "a", "y")]
        model = model_of(nodes, [tensor("w", 4, 3, 3, 3), *batchnorm_tensors("b", 4)], outputs=("y", "a"))
        assert operators(fold_batchnorm(model)) == ["Conv", "BatchNormalization"]

    def test_batchnorm_before_the_convolution_stays(self):
        nodes = [batchnorm("b", "x", "a"), helper.make_node("Conv", ["a", "w"], ["y"])]
        model = model_of(nodes, [tensor("w", 4, 3, 3, 3), *batchnorm_tensors("b", 3)])
        assert operators(fold_batchnorm(model)) == ["BatchNormalization", "Conv"]

    def test_shared_weights_and_shared_batchnorms_are_folded_apart(self):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
            batchnorm("b", "a", "c"),
            helper.make_node("Conv", ["x", "w"], ["d"], name="two"),
            helper.make_node("Identity", ["c"], ["c2"]),
            batchnorm("b", "d", "e"),
            helper.make_node("Sub", ["c2", "d2"], ["y"]),
        ]
        nodes.insert(5, helper.make_node("Relu", ["e"], ["d2"]))
        model = model_of(nodes, [tensor("w", 4, 3, 3, 3), *batchnorm_tensors("b", 4)])
        folded = fold_batchnorm(model)
        assert "BatchNormalization" not in operators(folded)
        assert_same_function(model, folded)


class TestPreparing:
    def test_dropped_biases_come_back_as_zeros(self):
        nodes = [helper.make_node("Conv", ["x", "stem.weight"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"])]
        model = model_of(nodes, [tensor("stem.weight", 4, 3, 3, 3), tensor("w", 2, 4, 1, 1)])
        ready = prepare(model)
        assert shallow_tensors(ready, 2) == ("stem.weight", "stem.bias", "w", "w.bias")
        np.testing.assert_array_equal(clean_tensors(ready, ["stem.bias"])["stem.bias"], np.zeros(4))
        assert_same_function(model, ready)

    def test_constants_and_identities_become_initializers(self):
        nodes = [
            helper.make_node("Constant", [], ["w"], value=tensor("any", 4, 3, 3, 3)),
            helper.make_node("Identity", ["stored"], ["bias"]),
            helper.make_node("Conv", ["x", "w", "bias"], ["a"]),
            batchnorm("b", "a", "y"),
        ]
        model = model_of(nodes, [tensor("stored", 4), *batchnorm_tensors("b", 4)])
        ready = prepare(model)
        assert len(shallow_tensors(ready, 1)) == 2
        assert "BatchNormalization" not in operators(ready)
        assert_same_function(model, ready)

    @pytest.mark.parametrize("bias", [True, False])
    def test_what_convolutions_share_stays_shared(self, bias):
        tensors = ["w", "b"] if bias else ["w"]
        nodes = [
            helper.make_node("Conv", ["x", *tensors], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["a", *tensors], ["y"]),
        ]
        model = model_of(nodes, [tensor("w", 3, 3, 3, 3), *([tensor("b", 3)] if bias else [])])
        ready = prepare(model)
        assert shallow_tensors(ready, 1) == shallow_tensors(ready, 2) == ("w", "b" if bias else "w.bias")
        assert_same_function(model, ready)

    @pytest.mark.parametrize("reader", ["Conv", "Mul"])
    def test_a_bias_that_others_read_is_copied(self, reader):
        other = helper.make_node("Conv", ["a", "v", "b"], ["y"])
        if reader == "Mul":
            other = helper.make_node("Mul", ["a", "b"], ["y"])
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]), other]
        model = model_of(nodes, [tensor("w", 3, 3, 3, 3), tensor("v", 3, 3, 1, 1), tensor("b", 3, 1, 1)])
        if reader == "Conv":
            model.graph.initializer[2].CopyFrom(tensor("b", 3))
        else:
            model.graph.initializer.append(tensor("own", 3))
            model.graph.node[0].input[2] = "own"
            model.graph.node[1].input[1] = "w1"
            model.graph.initializer.append(tensor("w1", 3, 1, 1))
        ready = prepare(model)
        assert_same_function(model, ready)
        names = shallow_tensors(ready, 2 if reader == "Conv" else 1)
        assert len(set(names)) == len(names)

    def test_a_siamese_batchnorm_is_folded_once(self):
        nodes = []
        for branch in "ab":
            nodes += [
                helper.make_node("Neg", ["x"], ["xb"]) if branch == "b" else helper.make_node("Abs", ["x"], ["xa"]),
                helper.make_node("Conv", [f"x{branch}", "w"], [f"c{branch}"]),
                batchnorm("n", f"c{branch}", f"y{branch}"),
            ]
        nodes.append(helper.make_node("Sub", ["ya", "yb"], ["y"]))
        model = model_of(nodes, [tensor("w", 4, 3, 3, 3), *batchnorm_tensors("n", 4)])
        ready = prepare(model)
        assert len(shallow_tensors(ready, 2)) == 2
        assert_same_function(model, ready)

    def test_a_ready_model_is_unchanged(self):
        ready = prepare(plain())
        assert prepare(ready).SerializeToString() == ready.SerializeToString()


class TestShallowTensors:
    def test_they_come_in_the_order_of_the_graph(self):
        model = network(3, 4, seed=0)
        names = [f"features.{index}.{part}" for index in range(2) for part in ("weight", "bias")]
        assert shallow_tensors(model, 2) == tuple(names)

    @pytest.mark.parametrize("count", [0, -1, 4])
    def test_too_many_or_none(self, count):
        with pytest.raises(BundleError, match=f"3 convolutions.* not {count}"):
            shallow_tensors(network(3, 4, seed=0), count)

    def test_a_convolution_that_is_not_ready(self):
        with pytest.raises(
            BundleError, match=r"'c1' shares only its weight or its bias, or has none; call prepare\(\)"
        ):
            shallow_tensors(plain(bias=False), 1)


class TestCleanTensors:
    def test_values_and_order(self):
        found = clean_tensors(network(2, 4, seed=0), ["features.1.bias", "features.0.weight"])
        assert list(found) == ["features.1.bias", "features.0.weight"]
        assert found["features.0.weight"].shape == (6, 3, 3, 3)

    def test_a_missing_tensor(self):
        with pytest.raises(BundleError, match="no tensor 'other'"):
            clean_tensors(network(1, 4, seed=0), ["other"])

    @pytest.mark.parametrize(
        ("array", "message"),
        [(np.array([np.nan], np.float32), "NaN or infinity"), (np.zeros(1, np.float16), "float16, expected float32")],
    )
    def test_values_that_cannot_be_patched(self, array, message):
        model = network(1, 4, seed=0)
        model.graph.initializer.append(numpy_helper.from_array(array, "w"))
        with pytest.raises(BundleError, match=message):
            clean_tensors(model, ["w"])


def test_input_and_output():
    model = network(1, 4, seed=0)
    assert data_input(model) == ("image", (None, 3, 8, 8), "float32")
    assert value_shape(model.graph.output[0]) == (None, 4)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(BundleError, match="inputs 'image, mask', expected one"):
        data_input(model)


@pytest.mark.parametrize("length", [-1, 0])
def test_a_free_length_may_be_written_as_a_number(length):
    model = network(1, 4, seed=0)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = length
    assert data_input(model).shape == (None, 3, 8, 8)


def test_weights_become_inputs_even_if_they_are_listed_as_such():
    model = network(1, 4, seed=0)
    model.graph.input.append(helper.make_tensor_value_info("features.0.bias", TensorProto.FLOAT, [6]))
    assert data_input(model).name == "image"
    opened = weights_to_inputs(model, ["features.0.bias"])
    assert [value.name for value in opened.graph.input] == ["image", "features.0.bias"]
    assert "features.0.bias" not in {tensor.name for tensor in opened.graph.initializer}
    assert "features.0.bias" in {tensor.name for tensor in model.graph.initializer}


class TestReading:
    def test_a_file_and_its_bytes(self, tmp_path):
        model = network(1, 4, seed=0)
        onnx.save(model, tmp_path / "m.onnx")
        assert read_model(tmp_path / "m.onnx") == read_model(model.SerializeToString()) == model

    def test_weights_next_to_a_file_are_read(self, tmp_path):
        model = network(1, 4, seed=0)
        path = tmp_path / "m.onnx"
        onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
        with pytest.raises(BundleError, match="kept in another file"):
            read_model(path.read_bytes())
        assert clean_tensors(read_model(path), ["features.0.weight"])["features.0.weight"].shape == (6, 3, 3, 3)
        (tmp_path / "m.data").unlink()
        with pytest.raises(BundleError, match=r"m\.onnx"):
            read_model(path)

    @pytest.mark.parametrize("what", ["pipe", "link", "folder", "elsewhere", "absolute", "far", "long"])
    def test_weights_that_are_not_in_a_file_next_to_it(self, tmp_path, what):
        path = tmp_path / "m" / "m.onnx"
        path.parent.mkdir()
        onnx.save(network(1, 4, seed=0), path, save_as_external_data=True, location="m.data", size_threshold=0)
        data = path.with_name("m.data")
        data.rename(tmp_path / "m.data")
        place, model = "m.data", onnx.load(path, load_external_data=False)
        if what == "pipe":
            os.mkfifo(data)
        elif what == "link":
            data.symlink_to(tmp_path / "m.data")
        elif what == "folder":
            data.mkdir()
        elif what in ("elsewhere", "absolute"):
            place = "../m.data" if what == "elsewhere" else str(tmp_path / "m.data")
        else:
            (tmp_path / "m.data").rename(data)
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data} | {"location": place}
            entries |= {"far": {"offset": str(2**62)}, "long": {"length": str(2**62)}}.get(what, {})
            del tensor.external_data[:]
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(BundleError) as caught:
            clean_tensors(read_model(path), ["features.0.weight"])
        assert "\n" not in str(caught.value)

    def test_what_is_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "m.onnx")
        for path in (tmp_path / "m.onnx", tmp_path, tmp_path / "a\0b", "/dev/zero"):
            with pytest.raises(BundleError, match="cannot be read"):
                read_model(path)

    @pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\x09", b"\xff" * 64])
    def test_what_is_not_a_model(self, data, tmp_path):
        with pytest.raises(BundleError, match=r"model: .*export it again"):
            read_model(data)
        (tmp_path / "m.onnx").write_bytes(data)
        with pytest.raises(BundleError, match=r"m\.onnx: .*export it again"):
            read_model(tmp_path / "m.onnx")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(BundleError, match="cannot be read"):
            read_model(tmp_path / "none.onnx")

    def test_external_data_hidden_in_a_subgraph(self):
        outside = tensor("hidden", 3)
        outside.data_location = TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="../../secret")
        branch = helper.make_graph([helper.make_node("Identity", ["hidden"], ["z"])], "branch", [], [], [outside])
        model = network(1, 4, seed=0)
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))
        with pytest.raises(BundleError, match="'hidden' is kept in another file"):
            read_model(model.SerializeToString())


def cast(source, output, to=TensorProto.FLOAT):
    return helper.make_node("Cast", [source], [output], to=to)


def stored_case(case):
    """A model with one stored weight `w` (4, 3) of a product, and what else the case needs."""
    half, codes = RNG.normal(0, 1, (4, 3)).astype(np.float16), RNG.integers(-9, 9, (4, 3)).astype(np.int8)
    tensors = [numpy_helper.from_array(codes if "codes" in case else half, "w.stored"), tensor("w.scale", 4, 1)]
    nodes = [cast("w.stored", "w.wide"), helper.make_node("Mul", ["w.wide", "w.scale"], ["w"])]
    nodes.append(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1))
    if case == "half with two readers":
        nodes += [cast("w.stored", "again"), helper.make_node("Add", ["again", "again"], ["z"])]
    elif case == "scale that makes it larger":
        tensors[1] = tensor("w.scale", 5, 1, 1)
        nodes[2:] = [
            helper.make_node("ReduceSum", ["w"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ]
    elif case == "read in a branch":
        inner = helper.make_graph(
            [helper.make_node("ReduceSum", ["w.stored"], ["s"], keepdims=0)],
            "branch",
            [],
            [helper.make_tensor_value_info("s", TensorProto.FLOAT16, [])],
        )
        tensors.append(numpy_helper.from_array(np.array(True), "yes"))
        nodes.append(helper.make_node("If", ["yes"], ["o"], then_branch=inner, else_branch=inner))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "M"]) for name in ("x", "y")]
    inputs = values[:1]
    if case == "given as an input":
        inputs = [*inputs, helper.make_tensor_value_info("w.stored", TensorProto.FLOAT16, [4, 3])]
    graph = helper.make_graph(nodes, "graph", inputs, values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestWeightsInFewerBits:
    @pytest.mark.parametrize("case", ["half", "codes", "given as an input"])
    def test_are_initializers_in_float32(self, case):
        model = stored_case(case)
        read = read_model(model.SerializeToString())
        assert [node.op_type for node in read.graph.node] == ["Gemm"]
        assert [value.name for value in read.graph.input] == ["x"]
        onnxruntime.InferenceSession(read.SerializeToString())
        (weight,) = (numpy_helper.to_array(tensor) for tensor in read.graph.initializer)
        stored, scale = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
        np.testing.assert_array_equal(weight, stored.astype(np.float32) * scale)

    @pytest.mark.parametrize("case", ["half with two readers", "scale that makes it larger", "read in a branch"])
    def test_stay_where_more_than_a_product_needs_them(self, case):
        content = stored_case(case).SerializeToString()
        read = read_model(content)
        assert "w.stored" in {tensor.name for tensor in read.graph.initializer} or case == "scale that makes it larger"
        x = RNG.random((2, 3), np.float32)
        sessions = [onnxruntime.InferenceSession(data) for data in (content, read.SerializeToString())]
        before, after = (session.run(["y"], {"x": x})[0] for session in sessions)
        np.testing.assert_allclose(before, after, rtol=1e-6)

    def test_that_are_malformed(self):
        model = stored_case("half")
        model.graph.initializer[0].raw_data = b"\0"
        with pytest.raises(BundleError, match=r"^model: a malformed tensor [^\n]*$"):
            read_model(model.SerializeToString())

    def test_a_negative_shape_is_not_mended(self):
        model = stored_case("half")
        model.graph.initializer[0].dims[0] = -4
        assert min(read_model(model.SerializeToString()).graph.initializer[0].dims) == -4

    def test_a_chain_of_products_takes_no_memory(self):
        model = stored_case("codes")
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((1000, 1000), np.int8), "w.stored"))
        model.graph.initializer[1].CopyFrom(tensor("w.scale", 1, 1))
        model.graph.node[1].output[0] = "m0"
        for index in range(5_000):
            model.graph.initializer.append(tensor(f"f{index}", 1, 1))
            model.graph.node.append(helper.make_node("Mul", [f"m{index}", f"f{index}"], [f"m{index + 1}"]))
        tracemalloc.start()
        read = read_model(model.SerializeToString())
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
        tracemalloc.stop()
        assert len(read.graph.node) == 5_001

    @pytest.mark.parametrize("kind", ["Cast", "Mul"])
    @pytest.mark.parametrize(("inputs", "outputs"), [([], ["a"]), (["w.stored"], []), (["w.stored"] * 3, ["a"])])
    def test_nodes_that_cannot_be_stay(self, kind, inputs, outputs):
        model = stored_case("half")
        node = helper.make_node(kind, inputs, outputs, **({"to": 1} if kind == "Cast" else {}))
        model.graph.node.insert(0, node)
        assert node in read_model(model.SerializeToString()).graph.node
