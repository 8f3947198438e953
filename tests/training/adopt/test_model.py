import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rws.edge.live.session import LiveSession
from rws.edge.onnx.graph import data_input, read_model, shallow_tensors
from rws.edge.preprocess import preprocess
from rws.errors import BundleError, InputError, RwsError, UsageError
from rws.training.adopt.graph import Preprocessing, run_onnx
from rws.training.adopt.model import ImportOptions, adopt_model, with_preprocessing
from rws.training.adopt.outputs import Wanted
from support.classifiers import SIZE, convolutions, ending_in, images, tiny, with_operator_behind

FRAME = np.random.default_rng(4).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def adopted(proto, **options):
    return adopt_model(proto.SerializeToString(), ImportOptions(**options))


def answer(model, frame=FRAME):
    """What the imported model gives for a frame."""
    x = preprocess(frame, model.input)[0][None]
    return run_onnx(read_model(model.onnx), np.repeat(x, model.batch or 1, axis=0))[0]


def logits(frame=FRAME, proto=None):
    x = frame.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    return run_onnx(proto or tiny(), x)[0]


def set_shape(proto, *lengths):
    value = proto.graph.input[0]
    value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, list(lengths)))
    return proto


def in_front(kind, dtype, shape, **attributes):
    """The tiny model behind a node that turns another input into its own."""
    proto = tiny()
    proto.graph.node.insert(0, helper.make_node(kind, ["pixels"], ["image"], **attributes))
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", dtype, shape))
    return proto


class TestInputs:
    def test_the_usual_one(self):
        model = adopted(tiny())
        assert (model.input.shape, model.input.colour, model.input.fit) == ((3, SIZE, SIZE), "RGB", "crop")
        assert (model.task.name, model.outputs, model.batch) == ("classify", ("logits",), None)
        assert model.shapes == ((model.class_count,),)
        np.testing.assert_allclose(answer(model), logits(), atol=1e-5)

    def test_channels_last_stay_last(self):
        model = adopted(in_front("Transpose", TensorProto.FLOAT, ["N", SIZE, SIZE, 3], perm=[0, 3, 1, 2]))
        assert (model.input.layout, model.input.shape) == ("NHWC", (SIZE, SIZE, 3))
        np.testing.assert_allclose(answer(model), logits(), atol=1e-5)

    def test_bytes_stay_bytes(self):
        proto = in_front("Cast", TensorProto.UINT8, ["N", 3, SIZE, SIZE], to=TensorProto.FLOAT)
        model = adopted(proto)
        assert (model.input.dtype, model.input.high) == ("uint8", 255)
        expected = run_onnx(proto, FRAME.transpose(2, 0, 1)[None])[0]
        np.testing.assert_allclose(answer(model), expected, atol=1e-3)
        with pytest.raises(UsageError, match="uint8"):
            adopted(proto, preprocessing=Preprocessing(255, (127,)))

    def test_half_precision_is_computed_in_full(self):
        proto = tiny()
        for tensor in proto.graph.initializer:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        model = adopted(proto)
        assert model.input.dtype == "float16"
        assert shallow_tensors(read_model(model.onnx), 1)
        np.testing.assert_allclose(answer(model), logits(), atol=0.1)

    @pytest.mark.parametrize(("channels", "colour"), [(1, "GREY"), (4, "RGBA")])
    def test_other_numbers_of_channels(self, channels, colour):
        proto = set_shape(tiny(), "N", channels, SIZE, SIZE)
        weight = np.random.default_rng(0).normal(0, 0.4, (6, channels, 3, 3)).astype(np.float32)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, proto.graph.initializer[0].name))
        model = adopted(proto)
        assert model.input.colour == colour
        assert answer(model).shape == model.shapes[0]
        with pytest.raises(UsageError, match="--bgr"):
            adopted(proto, preprocessing=Preprocessing(bgr=True))

    def test_a_free_size_is_fixed(self):
        proto = set_shape(tiny(), "N", 3, "H", "W")
        assert adopted(proto, size=(24, 40)).input.shape == (3, 24, 40)
        with pytest.raises(UsageError, match="--size"):
            adopted(proto)
        proto.metadata_props.add(key="imgsz", value="[24, 48]")
        assert adopted(proto).input.shape == (3, 24, 48)

    @pytest.mark.parametrize("rank", ["unknown", "negative", "zero"])
    def test_free_axes_of_older_exporters(self, rank):
        proto = set_shape(tiny(), "N", 3, SIZE, SIZE)
        kind = proto.graph.input[0].type.tensor_type
        if rank == "unknown":
            kind.ClearField("shape")
        else:
            kind.shape.dim[0].dim_value = -1 if rank == "negative" else 0
        model = adopted(proto, size=(SIZE, SIZE))
        assert (model.input.shape, model.batch) == ((3, SIZE, SIZE), None)


class TestPreprocessing:
    @pytest.mark.parametrize(
        "how",
        [
            Preprocessing(scale=255, mean=(127,), std=(128,)),
            Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), bgr=True),
            Preprocessing(scale=2),
            Preprocessing(bgr=True),
        ],
    )
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    def test_it_is_what_frames_get(self, how, layout):
        proto = tiny()
        if layout == "NHWC":
            proto = in_front("Transpose", TensorProto.FLOAT, ["N", SIZE, SIZE, 3], perm=[0, 3, 1, 2])
        model = adopted(proto, preprocessing=how)
        x = (FRAME[..., ::-1] if how.bgr else FRAME) / 255
        x = ((x * how.scale - how.mean) / how.std).astype(np.float32)
        expected = run_onnx(tiny(), np.ascontiguousarray(x.transpose(2, 0, 1))[None])[0]
        np.testing.assert_allclose(answer(model), expected, atol=1e-3)
        assert (model.input.colour == "BGR", model.input.high == 255) == (how.bgr, how.scale == 255)

    def test_it_can_be_given_later(self):
        how = Preprocessing(255, (127,), (128,))
        first = adopted(tiny(), preprocessing=how)
        assert with_preprocessing(adopted(tiny()), how).onnx == first.onnx

    @pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}, {"mean": (np.nan,)}])
    def test_impossible_numbers_are_refused(self, wrong):
        with pytest.raises(InputError, match="preprocessing"):
            Preprocessing(**wrong)


class TestBatch:
    @pytest.mark.parametrize("shape", ["initializer", "constant", "integers"])
    @pytest.mark.parametrize("allowzero", [0, 1])  # torch's exporter writes 1
    def test_a_model_for_one_image_takes_a_batch_afterwards(self, shape, allowzero):
        proto = tiny()
        lengths = numpy_helper.from_array(np.array([1, 6], np.int64), "shape")
        if shape == "initializer":
            proto.graph.initializer.append(lengths)
        else:
            value = {"value": lengths} if shape == "constant" else {"value_ints": [1, 6]}
            proto.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], **value))
        node = next(node for node in proto.graph.node if node.op_type == "Flatten")
        node.CopyFrom(helper.make_node("Reshape", [node.input[0], "shape"], [node.output[0]], allowzero=allowzero))
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        model = adopted(proto)
        assert model.batch is None
        np.testing.assert_allclose(run_onnx(read_model(model.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)

    def test_a_batch_that_must_stay_is_said(self):
        proto = ending_in(("ReduceMean", "logits", "mean"), ("Sub", "logits mean", "y"), outputs=["y"])
        next(node for node in proto.graph.node if node.op_type == "ReduceMean").attribute.extend(
            [helper.make_attribute("axes", [0])]
        )
        proto.opset_import[0].version = 13
        set_shape(proto, 4, 3, SIZE, SIZE)
        model = adopted(proto)
        assert (model.batch, data_input(read_model(model.onnx)).shape[0]) == (4, 4)


class TestOutputs:
    @pytest.mark.parametrize("behind", [(), (("Identity", "p", "y"),), (("Unsqueeze", "p last", "y"),)])
    def test_a_last_softmax_is_taken_off(self, behind):
        name = behind[-1][2] if behind else "p"
        last = {"last": np.array([2, 3], np.int64)} if behind and behind[0][0] == "Unsqueeze" else {}
        model = adopted(ending_in(("Softmax", "logits", "p"), *behind, outputs=[name], **last))
        assert (model.task.name, model.shapes) == ("classify", ((4,),)[: len(model.shapes)] and model.shapes)
        np.testing.assert_allclose(answer(model), logits(), atol=1e-4)

    def test_a_column_of_one_number_is_flattened(self):
        proto = ending_in(("Gather", "logits first", "y"), outputs=["y"], first=np.array(0, np.int64).reshape(()))
        proto.graph.node[-1].attribute.append(helper.make_attribute("axis", 1))
        model = adopted(proto, wanted=Wanted("multilabel"))
        assert model.shapes == ((1,),)
        np.testing.assert_allclose(answer(model), logits()[:1], atol=1e-4)

    def test_a_map_of_one_sigmoid_becomes_two_classes(self):
        proto = convolutions(1, ("Sigmoid", "map", "y"))
        model = adopted(proto)
        assert (model.task.name, model.shapes, model.input.fit) == ("segment", ((2, SIZE, SIZE),), "letterbox")
        background, foreground = answer(model)
        np.testing.assert_allclose(1 / (1 + np.exp(background - foreground)), logits(proto=proto)[0], atol=1e-5)

    def test_names_come_with_the_model_or_a_file(self):
        proto = tiny()
        proto.metadata_props.add(key="names", value=str(dict(enumerate("abacdefghi"))))
        assert adopted(proto).classes == tuple("abacdefghi")
        assert adopted(proto, names=["w", "", *"abcdefgh"]).classes == ("w", "class 1", *"abcdefgh")
        with pytest.raises(InputError, match="3 class names, but the model gives 10"):
            adopted(proto, names=["x", "y", "z"])


class TestGraphs:
    def test_local_functions_are_inlined(self):
        proto = tiny()
        body = [helper.make_node("Relu", ["u"], ["v"])]
        opset = helper.make_opsetid("", 18)
        proto.functions.append(helper.make_function("mine", "Act", ["u"], ["v"], body, [opset]))
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        for node in proto.graph.node:
            if node.op_type == "Relu":
                node.op_type, node.domain = "Act", "mine"
        np.testing.assert_allclose(answer(adopted(proto)), logits(), atol=1e-5)

    @pytest.mark.parametrize("kind", ["itself", "doubling"])
    def test_functions_that_grow_without_end_are_refused(self, kind):
        proto = tiny()
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        for level in range(30 if kind == "doubling" else 1):
            inner = f"F{level + 1}" if kind == "doubling" and level < 29 else "F0" if kind == "itself" else "Relu"
            domain = "" if inner == "Relu" else "mine"
            body = [
                helper.make_node(inner, ["u"], ["w"], domain=domain),
                helper.make_node(inner, ["w"], ["v"], domain=domain),
            ]
            proto.functions.append(helper.make_function("mine", f"F{level}", ["u"], ["v"], body, opsets))
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        proto.graph.node[1].op_type, proto.graph.node[1].domain = "F0", "mine"
        with pytest.raises(BundleError, match="local functions"):
            adopted(proto)

    @pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_padding_becomes_numbers(self, kind, stride):
        proto = tiny()
        for node in proto.graph.node:
            if node.op_type == "Conv":
                del node.attribute[:]
                node.attribute.extend(
                    [helper.make_attribute("auto_pad", kind), helper.make_attribute("strides", [stride, stride])]
                )
        model = adopted(proto)
        names = {attribute.name for node in read_model(model.onnx).graph.node for attribute in node.attribute}
        assert "auto_pad" not in names
        np.testing.assert_allclose(answer(model), logits(proto=proto), atol=1e-5)

    def test_convolutions_that_share_weights_are_patched_together(self):
        proto = tiny()
        nodes = [node for node in proto.graph.node if node.op_type == "Conv"]
        nodes[2].input[1:] = nodes[1].input[1:]
        model = read_model(adopted(proto).onnx)
        tensors = shallow_tensors(model, 3)
        assert len(tensors) == 4
        session = LiveSession(model, tensors=tensors, provider="cpu", threads=1)
        weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == tensors[2])) * 1.5
        session.write(tensors[2], weight)
        patched = tiny()
        patched.CopyFrom(proto)
        for tensor in patched.graph.initializer:
            if tensor.name == tensors[2]:
                tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        x = images(1)
        name = session.get_inputs()[0].name
        np.testing.assert_allclose(session.run(None, {name: x})[0], run_onnx(patched, x), atol=1e-4)


def quantised():
    proto = tiny()
    proto.graph.node[0].op_type = "ConvInteger"
    return proto


def without_convolutions():
    proto = tiny()
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.op_type = "Relu"
            del node.input[1:], node.attribute[:]
    return proto


def with_old_reshape():
    """A model with the Reshape of opset 1, whose lengths are no input."""
    proto = tiny()
    node = next(node for node in proto.graph.node if node.op_type == "Flatten")
    node.CopyFrom(helper.make_node("Reshape", [node.input[0]], [node.output[0]]))
    return proto


def of_onnx_runtime():
    proto = with_operator_behind("Gelu")
    next(node for node in proto.graph.node if node.op_type == "Gelu").domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def with_two_inputs():
    proto = tiny()
    proto.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    return proto


@pytest.mark.parametrize(
    ("proto", "options", "message"),
    [
        (tiny(), {"size": (64, 64)}, "--size 64x64, but the model takes 32x32"),
        (set_shape(tiny(), "N", 5, SIZE, SIZE), {}, "expected 1, 3 or 4 channels"),
        (set_shape(tiny(), "N", 3), {}, "expected images"),
        (in_front("Cast", TensorProto.INT32, ["N", 3, SIZE, SIZE], to=TensorProto.FLOAT), {}, "of another type"),
        (with_two_inputs(), {}, "expected one image input"),
        (quantised(), {}, "quantise the float32 model"),
        (without_convolutions(), {}, "has no Conv"),
        (with_old_reshape(), {}, r"cannot load it .*\(at its operator Reshape\)"),
        (of_onnx_runtime(), {}, "not standard, 'com.microsoft.Gelu', which no bundle"),
        (with_operator_behind("NoSuch"), {}, "cannot load it .*NoSuch"),
        (tiny(), {"wanted": Wanted(outputs=("nothing",))}, "unknown output 'nothing'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_a_line(proto, options, message):
    with pytest.raises(RwsError, match=message) as caught:
        adopted(proto, **options)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


def test_a_model_whose_boxes_differ_in_number_is_refused():
    steps = (("Greater", "logits zero", "m"), ("Reshape", "m all", "n"), ("Reshape", "logits all", "o"))
    proto = ending_in(
        *steps, ("Compress", "o n", "y"), outputs=["y"], zero=np.zeros(1, np.float32), all=np.array([-1], np.int64)
    )
    with pytest.raises(BundleError, match="expected one row per image"):
        adopted(proto, wanted=Wanted("raw"))


def test_outputs_with_the_images_second_are_turned():
    steps = (("Unsqueeze", "logits front", "u"), ("Expand", "u three", "y"))
    proto = ending_in(*steps, outputs=["y"], front=np.zeros(1, np.int64), three=np.array([3, 1, 1], np.int64))
    model = adopted(proto, wanted=Wanted("raw"))
    assert model.batch is None
    assert model.shapes == ((3, len(logits())),)
    assert "second axis" in " ".join(model.changes)
    np.testing.assert_allclose(answer(model), np.stack([logits()] * 3), atol=1e-5)


def test_the_parser_refuses_a_model_in_parts():
    with pytest.raises(BundleError, match="not a whole ONNX model"):
        adopt_model(onnx.ModelProto.SerializeToString(tiny())[:-9])
