import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from rws.edge.live.session import LiveSession
from rws.edge.onnx.graph import read_model
from rws.edge.signatures.quantization import dequantise, quantise
from rws.training.models.export import export_onnx, narrowed, rounded

KEPT = ("0.weight", "0.bias")
PIXELS = np.random.default_rng(5).random((3, 3, 16, 16), np.float32)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(5)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 32, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 7),
    ]
    return export_onnx(nn.Sequential(*layers).eval(), 16, keep=KEPT)


def weights_of(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def outputs_of(session):
    return session.run(None, {"image": PIXELS})[0]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_narrowed_model_is_smaller_and_computes_with_rounded_weights(exported, bits):
    small = narrowed(exported, bits, KEPT)
    assert len(small) < (0.5 if bits == 8 else 0.7) * len(exported)
    before, after = weights_of(read_model(exported)), weights_of(read_model(small))
    assert after.keys() == before.keys()
    for name, exact in before.items():
        deep = name not in KEPT and exact.ndim > 1
        expected = rounded(torch.from_numpy(exact.copy()), bits).numpy() if deep else exact
        np.testing.assert_array_equal(after[name], expected)
    wide = read_model(small).SerializeToString()
    np.testing.assert_array_equal(
        outputs_of(onnxruntime.InferenceSession(small)), outputs_of(onnxruntime.InferenceSession(wide))
    )


def test_narrowing_what_is_rounded_changes_nothing_that_matters(exported):
    once = read_model(narrowed(exported, 8, KEPT)).SerializeToString()
    for name, array in weights_of(read_model(narrowed(once, 8, KEPT))).items():
        np.testing.assert_allclose(array, weights_of(read_model(once))[name], rtol=1e-6)


def test_8_bits_are_those_of_signatures():
    weight = torch.randn(5, 4, 3, 3)
    np.testing.assert_array_equal(rounded(weight, 8).numpy(), dequantise(quantise(weight.numpy())))
    assert torch.equal(rounded(weight, 32), weight)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_live_session_learns_a_narrowed_file_once(exported, bits, tmp_path):
    path = tmp_path / "narrow.onnx"
    path.write_bytes(narrowed(exported, bits, KEPT))
    expected = outputs_of(onnxruntime.InferenceSession(path))
    sessions = [LiveSession(path, tensors=KEPT, provider="cpu", threads=1, cache=tmp_path / "cache") for _ in range(2)]
    assert [session.from_cache for session in sessions] == [False, True]
    for session in sessions:
        np.testing.assert_allclose(outputs_of(session), expected, atol=1e-6)
