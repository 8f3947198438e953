"""Validation of documents from outside (JSON, TOML) with pydantic: one line per fault, which says what to do."""

import json
import math
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from rws.edge.common.files import os_errors, read_regular
from rws.errors import FormatError, RwsError, first_line
from rws.text import HIDDEN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

# No other key, no converted type, no NaN. A field's `description` is what errors call "expected", there and within.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
MAX_DEPTH = 32
MAX_TOML = 2**20  # bytes
MAX_TEXT = 1000  # characters
MAX_DIGITS = 40


def _check(expected: str, test: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(expected)
        return value

    return check


def required(expected: str, test: Callable[[Any], bool]) -> AfterValidator:
    """Annotate a field with a test that its value must pass; `expected` is what errors then say."""
    return AfterValidator(_check(expected, test))


def distinct(items: Collection[object]) -> bool:
    """Return whether no item occurs twice."""
    return len(set(items)) == len(items)


# For a `Literal` of integers, to which pydantic would also count 8.0 and True.
Whole = BeforeValidator(_check("a whole number", lambda value: type(value) is int))
Text = Annotated[str, required("printable text", lambda text: 0 < len(text) <= MAX_TEXT and text.isprintable())]
Count = Annotated[int, Field(gt=0, lt=2**53)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def validate(schema: type[T], document: object, source: str, *, cure: str, error: type[RwsError] = FormatError) -> T:
    """Check plain JSON data against a type that pydantic knows; else FormatError (or `error`) on the first fault."""
    try:
        return TypeAdapter(schema).validate_json(json.dumps(document, allow_nan=False))
    except ValidationError as fault:
        raise error(f"{source}: {_explain(schema, fault)}; {cure}") from None
    except (TypeError, ValueError) as fault:
        raise error(f"{source}: not plain JSON ({fault}); use finite numbers, text and lists") from None


def checked_format(
    document: object, name: str, versions: Sequence[int], source: str, *, cure: str, error: type[RwsError] = FormatError
) -> dict[str, Any]:
    """Return a document without its `format` and `version`, or raise an error (see `validate`) if they are others."""
    rest = dict(document) if isinstance(document, dict) else {}
    found, found_version = rest.pop("format", None), rest.pop("version", None)
    if found != name:
        raise error(f"{source}: format is {shorten(found)}, expected {name!r}; give another file")
    if type(found_version) is not int or found_version not in versions:
        known = " and ".join(map(str, versions))
        fault = f"{source}: format version is {shorten(found_version)}, this program reads {known}"
        raise error(f"{fault}; install the version of rws-edge that wrote it, or {cure}")
    return rest


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8; raise ValueError if it is none, has a key twice, or is nested more than `MAX_DEPTH` deep.

    Numbers are finite, and have at most `MAX_DIGITS` characters.
    """
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=lambda text: int(_short(text)),
            parse_float=lambda text: _finite(float(_short(text))),
            parse_constant=lambda text: _finite(float(text)),
        )
        deep = _depth(document) > MAX_DEPTH
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return document


def read_toml(path: Path) -> dict[str, object]:
    """Read a TOML file; raise InputError if it cannot be read, FormatError if it is not TOML or nested too deep."""
    with os_errors(path, "read", "give a TOML file"):
        data = read_regular(path, MAX_TOML)
    try:
        document: dict[str, object] = tomllib.loads(data.decode("utf-8-sig"))
        deep = _depth(document) > MAX_DEPTH
    except RecursionError:
        deep = True
    except ValueError as error:  # the text is no UTF-8 or TOML, or has a number that is too long
        raise FormatError(f"{path}: is not valid TOML in UTF-8 ({first_line(error)}); correct it") from error
    if deep:
        raise FormatError(f"{path}: is nested more than {MAX_DEPTH} deep; correct it")
    return document


def shorten(value: object, most: int = 80) -> str:
    """Return the `repr` of a value, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _explain(schema: Any, fault: ValidationError) -> str:
    first = fault.errors(include_url=False)[0]
    place, kind = first["loc"], first["type"]
    path = shorten(".".join(map(str, place)) or "the document")  # keys are foreign text, too
    known: list[str] = []
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    for key in place:
        fields = getattr(schema, "__pydantic_fields__", {})
        known = list(fields)
        if key not in fields:
            break
        expected, schema = fields[key].description or expected, fields[key].annotation
    if kind == "json_invalid":
        return f"not plain JSON ({first['msg']})"
    if kind.startswith("missing"):
        return f"key {path} is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        if near := get_close_matches(str(place[-1]), known, n=1, cutoff=0.75):
            return f"key {path} is unknown (did you mean {near[0]}?)"
        return f"key {path} is unknown" + (f"; known: {', '.join(known)}" if known else "")
    found = HIDDEN if "token" in place else shorten(first["input"])
    return f"{path[1:-1]} is {found}, expected {expected}"


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) + max(map(_depth, items), default=0)


def _short(number: str) -> str:
    if len(number) > MAX_DIGITS:
        raise ValueError(f"a number of {len(number)} characters, expected at most {MAX_DIGITS}")
    return number


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found
