"""`rws inspect`, `rws verify`, `rws bundle list|add|remove`, as a user calls them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import FILES
from rws.edge.onnx.graph import clean_tensors, read_model
from rws.edge.preprocess import InputSpec
from support.tiny import CORRUPTIONS, make_signatures


def rws(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def extra(bundle_path, tmp_path):
    """A file with the signatures `rain` and `hail` for the bundle's model."""
    bundle = Bundle.load(bundle_path)
    clean = clean_tensors(read_model(bundle.read("model.onnx")), bundle.signatures.tensors)
    path = tmp_path / "extra.safetensors"
    make_signatures(clean, ["rain", "hail"]).save(path)
    return path


def test_inspect_shows_what_is_inside_and_writes_it(bundle_path, tmp_path):
    result = rws("inspect", bundle_path, "--json", tmp_path / "out.json")
    assert result.exit_code == 0
    for text in ("tiny", "8 x 8 RGB", "star", "fog", "8 bit per channel", "ta: 25.0"):
        assert text in result.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["signatures"] == {"names": list(CORRUPTIONS), "bits": 8, "per": "channel"}
    assert document["measured"] == {"ta": 25.0}


@pytest.fixture
def shelf(bundle_path, tmp_path):
    """A folder of bundles: a good one, a damaged one, and another folder."""
    shelf = tmp_path / "shelf"
    for name in ("damaged", "good"):
        shutil.copytree(bundle_path, shelf / name)
    (shelf / "damaged" / "oracle.onnx").write_bytes(b"x")
    (shelf / "notes").mkdir()
    return shelf


def test_upgrade_rewrites_an_old_bundle_and_says_what_it_did(bundle_path):
    first = json.loads((bundle_path / "bundle.json").read_text())
    first |= {"version": 1, "input": {key: first["input"][key] for key in ("height", "width", "colour")}}
    del first["task"], first["outputs"]
    (bundle_path / "bundle.json").write_text(json.dumps(first))
    (bundle_path / "bundle.sig").write_bytes(b"s" * 64)
    result = rws("bundle", "upgrade", bundle_path)
    assert (result.exit_code, "is now in version 2" in result.output) == (0, True)
    assert "signature no longer holds and was removed" in result.output
    again = rws("bundle", "upgrade", bundle_path)
    assert (again.exit_code, "is already in version 2 of the format" in again.output) == (0, True)
    assert "signature" not in again.output
    refused = rws("bundle", "upgrade", bundle_path.parent)
    assert (refused.exit_code, "Traceback" in refused.output) == (3, False)


def test_inspect_says_what_the_model_takes_and_gives(bundle_path):
    output = rws("inspect", bundle_path).output
    assert "classify; reads logits" in output
    assert "8 x 8 RGB, float32 NCHW to 1, by crop" in output


def test_list_shows_the_bundles_that_ship_and_those_in_folders(bundle_path, shelf, caplog):
    document = json.loads(rws("bundle", "list", bundle_path, shelf, "--json", "-").stdout)
    *ships, tiny, good = document["bundles"]
    known = [(bundle["name"], bundle["signatures"], bundle["classes"]) for bundle in ships]
    assert known == [("fastestdet", 23, 80), ("cifar10", 19, 10)]
    assert tiny == {
        "name": "tiny",
        "classes": 4,
        "input": asdict(InputSpec(8, 8, "RGB")),
        "signatures": 3,
        "bytes": sum((bundle_path / name).stat().st_size for name in FILES),
        "path": str(bundle_path),
    }
    assert good == {**tiny, "path": str(shelf / "good")}
    assert "oracle.onnx" in caplog.text
    shown = rws("bundle", "list", bundle_path).stdout
    assert [word in shown for word in ("tiny", "8 x 8 RGB", "cifar10")] == [True] * 3
    (marked,) = [line for line in shown.splitlines() if "default" in line]
    assert "80" in marked


def test_list_names_a_subfolder_that_cannot_be_read(shelf, caplog):
    (shelf / "loop").symlink_to("loop")
    (shelf / "file").write_bytes(b"x")
    document = json.loads(rws("bundle", "list", shelf, "--json", "-").stdout)
    assert [Path(bundle["path"]).name for bundle in document["bundles"][2:]] == ["good"]
    assert f"{shelf / 'loop'}: cannot be read (Too many levels of symbolic links)" in caplog.text
    assert "file" not in caplog.text.replace(str(shelf), "")


def test_list_refuses_a_folder_without_bundles(tmp_path):
    result = rws("bundle", "list", tmp_path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no bundle here" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_the_group_has_the_commands_of_the_top_level(bundle_path, command):
    assert rws("bundle", command, bundle_path).output == rws(command, bundle_path).output


def test_a_description_goes_to_stdout_alone(bundle_path):
    result = rws("inspect", bundle_path, "--json", "-")
    assert json.loads(result.stdout)["name"] == "tiny"
    assert "8 x 8 RGB" in result.stderr
    assert rws("inspect", bundle_path, "--json", "-", "-q").stderr == ""


def test_verify_says_what_it_checked(bundle_path):
    result = rws("verify", bundle_path)
    assert result.exit_code == 0
    assert "3 signatures patch it" in result.output
    assert all(line.startswith("ok  ") for line in result.output.splitlines())


def test_add_and_remove(bundle_path, extra):
    result = rws("bundle", "add", bundle_path, extra, "--name", "rain")
    assert result.exit_code == 0
    assert "now has 4 signatures" in result.output
    assert "does not choose rain" in result.output
    result = rws("bundle", "remove", bundle_path, "fog")
    assert result.exit_code == 0
    assert Bundle.load(bundle_path).signatures.names == ("gaussian_noise", "contrast", "rain")


def test_transfer(bundle_path, tmp_path):
    bundle = Bundle.load(bundle_path)
    clean = clean_tensors(read_model(bundle.read("model.onnx")), bundle.signatures.tensors)
    make_signatures({name: array + 1 for name, array in clean.items()}, ["rain"]).save(tmp_path / "other.safetensors")
    assert rws("bundle", "add", bundle_path, tmp_path / "other.safetensors").exit_code == 3
    assert rws("bundle", "add", bundle_path, tmp_path / "other.safetensors", "--transfer").exit_code == 0
    assert "rain" in Bundle.load(bundle_path).signatures.names


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["bundle", "remove"], ["bundle", "add"]])
def test_a_truncated_bundle_is_one_line_and_exit_code_3(bundle_path, extra, command):
    data = (bundle_path / "model.onnx").read_bytes()
    (bundle_path / "model.onnx").write_bytes(data[: len(data) // 2])
    before = sorted(os.listdir(bundle_path))
    more = {"remove": ["fog"], "add": [extra]}.get(command[-1], [])
    result = rws(*command, bundle_path, *more)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "truncated" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(os.listdir(bundle_path)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove", "rain"], "'rain' is not there; known: gaussian_noise, fog, contrast"),
        (["add", "none.safetensors"], "none.safetensors: cannot be read"),
        (["add", "bundle/signatures.safetensors"], "'gaussian_noise' is already there; remove it first"),
        (["add", "bundle/policy.safetensors"], "expected 'rws-signatures'"),
        (["add", "bundle/model.onnx"], "not a whole safetensors file"),
    ],
)
def test_a_refused_change_is_one_line_and_changes_nothing(bundle_path, monkeypatch, arguments, message):
    monkeypatch.chdir(bundle_path.parent)
    before = {path.name: path.read_bytes() for path in bundle_path.iterdir()}
    result = rws("bundle", arguments[0], "bundle", *arguments[1:])
    assert result.exit_code == 3
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in bundle_path.iterdir()} == before
    assert os.listdir(".") == ["bundle"]


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["bundle"], ["bundle", "add"], ["bundle", "remove"]])
def test_help_shows_examples(command):
    result = rws(*command, "--help")
    assert result.exit_code == 0
    assert f"rws {' '.join(command)}" in result.output
    assert "Examples:" in result.output


def test_commands_import_nothing_heavy_before_they_run():
    commands = ", ".join(f"rws.edge.cli.{name}" for name in ("bundle", "drill", "oracle", "run"))
    code = f"import sys, {commands}; print([m for m in ('torch', 'onnx', 'onnxruntime', 'cv2') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_installed_command(bundle_path):
    script = os.path.join(os.path.dirname(sys.executable), "rws")
    (bundle_path / "policy.safetensors").write_bytes(b"x")
    found = subprocess.run([script, "verify", str(bundle_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert len(found.stderr.splitlines()) == 1
