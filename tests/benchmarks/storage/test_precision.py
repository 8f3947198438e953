import json
import shutil

import numpy as np
import pytest

from rws.benchmarks.replay.replay import replay
from rws.benchmarks.storage.precision import compare_encodings, encodings_of, float_encoding, float_file
from rws.edge.bundle.bundle import Bundle
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import clean_tensors, shallow_tensors
from rws.edge.signatures.signature_set import shallow_sha256
from rws.errors import FormatError, InputError
from rws.training.evaluation.evaluator import EvaluationOptions
from rws.training.signatures.deltas import DELTAS
from support.command_line import invoke
from support.tiny import network

CODES = [(32, ""), (16, "channel"), (16, "tensor"), (8, "channel"), (8, "tensor"), (4, "channel"), (4, "tensor")]


@pytest.fixture(scope="module")
def report(built, image_folder, tmp_path_factory):
    out, work, _ = built
    file = tmp_path_factory.mktemp("precision") / "signatures.json"
    done = invoke(
        *("bench", "signatures", "--bundle", out, "--work", work, "--data", image_folder, "--limit", 40),
        *("--threads", 1, "--json", file),
    )
    return json.loads(file.read_text()), done.stdout


def test_the_command_compares_every_encoding(report):
    result, shown = report
    assert [(row["bits"], row["per"]) for row in result["rows"]] == CODES
    assert result["images"] == 40
    assert result["corruptions"] == len(result["alphas"]) == 19
    assert "bench signatures" in result["command"]
    for row in result["rows"]:
        assert f"{row['bytes']:,}" in shown


def test_a_reset_restores_the_clean_accuracy(report):
    result, _ = report
    assert {row["ta_after_reset"] for row in result["rows"]} == {result["ta"]}


def test_fewer_bits_are_smaller_and_scales_per_channel_add_little(report, built):
    bytes_of = {(row["bits"], row["per"]): row["bytes"] for row in report[0]["rows"]}
    sizes = [bytes_of[code] for code in CODES]
    assert sizes == sorted(sizes, reverse=True)
    assert bytes_of[8, "channel"] == (built[0] / "signatures.safetensors").stat().st_size


def test_without_a_build_the_bundles_own_bits_are_measured_as_in_the_replay(image_folder):
    bundle = Bundle.load("cifar10")
    options = EvaluationOptions(limit=60, seed=3)
    result = compare_encodings(bundle, str(image_folder), options=options)
    replayed = replay(bundle, str(image_folder), options=options)
    row = {"bits": 8, "per": "channel", "bytes": bundle.manifest.files["signatures.safetensors"].bytes}
    assert result["rows"] == [row | {"ra": replayed["ra"]["perfect"], "ta_after_reset": replayed["ta"]["std"]}]
    assert result["ta"] == replayed["ta"]["std"]
    assert result["ra_no_patch"] == replayed["ra"]["std"]


def test_float_signatures_patch_as_float_weights_do():
    model = network(3, 4, seed=1)
    clean = clean_tensors(model, shallow_tensors(model, 2))
    rng = np.random.default_rng(0)
    # Values over six orders of magnitude: a single 16-bit code would lose the small ones.
    deltas = {
        "fog": {
            name: (rng.normal(size=array.shape) * 10.0 ** -rng.integers(0, 6, array.shape)).astype(np.float32)
            for name, array in clean.items()
        }
    }
    code = float_encoding(deltas, shallow_sha256(clean))
    parts = [code.signatures.get(name) for name in ("fog", "fog.rest")]
    for tensor, delta in deltas["fog"].items():
        error = np.abs(parts[0][tensor].astype(np.float64) + parts[1][tensor] - delta)
        assert error.max() <= np.abs(delta).max() * 2.0**-31
    assert code.mix({"fog": 0.5}) == {"fog": 0.5, "fog.rest": 0.5}
    assert code.mix({}) == {}
    assert code.bytes == len(float_file(deltas)) > 4 * sum(delta.size for delta in deltas["fog"].values())

    patched = network(3, 4, seed=1)
    for tensor in patched.graph.initializer:
        if tensor.name in clean:
            tensor.raw_data = (clean[tensor.name] + np.float32(0.5) * deltas["fog"][tensor.name]).tobytes()
    x = rng.random((4, 3, 8, 8), np.float32)
    mixed = OnnxModel(model.SerializeToString(), code.signatures, tuple(clean), threads=1)
    assert mixed.apply(code.mix({"fog": 0.5}))
    expected = OnnxModel(patched.SerializeToString(), None, tuple(clean), threads=1).predict(x)[0]
    np.testing.assert_allclose(mixed.predict(x)[0], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_work_folder_of_another_build_is_refused(built, tmp_path):
    bundle, work = Bundle.load(built[0]), tmp_path / "work"
    with pytest.raises(InputError, match="no file"):
        encodings_of(bundle, work)
    shutil.copytree(built[1], work, ignore=shutil.ignore_patterns("*.pt", "images"))
    fog = work / "signature-tuned-fog.safetensors"
    deltas = DELTAS.decode(fog.read_bytes())
    fog.write_bytes(DELTAS.encode({name: delta * 1.5 for name, delta in deltas.items()}))
    with pytest.raises(InputError, match="are not those of"):
        encodings_of(bundle, work)
    fog.write_bytes(DELTAS.encode(dict(list(deltas.items())[1:])))
    with pytest.raises(InputError, match="give the work folder of the build"):
        encodings_of(bundle, work)
    fog.write_bytes(b"damaged")
    with pytest.raises(FormatError, match="holds no weights"):
        encodings_of(bundle, work)


def test_data_without_clean_images_is_refused(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(5, np.int64))
    np.save(tmp_path / "fog.npy", np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="lacks clean images"):
        compare_encodings(Bundle.load("cifar10"), str(tmp_path))
