import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from oracle import FormatError, InputError
from training.export import export_onnx
from training.models import ModelSpec, build_model, fold_batchnorm, group_layers, shallow_tensors


def trained_like(spec: ModelSpec) -> nn.Module:
    """An untrained model whose BatchNorm statistics are not the trivial ones."""
    torch.manual_seed(0)
    model = build_model(spec, 7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


@pytest.mark.parametrize("spec", [ModelSpec(width=0.25), ModelSpec(width=0.25, batch_norm=False)])
def test_vgg16_has_thirteen_convolutions_and_takes_any_size(spec):
    model = build_model(spec, 10)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 13
    for size in (32, 64):
        assert model(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_full_width_has_the_papers_shallow_parameters():
    model = fold_batchnorm(build_model(ModelSpec(), 10))
    parameters = dict(model.named_parameters())
    assert sum(parameters[name].numel() for name in shallow_tensors(model)) == 555_328


def test_resnet50s_five_layers_are_blocks():
    model = fold_batchnorm(build_model(ModelSpec("resnet50"), 10))
    names = shallow_tensors(model, 5)
    assert {name.split(".")[1] for name in names} == {"conv1", "layer1", "layer2"}
    assert not any("layer2.1" in name for name in names)


@pytest.mark.parametrize("architecture", ["vgg16", "resnet18", "mobilenet_v2"])
def test_folding_changes_no_output_and_survives_the_export(architecture):
    model = trained_like(ModelSpec(architecture, width=0.25))
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(3, 3, 32, 32)
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(folded(x).detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    names = shallow_tensors(folded, 3)
    session = onnxruntime.InferenceSession(export_onnx(folded, 32, keep=names))
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, rtol=1e-3, atol=1e-3)


def test_biases_that_are_all_zero_keep_their_slot():
    folded = fold_batchnorm(build_model(ModelSpec("resnet18"), 10))  # untrained: every folded bias is zero
    export_onnx(folded, 32, keep=shallow_tensors(folded, 2))


def test_an_unknown_architecture_or_depth_is_refused():
    with pytest.raises(InputError, match="resnet999"):
        build_model(ModelSpec("resnet999"), 10)
    with pytest.raises(InputError, match="13 layers"):
        shallow_tensors(fold_batchnorm(build_model(ModelSpec(width=0.1), 10)), 14)
    with pytest.raises(InputError, match="fold"):
        shallow_tensors(build_model(ModelSpec(width=0.1), 10), 2)


def test_residual_blocks_are_one_layer_also_by_name():
    names = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "x.layer2.0.conv1", "x.layer2.0.conv2"]
    assert [len(layer) for layer in group_layers(names)] == [1, 2, 1, 2]
    assert [len(layer) for layer in group_layers(["features.0", "features.3"])] == [1, 1]


def test_auxiliary_outputs_are_refused():
    with pytest.raises(InputError, match="auxiliary"):
        build_model(ModelSpec("googlenet"), 10)


def test_pretrained_weights_are_taken_where_they_fit(tmp_path):
    torch.manual_seed(1)
    trained = build_model(ModelSpec(width=0.1), 7)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = build_model(ModelSpec(width=0.1, weights=str(tmp_path / "w.safetensors")), 10)
    assert torch.equal(model.features[0].weight, trained.features[0].weight)
    assert model.classifier.weight.shape == (10, trained.classifier.weight.shape[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"", "no weights"),
        ("w.pt", b"garbage", "no weights"),
        ("w.safetensors", b"garbage", "no weights"),
        ("none.pt", None, "no file"),
        ("NO_SUCH_WEIGHTS", None, "torchvision's vgg16"),
    ],
)
def test_weights_that_cannot_be_had_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    weights = str(path) if path.suffix else name
    with pytest.raises((InputError, FormatError), match=message):
        build_model(ModelSpec(width=0.1, weights=weights), 10)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"something.else": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no tensor fits"):
        build_model(ModelSpec(width=0.1, weights=str(tmp_path / "w.safetensors")), 10)
