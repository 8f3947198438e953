import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rws.errors import FormatError, InputError
from rws.training.models.architectures import ModelSpec, build_model, fold_batchnorm, group_layers, shallow_tensors
from rws.training.models.export import export_onnx


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


def test_airbench_folds_though_it_pools_before_its_norms():
    torch.manual_seed(0)
    model, x = build_model(ModelSpec("airbench", width=0.25), 10).train(), torch.rand(8, 3, 32, 32)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
        nn.init.normal_(norm.bias, std=0.2)
    model(x)
    expected = model.eval()(x).detach().numpy()
    np.testing.assert_allclose(fold_batchnorm(model)(x).detach().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_stem_of_airbench_decorrelates_neighbouring_pixels(clear):
    pixels = torch.from_numpy(clear[0]).permute(0, 3, 1, 2).contiguous()
    model = build_model(ModelSpec("airbench", width=0.25), 10)
    before = model.stem.weight.clone()
    model.whiten(pixels)
    assert not torch.equal(before, model.stem.weight)
    assert torch.equal(model.stem.weight[:12], -model.stem.weight[12:])
    found = model.stem(model.normalise(pixels.float() / 255)).transpose(0, 1).flatten(1)[:12]
    covariance = found @ found.T / found.shape[1]
    spread = covariance.diagonal()
    assert float((covariance - torch.diag(spread)).abs().max()) < 0.02
    assert float(spread.max()) == pytest.approx(1, abs=0.02)
    names = shallow_tensors(fold_batchnorm(model), 2)
    assert names == ("stem.weight", "stem.bias", "features.0.conv.weight", "features.0.conv.bias")


def test_airbench_may_answer_for_the_mirror_image_too_but_not_in_training():
    plain, both = (trained_like(ModelSpec("airbench", width=0.25, mirrored=mirrored)) for mirrored in (False, True))
    both.load_state_dict(plain.state_dict())
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(both(x), (plain(x) + plain(x.flip(-1))) / 2)
    torch.testing.assert_close(both.train()(x), plain.train()(x))
    with pytest.raises(InputError, match="mirrored is for airbench, not vgg16"):
        build_model(ModelSpec(mirrored=True), 10)


@pytest.mark.parametrize("architecture", ["vgg16", "airbench"])
def test_widths_that_do_not_fit_are_refused(architecture):
    with pytest.raises(InputError, match="positive"):
        build_model(ModelSpec(architecture, widths=(8, 0)), 10)


def test_full_width_has_the_papers_shallow_parameters():
    model = fold_batchnorm(build_model(ModelSpec(), 10))
    parameters = dict(model.named_parameters())
    assert sum(parameters[name].numel() for name in shallow_tensors(model)) == 555_328


@pytest.mark.slow
def test_resnet50s_five_layers_are_blocks():
    model = fold_batchnorm(build_model(ModelSpec("resnet50"), 10))
    names = shallow_tensors(model, 5)
    assert {name.split(".")[1] for name in names} == {"conv1", "layer1", "layer2"}
    assert not any("layer2.1" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "width"), [("vgg16", 0.25), ("airbench", 0.25), ("resnet18", 0.25), ("mobilenet_v2", 1.0)]
)
def test_folding_changes_no_output_and_survives_the_export(architecture, width):
    model = trained_like(ModelSpec(architecture, width=width, mirrored=architecture == "airbench"))
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(3, 3, 32, 32)
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(folded(x).detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    names = shallow_tensors(folded, 3)
    session = onnxruntime.InferenceSession(export_onnx(folded, 32, keep=names))
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_biases_that_are_all_zero_keep_their_slot():
    folded = fold_batchnorm(build_model(ModelSpec("resnet18"), 10))  # untrained: every folded bias is zero
    model = onnx.load_from_string(export_onnx(folded, 32, keep=shallow_tensors(folded, 2)))
    assert set(shallow_tensors(folded, 2)) <= {tensor.name for tensor in model.graph.initializer}
    assert "1.conv1.bias" in shallow_tensors(folded, 2)


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
        ("w.safetensors", b"\xff" * 8 + b"{}", "no weights"),
        ("w.pt", b"\x80\x02.", "no weights"),
        ("w.pt", b"PK\x03\x04" + bytes(60), "no weights"),
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


def test_a_narrow_resnet_has_the_same_layers_with_fewer_channels():
    full, narrow = (build_model(ModelSpec("resnet50", width=width, small_input=False), 7) for width in (1.0, 0.25))
    layers = [[len(stage) for stage in (m[1].layer1, m[1].layer2, m[1].layer3, m[1].layer4)] for m in (full, narrow)]
    assert layers[0] == layers[1] == [3, 4, 6, 3]
    assert narrow[1].layer3[0].conv2.out_channels == full[1].layer3[0].conv2.out_channels // 4
    assert narrow(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(InputError, match=r"width 0\.5 is for"):
        build_model(ModelSpec("mobilenet_v2", width=0.5), 7)


@pytest.fixture
def imagenet_like(tmp_path):
    """The first seven convolutions of a VGG-16 under torchvision's names, as a file."""
    torch.manual_seed(1)
    found, channels = {}, 3
    for number, width in zip((0, 2, 5, 7, 10, 12, 14), (64, 64, 128, 128, 256, 256, 256), strict=True):
        found[f"features.{number}.weight"] = torch.randn(width, channels, 3, 3)
        found[f"features.{number}.bias"] = torch.randn(width)
        channels = width
    save_file(found, tmp_path / "vgg.safetensors")
    return str(tmp_path / "vgg.safetensors"), found


def test_pretrained_convolutions_are_found_by_their_order_where_batchnorm_shifts_their_numbers(imagenet_like):
    path, found = imagenet_like
    plain = build_model(ModelSpec(batch_norm=False, weights=path), 10)
    normed = build_model(ModelSpec(batch_norm=True, weights=path), 10)
    convolutions = [module for module in normed.modules() if isinstance(module, nn.Conv2d)]
    for name, convolution in zip([n for n in found if n.endswith("weight")], convolutions, strict=False):
        assert torch.equal(convolution.weight, found[name])
        assert torch.equal(plain.get_parameter(name), found[name])


def test_a_narrow_vgg_takes_the_strongest_filters_and_their_own_inputs(imagenet_like):
    path, found = imagenet_like
    model = build_model(ModelSpec(width=0.25, batch_norm=False, weights=path), 10)
    first, second = found["features.0.weight"], found["features.2.weight"]
    kept = first.abs().sum((1, 2, 3)).topk(16).indices.sort().values
    assert torch.equal(model.features[0].weight, first[kept])
    assert torch.equal(model.features[0].bias, found["features.0.bias"][kept])
    strongest = second[:, kept].abs().sum((1, 2, 3)).topk(16).indices.sort().values
    torch.testing.assert_close(model.features[2].weight, 2 * second[strongest][:, kept])
