import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.self_test import self_test
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import read_model
from rws.errors import InputError, OperatorError
from rws.training.adopt.build import BEGINS_FROM, FIRST, AdoptionBuild
from rws.training.adopt.graph import run_onnx
from rws.training.adopt.model import ImportedModel, ImportOptions, adopt_model
from rws.training.adopt.outputs import Wanted
from rws.training.corruptions import KNOWN
from rws.training.data.clean_images import CleanImages, shrunk
from rws.training.data.photographs import Photographs
from rws.training.models.loop import train
from support.classifiers import SIZE, images, tiny, with_operator_behind
from support.command_line import CLASSES
from support.quantised import quantised


def test_what_torch_exports_by_default_for_one_image_can_be_trained_through(recipe, clean_images, tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 6, 3, stride=2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(6, len(CLASSES)),
    ).eval()
    file = tmp_path / "default.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, SIZE, SIZE),), str(file), dynamo=True, external_data=False)
    adopted = adopt_model(file.read_bytes())
    with torch.no_grad():
        expected = network(torch.from_numpy(images())).numpy()
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), expected, atol=1e-4)
    build = AdoptionBuild(adopted, clean_images, replace(recipe, layers=1), tmp_path / "work")
    assert (build.target, build.why_shallow) == ("output", "")


def test_an_operator_that_cannot_be_trained_through_is_named_and_the_shallow_part_still_can_be(
    recipe, clean_images, tmp_path
):
    adopted = adopt_model(with_operator_behind("Shrink").SerializeToString())
    with pytest.raises(OperatorError, match="Shrink"):
        AdoptionBuild(adopted, clean_images, replace(recipe, target="output"), tmp_path)
    build = AdoptionBuild(adopted, clean_images, recipe, tmp_path)
    assert build.target == "shallow"
    assert "Shrink" in build.why_shallow
    assert all(delta.abs().max() > 0 for delta in build.signature("fog").values())


@pytest.mark.parametrize("form", ["qdq", "dynamic"])
def test_a_quantised_model_is_trained_on_its_twin(recipe, clean_images, tmp_path, form):
    model = quantised(tiny(), form, images(8), tmp_path)
    adopted = adopt_model(model.SerializeToString(), ImportOptions(layers=2))
    build = AdoptionBuild(adopted, clean_images, recipe, tmp_path / "work")
    assert (build.target, build.layers) == ("output", 2)
    assert all(delta.abs().max() > 0 for delta in build.signature("fog").values())


def test_a_bundle_holds_a_model_of_which_only_the_shallow_part_is_float32(recipe, clean_images, tmp_path):
    model = quantised(tiny(), "qoperator", images(8), tmp_path)
    adopted = adopt_model(model.SerializeToString(), ImportOptions(layers=2))
    AdoptionBuild(adopted, clean_images, recipe, tmp_path / "work").bundle(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    self_test(bundle)
    kinds = [node.op_type for node in read_model(bundle.read("model.onnx")).graph.node]
    assert (kinds.count("Conv"), kinds.count("QLinearConv")) == (2, 2)
    found, expected = bundle.model().predict(images(4))[0], run_onnx(model, images(4))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_training_restores_the_output_on_corrupted_images(recipe, clean_images, tmp_path):
    adopted = adopt_model(Bundle.load("cifar10").read("model.onnx"))
    build = AdoptionBuild(adopted, clean_images, replace(recipe, layers=4, steps=40, batch_size=16), tmp_path)
    deltas = build.signature("contrast")
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    assert set(deltas) == set(build.tensors)


def test_a_signature_that_is_there_is_not_made_again_and_one_that_is_lost_is_made_to_the_same_bytes(
    recipe, clean_images, tmp_path
):
    adopted = adopt_model(tiny().SerializeToString())
    AdoptionBuild(adopted, clean_images, recipe, tmp_path).signature("shot_noise")
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert {name.rpartition("-")[0] for name in made} == {"signature-gaussian_noise", "signature-shot_noise"}
    lines = len((tmp_path / "log.jsonl").read_text().splitlines())
    AdoptionBuild(adopted, clean_images, recipe, tmp_path).signature("shot_noise")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == lines
    next(tmp_path.glob("signature-shot_noise-*.safetensors")).unlink()
    AdoptionBuild(adopted, clean_images, recipe, tmp_path).signature("shot_noise")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == made


def test_builds_with_different_recipes_share_a_work_folder(recipe, clean_images, tmp_path):
    adopted = adopt_model(tiny().SerializeToString())
    quick = AdoptionBuild(adopted, clean_images, recipe, tmp_path).signature("gaussian_noise")
    AdoptionBuild(adopted, clean_images, replace(recipe, steps=4), tmp_path).signature("gaussian_noise")
    assert len(list(tmp_path.glob("signature-gaussian_noise-*.safetensors"))) == 2
    lines = len((tmp_path / "log.jsonl").read_text().splitlines())
    again = AdoptionBuild(adopted, clean_images, recipe, tmp_path).signature("gaussian_noise")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == lines
    assert all(np.array_equal(again[name], quick[name]) for name in quick)


def test_every_corruption_begins_from_one_that_is_made_before():
    for name in KNOWN:
        chain = [name]
        while chain[-1] in BEGINS_FROM:
            chain.append(BEGINS_FROM[chain[-1]])
            assert len(chain) <= len(KNOWN)
            assert chain[-1] in KNOWN


@pytest.mark.parametrize(
    ("count", "classes", "message"),
    [
        (8, None, "found 8 images"),
        (40, ["a"], "class names"),
        (40, ["a\tb", *CLASSES[1:]], "not printable"),
        (40, ["", *CLASSES[1:]], "not printable"),
    ],
)
def test_too_few_images_or_names_are_refused(recipe, clean_images, tmp_path, count, classes, message):
    adopted = adopt_model(tiny().SerializeToString())
    with pytest.raises(InputError, match=message):
        AdoptionBuild(adopted, CleanImages(clean_images.pixels[:count]), recipe, tmp_path, classes=classes)


def test_of_a_video_the_last_frames_are_held_out_because_neighbours_are_alike(recipe, clean_images, tmp_path):
    adopted = adopt_model(tiny().SerializeToString())
    build = AdoptionBuild(adopted, replace(clean_images, sequential=True), recipe, tmp_path)
    held = len(build.held_out)
    assert held == 8
    assert torch.equal(build.held_out.flip(0), clean_images.pixels[-held:])
    assert torch.equal(build.train.flip(0), clean_images.pixels[:-held])


def test_patches_of_a_signature_reach_the_deployed_model(recipe, clean_images, tmp_path):
    adopted = adopt_model(tiny().SerializeToString())
    build = AdoptionBuild(adopted, clean_images, recipe, tmp_path)
    model = OnnxModel(adopted.onnx, build.signatures(), build.tensors, "cpu", 1)
    clean = model.predict(images())[0]
    model.apply({"contrast": 1.0})
    assert not np.array_equal(model.predict(images())[0], clean)
    model.reset()
    np.testing.assert_array_equal(model.predict(images())[0], clean)


@pytest.mark.parametrize("epochs", [3, 10])  # 10: all were trained, but the signature was not written
def test_a_signature_that_was_stopped_goes_on_to_the_same_bits(recipe, clean_images, tmp_path, monkeypatch, epochs):
    model = adopt_model(tiny().SerializeToString())
    recipe = replace(recipe, steps=20)
    whole = AdoptionBuild(model, clean_images, recipe, tmp_path / "whole").signature("fog")
    seen: list[int] = []

    def stopping(module, optimiser, batches, loss_of, plan, *, checkpoint, report):
        def stop(record):
            seen.append(record["epoch"])
            report(record)
            if seen == list(range(1, epochs + 1)):
                raise KeyboardInterrupt

        return train(module, optimiser, batches, loss_of, plan, checkpoint=checkpoint, report=stop)

    monkeypatch.setattr("rws.training.adopt.build.train", stopping)
    with pytest.raises(KeyboardInterrupt):
        AdoptionBuild(model, clean_images, recipe, tmp_path / "stopped").signature("fog")
    found = AdoptionBuild(model, clean_images, recipe, tmp_path / "stopped").signature("fog")
    assert seen == list(range(1, 11))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert not list((tmp_path / "stopped").glob("*.checkpoint"))


def test_a_gain_table_that_is_there_is_not_counted_as_work_that_is_left(recipe, clean_images, tmp_path):
    adopted, records = adopt_model(tiny().SerializeToString()), []
    work, out = tmp_path / "work", tmp_path / "bundle"
    large = [
        image.permute(1, 2, 0).repeat_interleave(2, 0).repeat_interleave(2, 1).numpy() for image in clean_images.pixels
    ]
    with_photographs = replace(clean_images, photographs=Photographs({"camera": large}))
    AdoptionBuild(adopted, with_photographs, recipe, work).bundle(out)
    for file in work.glob("oracle-*"):
        file.unlink()
    AdoptionBuild(adopted, with_photographs, recipe, work, progress=records.append).bundle(out)
    assert {record["job"] for record in records} == {"oracle"}
    assert records[0]["minutes_left"] >= 0
    assert "minutes_left" not in records[-1]


def detector(batch: object = "batch", head: str = "Sigmoid") -> bytes:
    """A map of objectness, box and three classes per 16 pixels, for images of 64x96."""
    random = np.random.default_rng(3)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.normal(size=shape) / 3).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], strides=[4, 4], kernel_shape=[4, 4]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], strides=[4, 4], kernel_shape=[4, 4]),
        helper.make_node(head, ["c1"], ["map"]),
    ]
    kept = [weights("w0", 6, 3, 4, 4), weights("b0", 6), weights("w1", 8, 6, 4, 4), weights("b1", 8)]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, 3, 64, 96])],
        [helper.make_tensor_value_info("map", onnx.TensorProto.FLOAT, [batch, 8, 4, 6])],
        kept,
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def adopted_detector(**changes: object) -> ImportedModel:
    wanted, names = Wanted("detect", head="fastestdet"), ("cat", "dog", "owl")
    return adopt_model(detector(**changes), ImportOptions(wanted=wanted, names=names, fit="stretch"))


@pytest.fixture(scope="module")
def wide_images() -> CleanImages:
    coarse = torch.rand(24, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return CleanImages((255 * torch.nn.functional.interpolate(coarse, (64, 96), mode="bicubic").clamp(0, 1)).byte())


def test_a_detector_of_wide_images_gets_a_bundle_and_before_it_one_of_the_first_signatures(
    recipe, wide_images, tmp_path
):
    out, first = tmp_path / "bundle", []

    def watch(record):
        if record["job"] == "first-bundle":
            first.append(Bundle.load(out))

    AdoptionBuild(adopted_detector(), wide_images, replace(recipe, layers=1), tmp_path / "work", progress=watch).bundle(
        out
    )
    (early,) = first
    assert early.signatures.names == FIRST
    assert early.manifest.measured["partial"].startswith("4 of 23")
    bundle = Bundle.load(out)
    assert bundle.signatures.names == KNOWN
    assert "partial" not in bundle.manifest.measured
    assert (bundle.manifest.task.name, bundle.manifest.task.head) == ("detect", "fastestdet")
    assert (bundle.manifest.input.fit, bundle.manifest.classes) == ("stretch", ("cat", "dog", "owl"))
    assert bundle.manifest.measured["what"].startswith("mAP50")
    assert len(self_test(bundle)) == 4


def test_a_model_of_a_fixed_batch_is_trained_in_its_parts_to_the_signature_of_a_free_one(recipe, wide_images, tmp_path):
    recipe, free = replace(recipe, layers=1, recalibrate=0), adopted_detector()
    found = [
        AdoptionBuild(model, wide_images, recipe, tmp_path / str(model.batch)).signature("fog")
        for model in (free, replace(free, batch=3))
    ]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-4, rtol=1e-3)


def test_frames_are_corrupted_at_their_own_size_and_then_shrunk(recipe, wide_images, tmp_path):
    frames = torch.nn.functional.interpolate(wide_images.pixels.float(), scale_factor=2, mode="bicubic")
    large = CleanImages(frames.round().clamp(0, 255).byte())
    build = AdoptionBuild(adopted_detector(), large, recipe, tmp_path / "large")
    assert build.train.shape[1:] == build.held_out.shape[1:] == (3, 64, 96)
    small = AdoptionBuild(adopted_detector(), CleanImages(shrunk(large.pixels, (64, 96))), recipe, tmp_path / "small")
    assert torch.equal(build.train, small.train)
    # Noise is weaker in frames that are shrunk.
    deltas = [each.signature("gaussian_noise")["w0"].abs().mean() for each in (build, small)]
    assert 0 < deltas[0] != deltas[1]
    with pytest.raises(InputError, match="the model takes 64x96"):
        AdoptionBuild(adopted_detector(), CleanImages(large.pixels[..., :100]), recipe, tmp_path)


def test_a_loss_without_a_gradient_is_refused_before_anything_is_trained(recipe, wide_images, tmp_path):
    options = ImportOptions(wanted=Wanted("raw"), fit="stretch")
    model = adopt_model(detector(head="Sign"), options)
    build = AdoptionBuild(model, wide_images, replace(recipe, layers=1), tmp_path / "work")
    with pytest.raises(InputError, match=r"map does not change with the weights.*--output"):
        build.bundle(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert not list((tmp_path / "work").glob("signature-*"))
