import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rws.edge.onnx.graph import read_model
from rws.errors import BundleError, InputError
from rws.training.adopt.graph import Preprocessing, run_onnx
from rws.training.adopt.model import adopt_model, load_classifier
from support.classifiers import SIZE, images, tiny, with_operator_behind


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(scale=255, mean=(127,), std=(128,)),
        Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), bgr=True),
        Preprocessing(bgr=True),
    ],
)
def test_preprocessing_becomes_a_part_of_the_graph(preprocessing):
    adopted = adopt_model(tiny().SerializeToString(), preprocessing)
    x = images()
    prepared = x[:, ::-1] if preprocessing.bgr else x
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
    prepared = ((prepared * preprocessing.scale - mean) / std).astype(np.float32)
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), x), run_onnx(tiny(), prepared), atol=1e-3)


def test_a_model_for_nhwc_gets_a_transpose():
    proto = tiny()
    proto.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["image"], perm=[0, 3, 1, 2]))
    del proto.graph.input[:]
    proto.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", SIZE, SIZE, 3]))
    adopted = adopt_model(proto.SerializeToString(), Preprocessing())
    assert "NHWC" in " ".join(adopted.changes)
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


@pytest.mark.parametrize("shape", ["initializer", "constant", "integers"])
@pytest.mark.parametrize("allowzero", [0, 1])  # torch's exporter writes 1
def test_a_model_for_one_image_takes_a_batch_afterwards(shape, allowzero):
    proto = tiny()
    lengths = numpy_helper.from_array(np.array([1, 6], np.int64), "shape")
    if shape == "initializer":
        proto.graph.initializer.append(lengths)
    else:
        value = {"value": lengths} if shape == "constant" else {"value_ints": [1, 6]}
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], **value))
    nodes = [node for node in proto.graph.node if node.op_type == "Flatten"]
    reshape = helper.make_node("Reshape", [nodes[0].input[0], "shape"], [nodes[0].output[0]], allowzero=allowzero)
    nodes[0].CopyFrom(reshape)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    adopted = adopt_model(proto.SerializeToString(), Preprocessing())
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


def test_a_last_softmax_is_taken_off():
    adopted = adopt_model(tiny(softmax=True).SerializeToString(), Preprocessing())
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


@pytest.mark.parametrize("kind", ["Identity", "Flatten"])
def test_a_softmax_before_nodes_that_only_reshape_is_taken_off_too(kind):
    proto = tiny(softmax=True)
    last = next(node for node in proto.graph.node if node.op_type == "Softmax")
    name = last.output[0]
    last.output[0] = "odds"
    proto.graph.node.append(helper.make_node(kind, ["odds"], [name]))
    adopted = adopt_model(proto.SerializeToString(), Preprocessing())
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


def test_probabilities_that_are_made_otherwise_are_refused():
    proto = tiny(softmax=True)
    last = next(node for node in proto.graph.node if node.op_type == "Softmax")
    name = last.output[0]
    last.output[0] = "odds"
    proto.graph.node.append(helper.make_node("Abs", ["odds"], [name]))
    with pytest.raises(BundleError, match="probabilities"):
        adopt_model(proto.SerializeToString(), Preprocessing())


def test_outputs_that_are_left_out_are_named():
    proto = tiny()
    extra = proto.graph.node[0].output[0]
    proto.graph.output.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, None))
    assert extra in " ".join(adopt_model(proto.SerializeToString(), Preprocessing()).changes)


def free_size() -> onnx.ModelProto:
    proto = tiny()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    return proto


def test_a_model_of_any_size_is_prepared_for_the_given_size():
    assert adopt_model(free_size().SerializeToString(), Preprocessing(), 48).size == 48
    with pytest.raises(InputError, match="--size"):
        adopt_model(free_size().SerializeToString(), Preprocessing())


def grey() -> onnx.ModelProto:
    proto = tiny()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    return proto


def without_convolutions() -> onnx.ModelProto:
    proto = tiny()
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.op_type = "ConvInteger"
    return proto


def with_old_reshape() -> onnx.ModelProto:
    """A model for one image with the Reshape of opset 1, whose lengths are no input."""
    proto = tiny()
    node = next(node for node in proto.graph.node if node.op_type == "Flatten")
    node.CopyFrom(helper.make_node("Reshape", [node.input[0]], [node.output[0]]))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return proto


def with_an_operator_of_onnx_runtime() -> onnx.ModelProto:
    proto = with_operator_behind("Gelu")
    next(node for node in proto.graph.node if node.op_type == "Gelu").domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


@pytest.mark.parametrize(
    ("proto", "size", "error", "message"),
    [
        (tiny(), 64, InputError, "takes 32x32"),
        (grey(), None, BundleError, r"\(N, 3, H, W\)"),
        (without_convolutions(), None, BundleError, "float32 model"),
        (with_old_reshape(), None, BundleError, "cannot load it"),
        (with_an_operator_of_onnx_runtime(), None, BundleError, "not standard, 'com.microsoft.Gelu', which no bundle"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(proto, size, error, message):
    with pytest.raises(error, match=message):
        adopt_model(proto.SerializeToString(), Preprocessing(), size)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}, {"mean": (float("nan"),)}])
def test_preprocessing_with_impossible_numbers_is_refused(wrong):
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing(**wrong)


def test_a_factory_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_module_of_a_test.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    pool = torch.nn.AdaptiveAvgPool2d(1)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), pool,\n"
        "                               torch.nn.Flatten())\n"
        "def wants(size):\n"
        "    return make()\n"
        "def unfit():\n"
        "    return torch.nn.Linear(7, 2)\n"
        "def three():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    adopted = adopt_model(load_classifier("my_module_of_a_test:make", 32), Preprocessing())
    assert (adopted.size, adopted.classes) == (32, 4)
    for model, size, message in (
        ("my_module_of_a_test:make", None, "--size"),
        ("my_module_of_a_test:three", 32, "gave a int"),
        ("my_module_of_a_test:none", 32, "package.module:factory"),
        ("my_module_of_a_test:wants", 32, "missing 1 required"),
        ("my_module_of_a_test:unfit", 32, "cannot export"),
        (":make", 32, "package.module:factory"),
        ("no_module_of_that_name:make", 32, "package.module:factory"),
    ):
        with pytest.raises(InputError, match=message):
            load_classifier(model, size)
