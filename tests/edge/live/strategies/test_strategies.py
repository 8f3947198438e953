"""The strategies that change the weights of a running session, on networks whose layout ONNX Runtime changes."""

import os
import platform
from itertools import count

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.live.sessions import PROVIDERS, SessionMaker
from rws.edge.live.strategies.base import PatchTarget
from rws.edge.live.strategies.inputs import Inputs
from rws.edge.live.strategies.live import Live
from rws.edge.onnx.graph import clean_tensors, prepare, replaced_tensors, shallow_tensors, split_after
from rws.errors import BundleError, InputError, SignatureError, StrategyUnavailableError
from support.tiny import CORRUPTIONS, make_signatures, network

ON_X86 = platform.machine() in ("x86_64", "AMD64")
CPU = SessionMaker((PROVIDERS["cpu"],), 1)
RNG = np.random.default_rng(21)
X = RNG.random((1, 3, 16, 16), np.float32)


def residual_network() -> onnx.ModelProto:
    """A stem, a residual block with a projection, a depthwise and a grouped convolution; 24 and 40 channels fill no
    whole block of 16; the image is read a second time at the end."""
    shapes = {
        "stem": (24, 3, 3, 3),
        "left": (24, 24, 3, 3),
        "right": (24, 24, 1, 1),
        "depthwise": (24, 1, 3, 3),
        "grouped": (40, 12, 3, 3),
        "deep": (8, 43, 1, 1),
    }
    tensors = {}
    for name, shape in shapes.items():
        spread = np.sqrt(2 / np.prod(shape[1:]))
        tensors[f"{name}.weight"] = RNG.normal(0, spread, shape).astype(np.float32)
        tensors[f"{name}.bias"] = RNG.normal(0, 0.1, shape[0]).astype(np.float32)

    def convolution(name, source, output, **attributes):
        pads = [shapes[name][2] // 2] * 4
        return helper.make_node(
            "Conv", [source, f"{name}.weight", f"{name}.bias"], [output], name, pads=pads, **attributes
        )

    nodes = [
        convolution("stem", "image", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        convolution("left", "b", "c"),
        convolution("right", "b", "d"),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        convolution("depthwise", "f", "g", group=24),
        helper.make_node("Clip", ["g", "zero", "six"], ["h"]),
        convolution("grouped", "h", "i", group=2),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("Concat", ["j", "image"], ["k"], axis=1),
        convolution("deep", "k", "l"),
        helper.make_node("GlobalAveragePool", ["l"], ["m"]),
        helper.make_node("Flatten", ["m"], ["logits"]),
    ]
    tensors |= {"zero": np.float32(0), "six": np.float32(6)}
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


@pytest.fixture(scope="module")
def proto():
    return residual_network()


@pytest.fixture(scope="module", params=[1, 3, 5], ids=lambda count: f"{count} convolutions")
def names(request, proto):
    return shallow_tensors(proto, request.param)


@pytest.fixture(scope="module")
def signatures(proto, names):
    return make_signatures(clean_tensors(proto, names))


def rebuilt(proto, weights, x=X):
    """What a session gives that is built from a file with these weights."""
    with replaced_tensors(proto, weights):
        return CPU.session(proto).run(None, {"image": x})[0]


def patched(clean, signatures, mix):
    weights = {name: array.copy() for name, array in clean.items()}
    for signature in signatures.names:
        for name, entry in signatures.entries[signature].items():
            change = np.multiply(entry.values, entry.columns * np.float32(mix.get(signature, 0)), dtype=np.float32)
            weights[name] += change
    return weights


@pytest.mark.parametrize("strategy", ["live", "split", "inputs"])
def test_every_strategy_gives_what_a_patched_file_gives(proto, names, signatures, strategy):
    model = OnnxModel(proto.SerializeToString(), signatures, names, threads=1, strategy=strategy)
    assert model.strategy == strategy
    assert model.description == f"{strategy} weights on CPUExecutionProvider"
    clean = clean_tensors(proto, names)
    before = model.predict(X)[0]
    for mix in ({"fog": 1.0}, {"contrast": -0.5, "gaussian_noise": 0.75}, {"fog": 0.25}):
        model.apply(mix)
        expected = rebuilt(proto, patched(clean, signatures, mix))
        if strategy == "live":
            assert model.predict(X)[0].tobytes() == expected.tobytes()
        np.testing.assert_allclose(model.predict(X)[0], expected, atol=1e-5)
    model.reset()
    assert model.predict(X)[0].tobytes() == before.tobytes()
    assert rebuilt(proto, clean).tobytes() == before.tobytes() or strategy != "live"


@pytest.mark.skipif(not ON_X86, reason="elsewhere ONNX Runtime may lay out otherwise")
@pytest.mark.parametrize("threads", [1, 2])
def test_live_is_what_is_taken_here(proto, names, signatures, threads):
    assert OnnxModel(proto.SerializeToString(), signatures, names, threads=threads).strategy == "live"


@pytest.mark.parametrize("strategy", ["live", "split", "inputs"])
def test_other_batch_sizes_read_the_same_weights(proto, names, signatures, strategy):
    model = OnnxModel(proto.SerializeToString(), signatures, names, threads=1, strategy=strategy)
    model.apply({"fog": 1.0})
    x = RNG.random((5, 3, 16, 16), np.float32)
    expected = rebuilt(proto, patched(clean_tensors(proto, names), signatures, {"fog": 1.0}), x)
    np.testing.assert_allclose(model.predict(x)[0], expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(x[2])[0], expected[2:3], atol=1e-5)


@pytest.fixture
def small():
    proto = network(3, 4, seed=0)
    names = shallow_tensors(proto, 2)
    return proto.SerializeToString(), make_signatures(clean_tensors(proto, names)), names


def one_stale(monkeypatch, number):
    """Let ONNX Runtime read one of the weights from a copy, which is returned when it has been made."""
    real, values, copies = onnxruntime.OrtValue.ortvalue_from_numpy, count(), []

    def ortvalue_from_numpy(view, *device):
        if next(values) != number:
            return real(view, *device)
        copies.append(view.copy())
        return real(copies[0], *device)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", ortvalue_from_numpy)
    return copies


class TestFallingBack:
    @pytest.mark.parametrize("number", range(4))
    def test_a_single_tensor_that_does_not_follow_is_found(self, small, monkeypatch, number):
        copies = one_stale(monkeypatch, number)
        model = OnnxModel(*small, threads=1)
        assert len(copies) == 1
        assert model.strategy == "split"
        assert "times the untouched session, " in model.description
        assert "ms for a change of mix (live: changed weights give outputs that are" in model.description

    @pytest.mark.parametrize("number", range(4))
    def test_nor_does_a_tolerance_hide_it(self, monkeypatch, number):
        copies = one_stale(monkeypatch, number)
        proto = network(3, 4, seed=0)
        names = shallow_tensors(proto, 2)
        zeros = {name: np.zeros(6, np.float32) for name in names if name.endswith("bias")}
        with replaced_tensors(proto, zeros):
            model = proto.SerializeToString()
        with pytest.raises(BundleError, match=r"inputs: changes of '.*' do not reach the output"):
            OnnxModel(model, None, names, threads=1, strategy="inputs")
        assert len(copies) == 1

    def test_on_a_gpu_weights_in_its_memory_come_first(self, small, monkeypatch):
        real = onnxruntime.OrtValue.ortvalue_from_numpy
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS["cuda"], PROVIDERS["cpu"]])
        monkeypatch.setattr(onnxruntime, "InferenceSession", SaysCuda)
        monkeypatch.setattr(
            onnxruntime.OrtValue, "ortvalue_from_numpy", lambda view, device, number: real(view.copy(), "cpu", number)
        )
        model = OnnxModel(*small, threads=1)
        assert (model.strategy, model.provider) == ("inputs", PROVIDERS["cuda"])
        assert model.description == "inputs weights on CUDAExecutionProvider"
        model.apply({"fog": 1.0})
        proto = onnx.load_from_string(small[0])
        weights = patched(clean_tensors(proto, small[2]), small[1], {"fog": 1.0})
        x = RNG.random((1, 3, 8, 8), np.float32)
        monkeypatch.undo()
        np.testing.assert_allclose(model.predict(x)[0], rebuilt(proto, weights, x), atol=1e-5)

    def test_a_provider_that_cannot_read_our_memory(self, small):
        with pytest.raises(
            StrategyUnavailableError, match="CUDAExecutionProvider does not read weights from the memory"
        ):
            Live(PatchTarget(residual_network(), {}, None, SessionMaker((PROVIDERS["cuda"], PROVIDERS["cpu"]), None)))

    def test_more_weights_than_can_be_numbered(self, small, monkeypatch):
        monkeypatch.setattr("rws.edge.live.strategies.live.COUNTABLE", 100)
        model = OnnxModel(*small, threads=1)
        assert model.strategy == "split"
        assert "live: 498 patched weights are more than float32 can number, 99" in model.description

    def test_weights_that_onnxruntime_computes_with(self):
        proto = network(1, 4, seed=0)
        tensor = numpy_helper.from_array(np.full((1, 6, 1, 1), 2, np.float32), "factor")
        proto.graph.initializer.append(tensor)
        proto.graph.node[0].output[0] = "raw"
        proto.graph.node.insert(1, helper.make_node("Mul", ["raw", "factor"], ["conv0"]))
        names = shallow_tensors(proto, 1)
        signatures = make_signatures(clean_tensors(proto, names))
        model = OnnxModel(proto.SerializeToString(), signatures, names, threads=1)
        assert model.strategy == "split"
        assert "from the weights; it does not only lay them out" in model.description
        x = RNG.random((1, 3, 8, 8), np.float32)
        model.apply({"fog": 1.0})
        weights = patched(clean_tensors(proto, names), signatures, {"fog": 1.0})
        np.testing.assert_allclose(model.predict(x)[0], rebuilt(proto, weights, x), atol=1e-5)

    def test_nowhere_to_write_a_file(self, small, monkeypatch):
        def refused(*name, **options):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryDirectory", refused)
        if hasattr(os, "memfd_create"):
            assert OnnxModel(*small, threads=1).strategy == "live"  # so no kill can leave a file
        monkeypatch.setattr("os.memfd_create", refused, raising=False)
        model = OnnxModel(*small, threads=1)
        assert model.strategy == "split"
        assert "live: [Errno 30] Read-only file system" in model.description
        model.apply({"fog": 1.0})
        model.reset()

    def test_if_no_strategy_is_left_each_reason_is_given(self, small):
        model, signatures, names = small
        with pytest.raises(BundleError, match=r"cannot be changed .*\(live: .*; split: .*; inputs: "):
            OnnxModel(dead(model), None, names)
        assert signatures.names == CORRUPTIONS

    def test_a_requested_strategy_is_not_replaced(self, small, monkeypatch):
        monkeypatch.setattr("rws.edge.live.strategies.live.COUNTABLE", 100)
        with pytest.raises(BundleError, match=r"cannot be changed .*\(live: 498 patched weights"):
            OnnxModel(*small, strategy="live")

    def test_signatures_of_another_model_are_no_reason_to_fall_back(self, small):
        model, _, names = small
        other = make_signatures({name: np.ones(3, np.float32) for name in names})
        with pytest.raises(SignatureError, match="shape"):
            OnnxModel(model, other, names)


def dead(model):
    """The same network, whose head no longer looks at its convolutions."""
    proto = onnx.load_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "head.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((4, 6), np.float32), tensor.name))
    return proto.SerializeToString()


def test_unknown_strategies_and_providers(small):
    with pytest.raises(InputError, match="strategy is 'fast', expected auto, live, split, inputs"):
        OnnxModel(*small, strategy="fast")
    with pytest.raises(BundleError, match=r"provider 'NoExecutionProvider' .* offers .*CPUExecutionProvider"):
        OnnxModel(*small, provider="NoExecutionProvider")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is here")
def test_cuda_that_is_not_there_is_named(small):
    with pytest.raises(BundleError, match=r"provider 'cuda' is unavailable.*onnxruntime-gpu"):
        OnnxModel(*small, provider="cuda")


def test_a_provider_that_is_installed_but_does_not_start(small, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS["cuda"], PROVIDERS["cpu"]])
    real = onnxruntime.InferenceSession

    def session(model, options, providers):
        return real(model, options, [PROVIDERS["cpu"]])  # as ONNX Runtime does when CUDA's libraries are missing

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BundleError, match="'cuda' is installed but does not start here"):
        OnnxModel(*small, provider="cuda")
    assert OnnxModel(*small, provider="auto").provider == PROVIDERS["cpu"]


@pytest.mark.parametrize(
    "provider", [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
)
@pytest.mark.parametrize("strategy", ["live", "split", "inputs"])
def test_no_provider_keeps_stale_weights(small, provider, strategy):
    if strategy == "live" and provider != PROVIDERS["cpu"]:
        pytest.skip("live is for the CPU")
    model, signatures, names = small
    deployed = OnnxModel(model, signatures, names, provider=provider, threads=1, strategy=strategy)
    assert deployed.provider == provider
    proto = onnx.load_from_string(model)
    clean = clean_tensors(proto, names)
    x = RNG.random((1, 3, 8, 8), np.float32)
    for mix in ({"fog": 1.0}, {"contrast": 1.0}, {}, {"gaussian_noise": 1.0}):
        deployed.apply(mix)
        expected = rebuilt(proto, patched(clean, signatures, mix), x)
        np.testing.assert_allclose(
            deployed.predict(x)[0], expected, atol=1e-5 if provider == PROVIDERS["cpu"] else 2e-3
        )


def test_device_memory_is_written_at_each_change(small, monkeypatch):
    """What `inputs` does on CUDA, on values that ONNX Runtime holds itself as it would on the device."""
    model, signatures, names = small
    proto = onnx.load_from_string(model)
    real = onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(
        onnxruntime.OrtValue, "ortvalue_from_numpy", lambda view, device, number: real(view.copy(), "cpu", number)
    )
    clean = clean_tensors(proto, names)
    maker = OnCuda((PROVIDERS["cuda"],), 1)
    strategy = Inputs(PatchTarget(proto, clean, signatures, maker))
    x = RNG.random((1, 3, 8, 8), np.float32)
    before = strategy.run(None, {"image": x})[0]
    strategy.arena.apply({"fog": 1.0})
    found = strategy.run(None, {"image": x})[0]
    np.testing.assert_allclose(found, rebuilt(proto, patched(clean, signatures, {"fog": 1.0}), x), atol=1e-5)
    strategy.arena.reset()
    assert strategy.run(None, {"image": x})[0].tobytes() == before.tobytes()


class SaysCuda(onnxruntime.InferenceSession):
    """Runs on the CPU and says CUDA."""

    def __init__(self, model, options, providers):
        super().__init__(model, options, [PROVIDERS["cpu"]])

    def get_providers(self):
        return [PROVIDERS["cuda"], PROVIDERS["cpu"]]


class OnCuda(SessionMaker):
    """Says CUDA and runs on the CPU."""

    def session_of(self, model, options):
        return CPU.session_of(model, options)


class TestSplitting:
    def test_the_cut_is_where_one_value_crosses(self, proto):
        stem, trunk = split_after(proto, shallow_tensors(proto, 3))
        assert [value.name for value in stem.graph.output] == ["f"]
        assert sorted(value.name for value in trunk.graph.input) == ["f", "image"]
        assert len(stem.graph.node) + len(trunk.graph.node) == len(proto.graph.node)

    def test_inside_a_residual_block_two_values_cross(self, proto):
        stem, _ = split_after(proto, shallow_tensors(proto, 2))
        assert sorted(value.name for value in stem.graph.output) == ["b", "c"]

    def test_nothing_after_the_convolutions(self):
        tensors = [numpy_helper.from_array(RNG.random((4, 3, 8, 8), np.float32), "w")]
        tensors.append(numpy_helper.from_array(np.zeros(4, np.float32), "b"))
        graph = helper.make_graph(
            [helper.make_node("Conv", ["image", "w", "b"], ["logits"])],
            "convolution",
            [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4, 1, 1])],
            tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        with pytest.raises(ValueError, match="nothing after the patched convolutions"):
            split_after(model, ["w", "b"])
        found = OnnxModel(model.SerializeToString(), None, ["w", "b"], threads=1)
        assert found.strategy == "live"
        with pytest.raises(BundleError, match="split: the graph cannot be split"):
            OnnxModel(model.SerializeToString(), None, ["w", "b"], threads=1, strategy="split")


def test_ten_thousand_random_patches_leave_no_trace():
    bundle = Bundle.load("cifar10")
    model = bundle.model(ModelOptions(threads=1))
    x = RNG.random((2, 3, 32, 32), np.float32)
    clean = model.predict(x)[0]
    names = bundle.signatures.names
    differ = 0
    for step in range(10_000):
        chosen = RNG.choice(len(names), RNG.integers(1, 4), replace=False)
        model.apply({names[number]: RNG.uniform(-1, 1.5) for number in chosen})
        if step % 100 == 0:
            differ += model.predict(x)[0].tobytes() != clean.tobytes()
            model.reset()
            assert model.predict(x)[0].tobytes() == clean.tobytes()
    model.reset()
    assert model.predict(x)[0].tobytes() == clean.tobytes()
    assert differ == 100


class TestInputs:
    def test_a_fixed_batch_is_filled_up(self, small):
        proto = onnx.load_from_string(small[0])
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        model = OnnxModel(proto.SerializeToString(), *small[1:], threads=1)
        free = OnnxModel(*small, threads=1)
        for number in (1, 4, 6):
            x = RNG.random((number, 3, 8, 8), np.float32)
            np.testing.assert_allclose(model.predict(x)[0], free.predict(x)[0], atol=1e-5)

    def test_a_free_size_is_tested_at_the_size_that_is_used(self):
        proto = network(2, 4, seed=0)
        pool = next(node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
        pool.op_type = "Identity"  # then the linear layer fits 8 x 8 pixels only
        for tensor in proto.graph.initializer:
            if tensor.name == "head.weight":
                tensor.CopyFrom(numpy_helper.from_array(RNG.normal(size=(4, 384)).astype(np.float32), tensor.name))
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"free{axis}"
        names = shallow_tensors(proto, 1)
        assert OnnxModel(proto.SerializeToString(), None, names, threads=1, image_size=(8, 8)).strategy == "live"
        with pytest.raises(BundleError, match=r"cannot run it on float32 \(1, 3, 224, 224\)"):
            OnnxModel(proto.SerializeToString(), None, names, threads=1)

    def test_an_input_without_a_shape(self, small):
        proto = onnx.load_from_string(small[0])
        proto.graph.input[0].type.tensor_type.ClearField("shape")
        with pytest.raises(BundleError, match=r"input 'image' has the shape \(\), expected \(N, 3, height, width\)"):
            OnnxModel(proto.SerializeToString(), None, small[2])

    @pytest.mark.parametrize("kind", [onnx.TensorProto.INT8, onnx.TensorProto.DOUBLE])
    def test_an_image_of_another_type_than_images_have(self, small, kind):
        proto = onnx.load_from_string(small[0])
        proto.graph.input[0].name, proto.graph.input[0].type.tensor_type.elem_type = "raw", kind
        proto.graph.node.insert(0, onnx.helper.make_node("Cast", ["raw"], ["image"], to=onnx.TensorProto.FLOAT))
        with pytest.raises(BundleError, match="input 'raw' is of another type than float32, float16"):
            OnnxModel(proto.SerializeToString(), None, small[2], threads=1)

    def test_no_tensor_is_named(self, small):
        with pytest.raises(BundleError, match="no tensor to patch is named"):
            OnnxModel(small[0], None, [])

    def test_a_mistake_of_ours_is_not_taken_for_a_refusal(self, small, monkeypatch):
        def broken(*arguments, **options):
            raise KeyError("ours")

        monkeypatch.setattr("rws.edge.live.strategies.live.Arena", broken)
        with pytest.raises(KeyError, match="ours"):
            OnnxModel(*small)
