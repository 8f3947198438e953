import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import made_here
from rws.edge.bundle.options import ModelOptions
from rws.edge.onnx.graph import read_model
from rws.errors import InputError
from rws.training.adopt.graph import run_onnx
from rws.training.corruptions import KNOWN
from support.classifiers import SIZE, images, tiny
from support.command_line import CLASSES, invoke, rws
from support.tiny import network

PHOTOS = Path(__file__).parents[3] / "examples/photos"


@pytest.fixture(scope="module")
def command_built(image_files, tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    onnx.save(tiny(), root / "mine.onnx")
    recipe = root / "adopt.toml"
    recipe.write_text(
        "steps = 18\nlayers = 2\nbatch_size = 8\n"
        "[calibration]\nimages = 8\ncoarse_images = 4\nneighbours = 1\nneighbour_alphas = [1.0]\n"
    )
    arguments = ("adopt", root / "mine.onnx", image_files, "--quick", "--threads", 1, "--scale", 1)
    out, work = root / "bundle", root / "work"
    done = rws(*arguments, "--recipe", recipe, "--work", work, "--out", out)
    return out, work, done, root


def test_the_command_builds_a_bundle_that_runs(command_built, image_files, tmp_path):
    out, _, done, root = command_built
    assert f"wrote {out}" in done.stdout
    assert "with no patch" in done.stdout
    jobs = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" left")]
    assert set(jobs) == {*(f"signature-{name}" for name in KNOWN), "first-gain"}
    assert "steps_left" not in done.stdout
    bundle = Bundle.load(out)
    assert bundle.signatures.names == KNOWN
    assert bundle.manifest.measured["clean"] == 100  # agreement with itself
    original, x = read_model(root / "mine.onnx"), images()
    np.testing.assert_allclose(bundle.model(ModelOptions(threads=1)).predict(x)[0], run_onnx(original, x), atol=1e-4)
    patched = [bundle.model(ModelOptions(backend, threads=1, provider="cpu")) for backend in ("onnx", "torch")]
    for model in patched:
        assert model.apply({"fog": 1.0})
    np.testing.assert_allclose(patched[0].predict(x)[0], patched[1].predict(x)[0], atol=1e-4)
    ran = invoke("run", image_files, "--bundle", out, "--json", tmp_path / "summary.json")
    assert ran.returncode == 0
    assert json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.parametrize(("where", "nodes"), [(("--workers", 2), 1), *((("--on", "ray"), n) for n in (1, 2, 3))])
def test_elsewhere_the_same_bundle_is_made(command_built, image_files, tmp_path, where, nodes, ray_address, add_node):
    out, _, _, root = command_built
    for _ in range(nodes - 1):
        add_node()
    options = ("--recipe", root / "adopt.toml", "--work", tmp_path / "work", "--out", tmp_path / "bundle", *where)
    rws("adopt", root / "mine.onnx", image_files, "--quick", "--threads", 1, "--scale", 1, *options)
    for name in ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"):
        assert (tmp_path / "bundle" / name).read_bytes() == (out / name).read_bytes()


def test_a_dry_run_needs_no_more_than_an_image(command_built, image_files, tmp_path):
    shutil.copy(image_files / "0.png", tmp_path)
    arguments = ("adopt", command_built[3] / "mine.onnx", tmp_path, "--scale", 1, "--work", tmp_path / "work")
    assert invoke(*arguments, "--dry-run").returncode == 0
    assert "expected 16 or more" in invoke(*arguments, check=False).stderr


def test_an_array_makes_the_same_bundle(command_built, image_files, tmp_path):
    out, _, _, root = command_built
    options = ("--recipe", root / "adopt.toml", "--work", tmp_path / "work", "--out", tmp_path / "bundle")
    command = ("adopt", root / "mine.onnx", image_files, "--quick", "--threads", 1, "--scale", 1, *options)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda number: rws("job", "run", number, "of", 2, *command), (1, 2)))
    assert "wrote" in done[0].stdout
    assert "wrote" not in done[1].stdout
    for name in ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"):
        assert (tmp_path / "bundle" / name).read_bytes() == (out / name).read_bytes()


def test_the_signatures_of_a_bundle_can_be_kept_and_only_its_oracle_made(command_built, image_files, tmp_path):
    out, _, _, root = command_built
    old = Bundle.load(out)
    recipe = root / "oracle.toml"
    settings = "layers = 2\n[oracle]\nsizes = [64]\nframes = 100\nlooks = 1\nepochs = 1\n"
    recipe.write_text(settings)
    options = (image_files, "--scale", 1, "--recipe", recipe, "--work", tmp_path / "work", "--onto", out)
    done = rws("adopt", root / "mine.onnx", *options, "--own-oracle", PHOTOS, "--out", tmp_path / "mine")
    assert "keeps" in done.stdout
    assert "signature-" not in done.stdout
    new = Bundle.load(tmp_path / "mine")
    assert new.read("signatures.safetensors") == old.read("signatures.safetensors")
    assert new.read("policy.safetensors") == old.read("policy.safetensors")
    assert new.read("oracle.onnx") != old.read("oracle.onnx")
    assert new.manifest.provenance["signatures"] == old.manifest.provenance

    onnx.save(network(4, len(CLASSES), seed=6, size=SIZE), root / "other.onnx")
    refused = rws("adopt", root / "other.onnx", *options, "--out", tmp_path / "other", check=False)
    assert refused.returncode == 3
    assert "the model has" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_the_bundle_imagenet_is_made_where_all_commands_find_it(command_built, image_files, tmp_path, monkeypatch):
    out, _, _, root = command_built
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("rws.training.adopt.run.efficientnet_lite", lambda number, size: tiny().SerializeToString())
    monkeypatch.setattr("rws.training.adopt.run.imagenet_classes", lambda: CLASSES)
    missing = CliRunner().invoke(app, ["oracle", str(PHOTOS), "--bundle", "imagenet"])
    assert "rws adopt imagenet PHOTOS" in missing.stderr
    recipe = root / "adopt.toml"
    command = ["adopt", "imagenet", image_files, "--recipe", recipe, "--work", tmp_path / "work", "--onto", out]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert "--bundle imagenet" in done.output, done.exception
    assert Bundle.load("imagenet").manifest.classes == tuple(CLASSES)
    assert Bundle.load("imagenet").path == made_here("imagenet")
    assert "mine" not in CliRunner().invoke(app, ["bundle", "list"]).output
    assert "imagenet" in CliRunner().invoke(app, ["bundle", "list"]).output


@pytest.mark.parametrize(
    ("options", "layers", "target"),
    [
        ((), 2, "shallow"),
        (("--layers", 0), 0, "shallow"),
        (("--layers", 3), 3, "shallow"),
        (("--target", "auto"), 2, "auto"),
        (("--target", "output"), 2, "output"),
    ],
)
def test_what_is_given_on_the_command_line_replaces_what_the_recipe_says(
    options, layers, target, image_files, tmp_path, monkeypatch
):
    chosen = []

    def stop_before_training(adopted, clean_images, recipe, *rest, **more):
        chosen.append(recipe)
        raise InputError("enough seen")

    monkeypatch.setattr("rws.training.adopt.run.AdoptionBuild", stop_before_training)
    onnx.save(tiny(), tmp_path / "mine.onnx")
    (tmp_path / "adopt.toml").write_text('layers = 2\ntarget = "shallow"\n')
    arguments = [tmp_path / "mine.onnx", image_files, "--scale", 1, "--recipe", tmp_path / "adopt.toml"]
    done = CliRunner().invoke(app, ["adopt", *map(str, (*arguments, "--work", tmp_path / "work", *options))])
    assert "enough seen" in done.output
    assert [(recipe.layers, recipe.target) for recipe in chosen] == [(layers, target)]


def test_a_dry_run_says_what_is_understood_and_stops(image_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny(), tmp_path / "mine.onnx")
    done = invoke("adopt", "mine.onnx", image_files, "--dry-run", "--scale", 255, "--bgr")
    assert "input: 32x32, BGR 0…255" in done.stdout
    assert "task: classify: 10 logits" in done.stdout
    unclear = invoke("adopt", "mine.onnx", image_files, "--dry-run", check=False)
    assert unclear.returncode == 2
    assert "preprocessing: not clear" in unclear.stdout
    assert "say with --scale, --mean, --std and --bgr" in unclear.stderr
    assert not (tmp_path / "bundle").exists()


def test_weights_outside_the_cut_are_untouched(command_built):
    bundle = Bundle.load(command_built[0])
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny().graph.initializer}
    deployed = {t.name: numpy_helper.to_array(t) for t in read_model(bundle.read("model.onnx")).graph.initializer}
    assert tuple(bundle.signatures.tensors) == (
        "features.0.weight",
        "features.0.bias",
        "features.1.weight",
        "features.1.bias",
    )
    for name, array in original.items():
        np.testing.assert_array_equal(deployed[name], array)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("mine.onnx", "nowhere"), 4, "no such file or folder"),
        (("none.onnx", "empty"), 3, "none.onnx: cannot be read"),
        (("mine.onnx", "empty"), 4, "holds no image file"),
        (("mine.onnx", "empty", "--recipe", "none.toml"), 3, "no recipe none.toml"),
        (("mine.onnx", "empty", "--mean", "a,b"), 2, "--mean a,b"),
        (("mine.onnx", "empty", "--size", 64), 2, "takes 32x32"),
        (("mine.onnx", "empty", "--size", "32y32"), 2, "--size 32y32: expected a side"),
        (("mine.onnx", "empty", "--task", "segment"), 2, "say --task raw, or another --output"),
        (("mine.onnx", "empty", "--output", "nothing"), 2, "unknown output 'nothing'; known: logits"),
        (("package.module:factory", "empty"), 2, "say with --size"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    onnx.save(tiny(), tmp_path / "mine.onnx")
    failed = invoke("adopt", *arguments, check=False)
    assert failed.returncode == code
    assert message in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
