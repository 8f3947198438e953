"""Weights that ONNX Runtime packs when it opens a session (MatMul, Gemm, ConvTranspose, LSTM …), kept in our memory.

A kernel reads its packed copy, never the initializer again. But ONNX Runtime can keep packed copies in a file next to
the model and map them from there. The layout of a copy is learned as that of initializers is, on a graph of one node.
Then the graph is made to map copies from a file whose memory we share. A copy is taken from the file only if it equals
what packing the initializer gives at that moment, so both hold the same numbers while the session is made.
"""

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from rws.edge.live.layout import Slots, aligned, place
from rws.edge.live.sessions import SessionMaker
from rws.edge.onnx.check import parts
from rws.errors import StrategyUnavailableError, from_library

MAPPED_FILE = "live.bin"
_SHARED_MEMORY = "/dev/shm"
_PREFIX = "prepacked_"
_NOT_PACKED = "com.microsoft.nchwc"  # the domain of convolutions whose initializers are laid out instead
_PACK = "session.save_external_prepacked_constant_initializers"
_FILE = "session.optimized_model_external_initializers_file_name"
_SMALLEST = "session.optimized_model_external_initializers_min_size_in_bytes"


@dataclass(frozen=True)
class _Packed:
    """What ONNX Runtime calls one packed copy, its blocks, and what follows each block's place in the model."""

    label: str
    blocks: list[NDArray[np.float32]]
    ends: list[str]


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Yield an empty folder for this process alone, in memory if the system has such a place; raises an OSError."""
    parent = _SHARED_MEMORY if Path(_SHARED_MEMORY).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="rws-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def mapped_block(path: Path, unread: Mapping[str, int], size: int) -> NDArray[np.float32]:
    """Return zeros, float32, (size,), that share the memory of a new file; raises an OSError if there is no room.

    Behind them the file holds initializers that are read only while the session is made: `unread`, name → size.
    """
    with open(path, "xb+") as file:
        file.write(bytes(4 * size))  # a hole could not be filled later if memory runs out
        for owner, length in enumerate(unread.values()):
            if length:
                file.write(np.full(aligned(length), start_value(owner), np.float32).tobytes())
        file.flush()
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.float32, size)


def start_value(owner: int) -> float:
    """Return what weights hold while the session is made: another number for each owner, and far from any weight."""
    return 1e30 * (1 + owner)


@dataclass(frozen=True, eq=False)
class Mapped:
    """What a graph maps from a file: the slots there, and where its initializers stand, by name.

    `unread` names each initializer with packed copies; the number of its elements is 0 if it is one of the slots, too,
    because it has other readers.
    """

    owners: Mapping[str, str]  # slot → initializer
    unread: Mapping[str, int]


def map_packed(model: onnx.ModelProto, slots: Slots, maker: SessionMaker) -> tuple[Slots, Mapped]:
    """Let an optimised graph map the packed copies of some initializers, in `slots`, from `MAPPED_FILE`.

    Returns the slots as the graph reads them. Raises StrategyUnavailableError if a copy is more than a permutation.
    """
    found: dict[str, dict[str, _Packed]] = {}
    made, owners = dict(slots), dict[str, str]()
    others = {value.name for value in model.graph.output}  # names that are read as they are
    for node in model.graph.node:
        inner = (part for part in parts(node) if isinstance(part, onnx.NodeProto) and part is not node)
        others |= {name for part in inner for name in part.input}
        for name in dict.fromkeys(node.input):
            if name not in slots:
                continue
            raw = slots[name]
            numbers = np.arange(1, raw.size + 1, dtype=np.float32).reshape(raw.shape)
            layouts = [] if node.domain == _NOT_PACKED else _pack(model, node, name, numbers, maker)
            if not layouts:
                others.add(name)
                continue
            value = start_value(list(found).index(name) if name in found else len(found))
            labels = _pack(model, node, name, np.where(raw >= 0, value, 0).astype(np.float32), maker)
            known = found.setdefault(name, {})
            opposite = _pack(model, node, name, -numbers, maker)
            for packed, negative, named in zip(layouts, opposite, labels, strict=True):
                if named.label not in known:
                    known[named.label] = named
                    for block, other in zip(packed.blocks, negative.blocks, strict=True):
                        slot = f"{name}/{_PREFIX}{len(made)}"
                        made[slot], owners[slot] = _packed_slot(name, raw, block, other), name
    unread = {name: 0 if name in others or slots[name].min() < 0 else slots[name].size for name in found}
    for name, length in unread.items():
        if length:
            del made[name]
        else:
            owners[name] = name
    _refer(model, made, Mapped(owners, unread), found)
    return made, Mapped(owners, unread)


def _packed_slot(
    name: str, raw: NDArray[np.signedinteger], block: NDArray[np.float32], opposite: NDArray[np.float32]
) -> NDArray[np.signedinteger]:
    moved = np.array_equal(block, -opposite) and block.min() >= 0 and block.max() <= raw.size
    places = block.astype(np.int32) if moved else np.zeros(1, np.int32)
    if not (moved and np.array_equal(places, block)):
        raise StrategyUnavailableError(
            f"ONNX Runtime computes with {name!r} when it packs it; it does not only move it"
        )
    return np.append(np.int32(-1), raw.astype(np.int32))[places]


def _pack(
    model: onnx.ModelProto, node: onnx.NodeProto, name: str, array: NDArray[np.float32], maker: SessionMaker
) -> list[_Packed]:
    """Return how a node packs an initializer that holds `array`; nothing if it does not, or cannot stand alone."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type != TensorProto.FLOAT}
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    alone.graph.name = "packed"
    alone.graph.node.append(node)
    alone.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    for other in dict.fromkeys(node.input):
        if other in constants:
            alone.graph.initializer.append(constants[other])
        elif other and other != name:
            alone.graph.input.append(onnx.helper.make_tensor_value_info(other, TensorProto.FLOAT, None))
    output = next(filter(None, node.output))
    alone.graph.output.append(onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    options = maker.options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in ((_PACK, "1"), (_FILE, MAPPED_FILE), (_SMALLEST, "0")):
        options.add_session_config_entry(key, value)
    with shared_folder() as folder:
        options.optimized_model_filepath = str(folder / "packed.onnx")
        try:
            maker.session_of(alone.SerializeToString(), options)
            saved = onnx.load(folder / "packed.onnx", load_external_data=False)
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            if not from_library(error):
                raise
            return []
        kept = next((tensor for tensor in saved.graph.initializer if tensor.name == name), TensorProto())
        texts = {entry.key: entry.value for entry in kept.external_data if entry.key.startswith(_PREFIX)}
        data = (folder / MAPPED_FILE).read_bytes() if texts else b""
    return [_parse(texts[key], data) for key in sorted(texts)]


def _parse(text: str, data: bytes) -> _Packed:
    """Read `LABEL|OFFSET;LENGTH;END|…`, as ONNX Runtime writes it."""
    label, *places = text.split("|")
    try:
        parts = [place.split(";", 2) for place in places]
        blocks = [np.frombuffer(data, np.float32, int(part[1]) // 4, int(part[0])) for part in parts]
        return _Packed(label, blocks, [part[2] for part in parts])
    except (ValueError, IndexError) as error:
        raise StrategyUnavailableError(f"ONNX Runtime describes packed weights as {text!r:.80}") from error


def _refer(model: onnx.ModelProto, slots: Slots, mapped: Mapped, found: Mapping[str, Mapping[str, _Packed]]) -> None:
    """Write into the graph where each mapped slot and initializer stands in the file: see `mapped_block`."""
    starts, end = place(slots)
    for name, length in mapped.unread.items():
        if length:
            starts[name], end = end, end + aligned(length)
    for tensor in model.graph.initializer:
        if tensor.name not in found:
            continue
        copies = (4 * starts[slot] for slot, owner in mapped.owners.items() if owner == tensor.name != slot)
        texts = {"location": MAPPED_FILE, "offset": f"{4 * starts[tensor.name]}", "length": f"{4 * prod(tensor.dims)}"}
        for number, packed in enumerate(found[tensor.name].values()):
            blocks = zip(packed.blocks, packed.ends, strict=True)
            places = [f"{next(copies)};{block.nbytes};{end}" for block, end in blocks]
            texts[f"{_PREFIX}{number}"] = "|".join([packed.label, *places])
        for field in ("raw_data", "float_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in texts.items():
            tensor.external_data.add(key=key, value=value)
