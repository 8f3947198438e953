"""Bundles changed after they were written, as an attacker would."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.faults.fakes import endless
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
    """Let the model of a bundle work without end, as `endless` does."""
    replace_file(folder, "model.onnx", endless((folder / "model.onnx").read_bytes(), side, products))
