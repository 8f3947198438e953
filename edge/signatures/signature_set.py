"""Robust weight signatures, and the safetensors file that holds them; its format is in README.md in this folder."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as schema

from rws.edge.common.files import atomic_write_bytes, os_errors, read_regular
from rws.edge.common.schema import STRICT, Count, Sha256, Text, Whole, checked_format, distinct, required, validate
from rws.edge.signatures import quantization
from rws.edge.signatures.quantization import Bits, Per, Quantised
from rws.edge.signatures.tensor_file import read_tensors, write_tensors
from rws.errors import FormatError, SignatureError
from rws.oracle.belief import CLEAN

FORMAT = "rws-signatures"
VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SCALE = ".scale"
_CURE = "extract the signatures again"
_LARGEST = 2**30  # bytes, as in a bundle


@schema(frozen=True, config=STRICT)
class TensorSpec:
    """A patched tensor of the model: its name, and its shape (out, ...)."""

    name: Annotated[Text, required(f"text without {_SCALE!r} at its end", lambda name: not name.endswith(_SCALE))]
    shape: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]


TensorSpecs = Annotated[
    tuple[TensorSpec, ...],
    required("no name twice", lambda tensors: distinct([tensor.name for tensor in tensors])),
    Field(
        min_length=1,
        max_length=4096,
        description=f"a list of {{name, shape}}, no name twice or with {_SCALE!r}, lengths above 0",
    ),
]
SignatureNames = Annotated[
    tuple[
        Annotated[str, Field(max_length=200), required("a name", lambda name: _NAME.fullmatch(name) and name != CLEAN)],
        ...,
    ],
    required("no name twice", distinct),
    Field(
        min_length=1, max_length=256, description=f"names of letters, digits, '_', '.', '-', not {CLEAN!r}, none twice"
    ),
]


@schema(frozen=True, config=STRICT)
class Metadata:
    """What the file says about its tensors, but for `format` and `version`."""

    bits: Annotated[Bits, Whole, Field(description="4, 8 or 16")]
    per: Per
    clean_sha256: Annotated[Sha256, Field(description="64 hexadecimal digits")]
    tensors: TensorSpecs
    names: SignatureNames

    @classmethod
    def parse(cls, document: object, source: str) -> "Metadata":
        """Check a document; raise SignatureError, which begins with `source`, if it breaks the format."""
        return validate(cls, document, source, cure=_CURE, error=SignatureError)


def shallow_sha256(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """Return the fingerprint of the clean tensors that signatures patch, 64 hexadecimal digits.

    It is the SHA-256 over, for each tensor in the order of the network, its name in UTF-8, a zero byte, its shape as
    decimal numbers joined by commas, a zero byte, and its values as little-endian float32 in C order.
    """
    digest = hashlib.sha256()
    for name, array in tensors.items():
        digest.update(name.encode() + b"\0" + ",".join(map(str, array.shape)).encode() + b"\0")
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SignatureSet:
    """Signatures for one model. Build one with `from_deltas`, `load` or `from_bytes`, which check everything."""

    clean_hash: str  # `shallow_sha256` of the clean tensors that the signatures were made for
    bits: Bits
    per: Per
    shapes: Mapping[str, tuple[int, ...]]  # in the order of the network, as in `entries`
    entries: Mapping[str, Mapping[str, Quantised]]

    @property
    def names(self) -> tuple[str, ...]:
        """The signatures' names, in order."""
        return tuple(self.entries)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The patched tensors' names, in the order of the network."""
        return tuple(self.shapes)

    def get(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Return a signature, dequantised: tensor name → float32 change; raise SignatureError if there is none."""
        return {tensor: quantization.dequantise(entry) for tensor, entry in self._entry(name).items()}

    def with_signatures(self, other: "SignatureSet", names: Iterable[str]) -> "SignatureSet":
        """Return a set with those of `other` called `names` added; SignatureError if taken, unknown or misfit."""
        if (other.bits, other.per) != (self.bits, self.per):
            found, expected = (f"{each.bits} bits per {each.per}" for each in (other, self))
            raise SignatureError(f"signatures have {found}, expected {expected} like the others; extract them again")
        if other.shapes != self.shapes or other.clean_hash != self.clean_hash:
            raise SignatureError("signatures are for another model than those already there; extract them for this one")
        added = {name: other._entry(name) for name in names}
        if taken := [name for name in added if name in self.entries]:
            raise SignatureError(f"signature {taken[0]!r} is already there; remove it first")
        return replace(self, entries={**self.entries, **added})

    def without(self, name: str) -> "SignatureSet":
        """Return a set without one signature; raise SignatureError if there is none of the name, or no other."""
        self._entry(name)
        if len(self.entries) == 1:
            raise SignatureError(f"signature {name!r} is the only one; add another before removing it")
        return replace(self, entries={key: entry for key, entry in self.entries.items() if key != name})

    def fitted_to(self, clean: Mapping[str, NDArray[np.float32]], transfer: bool = False) -> "SignatureSet":
        """Return these signatures, checked against a model's clean tensors in the order of the network.

        With `transfer` they may have been made for other weights of the same names and shapes (the paper's transfer;
        strengths must then be calibrated again); the set then carries the fingerprint of `clean`.
        Raises SignatureError if names, order or shapes differ, or the weights do and `transfer` is off.
        """
        cure, patched = "extract signatures for this model", ", ".join(clean)
        if unknown := [name for name in self.tensors if name not in clean]:
            found = f"signatures name the tensor {unknown[0]!r}, which the model does not patch"
            raise SignatureError(f"{found}; it patches {patched}: {cure}")
        if self.tensors != tuple(clean):
            found = ", ".join(self.tensors)
            raise SignatureError(f"signatures patch {found}, but the model's tensors are {patched}; {cure}")
        for name, shape in self.shapes.items():
            if clean[name].shape != shape:
                found = f"shape {shape} for the tensor {name!r}, the model has {clean[name].shape}"
                raise SignatureError(f"signatures have {found}; {cure}")
        found = shallow_sha256(clean)
        if found == self.clean_hash:
            return self
        if not transfer:
            fault = f"signatures were made for clean weights {self.clean_hash[:12]}…, the model has {found[:12]}…"
            cure = "extract them for this model, or allow the transfer (--transfer) and calibrate α again"
            raise SignatureError(f"{fault}; {cure}")
        return replace(self, clean_hash=found)

    @classmethod
    def from_deltas(
        cls,
        deltas: Mapping[str, Mapping[str, NDArray[np.float32]]],
        bits: Bits = 8,
        per: Per = "channel",
        *,
        clean_hash: str,
    ) -> "SignatureSet":
        """Quantise weight changes, finite float32 of the same tensors in order; else SignatureError or InputError."""
        quantization.check_code(bits, per)
        first = next(iter(deltas.values()), {})
        shapes = {tensor: delta.shape for tensor, delta in first.items()}
        Metadata.parse(_metadata(clean_hash, bits, per, shapes, deltas), "signatures")
        entries = {}
        for name, parts in deltas.items():
            if tuple(parts) != tuple(shapes):
                found = f"{', '.join(parts)}, expected {', '.join(shapes)}"
                raise SignatureError(f"signature {name!r} has the tensors {found}")
            for tensor, delta in parts.items():
                if delta.shape != shapes[tensor] or delta.dtype != np.float32 or not np.isfinite(delta).all():
                    expected = f"finite float32 {shapes[tensor]}"
                    raise SignatureError(f"signature {name!r}: {tensor!r} is {_describe(delta)}, expected {expected}")
            entries[name] = {tensor: quantization.quantise(delta, bits, per) for tensor, delta in parts.items()}
        return cls(clean_hash, bits, per, shapes, entries)

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        atomic_write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> "SignatureSet":
        """Read and check a file; raise SignatureError if it cannot be read or breaks the format."""
        with os_errors(path, "read", "give a signature file", SignatureError):
            data = read_regular(path, _LARGEST)
        return cls.from_bytes(data, str(path))

    def to_bytes(self) -> bytes:
        """Return the bytes of the file; the same set gives the same bytes."""
        tensors: dict[str, NDArray[Any]] = {}
        for name, parts in self.entries.items():
            for tensor, entry in parts.items():
                key = f"{name}/{tensor}"
                tensors[key] = _pack(entry.values) if self.bits == 4 else entry.values
                tensors[key + _SCALE] = entry.scale
        metadata = _metadata(self.clean_hash, self.bits, self.per, self.shapes, self.names)
        return write_tensors(tensors, {"format": FORMAT, "version": VERSION, **metadata})

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "signatures") -> "SignatureSet":
        """Read a file's bytes; raise SignatureError if they break the format. Errors begin with `source`."""
        try:
            tensors, description = read_tensors(data, source)
        except FormatError as error:
            raise SignatureError(str(error)) from error
        rest = checked_format(description, FORMAT, (VERSION,), source, cure=_CURE, error=SignatureError)
        metadata = Metadata.parse(rest, source)
        shapes = {tensor.name: tensor.shape for tensor in metadata.tensors}
        expected = {f"{name}/{tensor}{end}" for name in metadata.names for tensor in shapes for end in ("", _SCALE)}
        for kind, keys in (("missing", expected - tensors.keys()), ("unknown", tensors.keys() - expected)):
            if keys:
                raise SignatureError(f"{source}: tensor {min(keys)!r} is {kind} ({len(keys)} {kind} in all); {_CURE}")
        entries: dict[str, dict[str, Quantised]] = {name: {} for name in metadata.names}
        for name, (tensor, shape) in product(metadata.names, shapes.items()):
            entries[name][tensor] = _read_entry(tensors, f"{name}/{tensor}", shape, metadata, source)
        return cls(metadata.clean_sha256, metadata.bits, metadata.per, shapes, entries)

    def _entry(self, name: str) -> Mapping[str, Quantised]:
        if name not in self.entries:
            raise SignatureError(f"signature {name!r} is not there; known: {', '.join(self.names)}")
        return self.entries[name]


def _metadata(
    clean_hash: str, bits: Bits, per: Per, shapes: Mapping[str, tuple[int, ...]], names: Iterable[str]
) -> dict[str, object]:
    return {
        "bits": bits,
        "per": per,
        "clean_sha256": clean_hash,
        "tensors": [{"name": tensor, "shape": list(shape)} for tensor, shape in shapes.items()],
        "names": list(names),
    }


def _read_entry(
    tensors: Mapping[str, NDArray[Any]], key: str, shape: tuple[int, ...], metadata: Metadata, source: str
) -> Quantised:
    bits, values, scale = metadata.bits, tensors[key], tensors[key + _SCALE]
    largest = quantization.largest_value(bits)
    expected = {
        key: (np.uint8, ((math.prod(shape) + 1) // 2,)) if bits == 4 else (quantization.value_dtype(bits), shape),
        key + _SCALE: (np.float32, shape[:1] if metadata.per == "channel" else ()),
    }
    fault = ""
    for part, (dtype, part_shape) in expected.items():
        found = tensors[part]
        if found.dtype != dtype or found.shape != part_shape:
            wanted = f"{np.dtype(dtype)} {part_shape}"
            raise SignatureError(f"{source}: tensor {part!r} is {_describe(found)}, expected {wanted}; {_CURE}")
    if bits == 4:
        values, rest = _unpack(values, shape)
        fault = f"tensor {key!r} does not end in a zero nibble" if rest else ""
    if not ((scale > 0) & (scale <= np.finfo(np.float32).max / largest)).all():
        fault = f"scale {key + _SCALE!r} has a value that is NaN, too large or not above 0"
    elif (values < -largest).any():
        fault = f"tensor {key!r} has the value {-largest - 1}, expected {-largest}…{largest}"
    if fault:
        raise SignatureError(f"{source}: {fault}; {_CURE}")
    return Quantised(values, scale)


def _pack(values: NDArray[Any]) -> NDArray[np.uint8]:
    nibbles = values.reshape(-1).view(np.uint8) & 0xF
    padded = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    return np.asarray(padded[::2] | (padded[1::2] << 4), np.uint8)


def _unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> tuple[NDArray[np.int8], bool]:
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)
    count = math.prod(shape)
    return ((nibbles[:count] ^ 8).astype(np.int8) - 8).astype(np.int8).reshape(shape), bool(nibbles[count:].any())


def _describe(array: NDArray[Any]) -> str:
    finite = "" if np.isfinite(array).all() else ", with NaN or infinity"
    return f"{array.dtype} {array.shape}{finite}"
