"""Bundles that mean harm, for a watched folder; the hashes of some agree, so that they come further."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rws.edge.bundle.manifest import MANIFEST, MODEL, ORACLE, POLICY, SIGNATURES

Damage = Callable[[Path], object]


def place(good: Path, watched: Path, name: str, damage: Damage | None = None) -> None:
    """Make a watched folder a copy of a good bundle with another name, and damage it."""
    for entry in watched.iterdir():
        entry.unlink()
    shutil.copytree(good, watched, dirs_exist_ok=True)
    # What has the manifest of the bundle that runs is no new bundle.
    _edit_manifest(watched, lambda document: document.update(name=name))
    if damage is not None:
        damage(watched)


def _edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def _instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def _changed(name: str, change: Callable[[bytes], bytes], *, hashed: bool = True) -> Damage:
    """Change a file; if `hashed`, the manifest says its new size and hash."""

    def damage(folder: Path) -> None:
        data = change((folder / name).read_bytes())
        (folder / name).write_bytes(data)
        if hashed:
            entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            _edit_manifest(folder, lambda document: document["files"].update({name: entry}))

    return damage


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _network(change: Callable[[onnx.ModelProto], object], name: str = MODEL) -> Damage:
    def changed(data: bytes) -> bytes:
        proto = onnx.load_model_from_string(data)
        change(proto)
        return bytes(proto.SerializeToString())

    return _changed(name, changed)


def _endless(proto: onnx.ModelProto) -> None:
    number, flag = (
        partial(helper.make_tensor_value_info, shape=[], elem_type=kind)
        for kind in (TensorProto.INT64, TensorProto.BOOL)
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["n", "i"], ["n2"])],
        "again",
        [number("i"), flag("go"), number("n")],
        [flag("on"), number("n2")],
    )
    proto.graph.node.extend(
        [
            helper.make_node("Constant", [], ["one"], value_int=1),
            helper.make_node("Cast", ["one"], ["always"], to=TensorProto.BOOL),
            helper.make_node("Loop", ["", "always", "one"], ["m"], body=body),
        ]
    )


def _much(proto: onnx.ModelProto) -> None:
    proto.graph.node.extend(
        [
            helper.make_node("Constant", [], ["much"], value_ints=[2**31]),
            helper.make_node("ConstantOfShape", ["much"], ["unused"]),
        ]
    )


def _not_a_number(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[:1] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _elsewhere(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../etc/hostname")


_manifest = partial(_changed, MANIFEST, hashed=False)
BAD: dict[str, Damage] = {
    "the manifest is a FIFO": _instead(MANIFEST, os.mkfifo),
    "the manifest is a link": _instead(MANIFEST, lambda path: path.symlink_to("/etc/hostname")),
    "the manifest has 1 TB": lambda folder: os.truncate(folder / MANIFEST, 2**40),
    "the manifest is cut": _manifest(_half),
    "the manifest is deep": _manifest(lambda _: b"[" * 100_000),
    "the manifest has a number of 4,000 digits": _manifest(
        lambda data: data.replace(b'"bytes": ', b'"bytes": ' + b"9" * 4000, 1)
    ),
    "the manifest is empty": _manifest(lambda _: b" "),
    "other classes": lambda folder: _edit_manifest(folder, lambda document: document["classes"].reverse()),
    "the model is a FIFO": _instead(MODEL, os.mkfifo),
    "the model is a link to a device": _instead(MODEL, lambda path: path.symlink_to("/dev/zero")),
    "the model is cut": _changed(MODEL, _half, hashed=False),
    "the model is altered": _changed(MODEL, lambda data: data[:-1] + bytes([data[-1] ^ 1]), hashed=False),
    "the model is missing": lambda folder: (folder / MODEL).unlink(),
    "the model reads another file": _network(_elsewhere),
    "the model never ends": _network(_endless),
    "the model takes 8 GB": _network(_much),
    "the model has weights that are NaN": _network(_not_a_number),
    "the oracle has weights that are NaN": _network(_not_a_number, ORACLE),
    "the policy is cut": _changed(POLICY, _half),
    "the signatures have a header of 2^60 bytes": _changed(
        SIGNATURES, lambda data: (2**60).to_bytes(8, "little") + data[8:]
    ),
}
