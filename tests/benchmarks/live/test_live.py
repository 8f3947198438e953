"""The table of live weights: one case in this Python, in another process, and with AVX-512 hidden."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rws.benchmarks.live.case import measure
from rws.benchmarks.live.models import DEFAULT, export
from rws.benchmarks.live.table import AVX2, AVX512, TableOptions, features, measure_table
from rws.benchmarks.pages import latency
from rws.errors import InputError
from support.command_line import invoke
from support.tiny import network


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network(5, 4, seed=0).SerializeToString())
    return path


def test_a_case(model):
    row = measure(model, seed=0, rounds=1)
    assert row["tensors"] == 10
    assert row["exact"] is row["changed"] is row["from_cache"] is True
    assert row["strategy"] == "live"
    assert row["error"] == 0
    assert 0 < row["live_low"] <= row["live"] <= row["live_high"]
    assert list(model.parent.iterdir()) == [model]


def test_a_model_without_convolutions(tmp_path):
    path = tmp_path / "linear.onnx"
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(0, 1, (8, 3)).astype(np.float32), "w")
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [2, 8]), ("y", [2, 3]))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    row = measure(path, seed=0, rounds=1)
    assert (row["weights"], row["exact"]) == (24, True)


def test_a_table_keeps_faults_as_rows(model, tmp_path):
    kept, said = [], []
    (tmp_path / "empty.onnx").write_bytes(b"")
    options = TableOptions([sys.executable], tmp_path / "work", rounds=1)
    options.work.mkdir()
    specs = [str(model), str(tmp_path / "empty.onnx"), "torchvision/no_such_model"]
    measure_table(specs, options, said.append, lambda rows: kept.append(len(rows)))
    assert kept[0] == len(features())
    assert any("BundleError" in line for line in said)
    assert len(said) == 2 * len(features())


def test_the_command(model, tmp_path):
    out = tmp_path / "table.json"
    invoke("bench", "live", "--model", model, "--rounds", 1, "--json", out)
    result = json.loads(out.read_text())
    assert result["schema"] == "live/1"
    assert {row["features"] for row in result["rows"]} == set(features())
    assert all(row["exact"] for row in result["rows"])


@pytest.mark.skipif(AVX512 not in features() or AVX2 not in features(), reason="AVX-512 cannot be hidden here")
def test_hidden_avx512_changes_the_layout(model, tmp_path):
    """Blocks of 16 channels with AVX-512, of 8 with AVX2: 24 channels fill three of those."""
    from rws.benchmarks.live.table import hiding_library

    code = (
        "import sys, numpy as np, onnx, onnxruntime\n"
        "options = onnxruntime.SessionOptions(); options.log_severity_level = 3\n"
        "options.optimized_model_filepath = sys.argv[2]\n"
        "onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
        "print([list(t.dims) for t in onnx.load(sys.argv[2]).graph.initializer if len(t.dims) == 4])"
    )
    weights = numpy_helper.from_array(np.ones((24, 16, 3, 3), np.float32), "w")
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 16, 9, 9]), ("y", None))]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model)
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "optimised.onnx")]
    found = [
        subprocess.run(command, env={"LD_PRELOAD": library}, capture_output=True, text=True, check=True).stdout
        for library in ("", hiding_library(tmp_path))
    ]
    assert found == ["[[32, 16, 3, 3]]\n", "[[24, 16, 3, 3]]\n"]


@pytest.mark.slow
def test_an_architecture(tmp_path):
    path = export("torchvision/squeezenet1_1", tmp_path, seed=0)
    assert export("torchvision/squeezenet1_1", tmp_path, seed=0) == path
    onnx.checker.check_model(path)
    with pytest.raises(InputError, match=r"expected torchvision/NAME, timm/NAME or an \.onnx file"):
        export("squeezenet", tmp_path, seed=0)
    assert len(DEFAULT) == len(set(DEFAULT)) >= 30


def test_the_page_has_a_row_per_model(monkeypatch):
    row = {
        "model": "a",
        "megabytes": 1.0,
        "opset": 18,
        "weights": 1000,
        "strategy": "live",
        "exact": True,
        "p50_ms": 3.0,
    }
    row |= {"onnxruntime": "1.0", "again": 1.0, "again_high": 1.01, "live": 1.02, "patched": 1.02, "second_open": 1.2}
    refused = {"model": "b", "onnxruntime": "1.0", "features": "AVX2", "strategy": None, "fault": "no"}
    rows = [
        row | {"features": AVX512},
        row | {"features": AVX2, "exact": False},
        refused,
        {"model": "c", "fault": "export"},
    ]
    monkeypatch.setattr(latency, "lookup", lambda place: rows)
    assert "| 1.0 | AVX-512 | 1 | 1 | 0 | 1.000 | 1.020 | 1.020 | 1 | 0 | 1.20 |" in latency.live_summary()
    assert "| 1.0 | AVX2 | 2 | 0 | 1 |" in latency.live_summary()
    assert "| a | 1 | 18 | 1,000 | 3.0 | live = 1.02 / 1.02 | live ≈ 1.02 / 1.02 |" in latency.live_models()
    assert "| no |" in latency.live_models()
