"""Validation of documents from outside (JSON, TOML) with pydantic: one line per fault, which says what to do."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rws.errors import FormatError, RwsError

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""For `pydantic.dataclasses.dataclass(frozen=True, config=STRICT)`: no other key, no converted type, no NaN.

A field's `description` is what errors call "expected", for the field and for everything within it.
"""

MAX_DEPTH = 32
MAX_INTEGER = 2**63


def validate(schema: type[T], document: object, source: str, *, cure: str, error: type[RwsError] = FormatError) -> T:
    """Check a document against a schema.

    Args:
        schema: a pydantic dataclass, or anything else that pydantic validates.
        document: dicts, lists, text, numbers, truths and None, as `json.loads` or `tomllib.loads` gives them.
        source: what an error begins with, such as the file.
        cure: what an error ends with: what to do.
        error: the type of the error.

    Returns:
        An instance of `schema`; lists become tuples and objects dataclasses, where the schema says so.

    Raises:
        FormatError: (or `error`) one line about the first fault: where it is, what was found, what was expected.
    """
    try:
        return TypeAdapter(schema).validate_json(json.dumps(document))
    except ValidationError as fault:
        raise error(f"{source}: {_explain(schema, fault)}; {cure}") from None
    except (TypeError, ValueError) as fault:
        raise error(f"{source}: not plain JSON ({fault}); use finite numbers, text and lists") from None


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8 without what JSON leaves open: no key twice, no NaN, no huge number, no endless nesting.

    Raises:
        ValueError: in one line, if it is not such JSON.
    """
    try:
        document = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_unique_keys,
        )
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for part in level
            if isinstance(part, (dict, list))
            for item in (part.values() if isinstance(part, dict) else part)
        ]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return document


def shorten(value: object, most: int = 80) -> str:
    """Return the `repr` of a value, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _explain(schema: Any, fault: ValidationError) -> str:
    first = fault.errors(include_url=False)[0]
    place = first["loc"]
    path = ".".join(map(str, place)) or "the document"
    parent, expected = _look_up(schema, place)
    if first["type"] == "json_invalid":
        return f"not plain JSON ({first['msg']})"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key {path!r} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"key {path!r} is unknown" + (f"; known: {', '.join(parent)}" if parent else "")
    if not expected:
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{path} is {shorten(first['input'])}, expected {expected}"


def _look_up(schema: Any, place: tuple[int | str, ...]) -> tuple[list[str], str]:
    """The keys that are known next to the last one of a place, and the description nearest to it."""
    known: list[str] = []
    expected = ""
    for key in place:
        fields = getattr(schema, "__pydantic_fields__", {})
        known = list(fields)
        if key not in fields:
            break
        expected = fields[key].description or expected
        schema = fields[key].annotation
    return known, expected


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shorten(text, 24)} is too large")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20 or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise ValueError(f"{shorten(text, 24)} is too large")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found
