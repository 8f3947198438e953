import json

import numpy as np
import onnx
import onnxruntime
import pytest

from rws.benchmarks.common.memory import can_measure, measure
from rws.benchmarks.common.models import load_model
from rws.benchmarks.storage.sizes import weighted_tensors, write_models
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import read_model
from rws.errors import RwsError
from support.command_line import invoke
from support.tiny import SIZE, network

CODES = [(32, ""), (16, "channel"), (16, "tensor"), (8, "channel"), (8, "tensor"), (4, "channel"), (4, "tensor")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The bundle `cifar10` and the text of the tables."""
    file = tmp_path_factory.mktemp("storage") / "storage.json"
    done = invoke("bench", "storage", "--json", file)
    return json.loads(file.read_text()), done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(network(3, 4, seed=1), file)
    return load_model(file, layers=2)


def test_every_encoding_has_a_row_for_shallow_and_for_all_layers(report):
    rows = report[0]["rows"]
    assert [row["what"] for row in rows] == ["model", "20 models"] + 14 * ["19 signatures"]
    for scope in ("full", "shallow"):
        assert [(row["bits"], row["per"]) for row in rows if row["scope"] == scope] == CODES
    assert "bench storage" in report[0]["command"]


def test_sizes_are_those_of_the_bundles_own_files(report):
    by_code = {(row["scope"], row["bits"], row["per"]): row for row in report[0]["rows"] if row["scope"]}
    model, models = report[0]["rows"][:2]
    assert model["bytes"] == (CIFAR10_BUNDLE / "model.onnx").stat().st_size
    assert models["bytes"] == 20 * model["bytes"]
    assert by_code["shallow", 8, "channel"]["bytes"] == (CIFAR10_BUNDLE / "signatures.safetensors").stat().st_size
    for (scope, bits, _), row in by_code.items():
        assert row["ratio"] == pytest.approx(1 + row["bytes"] / model["bytes"], abs=1e-4)
        assert row["bytes"] < by_code["full", bits, row["per"]]["bytes"] or scope == "full"
    # All layers at 32 bits are the whole model, except for the graph; the bundle's own has 8.
    whole = read_model(CIFAR10_BUNDLE / "model.onnx").ByteSize()
    assert by_code["full", 32, ""]["bytes"] == pytest.approx(19 * whole, rel=0.01)


@pytest.mark.skipif(not can_measure(), reason="only Linux counts it")
def test_memory_is_that_of_fresh_processes(report):
    imports, session, sessions, live = report[0]["memory"]
    assert [row["what"] for row in (imports, session, sessions, live)] == [
        *("imports", "session", "20 sessions", "live, 19 signatures")
    ]
    assert imports["private_bytes"] > 10e6
    assert imports["ratio"] is None
    assert session["ratio"] == 1
    assert 10 < sessions["ratio"] <= 21
    assert session["private_bytes"] > 3e6
    # The weights of the session, and the signatures.
    assert live["private_bytes"] > 4e6
    assert live["ratio"] == pytest.approx(live["private_bytes"] / session["private_bytes"], abs=1e-3)
    assert live["note"] in " ".join(report[1].split())
    assert all(row["peak_rss_bytes"] > 0 for row in (imports, session, sessions, live))


def test_all_convolutions_and_linear_layers_count(tiny):
    names = [f"{layer}.{kind}" for layer in ("features.0", "features.1", "features.2", "head") for kind in ("w", "b")]
    assert weighted_tensors(onnx.load_model_from_string(tiny.onnx)) == tuple(
        name.removesuffix(name[-1]) + {"w": "weight", "b": "bias"}[name[-1]] for name in names
    )


def test_the_twenty_models_are_the_clean_one_and_one_per_signature(tiny, tmp_path):
    files = write_models(tiny, tmp_path)
    assert len(files) == 20
    x = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    model = OnnxModel(tiny.onnx, tiny.signatures, tiny.tensor_names, threads=1)
    for file, mix in zip(files, [{}, *({name: 1.0} for name in tiny.signatures.names)], strict=True):
        model.apply(mix)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"image": x})[0], model.predict(x)[0], atol=1e-5)


def test_a_process_that_fails_is_reported_with_its_reason(tmp_path):
    file = tmp_path / "damaged.onnx"
    file.write_bytes(b"damaged")
    with pytest.raises(RwsError, match=r"'sessions' failed: .*damaged\.onnx"):
        measure("sessions", SIZE, [file])
