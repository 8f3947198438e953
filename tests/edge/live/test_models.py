"""Both backends on a small network with BatchNorm, exported by torch and prepared for patching."""

import logging
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from rws.edge.live.onnx_model import OnnxModel
from rws.edge.live.torch_model import TorchModel
from rws.edge.onnx.graph import clean_tensors, prepare, shallow_tensors
from rws.edge.preprocess import InputSpec, preprocess
from rws.errors import BundleError, InputError, OperatorError, SignatureError
from support.tiny import CORRUPTIONS, make_signatures, network, taking, with_features

SIZE = 16
MIXES = [
    {},
    {"fog": 1.0},
    {"gaussian_noise": 0.375, "contrast": 0.75},
    {"fog": -0.25, "contrast": 1.25, "gaussian_noise": 1},
]


def small_network() -> nn.Module:
    """Convolutions with BatchNorm, with a stride, with a bias of zeros, depthwise; statistics as after training."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    with torch.no_grad():
        module[3].bias.zero_()
        for layer in module:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.3, 2)
    return module.eval()


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            small_network(),
            (torch.zeros(2, 3, SIZE, SIZE),),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    return program.model_proto


@pytest.fixture(scope="module")
def ready(exported) -> onnx.ModelProto:
    return prepare(exported)


@pytest.fixture(scope="module")
def names(ready) -> tuple[str, ...]:
    return shallow_tensors(ready, 3)


@pytest.fixture(scope="module")
def signatures(ready, names):
    return make_signatures(clean_tensors(ready, names))


@pytest.fixture(params=["onnx", "torch"])
def backend(request):
    if request.param == "onnx":
        return partial(OnnxModel, threads=1)
    return TorchModel.from_onnx


@pytest.fixture
def model(backend, ready, signatures, names):
    return backend(ready.SerializeToString(), signatures, names)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).random((4, 3, SIZE, SIZE), np.float32)


def rebuilt(ready, names, signatures, mix, x) -> np.ndarray:
    """What a session gives whose file was patched before it was loaded."""
    patched = onnx.ModelProto()
    patched.CopyFrom(ready)
    for tensor in patched.graph.initializer:
        if tensor.name in names:
            array = numpy_helper.to_array(tensor).copy()
            for name, alpha in mix.items():
                array += np.float32(alpha) * signatures.get(name)[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    session = onnxruntime.InferenceSession(patched.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_preparing_keeps_what_torch_computes(ready, names, x):
    with torch.inference_mode():
        expected = small_network()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(OnnxModel(ready.SerializeToString(), None, names).predict(x)[0], expected, atol=1e-5)
    assert len(names) == 6


@pytest.mark.parametrize("mix", MIXES)
def test_patching_equals_a_patched_file(model, ready, names, signatures, mix, x):
    assert model.apply(mix) is bool(mix)
    np.testing.assert_allclose(model.predict(x)[0], rebuilt(ready, names, signatures, mix, x), atol=1e-4)


def test_backends_agree_through_a_sequence_of_mixes(ready, names, signatures, x):
    data = ready.SerializeToString()
    first, second = OnnxModel(data, signatures, names, threads=1), TorchModel.from_onnx(data, signatures, names)
    rng = np.random.default_rng(11)
    for _ in range(20):
        mix = {name: steps / 256 for name, steps in zip(CORRUPTIONS, rng.integers(-256, 400, 3).tolist(), strict=True)}
        assert first.apply(mix) == second.apply(mix)
        assert first.mix == second.mix == mix
        np.testing.assert_allclose(first.predict(x)[0], second.predict(x)[0], atol=1e-4)


def test_reset_brings_every_output_bit_back(model, x):
    clean = model.predict(x)[0]
    for mix in [*MIXES, *reversed(MIXES)]:
        model.apply(mix)
        model.predict(x)
    model.reset()
    assert model.mix == {}
    assert model.predict(x)[0].tobytes() == clean.tobytes()


def test_torch_parameters_are_clean_bit_for_bit_and_never_move(ready, names, signatures):
    model = TorchModel.from_onnx(ready.SerializeToString(), signatures, names)
    before = {name: (p.data_ptr(), p.detach().numpy().tobytes()) for name, p in model.module.named_parameters()}
    for mix in MIXES:
        model.apply(mix)
    patched = {name: p.detach().numpy().tobytes() for name, p in model.module.named_parameters()}
    assert sum(patched[name] != before[name][1] for name in before) == len(names)
    model.apply({})
    after = {name: (p.data_ptr(), p.detach().numpy().tobytes()) for name, p in model.module.named_parameters()}
    assert after == before


def test_a_failed_mix_leaves_the_model_as_it_was(model, x):
    model.apply({"fog": 0.5})
    before = model.predict(x)[0]
    for mix in ({"fog": 1.0, "rain": 1.0}, {"fog": float("nan")}, {"fog": 1e39}):
        with pytest.raises(SignatureError):
            model.apply(mix)
    assert model.predict(x)[0].tobytes() == before.tobytes()
    assert model.mix == {"fog": 0.5}


def test_one_image_is_a_batch_of_one(model, x):
    assert model.predict(x[0])[0].shape == (1, 5)
    assert model.predict(x[0])[0].dtype == np.float32
    np.testing.assert_allclose(model.predict(x[0])[0], model.predict(x)[0][:1], atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, SIZE, SIZE)),
        np.zeros((3, SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.float32),
        np.zeros((3, SIZE + 1, SIZE), np.float32),
        np.zeros((0, 3, SIZE, SIZE), np.float32),
        np.zeros((SIZE, SIZE), np.float32),
        np.zeros((1, 1, 3, SIZE, SIZE), np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_input_of_another_shape_or_type_is_refused(model, wrong):
    with pytest.raises(InputError, match=r"expected float32 \(3, 16, 16\).*resize"):
        model.predict(wrong)


def test_input_memory_may_be_strided_and_read_only(model, x):
    flipped = x[:, :, ::-1]
    expected = model.predict(np.ascontiguousarray(flipped))[0]
    flipped.flags.writeable = False
    np.testing.assert_array_equal(model.predict(flipped)[0], expected)


def test_names(model, names):
    assert model.tensor_names == names


def test_signatures_of_another_model_are_refused(backend, ready, names, signatures):
    other = onnx.ModelProto()
    other.CopyFrom(ready)
    bias = next(tensor for tensor in other.graph.initializer if tensor.name == names[1])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), bias.name))
    with pytest.raises(SignatureError, match="made for clean weights"):
        backend(other.SerializeToString(), signatures, names)


def test_a_tensor_that_the_model_does_not_have(backend, ready):
    with pytest.raises(BundleError, match="no tensor 'other'"):
        backend(ready.SerializeToString(), None, ["other"])


def test_without_signatures_the_model_stays_clean(backend, ready, names, x):
    model = backend(ready.SerializeToString(), None, names)
    assert model.apply({}) is False
    assert model.predict(x)[0].shape == (4, 5)
    with pytest.raises(SignatureError, match="known: none"):
        model.apply({"fog": 1.0})


def test_a_fixed_batch_of_one_takes_many_images(ready, names, x):
    fixed = onnx.ModelProto()
    fixed.CopyFrom(ready)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model = OnnxModel(fixed.SerializeToString(), None, names, threads=1)
    expected = OnnxModel(ready.SerializeToString(), None, names, threads=1).predict(x)[0]
    np.testing.assert_allclose(model.predict(x)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "spec", [InputSpec(8, 8, "GREY", "NHWC", "uint8", 255), InputSpec(8, 8, "BGR", dtype="float16")]
)
def test_outputs_are_given_by_name_of_any_input_and_a_fixed_batch(spec):
    proto = with_features(network(2, 4, seed=5))
    names = shallow_tensors(proto, 2)
    signatures = make_signatures(clean_tensors(proto, names))
    image = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    if spec.colour == "GREY":
        image[..., :] = image[..., :1]
    rgb = np.stack([preprocess(one, spec.view)[0] for one in image])
    plain = OnnxModel(proto.SerializeToString(), signatures, names, threads=1)
    fixed = taking(spec, proto, batch=2).SerializeToString()
    models = [OnnxModel(fixed, signatures, names, threads=1, outputs=chosen) for chosen in ((), ("flat", "logits"))]
    x = np.stack([preprocess(one, spec)[0] for one in image])
    for model in (plain, *models):
        model.apply({"fog": 1.0})
    logits, flat = plain.predict(rgb)
    tolerance = 1e-2 if spec.dtype == "float16" else 1e-4
    for model, expected in zip(models, ((logits, flat), (flat, logits)), strict=True):
        for count in (1, 2, 5):
            found = model.predict(x[:count])
            assert len(found) == 2
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other[:count], atol=tolerance)
    np.testing.assert_array_equal(models[0].predict(x[0])[0], models[0].predict(x[:1])[0])
    with pytest.raises(InputError, match=f"expected {spec.dtype}"):
        models[0].predict(rgb)


def test_an_output_that_the_model_does_not_have(backend, ready, names):
    with pytest.raises(BundleError, match=r"has no output 'boxes'; it has '\w+'"):
        backend(ready.SerializeToString(), None, names, outputs=["boxes"])


def test_one_output_of_several_is_the_same_from_both_backends(backend):
    proto = with_features(network(2, 4, seed=5))
    names = shallow_tensors(proto, 2)
    x = np.random.default_rng(1).random((3, 3, 8, 8), np.float32)
    (flat,) = backend(proto.SerializeToString(), None, names, outputs=["flat"]).predict(x)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    np.testing.assert_allclose(flat, session.run(["flat"], {"image": x})[0], atol=1e-4)


def test_asymmetric_padding_is_patched_too():
    proto = network(2, 4, seed=5)
    pads = next(attribute for attribute in proto.graph.node[0].attribute if attribute.name == "pads")
    pads.ints[:] = [0, 1, 2, 1]
    names = shallow_tensors(proto, 2)
    signatures = make_signatures(clean_tensors(proto, names))
    x = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    found = []
    for model in (
        OnnxModel(proto.SerializeToString(), signatures, names),
        TorchModel.from_onnx(proto.SerializeToString(), signatures, names),
    ):
        model.apply({"fog": 1.0})
        found.append(model.predict(x)[0])
    np.testing.assert_allclose(*found, atol=1e-4)


def test_onnxruntime_refuses_a_network_in_one_line(names):
    proto = network(1, 4, seed=0)
    proto.graph.node[0].op_type = "Nonsense"
    with pytest.raises(BundleError, match="ONNX Runtime cannot run it") as caught:
        OnnxModel(proto.SerializeToString(), None, ["features.0.weight"])
    assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match="torch has no counterpart of Nonsense; export the model without it"):
        TorchModel.from_onnx(proto.SerializeToString(), None, ["features.0.weight"])


class TestTorchModules:
    def test_a_module_of_ones_own(self):
        module = small_network()
        names = ("0.weight", "3.bias")
        clean = {name: parameter.detach().numpy() for name, parameter in module.named_parameters() if name in names}
        model = TorchModel(module, make_signatures(clean), names)
        model.apply({"fog": 1.0})
        expected = clean["3.bias"] * 0 + make_signatures(clean).get("fog")["3.bias"]
        np.testing.assert_allclose(module[3].bias.detach().numpy(), expected, atol=1e-6)
        model.reset()
        assert (module[3].bias == 0).all()

    def test_a_parameter_that_it_does_not_have(self):
        with pytest.raises(BundleError, match=r"no parameter 'other'.*0\.weight"):
            TorchModel(small_network(), None, ["other"])

    def test_half_precision_is_refused(self):
        with pytest.raises(BundleError, match=r"torch\.float16, expected torch\.float32"):
            TorchModel(small_network().half(), None, ["0.weight"])

    def test_an_operator_that_torch_lacks(self):
        proto = network(1, 4, seed=0)
        proto.graph.node[1].op_type = "Shrink"
        with pytest.raises(OperatorError, match="torch has no counterpart of Shrink; export the model without it"):
            TorchModel.from_onnx(proto.SerializeToString(), None, ["features.0.weight"])

    def test_a_missing_extra_is_named(self):
        code = """
import sys
sys.modules["torch"] = None
from rws.edge.live.torch_model import TorchModel
from support.tiny import network
TorchModel.from_onnx(network(1, 4, seed=0).SerializeToString(), None, ["features.0.weight"])
"""
        paths = f"import sys; sys.path[:] = {[path for path in sys.path if path]!r}"
        done = subprocess.run([sys.executable, "-c", paths + code], check=False, capture_output=True, text=True)
        assert "MissingExtraError" in done.stderr
        assert "rws-edge[torch]" in done.stderr

    def test_a_tensor_that_two_convolutions_share_is_patched_for_both(self):
        proto = network(2, 4, seed=0)
        proto.graph.node[2].input[2] = "features.0.bias"
        shared = next(tensor for tensor in proto.graph.initializer if tensor.name == "features.0.bias")
        signatures = make_signatures({"features.0.bias": numpy_helper.to_array(shared)})
        model = TorchModel.from_onnx(proto.SerializeToString(), signatures, ["features.0.bias"])
        model.apply({"fog": 1.0})
        shared.CopyFrom(
            numpy_helper.from_array(
                numpy_helper.to_array(shared) + signatures.get("fog")["features.0.bias"], "features.0.bias"
            )
        )
        x = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        wanted = session.run(None, {session.get_inputs()[0].name: x})[0]
        np.testing.assert_allclose(model.predict(x)[0], wanted, atol=1e-5)
