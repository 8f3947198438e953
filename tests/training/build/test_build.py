import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.edit import remove_signature
from rws.edge.bundle.options import ModelOptions
from rws.edge.signatures.signature_set import SignatureSet
from rws.errors import FormatError, InputError
from rws.training.build.build import Build
from rws.training.build.recipe import load_recipe
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.gain import CalibrationRecipe, measure_gain
from rws.training.models.architectures import build_model, fold_batchnorm
from rws.training.signatures.deltas import DELTAS
from support.command_line import TINY, invoke, rws


def test_the_command_builds_a_bundle_that_runs(built, clear):
    out, _, done = built
    assert f"wrote {out}" in done.stdout
    bundle = Bundle.load(out)
    assert bundle.signatures.names == CORRUPTIONS
    assert bundle.manifest.provenance["recipe"]["seed"] == 1
    x = (clear[0][0].transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
    model = bundle.model(ModelOptions(threads=1))
    clean = model.predict(x)[0]
    assert model.apply({"fog": 1.0})
    assert not np.array_equal(model.predict(x)[0], clean)
    model.reset()
    np.testing.assert_array_equal(model.predict(x)[0], clean)
    assert bundle.oracle(threads=1).observe(x).joint.sum() == pytest.approx(1, abs=1e-4)


def test_every_job_left_a_record(built):
    records = [json.loads(line) for line in (built[1] / "log.jsonl").read_text().splitlines()]
    jobs = {record["job"] for record in records}
    assert {"init", "std", "oracle", "gain"} <= jobs
    assert {f"signature-tuned-{name}" for name in CORRUPTIONS} <= jobs


def test_a_finished_build_is_not_repeated(built, tiny_recipe, image_folder, tmp_path):
    out, work, _ = built
    lines = (work / "log.jsonl").read_text().splitlines()
    invoke("train", image_folder, "--recipe", tiny_recipe, "--work", work, "--out", tmp_path / "again")
    added = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()[len(lines) :]]
    assert not [record for record in added if "epoch" in record or "corruption" in record]
    for name in ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize("where", [("--workers", 2), ("--on", "ray")])
def test_elsewhere_the_same_bundle_is_made(built, tiny_recipe, image_folder, tmp_path, where, ray_address):
    options = ("--recipe", tiny_recipe, "--work", tmp_path / "work", "--out", tmp_path / "bundle", "--threads", 1)
    rws("train", image_folder, *options, *where)
    for name in ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"):
        assert (tmp_path / "bundle" / name).read_bytes() == (built[0] / name).read_bytes()


def test_building_onto_a_bundle_keeps_its_model_and_signatures(built, tiny_recipe, image_folder, tmp_path):
    out, work = built[0], tmp_path / "work"
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("widths = [8, 8]", "widths = [8, 12]").replace("seed = 1", "seed = 2"))
    arguments = (image_folder, "--recipe", other, "--work", work, "--onto", out)
    invoke("train", *arguments, "--out", tmp_path / "onto")
    for name, kept in (("model.onnx", True), ("signatures.safetensors", True), ("oracle.onnx", False)):
        assert ((tmp_path / "onto" / name).read_bytes() == (out / name).read_bytes()) is kept
    jobs = {json.loads(line)["job"] for line in (work / "log.jsonl").read_text().splitlines()}
    assert jobs == {"oracle", "gain"}
    recipes = [Bundle.load(path).manifest.provenance["recipe"] for path in (tmp_path / "onto", out)]
    assert recipes[0]["oracle"]["widths"] == [8, 12]
    assert recipes[0]["model"] == recipes[1]["model"]
    assert recipes[0]["seed"] == recipes[1]["seed"] == 1  # else the model is evaluated on images that it was trained on


def test_a_bundle_without_one_of_the_signatures_is_calibrated_for_all_corruptions(
    built, tiny_recipe, image_folder, tmp_path
):
    shutil.copytree(built[0], tmp_path / "fewer")
    remove_signature(tmp_path / "fewer", "fog")
    arguments = (image_folder, "--recipe", tiny_recipe, "--work", tmp_path / "work")
    invoke("train", *arguments, "--onto", tmp_path / "fewer", "--out", tmp_path / "out")
    bundle = Bundle.load(tmp_path / "out")
    assert "fog" not in bundle.signatures.names
    assert bundle.manifest.corruptions == CORRUPTIONS
    assert CORRUPTIONS.index("fog") not in bundle.table.signature
    assert bundle.table.own("fog").tolist() == [0]


def test_a_signature_of_no_known_corruption_cannot_be_calibrated(clear):
    images, model = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), Bundle.load("cifar10").model(ModelOptions(threads=1))
    with pytest.raises(InputError, match="'rain' is for no corruption"):
        measure_gain(model, ("fog", "rain"), images, CalibrationRecipe(), lambda *_: 0.0)


def test_a_bundle_is_not_calibrated_with_images_of_other_classes(built, tiny_recipe, image_folder, tmp_path):
    other = tmp_path / "images"
    shutil.copytree(image_folder, other)
    for split in ("train", "test"):
        (other / split / "frog").rename(other / split / "toad")
    arguments = (other, "--recipe", tiny_recipe, "--work", tmp_path / "work")
    failed = invoke("train", *arguments, "--onto", built[0], check=False)
    assert failed.returncode == 3
    assert "class folder 'frog' is missing" in failed.stderr


def test_a_part_that_was_lost_is_made_again_to_the_same_bytes(built, tiny_recipe, image_folder, tmp_path):
    work = built[1]
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    (copy / "signature-tuned-fog.safetensors").unlink()
    arguments = (image_folder, "--recipe", tiny_recipe, "--work", copy, "--threads", 1)
    rws("train", *arguments, "--job", "tuned")
    assert (copy / "signature-tuned-fog.safetensors").read_bytes() == (
        work / "signature-tuned-fog.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "artefact"),
    [
        ("seed = 1", "seed = 2", "init.pt"),
        ("[tuned]\nepochs = 1", "[tuned]\nepochs = 2", "signature-tuned-gaussian_noise.safetensors"),
        ("widths = [8, 8]", "widths = [8, 9]", "oracle.npz"),
        ("neighbours = 1", "neighbours = 2", "gain.npz"),
    ],
)
def test_a_work_folder_of_another_build_is_refused(built, image_folder, tmp_path, old, new, artefact):
    other = tmp_path / "other.toml"
    assert old in TINY
    other.write_text(TINY.replace(old, new))
    out = tmp_path / "bundle"
    failed = invoke("train", image_folder, "--recipe", other, "--work", built[1], "--out", out, check=False)
    assert failed.returncode == 3
    assert f"{artefact} was made from another recipe" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not out.exists()


def test_a_folder_without_splits_builds_too(built, tiny_recipe, image_folder, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(image_folder / "train", flat)
    done = invoke("train", flat, "--recipe", tiny_recipe, "--work", tmp_path / "work", "--job", "init", "-v")
    assert "epoch 2" in done.stdout


def test_images_that_are_not_square_are_refused_before_training(tiny_recipe, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            cv2.imwrite(str(tmp_path / f"images/{name}/{number}.png"), np.zeros((20, 30, 3), np.uint8))
    work = tmp_path / "work"
    failed = invoke("train", tmp_path / "images", "--recipe", tiny_recipe, "--work", work, check=False)
    assert failed.returncode == 3
    assert "30x20" in failed.stderr
    assert not (work / "init.pt").exists()


def test_extract_tunes_signatures_without_labels(built, tiny_recipe, image_folder, tmp_path):
    out = tmp_path / "fog.safetensors"
    invoke(
        *("extract", "--method", "tuned", "--recipe", tiny_recipe, "--std", built[1] / "std.pt"),
        *("--data", image_folder, "--corruption", "fog", "--layers", 2, "--out", out),
    )
    signatures = SignatureSet.load(out)
    assert signatures.names == ("fog",)
    assert signatures.clean_hash == SignatureSet.load(built[0] / "signatures.safetensors").clean_hash
    assert all(np.abs(delta).max() > 0 for delta in signatures.get("fog").values())


def test_extract_makes_residual_signatures_from_checkpoints(built, tiny_recipe, image_folder, tmp_path):
    _, work, _ = built
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    invoke("train", image_folder, "--recipe", tiny_recipe, "--work", copy, "--threads", 1, "--job", "residual")
    out = tmp_path / "signatures.safetensors"
    invoke(
        *("extract", "--recipe", tiny_recipe, "--layers", 2, "--out", out, "--json", tmp_path / "norms.json"),
        *("--init", copy / "init.pt", "--std", copy / "std.pt"),
        *("--robust", f"fog={copy / 'robust-fog.pt'}", "--robust", f"snow={copy / 'robust-snow.pt'}"),
    )
    signatures = SignatureSet.load(out)
    assert signatures.names == ("fog", "snow")
    assert json.loads((tmp_path / "norms.json").read_text())["norm"]["fog"]
    residual = DELTAS.decode((copy / "signature-residual-fog.safetensors").read_bytes())
    for tensor, delta in residual.items():
        np.testing.assert_allclose(
            signatures.get("fog")[tensor], delta.numpy(), atol=float(delta.abs().max()) / 127 + 1e-9
        )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("extract", "--std", "none.onnx", "--robust", "fog=x.onnx", "--out", "o"), 3, "none.onnx: cannot be read"),
        (("extract", "--std", "none.onnx", "--robust", "fog=x.onnx", "--out", "missing/o"), 3, "folder does not exist"),
        (("extract", "--std", "bad.pt", "--robust", "fog=bad.pt", "--out", "o"), 2, "say with --recipe"),
        (
            ("extract", "--std", "bad.pt", "--robust", "fog=bad.pt", "--out", "o", "--recipe", "cifar10"),
            3,
            "no weights",
        ),
        (("extract", "--std", "bad.pt", "--out", "o"), 2, "needs --robust"),
        (("extract", "--method", "tuned", "--std", "bad.pt", "--out", "o"), 2, "needs --data"),
        (("train", "nowhere", "--recipe", "nothing"), 3, "no recipe"),
        (("train", "nowhere", "--device", "cuda:99", "--work", "w"), 2, "device 'cuda:99' cannot be used"),
        (("train", "nowhere", "--device", "gpu", "--work", "w"), 2, "device 'gpu' cannot be used"),
        (("train", "nowhere", "--work", "bad.pt"), 3, "bad.pt"),
        (("train", "nowhere", "--work", "w"), 3, "no folder nowhere"),
        (("train", "nowhere", "--job", "magic", "--work", "w"), 2, "unknown job"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(b"garbage")
    failed = invoke(*arguments, check=False)
    assert failed.returncode == code
    assert message in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--size", "--threads"])
def test_a_number_that_no_build_can_use_is_refused_by_name(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = invoke("train", "nowhere", option, 0, check=False)
    assert failed.returncode == 2
    assert option in failed.stderr


def test_a_bundle_whose_provenance_has_a_wrong_split_is_not_built_onto(tiny_recipe, tmp_path):
    shutil.copytree(CIFAR10_BUNDLE, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    manifest["provenance"]["recipe"]["data"]["validation"] = "many"
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=r"provenance of bundle .*data.validation is 'many'"):
        Build(load_recipe(tiny_recipe), "nowhere", tmp_path / "work", onto=Bundle.load(tmp_path / "bundle"))


@pytest.fixture
def build(tiny_recipe, image_folder, tmp_path):
    """A build whose models continue with BatchNorm folded, from the init of another build with other classes."""

    def make(name, **changes):
        recipe = load_recipe(tiny_recipe)
        signatures = replace(recipe.signatures, fold_first=True)
        short = replace(recipe.init, epochs=1, batch_size=4, learning_rate=0.01)
        parts = dict.fromkeys(("init", "continued", "robust", "augmented"), short)
        tuned = replace(recipe.tuned, batch_size=4)
        recipe = replace(recipe, signatures=signatures, tuned=tuned, **parts, **changes)
        return lambda **more: Build(recipe, str(image_folder), tmp_path / name, **more)

    ancestor = make("ancestor")()
    few = replace(ancestor.recipe.data, classes=3, validation=4)
    return make("own", data=few)(ancestor=ancestor)


def test_an_init_begins_from_its_ancestor_but_for_the_head(build):
    model, ancestor = build.new_model(), build.ancestor.init()
    same_classes = build.ancestor.new_model()
    assert build.identity() != build.ancestor.identity()
    torch.manual_seed(build.recipe.seed)
    twin = Build(build.ancestor.recipe, build.source, build.work / "twin", ancestor=build.ancestor)
    assert torch.equal(
        twin.new_model().get_parameter("classifier.weight"), same_classes.get_parameter("classifier.weight")
    )
    own, other = model.state_dict(), ancestor.state_dict()
    assert torch.equal(own["features.0.weight"], other["features.0.weight"])
    assert own["classifier.weight"].shape == (3, other["classifier.weight"].shape[1])


def test_models_continue_without_batchnorm_where_it_is_folded_first(build):
    std, robust, augmented = build.std(), build.robust("fog"), build.augmented()
    folded = fold_batchnorm(build.init())
    for model in (std, robust, augmented):
        assert not [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        moved = (model.get_parameter("features.0.weight") - folded.get_parameter("features.0.weight")).norm()
        assert 0 < moved < folded.get_parameter("features.0.weight").norm()
    residual = build.signature("residual", "fog")
    base = dict(std.named_parameters())
    for name, delta in residual.items():
        direction = (base[name] - folded.get_parameter(name)).detach()
        assert abs(float((delta * direction).sum())) <= 1e-3 * float(delta.norm() * direction.norm()) + 1e-9


def test_a_standard_model_may_see_a_share_of_its_images_corrupted(tiny_recipe, image_folder, tmp_path):
    models, records = [], []
    for share in (0.0, 0.5):
        recipe = replace(load_recipe(tiny_recipe), corrupted_share=share)
        made = Build(recipe, str(image_folder), tmp_path / str(share), progress=records.append)
        models.append(made.std().state_dict())
    assert not torch.equal(*(state["features.0.weight"] for state in models))
    done = [record for record in records if "done" in record]
    assert [record["job"] for record in done] == ["init", "std"] * 2
    assert all("validation_accuracy" in record for record in done)


def test_the_stem_of_airbench_is_made_from_the_images_unless_weights_are_given(tiny_recipe, image_folder, tmp_path):
    recipe = load_recipe(tiny_recipe)
    spec = replace(recipe.model, architecture="airbench", width=0.25, widths=())
    first = Build(replace(recipe, model=spec), str(image_folder), tmp_path / "first").new_model()
    assert torch.equal(first.stem.weight[:12], -first.stem.weight[12:])
    torch.manual_seed(1)
    given = build_model(spec, 10)
    torch.save(given.state_dict(), tmp_path / "given.pt")
    spec = replace(spec, weights=str(tmp_path / "given.pt"))
    second = Build(replace(recipe, model=spec), str(image_folder), tmp_path / "second").new_model()
    assert torch.equal(second.stem.weight, given.stem.weight)


def test_a_mirrored_bundle_answers_for_both_images_with_what_was_trained(tiny_recipe, image_folder, tmp_path, clear):
    recipe, records = load_recipe(tiny_recipe), []
    spec = replace(recipe.model, architecture="airbench")
    for mirrored in (False, True):
        build = replace(recipe, stored=8, model=replace(spec, mirrored=mirrored))
        Build(build, str(image_folder), tmp_path, progress=records.append).bundle(tmp_path / str(mirrored))
        (tmp_path / "gain.npz").unlink()
    assert sum(record["job"] == "std" and "done" in record for record in records) == 1
    stored = onnx.load(tmp_path / "True" / "model.onnx").graph.initializer
    whole = {tensor.name for tensor in stored if len(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.INT8}
    assert whole >= {"normalise.mean", "normalise.std", "stem.weight", "features.0.conv.weight"}
    assert not any(name.startswith(("features.1", "classifier")) and "scale" not in name for name in whole)
    before, after = (Bundle.load(tmp_path / name).model(ModelOptions(threads=1)) for name in ("False", "True"))
    x = (clear[0][0].transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
    for mix in ({}, {"fog": 1.0}):
        before.apply(mix)
        after.apply(mix)
        both = (before.predict(x)[0] + before.predict(x[:, :, ::-1].copy())[0]) / 2
        np.testing.assert_allclose(after.predict(x)[0], both, atol=1e-5)


def test_targets_of_tuning_have_different_signatures(build):
    assert build.method_name("tuned-output") == "tuned"
    labels, output = build.signature("tuned-labels", "fog"), build.signature("tuned-output", "fog")
    name = build.tensors[0]
    assert not torch.equal(labels[name], output[name])
    assert torch.equal(build.signature("tuned", "fog")[name], output[name])


def test_a_training_that_was_stopped_resumes_after_its_last_epoch_to_the_same_weights(
    tiny_recipe, image_folder, tmp_path
):
    epochs = []

    def stop_after_the_first(record):
        epochs.append(record.get("epoch", "done"))
        if len(epochs) == 1:
            raise KeyboardInterrupt

    def build(name, progress=None):
        return Build(load_recipe(tiny_recipe), str(image_folder), tmp_path / name, progress=progress)

    whole = build("whole").init().state_dict()
    with pytest.raises(KeyboardInterrupt):
        build("stopped", stop_after_the_first).init()
    assert not (tmp_path / "stopped" / "init.pt").exists()
    found = build("stopped", stop_after_the_first).init().state_dict()
    assert epochs == [1, 2, "done"]
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert not list((tmp_path / "stopped").glob("*.checkpoint"))


def test_a_damaged_file_is_named_and_not_overwritten(build):
    build.init()
    (build.work / "init.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"init\.pt is damaged; remove it"):
        build.init()
