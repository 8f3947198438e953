import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from oracle import InputError
from training.export import export_onnx
from training.models import ModelSpec, build_model, fold_batchnorm, shallow_tensors


def trained_like(spec: ModelSpec) -> nn.Module:
    """An untrained model whose BatchNorm statistics are not the trivial ones."""
    torch.manual_seed(0)
    model = build_model(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


@pytest.mark.parametrize("spec", [ModelSpec(10, width=0.25), ModelSpec(10, width=0.25, batch_norm=False)])
def test_vgg16_has_thirteen_convolutions_and_takes_any_size(spec):
    model = build_model(spec)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 13
    for size in (32, 64):
        assert model(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_full_width_has_the_papers_shallow_parameters():
    model = fold_batchnorm(build_model(ModelSpec(10)))
    parameters = dict(model.named_parameters())
    assert sum(parameters[name].numel() for name in shallow_tensors(model)) == 555_328


def test_resnet50s_five_layers_are_blocks():
    model = fold_batchnorm(build_model(ModelSpec(10, "resnet50")))
    names = shallow_tensors(model, 5)
    assert {name.split(".")[1] for name in names} == {"conv1", "layer1", "layer2"}
    assert not any("layer2.1" in name for name in names)


@pytest.mark.parametrize("architecture", ["vgg16", "resnet18", "mobilenet_v2"])
def test_folding_changes_no_output_and_survives_the_export(architecture):
    model = trained_like(ModelSpec(7, architecture, width=0.25))
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(3, 3, 32, 32)
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(folded(x).detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    names = shallow_tensors(folded, 3)
    session = onnxruntime.InferenceSession(export_onnx(folded, 32, keep=names))
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, rtol=1e-3, atol=1e-3)


def test_biases_that_are_all_zero_keep_their_slot():
    folded = fold_batchnorm(build_model(ModelSpec(10, "resnet18")))  # untrained: every folded bias is zero
    export_onnx(folded, 32, keep=shallow_tensors(folded, 2))


def test_an_unknown_architecture_or_depth_is_refused():
    with pytest.raises(InputError, match="resnet999"):
        build_model(ModelSpec(10, "resnet999"))
    with pytest.raises(InputError, match="13 layers"):
        shallow_tensors(fold_batchnorm(build_model(ModelSpec(10, width=0.1))), 14)
    with pytest.raises(InputError, match="fold"):
        shallow_tensors(build_model(ModelSpec(10, width=0.1)), 2)
