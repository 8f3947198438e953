import pytest
import torch

from rws.errors import InputError
from rws.training.data.images import Images
from rws.training.models.architectures import ModelSpec, build_model, fold_batchnorm, shallow_tensors
from rws.training.models.fit import Corrupted, FitRecipe, fit
from rws.training.signatures.deltas import patched
from rws.training.signatures.tuned import TuneRecipe, shallow_part, tuned_signature


@pytest.fixture
def images(clear) -> Images:
    pixels, labels = clear
    return Images(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("abcdefghij")
    )


@pytest.mark.parametrize("target", ["output", "labels"])
def test_tuning_changes_the_shallow_tensors_only_and_lowers_the_loss(images, target):
    torch.manual_seed(0)
    recipe = FitRecipe(epochs=20, batch_size=16, learning_rate=0.05, crop=1, precision="fp32")
    std = fold_batchnorm(fit(build_model(ModelSpec(width=0.1), 10), images, recipe))
    before = {name: parameter.detach().clone() for name, parameter in std.named_parameters()}
    names = shallow_tensors(std, 2)
    losses: list[float] = []
    recipe = TuneRecipe(target=target, epochs=6, batch_size=16, learning_rate=3e-3, crop=1, precision="fp32")
    deltas = tuned_signature(
        std, images, Corrupted("contrast"), names, recipe, report=lambda record: losses.append(record["loss"])
    )
    assert tuple(deltas) == names
    assert all(float(delta.abs().max()) > 0 for delta in deltas.values())
    for name, parameter in std.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    assert losses[-1] < losses[0]
    changed = dict(patched(std, deltas).named_parameters())
    assert {name for name in before if not torch.equal(changed[name], before[name])} == set(names)


def test_tuning_without_labels_never_reads_them(images):
    std = fold_batchnorm(build_model(ModelSpec(width=0.1), 10))
    recipe = TuneRecipe(epochs=1, batch_size=32, precision="fp32")
    names = shallow_tensors(std, 2)
    one = tuned_signature(std, images, Corrupted("fog"), names, recipe)
    other = tuned_signature(
        std, Images(images.pixels, images.labels * 0, images.classes), Corrupted("fog"), names, recipe
    )
    for name in names:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spec", "inputs"), [(ModelSpec(width=0.1), "features.17"), (ModelSpec("resnet18"), "1.layer3.1.conv1")]
)
def test_the_shallow_part_is_what_the_first_deep_layer_sees(spec, inputs):
    torch.manual_seed(0)
    model = fold_batchnorm(build_model(spec, 5))
    x, seen = torch.rand(2, 3, 32, 32), []
    model.get_submodule(inputs).register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model(x)
    names = shallow_tensors(model, 5 if spec.architecture == "vgg16" else 6)
    part = shallow_part(model, names)
    assert torch.equal(part(x), seen[0])
    own = dict(model.named_parameters())
    assert {id(parameter) for parameter in part.parameters()} == {id(own[name]) for name in names}


def test_without_a_deep_layer_there_is_no_shallow_part():
    model = fold_batchnorm(build_model(ModelSpec(width=0.1), 5))
    with pytest.raises(InputError, match="no layer beyond"):
        shallow_part(model, [name for name, _ in model.named_parameters()])


def test_tuning_on_the_shallow_output_brings_it_closer_to_the_clean_one_and_needs_no_labels(image_folder):
    from rws.training.data.images import load_images

    data = load_images(image_folder, "train")
    torch.manual_seed(0)
    std = fold_batchnorm(build_model(ModelSpec(width=0.1), len(data.classes)))
    names = shallow_tensors(std, 3)
    recipe = TuneRecipe(target="shallow", epochs=10, batch_size=16, learning_rate=1e-2, precision="fp32")
    corrupted = Corrupted("contrast")
    deltas = tuned_signature(std, data, corrupted, names, recipe)
    shuffled = Images(data.pixels, data.labels.flip(0), data.classes)
    again = tuned_signature(std, shuffled, corrupted, names, recipe)
    assert all(torch.equal(deltas[name], again[name]) for name in names)
    seeds = torch.arange(len(data))
    clean, dull = data.pixels / 255, corrupted(data.pixels, seeds) / 255
    with torch.inference_mode():
        aim = shallow_part(std, names)(clean)
        before = (shallow_part(std, names)(dull) - aim).norm()
        after = (shallow_part(patched(std, deltas), names)(dull) - aim).norm()
    assert after < 0.85 * before
