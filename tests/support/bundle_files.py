"""Bundles changed after they were written, as an attacker would."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rws.edge.bundle.bundle import Bundle
from rws.errors import BundleError, RwsError


def edit_manifest(folder: Path, change) -> None:
    document = json.loads((folder / "bundle.json").read_text())
    change(document)
    (folder / "bundle.json").write_text(json.dumps(document))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and let the manifest agree."""
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit_manifest(folder, lambda document: document["files"].__setitem__(name, entry))


def edit_network(folder: Path, change, name: str = "model.onnx") -> None:
    proto = onnx.load_model_from_string((folder / name).read_bytes())
    change(proto)
    replace_file(folder, name, proto.SerializeToString())


def assert_refused(folder: Path, message: str, kind: type[RwsError] = BundleError) -> None:
    with pytest.raises(kind, match=message) as caught:
        Bundle.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(folder) in str(caught.value) or kind is not BundleError


def make_costly(folder: Path, side: int = 4096, products: int = 1000) -> None:
    """Let the model multiply matrices of `side` x `side` so many times; the sizes follow from computed values only."""

    def change(proto):
        graph = proto.graph
        output = graph.output[0].name
        for node in graph.node:
            node.output[:] = ["plain" if name == output else name for name in node.output]
        half, small = np.array([side // 2], np.int64), np.array([1e-9], np.float32)
        graph.initializer.extend([numpy_helper.from_array(half, "half"), numpy_helper.from_array(small[0], "tiny")])
        steps = [
            ("Add", ["half", "half"], "side"),
            ("Concat", ["side", "side"], "shape"),
            ("ConstantOfShape", ["shape"], "product0"),
            *(("MatMul", [f"product{i}", "product0"], f"product{i + 1}") for i in range(products)),
            ("ReduceMean", [f"product{products}"], "mean"),
            ("Mul", ["mean", "tiny"], "nothing"),
            ("Add", ["plain", "nothing"], output),
        ]
        options = {
            "Concat": {"axis": 0},
            "ConstantOfShape": {"value": numpy_helper.from_array(small, "value")},
            "ReduceMean": {"keepdims": 0},
        }
        nodes = [onnx.helper.make_node(kind, inputs, [name], **options.get(kind, {})) for kind, inputs, name in steps]
        graph.node.extend(nodes)

    edit_network(folder, change)
