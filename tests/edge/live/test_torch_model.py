"""Torch parameters as views of the arena: in place, in every mode and on every device that is here."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.func import functional_call

from rws.edge.live.arena import Arena
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.live.torch_model import TorchModel
from rws.edge.onnx.graph import clean_tensors, shallow_tensors
from rws.errors import BundleError, InputError
from support.tiny import CORRUPTIONS, make_signatures, network

NAMES = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight")
SHAPE = (3, 8, 8)
MIX = {"fog": 0.5, "contrast": -0.25}

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
STRATEGIES = [
    pytest.param(("cpu", "torch")),
    pytest.param(("cpu", "torch_compile"), marks=compiler),
    pytest.param(("cuda", "torch"), marks=cuda),
    pytest.param(("cuda", "torch_compile"), marks=cuda),
    pytest.param(("cuda", "torch_cuda_graph"), marks=cuda),
]


def classifier() -> nn.Sequential:
    """A plain, a depthwise and a pointwise convolution: each has another memory layout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()


CLEAN = {name: parameter.detach().numpy() for name, parameter in classifier().named_parameters() if name in NAMES}
SIGNATURES = make_signatures(CLEAN)
X = np.random.default_rng(3).random((4, *SHAPE), np.float32)


def make(device="cpu", strategy="torch", module=None) -> TorchModel:
    return TorchModel(module or classifier(), SIGNATURES, NAMES, image_shape=SHAPE, device=device, strategy=strategy)


def expected(mix, x=X) -> np.ndarray:
    """Return the outputs of a separate module that was built with the weights of the mix."""
    arena = Arena(CLEAN, SIGNATURES)
    arena.apply(mix)
    with torch.inference_mode():
        weights = {name: torch.from_numpy(view) for name, view in arena.views.items()}
        return functional_call(classifier(), weights, torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module", params=STRATEGIES, ids="-".join)
def model(request) -> TorchModel:
    # Freezing would copy the weights; an environment that asks for it must not be obeyed.
    with torch._inductor.config.patch(freezing=True):
        return make(*request.param)


def test_importing_the_backend_does_not_import_torch():
    code = "import sys, rws.edge.live.torch_model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_patches_reach_the_output_without_recompiling_and_leave_no_trace(model):
    tolerance = 1e-5 if model.provider == "cpu" else 2e-3
    clean = model.predict(X[0])[0]
    rng = np.random.default_rng(5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(20):
            mix = dict(zip(CORRUPTIONS, (rng.integers(-256, 256, 3) / 256).tolist(), strict=True))
            assert model.apply(mix)
            np.testing.assert_allclose(model.predict(X[0])[0], expected(mix, X[:1]), atol=tolerance)
        model.reset()
        assert model.predict(X[0])[0].tobytes() == clean.tobytes()


def test_batches_of_other_sizes_are_patched_too(model):
    model.apply(MIX)
    np.testing.assert_allclose(model.predict(X)[0], expected(MIX), atol=1e-5 if model.provider == "cpu" else 2e-3)
    model.reset()


def test_what_it_says_of_itself(model):
    assert model.description.startswith(f"{model.strategy} on {model.provider}: ")
    assert "\n" not in model.description


def test_parameters_are_aligned_views_that_never_move(model):
    parameters = [model.module.get_parameter(name) for name in model.parameter_names]
    pointers = [parameter.data_ptr() for parameter in parameters]
    assert all(pointer % 64 == 0 for pointer in pointers)
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.module.parameters() if p.dim() == 4)
    model.apply(MIX)
    arena = Arena(CLEAN, SIGNATURES)
    arena.apply(MIX)
    for parameter, weights in zip(parameters, arena.views.values(), strict=True):
        assert parameter.detach().cpu().numpy().tobytes() == weights.tobytes()
    model.reset()
    assert [parameter.data_ptr() for parameter in parameters] == pointers


def test_the_test_at_load_leaves_the_weights_as_they_were():
    module = classifier()
    make(module=module)
    for name, array in CLEAN.items():
        assert module.get_parameter(name).detach().numpy().tobytes() == array.tobytes()


def test_a_patch_that_was_interrupted_is_undone(monkeypatch):
    model = make()
    clean = model.predict(X)[0]

    def interrupt(base, values, factors, out, pieces):
        out[:40] = 7
        raise KeyboardInterrupt

    monkeypatch.setattr("rws.edge.live.arena.multiply_add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.apply(MIX)
    assert model.predict(X)[0].tobytes() == clean.tobytes()


class Keeping(nn.Module):
    """A classifier that reads one weight, once it was called, from somewhere other than its parameter."""

    def __init__(self, copied: bool):
        super().__init__()
        self.layers = classifier()
        self.copied = copied
        self.kept = None if copied else self.layers[2].weight.detach()

    def forward(self, x):
        if self.kept is None:
            self.kept = self.layers[2].weight.detach().clone()
        weights = {"2.weight": self.kept}
        return functional_call(self.layers, weights, x)


class Giving(nn.Module):
    """A convolution whose features become what `give` makes of them."""

    def __init__(self, give):
        super().__init__()
        self.features, self.give = nn.Conv2d(3, 4, 8), give

    def forward(self, x):
        return self.give(self.features(x))


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("names", [NAMES, NAMES[2:3]], ids=len)
def test_a_module_that_keeps_a_weight_a_second_time_is_refused(copied, names):
    parameters = {name: f"layers.{name}" for name in names}
    with pytest.raises(BundleError, match=r"reach its outputs.*neither frozen nor kept a second time"):
        TorchModel(Keeping(copied), None, names, parameters, SHAPE)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_frozen_script_is_refused():
    with pytest.raises(BundleError, match=r"no parameter '0\.weight'"):
        make(module=torch.jit.freeze(torch.jit.script(classifier())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fast"}, "strategy is 'fast', expected auto, torch, torch_compile, torch_cuda_graph"),
        ({"device": "tpu"}, "device is 'tpu', expected 'auto', 'cpu', 'cuda' or"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used .*; try 'cpu'"),
        ({"strategy": "torch_cuda_graph"}, "strategy 'torch_cuda_graph' with device 'cpu' .*expected a CUDA device"),
    ],
)
def test_what_is_unavailable_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_a_module_that_cannot_take_the_image_or_gives_no_tensor_is_refused():
    with pytest.raises(BundleError, match=r"cannot turn float32 \(1, 3, 8, 9\) into tensors .*; give its image_shape"):
        TorchModel(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 2)), None, ["0.bias"], None, (3, 8, 9))
    with pytest.raises(BundleError, match=r"into tensors .*wrap it"):
        TorchModel(Giving(lambda features: 3), None, ["features.bias"], None, SHAPE)


def test_a_module_may_give_several_tensors():
    def give(features):
        return [features, (100 * features.mean((2, 3))).to(torch.uint8), features.flatten(1).half()]

    model = TorchModel(Giving(give), None, ["features.bias"], None, SHAPE, "cpu")
    maps, counts, halves = model.predict(X)
    assert (maps.shape, maps.dtype) == ((len(X), 4, 1, 1), np.float32)
    assert (counts.shape, counts.dtype) == ((len(X), 4), np.uint8)
    assert (halves.shape, halves.dtype) == ((len(X), 4), np.float32)
    np.testing.assert_allclose(halves, maps.reshape(len(X), -1), atol=1e-2)


@pytest.mark.parametrize("shape", [[-1, 6], [0, -1], [0, 6]])
def test_a_converted_reshape_has_its_shape_in_numbers(shape):
    proto = network(2, 4, seed=0)
    flatten = next(node for node in proto.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    flatten.input.append("shape")
    proto.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    names = shallow_tensors(proto, 2)
    signatures = make_signatures(clean_tensors(proto, names))
    model = TorchModel.from_onnx(proto.SerializeToString(), signatures, names)
    torch.compile(model.module, backend="eager", fullgraph=True)(torch.from_numpy(X))
    other = OnnxModel(proto.SerializeToString(), signatures, names, threads=1)
    for each in (model, other):
        each.apply(MIX)
    np.testing.assert_allclose(model.predict(X)[0], other.predict(X)[0], atol=1e-4)
