"""Bytes on disk and in memory: the clean model, a model per corruption, and one model with signatures."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from rich.console import Console

from rws.benchmarks.common.memory import can_measure, measure
from rws.benchmarks.common.models import BenchmarkModel, patched_onnx
from rws.benchmarks.common.tables import Column, Record, label, terminal
from rws.benchmarks.storage.precision import float_file
from rws.edge.onnx.graph import clean_tensors, read_model
from rws.edge.signatures.quantization import Bits, Per
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256

DISK = [
    label("on disk", "what"),
    label("of layers", "scope"),
    Column("bits", "bits"),
    label("one scale per", "per"),
    Column("MB", lambda row: row["bytes"] / 1e6, ".2f"),
    Column("ratio", "ratio", ".3f"),
]
MEMORY = [
    label("in memory", "what"),
    Column("MB", lambda row: row["private_bytes"] / 1e6, ".1f"),
    Column("peak MB", lambda row: row["peak_rss_bytes"] / 1e6, ".1f"),
    Column("ratio", "ratio", ".3f"),
]


def measure_storage(models: Sequence[BenchmarkModel], progress: Callable[[str], None]) -> Record:
    """Measure models on disk and in memory; `progress` is called with a line before each model and part.

    `memory` is empty if it cannot be measured; `imports` in it is a process with the packages only, the others come on
    top of it.
    """
    result: Record = {"rows": [], "memory": []}
    for model in models:
        with tempfile.TemporaryDirectory(prefix="rws-storage-") as name:
            folder = Path(name)
            progress(f"{model.name}, {model.size} px: on disk")
            files = write_models(model, folder)
            case: Record = {"model": model.name, "size": model.size}
            result["rows"] += [case | row for row in _on_disk(model, files, folder)]
            if can_measure():
                progress(f"{model.name}, {model.size} px: in memory")
                result["memory"] += [case | row for row in _in_memory(model, files, folder)]
    return result


def print_storage(result: Record, console: Console) -> None:
    """Print two tables per model."""
    for name, size in dict.fromkeys((row["model"], row["size"]) for row in result["rows"]):
        for columns, rows in ((DISK, result["rows"]), (MEMORY, result["memory"])):
            own = [row for row in rows if (row["model"], row["size"]) == (name, size)]
            console.print(terminal(columns, own, f"{name}, {size} px"))
            console.print(*(row["note"] for row in own if "note" in row))


def weighted_tensors(proto: ModelProto) -> tuple[str, ...]:
    """Return the weights and biases, by name, of all convolutions and linear layers of a `prepare`d graph, in order."""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return tuple(dict.fromkeys(name for node in nodes for name in node.input if name in initializers))


def write_models(model: BenchmarkModel, folder: Path) -> list[Path]:
    """Write the models that signatures replace: the clean one, then one per signature at alpha 1; return the files."""
    files = [folder / f"{name}.onnx" for name in ("clean", *model.signatures.names)]
    files[0].write_bytes(model.onnx)
    for name, file in zip(model.signatures.names, files[1:], strict=True):
        file.write_bytes(patched_onnx(model, {name: 1.0}))
    return files


def _on_disk(model: BenchmarkModel, models: Sequence[Path], folder: Path) -> list[Record]:
    clean = models[0].stat().st_size

    def row(what: str, stored: int, everything: int, scope: str = "", bits: int | None = None, per: str = "") -> Record:
        ratio = round(everything / clean, 4)
        return {"what": what, "scope": scope, "bits": bits, "per": per, "bytes": stored, "ratio": ratio}

    all_models = sum(file.stat().st_size for file in models)
    rows = [row("model", clean, clean), row(f"{len(models)} models", all_models, all_models)]
    proto = read_model(model.onnx)
    names = model.signatures.names
    for scope, chosen in (("full", weighted_tensors(proto)), ("shallow", model.tensor_names)):
        # A file's size depends on the shapes alone, so the weights themselves stand in for their changes.
        changes = clean_tensors(proto, chosen)
        for bits, per in [(32, ""), *((bits, per) for bits in sorted(get_args(Bits))[::-1] for per in get_args(Per))]:
            stored = (folder / "signatures").write_bytes(_signature_file(changes, names, bits, per))
            rows.append(row(f"{len(names)} signatures", stored, clean + stored, scope, bits, per))
    return rows


def _signature_file(changes: dict[str, NDArray[np.float32]], names: Sequence[str], bits: int, per: str) -> bytes:
    if bits == 32:
        return float_file(dict.fromkeys(names, changes))
    one = SignatureSet.from_deltas({names[0]: changes}, bits, per, clean_hash=shallow_sha256(changes))  # type: ignore[arg-type]
    return replace(one, entries=dict.fromkeys(names, one.entries[names[0]])).to_bytes()


def _in_memory(model: BenchmarkModel, models: Sequence[Path], folder: Path) -> list[Record]:
    signatures = folder / "signatures.safetensors"
    model.signatures.save(signatures)
    imports = measure("imports", model.size)
    loaded = {
        "session": measure("sessions", model.size, models[:1]),
        f"{len(models)} sessions": measure("sessions", model.size, models),
        f"live, {len(model.signatures.names)} signatures": measure("live", model.size, [models[0], signatures]),
    }
    base = {"private_bytes": imports.private, "peak_rss_bytes": imports.peak_rss}
    rows: list[Record] = [{"what": "imports", **base, "ratio": None}]
    one = loaded["session"].private - imports.private
    for what, found in loaded.items():
        private = found.private - imports.private
        row: Record = {"what": what, "private_bytes": private, "peak_rss_bytes": found.peak_rss - imports.peak_rss}
        rows.append(row | {"ratio": round(private / one, 4)} | ({"note": found.note} if found.note else {}))
    return rows
