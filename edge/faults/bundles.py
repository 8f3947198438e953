"""Bundles that mean harm, for a watched folder; the hashes of some agree, so that they come further."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MODEL, ORACLE, POLICY, SIGNATURES = "model.onnx", "oracle.onnx", "policy.safetensors", "signatures.safetensors"
MANIFEST = "bundle.json"
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


def _with_hash(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    _edit_manifest(folder, lambda document: document["files"].update({name: entry}))


def _instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def _text(text: str) -> Damage:
    return _instead(MANIFEST, lambda path: path.write_text(text))


def _link(name: str, target: str) -> Damage:
    return _instead(name, lambda path: path.symlink_to(target))


def _half(name: str, *, repaired: bool) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        half = data[: len(data) // 2]
        _with_hash(folder, name, half) if repaired else (folder / name).write_bytes(half)

    return damage


def _flipped(folder: Path) -> None:
    data = bytearray((folder / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MODEL).write_bytes(data)


def _sparse(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 2**40)


def _other_classes(folder: Path) -> None:
    _edit_manifest(folder, lambda document: document["classes"].reverse())


def _long_number(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"bytes": ', '"bytes": ' + "9" * 4000, 1))


def _header(name: str) -> Damage:
    return lambda folder: _with_hash(folder, name, (2**60).to_bytes(8, "little") + (folder / name).read_bytes()[8:])


def _network(change: Callable[[onnx.ModelProto], object], name: str = MODEL) -> Damage:
    def damage(folder: Path) -> None:
        proto = onnx.load_model_from_string((folder / name).read_bytes())
        change(proto)
        _with_hash(folder, name, proto.SerializeToString())

    return damage


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


def _endless(proto: onnx.ModelProto) -> None:
    always = numpy_helper.from_array(np.asarray(True), "always")
    again = helper.make_node("Identity", ["always"], ["again"])
    outputs = [helper.make_tensor_value_info("again", TensorProto.BOOL, [])]
    inputs = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))
    ]
    body = helper.make_graph([again], "body", inputs, outputs)
    proto.graph.initializer.append(always)
    proto.graph.node.insert(0, helper.make_node("Loop", ["", "always"], [], body=body))


def _gigabytes(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray([2**31], np.int64), "much"))
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["much"], ["unused"]))


BAD: dict[str, Damage] = {
    "the manifest is a FIFO": _instead(MANIFEST, os.mkfifo),
    "the manifest is a link": _link(MANIFEST, "/etc/hostname"),
    "the manifest has 1 TB": _sparse,
    "the manifest is cut": _half(MANIFEST, repaired=False),
    "the manifest is deep": _text("[" * 100_000),
    "the manifest has a number of 4,000 digits": _long_number,
    "the manifest is empty": _text(" "),
    "other classes": _other_classes,
    "the model is a FIFO": _instead(MODEL, os.mkfifo),
    "the model is a link to a device": _link(MODEL, "/dev/zero"),
    "the model is cut": _half(MODEL, repaired=False),
    "the model is altered": _flipped,
    "the model is missing": lambda folder: (folder / MODEL).unlink(),
    "the model reads another file": _network(_elsewhere),
    "the model never ends": _network(_endless),
    "the model takes 8 GB": _network(_gigabytes),
    "the model has weights that are NaN": _network(_not_a_number),
    "the oracle has weights that are NaN": _network(_not_a_number, ORACLE),
    "the policy is cut": _half(POLICY, repaired=True),
    "the signatures have a header of 2^60 bytes": _header(SIGNATURES),
}
