"""The tables of docs/reference/records.md and results.md, and records compared with them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = (REFERENCE / "records.md", REFERENCE / "results.md")
REST = "…"  # any keys below
KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "object"}
OWN_FORMATS = ("bundle.json",)

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """A documented key: its path, in which `<name>` stands for any key, and its type in words."""

    path: Path_
    kind: str

    @property
    def optional(self) -> bool:
        return "optional" in self.kind

    def fits(self, path: Path_) -> bool:
        known = self.path
        if known[-1] == REST:
            known, path = known[:-1], path[: len(known) - 1] if len(path) >= len(known) else ()
        return len(known) == len(path) and all(a == b or _same(a, b) for a, b in zip(known, path, strict=True))

    def holds(self, value: Any) -> bool:
        words = re.findall(r"\w+", self.kind)
        if "any" in words or self.path[-1] == REST:
            return True
        kind = "null" if value is None else KINDS[type(value)]
        return kind in words or (kind == "integer" and "number" in words)


def _same(known: str, found: str) -> bool:
    return known.startswith("<") and (not known.endswith("[]") or found.endswith("[]"))


@dataclass
class Reference:
    """The keys of each schema, those of the sections that it refers to included."""

    sections: dict[tuple[str, ...], list[Key]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Reference:
        text = "\n".join(page.read_text() for page in PAGES)
        parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
        keys = {head: list(_keys(body)) for head, body in parts.items()}
        anchors = {head.lower().replace(" ", "-"): found for head, found in keys.items()}
        found = cls()
        for head, body in parts.items():
            if schemas := tuple(re.findall(r"`([a-z0-9-]+/\d+)`", head)):
                also = re.search(r"^Also: (.+)$", body, re.M)
                shared = re.findall(r"#([\w-]+)\)", also[1]) if also else []
                found.sections[schemas] = keys[head] + [key for anchor in shared for key in anchors[anchor]]
        return found

    def keys(self, schema: str) -> list[Key]:
        return next((keys for schemas, keys in self.sections.items() if schema in schemas), [])

    def complaints(self, record: dict[str, Any], texts: bool = False) -> list[str]:
        """What the tables do not say, or say otherwise, of a record and of the records in it; `texts`: from CSV."""
        if next(iter(record), "") != "schema":
            return [f"the first key is {next(iter(record), '')!r}"]
        schema, found = record["schema"], []
        keys = self.keys(schema)
        for path, value, inner in leaves(record):
            if inner:
                found += self.complaints(value)
            fitting = [key for key in keys if key.fits(path)]
            if not fitting and not any(key.path[: len(path)] == path for key in keys if value in ([], {}, None)):
                found.append(f"{schema}: {'.'.join(path)} is not documented")
            elif fitting and not texts and not any(key.holds(value) for key in fitting):
                found.append(f"{schema}: {'.'.join(path)} is {value!r}, documented as {fitting[0].kind}")
        return found


def _keys(body: str) -> Iterator[Key]:
    for names, kind in re.findall(r"^\| (`.+?`) \| (.+?) \|", body, re.M):
        for name in re.findall(r"`([^`]+)`", names):
            yield Key(tuple(name.split(".")), kind)


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any, bool]]:
    """Each value with its path, and whether it is a separate record; a key of a list of objects ends in `[]`."""
    if isinstance(value, dict) and path and "schema" in value:
        yield path, value, True
    elif isinstance(value, dict) and (value or not path):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for part in value:
            yield from leaves(part, (*path[:-1], f"{path[-1]}[]"))
    else:
        yield path, value, False


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON, JSONL or CSV file."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def complaints_about(*folders: Path) -> list[str]:
    """What the reference does not say of the files in folders; of work folders, only the logs are records."""
    reference, found = Reference.read(), []
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        kept = path.name not in OWN_FORMATS and ("work" not in path.parts or path.name == "log.jsonl")
        if path.suffix in (".json", ".jsonl", ".csv") and kept:
            for record in read_records(path):
                found += [f"{path.name}: {text}" for text in reference.complaints(record, path.suffix == ".csv")]
    return sorted(set(found))
