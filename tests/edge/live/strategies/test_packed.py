"""Weights that ONNX Runtime packs when a session is made: each kind of reader, alone and several of one initializer."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rws.edge.live.session import LiveSession
from rws.edge.live.sessions import CPU, SessionMaker
from rws.edge.live.strategies import packed
from rws.edge.live.strategies.packed import map_packed
from rws.edge.onnx.graph import replaced_tensors
from rws.errors import StrategyUnavailableError

RNG = np.random.default_rng(4)
PLAIN = SessionMaker((CPU,), 1)


def made(nodes, inputs, outputs, tensors) -> onnx.ModelProto:
    """A model of opset 18 from nodes, shapes by input, names of outputs, and shapes of random weights."""
    weights = {
        name: shape if isinstance(shape, np.ndarray) else RNG.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in tensors.items()
    }
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(), outs.split(), **attributes) for op, ins, outs, attributes in nodes],
        "packed",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def gemm(**attributes):
    shape = (5, 21) if attributes.get("transB") else (21, 5)
    return made([("Gemm", "x W b", "y", attributes)], {"x": [3, 21]}, ["y"], {"W": shape, "b": (5,)})


def transposed(**attributes):
    weights = {"W": (6, 5, 3, 3), "b": (5 * attributes.get("group", 1),)}
    return made([("ConvTranspose", "x W b", "y", attributes)], {"x": [1, 6, 7, 7]}, ["y"], weights)


def lstm():
    nodes = [("LSTM", "x W R B", "y", {"hidden_size": 8})]
    return made(nodes, {"x": [5, 1, 12]}, ["y"], {"W": (1, 32, 12), "R": (1, 32, 8), "B": (1, 64)})


def perceptron(copies=1):
    """Layers of one shape, whose weights are even the same."""
    same = RNG.normal(0, 0.3, (16, 16)).astype(np.float32)
    nodes = []
    for index in range(copies):
        nodes += [("MatMul", f"h{index} W{index}", f"m{index}", {}), ("Relu", f"m{index}", f"h{index + 1}", {})]
    tensors = {f"W{index}": same for index in range(copies)}
    return made(nodes, {"h0": [2, 16]}, [f"h{copies}"], tensors)


def read_twice():
    nodes = [("MatMul", "x W", "h", {}), ("Tanh", "h", "t", {}), ("MatMul", "t W", "y", {})]
    return made(nodes, {"x": [3, 16]}, ["y"], {"W": (16, 16)})


def read_as_it_is_too():
    """A weight that is an embedding at the start and the classifier at the end, as in language models."""
    nodes = [("Gather", "W index", "e", {}), ("Mul", "e x", "h", {}), ("Gemm", "h W", "y", {"transB": 1})]
    index = np.array([3, 1, 2], np.int64)
    return made(nodes, {"x": [3, 16]}, ["y"], {"W": (9, 16), "index": index})


def read_straight_and_transposed():
    nodes = [("MatMul", "x W", "h", {}), ("Relu", "h", "r", {}), ("Gemm", "r W", "y", {"transB": 1})]
    return made(nodes, {"x": [3, 16]}, ["y"], {"W": (16, 11)})


def two_outputs():
    """Only the second output depends on V, only the first on W."""
    nodes = [("MatMul", "x W", "first", {}), ("MatMul", "x V", "second", {}), ("Shape", "x", "size", {})]
    model = made(nodes, {"x": [3, 16]}, ["first", "second", "size"], {"W": (16, 11), "V": (16, 4)})
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.INT64
    return model


def shared_convolution():
    nodes = [("Conv", "x W b", "c", {}), ("Relu", "c", "r", {}), ("Conv", "z W b", "d", {}), ("Add", "r d", "y", {})]
    return made(nodes, {"x": [1, 16, 6, 6], "z": [1, 16, 6, 6]}, ["y"], {"W": (16, 16, 1, 1), "b": (16,)})


def in_three_dimensions():
    return made([("MatMul", "x W", "y", {})], {"x": [3, 4, 16]}, ["y"], {"W": (3, 16, 5)})


MODELS = {
    "gemm": gemm(),
    "gemm, transposed": gemm(transB=1, alpha=0.5),
    "convolution, transposed": transposed(),
    "the same in groups": transposed(group=2, strides=[2, 2]),
    "lstm": lstm(),
    "one layer": perceptron(),
    "three layers of one shape": perceptron(3),
    "two readers": read_twice(),
    "an embedding, too": read_as_it_is_too(),
    "straight and transposed": read_straight_and_transposed(),
    "several outputs": two_outputs(),
    "a shared convolution": shared_convolution(),
    "three dimensions": in_three_dimensions(),
}


def floats(model) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in found.items() if array.dtype == np.float32}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("cached", [False, True], ids=["learned", "from the cache"])
def test_what_is_written_counts_bit_for_bit(model, cached, tmp_path):
    clean = floats(model)
    options = {"tensors": list(clean), "provider": "cpu", "threads": 1, "strategy": "live"}
    session = LiveSession(model, **options, cache=tmp_path)
    if cached and os.name != "nt":
        session = LiveSession(model, **options, cache=tmp_path)
        assert session.from_cache
    feeds = {
        value.name: RNG.normal(0, 1, [d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in model.graph.input
    }
    before = session.run(None, feeds)
    for names in (list(clean), *([name] for name in clean)):
        written = {name: RNG.normal(0, 0.3, clean[name].shape).astype(np.float32) for name in names}
        for name, array in written.items():
            session.write(name, array)
        with replaced_tensors(model, written):
            expected = PLAIN.session(model).run(None, feeds)
        for one, other in zip(session.run(None, feeds), expected, strict=True):
            assert one.tobytes() == other.tobytes()
        session.reset()
        for one, other in zip(session.run(None, feeds), before, strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_weight_with_packed_readers_only_is_kept_once():
    weights = {
        name: np.arange(array.size).reshape(array.shape) for name, array in floats(MODELS["two readers"]).items()
    }
    slots, mapped = map_packed(onnx.ModelProto.FromString(MODELS["two readers"].SerializeToString()), weights, PLAIN)
    if not mapped.unread:
        pytest.skip("ONNX Runtime packs nothing here")
    assert mapped.unread == {"W": 256}
    assert list(mapped.owners.values()) == ["W"]
    assert list(slots) == list(mapped.owners)


def test_without_memory_to_share_there_is_another_strategy(monkeypatch):
    def refused(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed.tempfile, "TemporaryDirectory", refused)
    model = MODELS["one layer"]
    session = LiveSession(model, tensors=["W0"], provider="cpu", threads=1)
    assert session.strategy in ("split", "inputs")
    assert "live: [Errno 28] No space left on device" in session.description
    with pytest.raises(StrategyUnavailableError, match="No space left"):
        LiveSession(model, tensors=["W0"], provider="cpu", threads=1, strategy="live")


def test_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_SHARED_MEMORY", str(tmp_path))
    session = LiveSession(MODELS["one layer"], tensors=["W0"], provider="cpu", threads=1, strategy="live")
    assert not any(tmp_path.iterdir())
    x = RNG.normal(0, 1, (2, 16)).astype(np.float32)
    before = session.run(None, {"h0": x})[0]
    session.write("W0", np.zeros((16, 16), np.float32))
    assert not session.run(None, {"h0": x})[0].any()
    session.reset()
    assert session.run(None, {"h0": x})[0].tobytes() == before.tobytes()


def test_onnxruntime_before_packing_files(monkeypatch):
    """An ONNX Runtime that knows no packed copies in files reads stale weights: the check finds it."""
    real = onnxruntime.SessionOptions.add_session_config_entry

    def ignored(self, key, value):
        if "prepacked" not in key:
            real(self, key, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", ignored)
    session = LiveSession(MODELS["gemm"], tensors=["W"], provider="cpu", threads=1)
    assert session.strategy == "inputs"
    assert "live: changed weights give outputs that are" in session.description
