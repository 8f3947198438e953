"""The safetensors files of this project, read from verified bytes.

A file's description is JSON under one key: safetensors writes several in random order, and bytes must be the same.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from rws.edge.common.schema import parse_json, shorten
from rws.errors import FormatError, first_line

_DTYPES = {"F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "BOOL": "?"}
_METADATA_KEY = "rws"


def write_tensors(tensors: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file with `tensors`, and `description` as JSON metadata."""
    metadata = {_METADATA_KEY: json.dumps(description, sort_keys=True)}
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return bytes(safetensors.numpy.save(contiguous, metadata))


def read_tensors(data: bytes, source: str) -> tuple[dict[str, NDArray[Any]], Mapping[str, Any]]:
    """Return a file's tensors (read-only, little-endian), and its description; FormatError if malformed."""
    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise FormatError(
            f"{source}: not a whole safetensors file ({first_line(error)}); copy or build it again"
        ) from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            found = f"{entry['dtype']}, expected one of {', '.join(_DTYPES)}"
            raise FormatError(f"{source}: tensor {shorten(name)} has type {found}")
        tensors[name] = np.frombuffer(bytes(entry["data"]), _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    cure = "was it written by rws?"
    try:
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        description = parse_json(header["__metadata__"][_METADATA_KEY].encode())
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{source}: no readable metadata under {_METADATA_KEY!r} ({error}); {cure}") from error
    if not isinstance(description, dict):
        raise FormatError(f"{source}: metadata {_METADATA_KEY!r} is not a JSON object; {cure}")
    return tensors, description
