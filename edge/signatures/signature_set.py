"""Robust weight signatures, and the file that holds them.

A signature R_c is the change of the shallow weights that makes a model robust to corruption c (Cai, Zhang, Wang,
"Robust Weight Signatures", ICML 2023). A set of them is stored as one safetensors file, format version 1:

- The metadata MUST hold one key `rws`: a JSON object with exactly `format` ("rws-signatures"), `version` (1), `bits`
  (4, 8 or 16), `per` ("channel" or "tensor"), `clean_sha256` (see `shallow_sha256`), `tensors` (a list of
  {name, shape}, in the order of the network) and `names` (the signatures, in order).
- For every signature and tensor there MUST be the values `<signature>/<tensor>` and the scale
  `<signature>/<tensor>.scale`, and there MUST NOT be anything else.
- Values MUST be int8 (8 bit) or int16 (16 bit) with the tensor's shape; at 4 bit uint8 with one axis, two values a
  byte, the first in the low nibble, an odd last nibble zero. The most negative code (−8, −128, −32768) MUST NOT occur.
- Scales MUST be float32 and above 0, their product with the largest code MUST be finite, their shape (out,) for
  "channel" and () for "tensor".
- A signature's name MUST be letters, digits, `_`, `.` or `-`, begin with a letter or digit, and not be `clean`.
- A tensor's name MUST be printable text that does not end in `.scale`; its shape MUST have at least one axis and no
  zero.
- R_c = values · scale. A reader MUST refuse a file that breaks any of this.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass as schema

from rws.edge.common.files import atomic_write_bytes
from rws.edge.common.schema import STRICT, Count, Sha256, Text, Whole, checked_format, unique, validate
from rws.edge.signatures.quantization import (
    Bits,
    Per,
    Quantised,
    check_code,
    dequantise,
    largest_value,
    quantise,
    value_dtype,
)
from rws.edge.signatures.tensor_file import read_tensors, write_tensors
from rws.errors import FormatError, SignatureError
from rws.oracle.belief import CLEAN

FORMAT = "rws-signatures"
VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SCALE = ".scale"


def _signature_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == CLEAN:
        raise ValueError(f"letters, digits, '_', '.', '-', not {CLEAN!r}")
    return name


def _tensor_name(name: str) -> str:
    if name.endswith(_SCALE):
        raise ValueError(f"printable text that does not end in {_SCALE!r}")
    return name


@schema(frozen=True, config=STRICT)
class TensorSpec:
    """A patched tensor of the model: its name, and its shape (out, ...)."""

    name: Annotated[Text, AfterValidator(_tensor_name)]
    shape: Annotated[tuple[Count, ...], Field(min_length=1)]


def _no_name_twice(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    unique(tuple(tensor.name for tensor in tensors))
    return tensors


TensorSpecs = Annotated[
    tuple[TensorSpec, ...],
    AfterValidator(_no_name_twice),
    Field(
        min_length=1,
        description=f"a list of {{name, shape}}, no name twice, none that ends in {_SCALE!r}, lengths above 0",
    ),
]
SignatureNames = Annotated[
    tuple[Annotated[str, AfterValidator(_signature_name)], ...],
    AfterValidator(unique),
    Field(min_length=1, description=f"names of letters, digits, '_', '.', '-', not {CLEAN!r}, none twice"),
]


@schema(frozen=True, config=STRICT)
class Metadata:
    """What the file says about its tensors, but for `format` and `version`; see the module."""

    bits: Annotated[Bits, Whole, Field(description="4, 8 or 16")]
    per: Per
    clean_sha256: Annotated[Sha256, Field(description="64 hexadecimal digits")]
    tensors: TensorSpecs
    names: SignatureNames

    @classmethod
    def parse(cls, document: object, source: str) -> Metadata:
        """Check a document; `source` is what an error calls it.

        Raises:
            SignatureError: if it breaks the format.
        """
        return validate(cls, document, source, cure="extract the signatures again", error=SignatureError)


def shallow_sha256(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """Fingerprint of the clean tensors that signatures patch.

    Args:
        tensors: name → float32 array, in the order of the network.

    Returns:
        64 hexadecimal digits: the SHA-256 over, for each tensor in order, its name in UTF-8, a zero byte, its shape as
        decimal numbers joined by commas, a zero byte, and its values as little-endian float32 in C order.
    """
    digest = hashlib.sha256()
    for name, array in tensors.items():
        digest.update(name.encode() + b"\0" + ",".join(map(str, array.shape)).encode() + b"\0")
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SignatureSet:
    """Signatures for one model: name → {tensor: quantised change}.

    Build one with `from_deltas`, `load` or `from_bytes`, which check everything.

    Args:
        clean_hash: `shallow_sha256` of the clean tensors that the signatures were made for.
        bits: 4, 8 or 16.
        per: "channel" or "tensor".
        shapes: tensor name → shape, in the order of the network.
        entries: signature name → tensor name → values and scale, in the order of `shapes`.
    """

    clean_hash: str
    bits: Bits
    per: Per
    shapes: Mapping[str, tuple[int, ...]]
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
        """One signature, dequantised: tensor name → float32 change of that tensor.

        Raises:
            SignatureError: if there is no such signature.
        """
        return {tensor: dequantise(entry) for tensor, entry in self._entry(name).items()}

    def with_signatures(self, other: SignatureSet, names: Iterable[str]) -> SignatureSet:
        """These signatures, then those of `other` called `names`.

        Raises:
            SignatureError: if a name is taken or unknown, or `other` is for another model (`fitted_to` transfers it)
                or of another code.
        """
        if (other.bits, other.per) != (self.bits, self.per):
            raise SignatureError(
                f"signatures have {other.bits} bits per {other.per}, expected {self.bits} bits per {self.per} like "
                f"those already there; extract them again that way"
            )
        if other.shapes != self.shapes or other.clean_hash != self.clean_hash:
            raise SignatureError("signatures are for another model than those already there; extract them for this one")
        added = {}
        for name in names:
            if name in self.entries:
                raise SignatureError(f"signature {name!r} is already there; remove it first")
            added[name] = other._entry(name)
        return replace(self, entries={**self.entries, **added})

    def without(self, name: str) -> SignatureSet:
        """These signatures but one.

        Raises:
            SignatureError: if there is no such signature, or it is the only one.
        """
        self._entry(name)
        if len(self.entries) == 1:
            raise SignatureError(f"signature {name!r} is the only one; add another before removing it")
        return replace(self, entries={key: entry for key, entry in self.entries.items() if key != name})

    def fitted_to(self, clean: Mapping[str, NDArray[np.float32]], transfer: bool = False) -> SignatureSet:
        """These signatures, checked against the clean tensors of the model that shall be patched.

        Args:
            clean: the model's own clean tensors, in the order of the network.
            transfer: accept signatures that were made for other weights of the same names and shapes (the paper's
                transfer; strengths must then be calibrated again).

        Returns:
            This set; when transferred, a copy that carries the fingerprint of `clean`.

        Raises:
            SignatureError: if names, order or shapes differ, or the weights do and `transfer` is off.
        """
        unknown = [name for name in self.tensors if name not in clean]
        if unknown:
            raise SignatureError(
                f"signatures name the tensor {unknown[0]!r}, which the model does not patch; it patches "
                f"{', '.join(clean)}: extract signatures for this model"
            )
        if self.tensors != tuple(clean):
            raise SignatureError(
                f"signatures patch {', '.join(self.tensors)}, but the model's tensors are {', '.join(clean)}; extract "
                f"signatures for this model"
            )
        for name, shape in self.shapes.items():
            if clean[name].shape != shape:
                raise SignatureError(
                    f"signatures have shape {shape} for the tensor {name!r}, the model has {clean[name].shape}; "
                    f"extract signatures for this model"
                )
        found = shallow_sha256(clean)
        if found == self.clean_hash:
            return self
        if not transfer:
            raise SignatureError(
                f"signatures were made for clean weights {self.clean_hash[:12]}…, the model has {found[:12]}…; extract "
                f"them for this model, or allow the transfer (--transfer) and calibrate α again"
            )
        return replace(self, clean_hash=found)

    @classmethod
    def from_deltas(
        cls,
        deltas: Mapping[str, Mapping[str, NDArray[np.float32]]],
        bits: Bits = 8,
        per: Per = "channel",
        *,
        clean_hash: str,
    ) -> SignatureSet:
        """Quantise weight changes into a set.

        Args:
            deltas: signature name → tensor name → change of that tensor, float32, finite; every signature with the
                same tensors, in the order of the network.
            bits: 4, 8 or 16.
            per: "channel" or "tensor".
            clean_hash: `shallow_sha256` of the clean tensors.

        Raises:
            SignatureError: if a name, shape, dtype or value is not allowed, or two signatures differ in their tensors.
            InputError: if `bits` or `per` is unknown.
        """
        check_code(bits, per)
        first = next(iter(deltas.values()), {})
        shapes = {tensor: delta.shape for tensor, delta in first.items()}
        Metadata.parse(_metadata(clean_hash, bits, per, shapes, deltas), "signatures")
        entries = {}
        for name, parts in deltas.items():
            if tuple(parts) != tuple(shapes):
                raise SignatureError(
                    f"signature {name!r} has the tensors {', '.join(parts)}, expected {', '.join(shapes)} as in "
                    f"{next(iter(deltas))!r}"
                )
            for tensor, delta in parts.items():
                if delta.shape != shapes[tensor] or delta.dtype != np.float32 or not np.isfinite(delta).all():
                    raise SignatureError(
                        f"signature {name!r}: {tensor!r} is {_describe(delta)}, expected finite float32 "
                        f"{shapes[tensor]}"
                    )
            entries[name] = {tensor: quantise(delta, bits, per) for tensor, delta in parts.items()}
        return cls(clean_hash, bits, per, shapes, entries)

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        atomic_write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> SignatureSet:
        """Read and check a file.

        Raises:
            SignatureError: if it cannot be read or breaks the format; the message names the key, the cause and the fix.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SignatureError(
                f"{path}: cannot be read ({error.strerror or error}); give a signature file"
            ) from error
        return cls.from_bytes(data, str(path))

    def to_bytes(self) -> bytes:
        """The file as bytes; the same set gives the same bytes."""
        tensors: dict[str, NDArray[Any]] = {}
        for name, parts in self.entries.items():
            for tensor, entry in parts.items():
                key = f"{name}/{tensor}"
                tensors[key] = _pack(entry.values) if self.bits == 4 else entry.values
                tensors[key + _SCALE] = entry.scale
        metadata = _metadata(self.clean_hash, self.bits, self.per, self.shapes, self.names)
        return write_tensors(tensors, {"format": FORMAT, "version": VERSION, **metadata})

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "signatures") -> SignatureSet:
        """Read and check a file's bytes; `source` is what an error calls it.

        Raises:
            SignatureError: if they break the format.
        """
        try:
            tensors, description = read_tensors(data, source)
        except FormatError as error:
            raise SignatureError(str(error)) from error
        cure = "extract the signatures again"
        rest = checked_format(description, FORMAT, VERSION, source, cure=cure, error=SignatureError)
        metadata = Metadata.parse(rest, source)
        shapes = {tensor.name: tensor.shape for tensor in metadata.tensors}
        expected = {f"{name}/{tensor}{end}" for name in metadata.names for tensor in shapes for end in ("", _SCALE)}
        for kind, keys in (("missing", expected - tensors.keys()), ("unknown", tensors.keys() - expected)):
            if keys:
                raise SignatureError(
                    f"{source}: tensor {min(keys)!r} is {kind} ({len(keys)} {kind} in all); extract them again"
                )
        entries = {
            name: {
                tensor: _read_entry(tensors, f"{name}/{tensor}", shape, metadata, source)
                for tensor, shape in shapes.items()
            }
            for name in metadata.names
        }
        return cls(metadata.clean_sha256, metadata.bits, metadata.per, shapes, entries)

    def _entry(self, name: str) -> Mapping[str, Quantised]:
        if name not in self.entries:
            raise SignatureError(f"signature {name!r} is not there; known: {', '.join(self.names)}")
        return self.entries[name]


def _metadata(
    clean_hash: str, bits: Bits, per: Per, shapes: Mapping[str, tuple[int, ...]], names: Iterable[str]
) -> dict[str, object]:
    """`Metadata`, not checked yet, as plain data."""
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
    stored: tuple[Any, tuple[int, ...]] = (value_dtype(bits), shape)
    if bits == 4:
        stored = (np.uint8, ((math.prod(shape) + 1) // 2,))
    expected = {
        key: (values, *stored),
        key + _SCALE: (scale, np.float32, shape[:1] if metadata.per == "channel" else ()),
    }
    for part, (array, dtype, part_shape) in expected.items():
        if array.dtype != dtype or array.shape != part_shape:
            raise SignatureError(
                f"{source}: tensor {part!r} is {_describe(array)}, expected {np.dtype(dtype)} {part_shape}; extract "
                f"the signatures again"
            )
    if not ((scale > 0) & (scale <= np.finfo(np.float32).max / largest_value(bits))).all():
        raise SignatureError(
            f"{source}: scale {key + _SCALE!r} has a value that is NaN, too large or not above 0; extract them again"
        )
    if bits == 4:
        values = _unpack(values, shape, key, source)
    if (values < -largest_value(bits)).any():
        raise SignatureError(
            f"{source}: tensor {key!r} has the value {-largest_value(bits) - 1}, expected "
            f"{-largest_value(bits)}…{largest_value(bits)}; extract them again"
        )
    return Quantised(values, scale)


def _pack(values: NDArray[Any]) -> NDArray[np.uint8]:
    nibbles = values.reshape(-1).view(np.uint8) & 0xF
    padded = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    return np.asarray(padded[::2] | (padded[1::2] << 4), np.uint8)


def _unpack(packed: NDArray[np.uint8], shape: tuple[int, ...], key: str, source: str) -> NDArray[np.int8]:
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)
    count = math.prod(shape)
    if nibbles[count:].any():
        raise SignatureError(f"{source}: tensor {key!r} does not end in a zero nibble; extract them again")
    return ((nibbles[:count] ^ 8).astype(np.int8) - 8).astype(np.int8).reshape(shape)


def _describe(array: NDArray[Any]) -> str:
    finite = "" if np.isfinite(array).all() else ", with NaN or infinity"
    return f"{array.dtype} {array.shape}{finite}"
