import json
import shutil

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.signatures import SignatureSet
from tests.conftest import TINY, rws
from training.corruptions import CORRUPTIONS


def test_the_command_builds_a_bundle_that_runs(built, clear):
    out, _, done = built
    assert f"wrote {out}" in done.stdout
    bundle = Bundle.load(out)
    assert bundle.signatures.names == CORRUPTIONS
    assert bundle.manifest.provenance["recipe"]["seed"] == 1
    x = (clear[0][0].transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
    model = bundle.model(threads=1)
    clean = model.predict(x)
    assert model.apply({"fog": 1.0})
    assert not np.array_equal(model.predict(x), clean)
    model.reset()
    np.testing.assert_array_equal(model.predict(x), clean)
    assert bundle.oracle(threads=1).observe(x).joint.sum() == pytest.approx(1, abs=1e-4)


def test_every_job_left_a_record(built):
    records = [json.loads(line) for line in (built[1] / "log.jsonl").read_text().splitlines()]
    jobs = {record["job"] for record in records}
    assert {"init", "std", "oracle", "gain"} <= jobs
    assert {f"signature-tuned-{name}" for name in CORRUPTIONS} <= jobs


def test_a_finished_build_is_not_repeated(built, tiny_recipe, image_folder, tmp_path):
    out, work, _ = built
    lines = (work / "log.jsonl").read_text().splitlines()
    rws("build", "--recipe", tiny_recipe, "--data", image_folder, "--work", work, "--out", tmp_path / "again")
    added = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()[len(lines) :]]
    assert not [record for record in added if "epoch" in record or "corruption" in record]
    for name in ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_part_that_was_lost_is_made_again_to_the_same_bytes(built, tiny_recipe, image_folder, tmp_path):
    work = built[1]
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    (copy / "signature-tuned-fog.safetensors").unlink()
    (copy / "tuning-fog.pt").unlink()
    arguments = ("--recipe", tiny_recipe, "--data", image_folder, "--work", copy, "--threads", 1)
    rws("build", *arguments, "--job", "tuned")
    assert (copy / "signature-tuned-fog.safetensors").read_bytes() == (
        work / "signature-tuned-fog.safetensors"
    ).read_bytes()


def test_a_work_folder_of_another_build_is_refused(built, image_folder, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("seed = 1", "seed = 2"))
    failed = rws("build", "--recipe", other, "--data", image_folder, "--work", built[1], check=False)
    assert failed.returncode == 2
    assert "another recipe" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_extract_makes_residual_signatures_from_checkpoints(built, tiny_recipe, image_folder, tmp_path):
    _, work, _ = built
    copy = tmp_path / "work"
    shutil.copytree(work, copy)
    rws("build", "--recipe", tiny_recipe, "--data", image_folder, "--work", copy, "--threads", 1, "--job", "residual")
    out = tmp_path / "signatures.safetensors"
    rws(
        *("extract", "--recipe", tiny_recipe, "--layers", 2, "--out", out, "--json", tmp_path / "norms.json"),
        *("--init", copy / "init.pt", "--std", copy / "std.pt"),
        *("--robust", f"fog={copy / 'robust-fog.pt'}", "--robust", f"snow={copy / 'robust-snow.pt'}"),
    )
    signatures = SignatureSet.load(out)
    assert signatures.names == ("fog", "snow")
    assert json.loads((tmp_path / "norms.json").read_text())["norm"]["fog"]
    from training.signatures import load_deltas

    for tensor, delta in load_deltas(copy / "signature-residual-fog.safetensors").items():
        np.testing.assert_allclose(
            signatures.get("fog")[tensor], delta.numpy(), atol=float(delta.abs().max()) / 127 + 1e-9
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "--std", "none.onnx", "--robust", "fog=x.onnx", "--out", "o"), "no file none.onnx"),
        (("build", "--recipe", "nothing"), "no recipe"),
        (("build", "--data", "nowhere", "--work", "w"), "no folder nowhere"),
        (("build", "--job", "magic", "--data", "nowhere", "--work", "w"), "unknown job"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = rws(*arguments, check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
