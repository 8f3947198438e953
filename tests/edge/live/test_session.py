"""LiveSession: called like an InferenceSession, with weights that can be written between two runs."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import rws.edge.live
from rws.edge.live.session import LiveSession
from rws.edge.onnx.graph import clean_tensors, replaced_tensors, shallow_tensors
from rws.errors import BundleError, InputError, SignatureError, StrategyUnavailableError
from support.tiny import make_signatures, network

RNG = np.random.default_rng(8)
X = RNG.random((2, 3, 8, 8), np.float32)
STRATEGIES = ("live", "split", "inputs")


def several() -> onnx.ModelProto:
    """Two inputs and three outputs: one before the cut, one after it, one of integers; they stand in another order."""
    model = network(3, 4, seed=0)
    graph = model.graph
    graph.node.append(helper.make_node("Add", ["logits", "offset"], ["moved"]))
    graph.node.append(helper.make_node("ArgMax", ["moved"], ["class"], axis=1))
    graph.node.append(helper.make_node("GlobalAveragePool", ["relu0"], ["early"]))
    graph.input.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, ["N", 4]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["N", 1]))
    graph.output.append(helper.make_tensor_value_info("relu0", TensorProto.FLOAT, ["N", 6, 8, 8]))
    graph.output.append(helper.make_tensor_value_info("moved", TensorProto.FLOAT, ["N", 4]))
    graph.output.append(helper.make_tensor_value_info("early", TensorProto.FLOAT, ["N", 6, 1, 1]))
    return model


FEEDS = {"image": X, "offset": RNG.random((2, 4), np.float32)}


def fresh(model: onnx.ModelProto, tensors=None) -> onnxruntime.InferenceSession:
    with replaced_tensors(model, tensors or {}):
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=STRATEGIES)
def session(request) -> LiveSession:
    return LiveSession(several(), layers=2, strategy=request.param, provider="cpu", threads=1)


@pytest.fixture(autouse=True)
def _clean(request):
    yield
    if "session" in request.fixturenames:
        request.getfixturevalue("session").reset()


def written(session: LiveSession, name: str) -> np.ndarray:
    array = clean_tensors(several(), [name])[name]
    other = RNG.normal(size=array.shape).astype(np.float32)
    session.write(name, other)
    return other


class TestCalledLikeAnInferenceSession:
    def test_inputs_and_outputs_are_the_models_own(self, session):
        expected = fresh(several())
        for kind in ("get_inputs", "get_outputs"):
            found, wanted = getattr(session, kind)(), getattr(expected, kind)()
            assert [(value.name, value.type, value.shape) for value in found] == [
                (value.name, value.type, value.shape) for value in wanted
            ]

    def test_all_outputs_come_in_their_order(self, session):
        for found, wanted in zip(session.run(None, FEEDS), fresh(several()).run(None, FEEDS), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)

    @pytest.mark.parametrize("names", [["moved"], ["early", "class"], ["relu0"], ["moved", "relu0", "class"]])
    def test_some_outputs(self, session, names):
        for found, wanted in zip(session.run(names, FEEDS), fresh(several()).run(names, FEEDS), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)

    def test_run_options_are_passed_on(self, session):
        options = onnxruntime.RunOptions()
        options.terminate = True
        with pytest.raises(Exception, match="terminate"):
            session.run(None, FEEDS, options)

    @pytest.mark.parametrize("feeds", [{"image": X}, {**FEEDS, "other": X}], ids=["missing", "unknown"])
    def test_a_wrong_set_of_inputs_is_refused(self, session, feeds):
        session.run(None, FEEDS)
        with pytest.raises(Exception, match=r"offset|other"):
            session.run(None, feeds)

    def test_memory_can_be_bound(self, session):
        if session.strategy == "split":
            with pytest.raises(StrategyUnavailableError, match="'split' runs two sessions"):
                session.io_binding()
            with pytest.raises(StrategyUnavailableError, match="take the strategy 'live' or 'inputs'"):
                session.run_with_iobinding(None)
            return
        binding = session.io_binding()
        for name, array in FEEDS.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("moved")
        outputs = {}
        for name in session.tensor_names:
            other = written(session, name)
            session.run_with_iobinding(binding)
            outputs[name] = binding.copy_outputs_to_cpu()[0]
            expected = fresh(several(), {name: other}).run(["moved"], FEEDS)[0]
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)
            session.reset()


class TestWriting:
    def test_it_is_in_force_from_the_next_run_on_and_reset_takes_it_back(self, session):
        before = session.run(None, FEEDS)
        tensors = {}
        for name in session.tensor_names:
            tensors[name] = written(session, name)
            for found, wanted in zip(session.run(None, FEEDS), fresh(several(), tensors).run(None, FEEDS), strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-4)
        session.reset()
        for found, wanted in zip(session.run(None, FEEDS), before, strict=True):
            assert found.tobytes() == wanted.tobytes()

    def test_the_array_is_copied(self, session):
        other = written(session, session.tensor_names[0])
        first = session.run(["moved"], FEEDS)[0]
        other[:] = 0
        assert session.run(["moved"], FEEDS)[0].tobytes() == first.tobytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda array: array.astype(np.float64), "found float64"),
            (lambda array: array[1:], r"found float32 \(5, 3, 3, 3\), expected finite float32 \(6, 3, 3, 3\)"),
            (lambda array: array * np.float32(np.nan), "expected finite"),
            (lambda array: None, "found object"),
        ],
        ids=["dtype", "shape", "NaN", "None"],
    )
    def test_what_does_not_fit_is_refused_and_nothing_is_written(self, session, change, message):
        name = session.tensor_names[0]
        before = session.run(None, FEEDS)
        with pytest.raises(InputError, match=message):
            session.write(name, change(clean_tensors(several(), [name])[name]))
        for found, wanted in zip(session.run(None, FEEDS), before, strict=True):
            assert found.tobytes() == wanted.tobytes()

    def test_a_tensor_that_is_not_patched(self, session):
        with pytest.raises(
            InputError, match=r"'head\.weight' is not one of .*: features\.0\.weight, features\.0\.bias"
        ):
            session.write("head.weight", np.zeros((4, 6), np.float32))


class Change(NamedTuple):
    """The smallest thing that `signatures` takes."""

    values: np.ndarray
    scale: np.ndarray


MODEL = network(3, 4, seed=0)
NAMES = shallow_tensors(MODEL, 2)
CLEAN = clean_tensors(MODEL, NAMES)
SET = make_signatures(CLEAN)
PLAIN = {
    signature: {name: Change(part.values, part.scale) for name, part in parts.items()}
    for signature, parts in SET.entries.items()
}


class TestMixing:
    def open(self, signatures) -> LiveSession:
        return LiveSession(MODEL, tensors=NAMES, signatures=signatures, provider="cpu", threads=1)

    def test_a_mapping_mixes_like_a_signature_set(self):
        first, second = self.open(SET), self.open(PLAIN)
        for mix in ({"fog": 0.5}, {"contrast": 1.0, "fog": -0.25}, {}):
            assert first.apply(mix) == second.apply(mix)
            assert first.run(None, {"image": X})[0].tobytes() == second.run(None, {"image": X})[0].tobytes()
        assert second.mix == {}

    def test_a_written_tensor_lasts_until_the_next_mix(self):
        session = self.open(PLAIN)
        clean = session.run(None, {"image": X})[0]
        session.apply({"fog": 0.5})
        mixed = session.run(None, {"image": X})[0]
        session.write(NAMES[0], np.zeros_like(CLEAN[NAMES[0]]))
        assert session.run(None, {"image": X})[0].tobytes() != mixed.tobytes()
        assert session.apply({"fog": 0.5}) is True
        assert session.run(None, {"image": X})[0].tobytes() == mixed.tobytes()
        session.write(NAMES[1], np.ones(6, np.float32))
        assert session.apply({}) is True
        assert session.run(None, {"image": X})[0].tobytes() == clean.tobytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"features.0.weight": Change(np.zeros((6, 3, 3), np.int8), np.ones(6, np.float32))}, r"int8 \(6, 3, 3\)"),
            ({"features.0.bias": Change(np.zeros(6, np.float32), np.ones(6, np.float32))}, "is float32"),
            ({"features.0.bias": Change(np.zeros(6, np.int8), np.ones(6))}, "scale float64"),
            ({"features.0.bias": Change(np.zeros(6, np.int8), np.zeros(6, np.float32))}, "above 0"),
            ({"other": Change(np.zeros(6, np.int8), np.ones(6, np.float32))}, "other, expected features"),
        ],
        ids=["shape", "values", "scale dtype", "scale zero", "name"],
    )
    def test_changes_that_do_not_fit_are_refused(self, change, message):
        with pytest.raises(SignatureError, match=message):
            self.open({"fog": {**PLAIN["fog"], **change}})


class TestOpening:
    def test_batchnorm_is_folded_and_the_session_computes_the_same(self):
        model = network(2, 4, seed=0)
        scale = {f"norm.{part}": RNG.uniform(0.5, 1.5, 6).astype(np.float32) for part in ("g", "b", "m", "v")}
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in scale.items())
        model.graph.node[0].output[0] = "raw"
        model.graph.node.insert(1, helper.make_node("BatchNormalization", ["raw", *scale], ["conv0"]))
        session = LiveSession(model.SerializeToString(), layers=1, threads=1)
        np.testing.assert_allclose(
            session.run(None, {"image": X})[0], fresh(model).run(None, {"image": X})[0], atol=1e-5
        )

    def test_a_path(self, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(network(2, 4, seed=0).SerializeToString())
        for given in (path, str(path)):
            assert LiveSession(given, layers=1, threads=1).tensor_names == ("features.0.weight", "features.0.bias")

    @pytest.mark.parametrize("options", [{}, {"layers": 1, "tensors": ["features.0.bias"]}], ids=["none", "both"])
    def test_either_layers_or_tensors(self, options):
        with pytest.raises(InputError, match=r"either layers, .* or tensors"):
            LiveSession(network(2, 4, seed=0), **options)

    @pytest.mark.parametrize("shape", [(), (0, 3)])
    def test_a_tensor_without_channels(self, shape):
        model = network(2, 4, seed=0)
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), "number"))
        with pytest.raises(BundleError, match="'number' has the shape"):
            LiveSession(model, tensors=["number"])

    def test_an_unknown_strategy(self):
        with pytest.raises(InputError, match="'fast', expected auto, live, split, inputs"):
            LiveSession(network(2, 4, seed=0), layers=1, strategy="fast")

    def test_a_strategy_that_does_not_pass_is_a_typed_error(self):
        model = network(1, 4, seed=0)
        for tensor in model.graph.initializer:
            if tensor.name == "head.weight":
                tensor.CopyFrom(numpy_helper.from_array(np.zeros((4, 6), np.float32), tensor.name))
        with pytest.raises(StrategyUnavailableError, match=r"\(split: changes of 'features\.0\.weight' do not reach"):
            LiveSession(model, layers=1, strategy="split")

    def test_images_of_bytes_with_the_channels_last(self):
        model = network(2, 4, seed=0)
        model.graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT))
        model.graph.node.insert(1, helper.make_node("Transpose", ["floats"], ["image"], perm=[0, 3, 1, 2]))
        del model.graph.input[:]
        model.graph.input.append(helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["N", "H", "W", 3]))
        session = LiveSession(model, layers=1, threads=1)
        feeds = {"bytes": RNG.integers(0, 256, (1, 20, 30, 3)).astype(np.uint8)}
        other = written(session, "features.0.weight")
        expected = fresh(model, {"features.0.weight": other}).run(None, feeds)[0]
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-4)

    def test_a_sample_of_ones_own(self):
        model = network(2, 4, seed=0)
        session = LiveSession(model, layers=1, sample={"image": X}, threads=1)
        assert session.run(None, {"image": X})[0].shape == (2, 4)
        with pytest.raises(BundleError, match=r"cannot run it on float32 \(2, 3, 9, 9\)"):
            LiveSession(model, layers=1, sample={"image": np.zeros((2, 3, 9, 9), np.float32)})

    def test_an_input_that_is_not_numeric(self):
        model = network(2, 4, seed=0)
        model.graph.input[0].type.tensor_type.elem_type = 0
        with pytest.raises(BundleError, match="'image' is not a tensor of numbers"):
            LiveSession(model, layers=1)


def test_nothing_else_of_rws_is_imported():
    allowed = ("rws.edge.live", "rws.edge.onnx", "rws.edge.common.files", "rws.errors")
    for path in Path(rws.edge.live.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not getattr(node, "level", 0), f"{path.name}: relative import"
            ours = [name for name in names if name.split(".")[0] == "rws"]
            assert all(name.startswith(allowed) for name in ours), f"{path.name}: {ours}"


def test_neither_torch_nor_the_rest_of_edge_is_loaded():
    code = (
        "import sys, rws.edge.live.session, rws.edge.onnx.graph\n"
        "rooms = {name.split('.')[2] for name in sys.modules if name.startswith('rws.edge.')}\n"
        "sys.exit(f'{rooms}' if rooms != {'live', 'onnx', 'common'} or 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
