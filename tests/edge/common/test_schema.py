"""One line per fault: where, what was found, what was expected, what to do."""

import math
from dataclasses import asdict, replace

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.common.schema import MAX_DEPTH, STRICT, parse_json, shorten, validate
from rws.errors import BundleError, FormatError


@dataclass(frozen=True, config=STRICT)
class Size:
    height: int = Field(8, gt=0, description="pixels above 0")
    scale: float = 1.0


@dataclass(frozen=True, config=STRICT)
class Document:
    name: str
    size: Size = Size()
    levels: tuple[float, ...] = (1.0,)
    more: dict[str, object] = Field(default_factory=dict)


def test_a_document_becomes_frozen_records():
    found = validate(Document, {"name": "x", "size": {"scale": 2}, "levels": [1, 2.5]}, "file", cure="mend it")
    assert found == Document("x", Size(8, 2.0), (1.0, 2.5))
    assert asdict(replace(found, name="y"))["name"] == "y"
    with pytest.raises(AttributeError):
        found.name = "z"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "file: name is 3, expected a valid string; mend it"),
        ({"size": {"height": 0}}, "file: size.height is 0, expected pixels above 0; mend it"),
        ({"size": {"height": 8.0}}, "file: size.height is 8.0, expected pixels above 0; mend it"),
        ({"size": {"height": True}}, "file: size.height is True, expected pixels above 0; mend it"),
        ({"size": {"width": 8}}, "file: key 'size.width' is unknown; known: height, scale; mend it"),
        ({"size": 8}, "file: size is 8, expected an object; mend it"),
        ({"size": {"scale": float("nan")}}, "file: not plain JSON .* use finite numbers, text and lists"),
        ({"levels": [1, "2"]}, "file: levels.1 is '2', expected a valid number; mend it"),
        ({"levels": "12"}, "file: levels is '12', expected a valid array; mend it"),
        ({"other": 1}, "file: key 'other' is unknown; known: name, size, levels, more; mend it"),
        ({"more": {"a": object()}}, "file: not plain JSON .* use finite numbers, text and lists"),
    ],
)
def test_the_first_fault_in_one_line(change, message):
    with pytest.raises(FormatError, match=message) as caught:
        validate(Document, {"name": "x", **change}, "file", cure="mend it")
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_another_kind_of_error():
    with pytest.raises(BundleError, match="file: key 'name' is missing; mend it"):
        validate(Document, {}, "file", cure="mend it", error=BundleError)
    with pytest.raises(FormatError, match=r"file: the document is \[\], expected an object"):
        validate(Document, [], "file", cure="mend it")


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_numbers_that_are_not_finite(number):
    with pytest.raises(FormatError, match="file: not plain JSON"):
        validate(Document, {"name": "x", "more": {"a": [number]}}, "file", cure="mend it")


def test_what_is_found_is_cut():
    with pytest.raises(FormatError) as caught:
        validate(Document, {"name": list(range(1000))}, "file", cure="mend it")
    assert len(str(caught.value)) < 200
    assert shorten("a" * 100, 10) == "'aaaaaaaa…"


def test_json_is_parsed():
    assert parse_json('{"a": [1, 2.5, "é", null, true]}'.encode()) == {"a": [1, 2.5, "é", None, True]}
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(deep[1:-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        (b"1" * 10_000, "a number of 10000 characters"),
        (b"[1, 1%s]" % (b"0" * 4_000), "a number of 4001 characters"),
        (b"0.%s" % (b"1" * 4_000), "a number of 4002 characters"),
        (b"[1e999]", "not finite"),
        (b"-Infinity", "not finite"),
        (b"NaN", "not finite"),
        (b'{"a": 1, "a": 1}', "a key occurs twice"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested more than 32 deep"),
        (b"[" * 100_000, "nested more than 32 deep"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)
