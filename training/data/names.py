"""Class names from what people have: text, JSON, YAML, and what exporters write into a model."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from rws.edge.common.extras import require
from rws.edge.common.files import os_errors, read_regular
from rws.edge.common.schema import parse_json
from rws.errors import FormatError
from rws.text import printable

_LARGEST = 2**26  # bytes
_LARGEST_LITERAL = 2**20  # characters that are read as a Python literal
_KEYS = ("names", "id2label", "classes", "class_names", "labels")


def read_names(path: Path) -> list[str]:
    """Read class names, in the order of the outputs; "" stands for a class without one. FormatError if none is found.

    Taken are one name per line; a JSON list; id2label of Hugging Face; ImageNet's index, {"0": ["n01440764", "tench"]};
    {"tench": 0}; `names` of Ultralytics' data.yaml; and a Python dict of numbers and names.
    """
    try:
        with os_errors(path, "read", "give a file of class names", FormatError):
            text = read_regular(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 ({error.reason}); save it as that") from error
    document: object = None
    if path.suffix.lower() in (".yaml", ".yml"):
        document = _yaml(path, text)
    elif path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        try:
            document = parse_json(text.encode())
        except ValueError as error:
            document = _literal(text)
            if document is None:
                raise FormatError(f"{path}: not JSON ({error})") from error
    else:
        return [line.strip() for line in text.rstrip().splitlines()]
    names = _listed(document)
    if not names:
        raise FormatError(f"{path}: expected a list of class names, or an object of numbers and names")
    return names


def names_in_metadata(model: onnx.ModelProto) -> list[str] | None:
    """Return the class names that an exporter wrote into a model's metadata, as Ultralytics does; None without them."""
    written = {entry.key: entry.value for entry in model.metadata_props}
    found = next((written[key] for key in _KEYS if key in written), None)
    return None if found is None else [printable(name) for name in _listed(_literal(found))] or None


def fitted(names: Sequence[str], count: int | None) -> list[str] | None:
    """Return names for that many classes, `class i` for one without; None if their number differs.

    Blank lines count if the number is right with them, and not if it is right without.
    """
    named = [name for name in names if name]
    if count is None or len(names) == count:
        return [name or f"class {index}" for index, name in enumerate(names)]
    return named if len(named) == count else None


def _yaml(path: Path, text: str) -> object:
    with require("train"):
        import yaml  # type: ignore[import-untyped]
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise FormatError(f"{path}: not YAML; give one name per line") from error


def _literal(text: str) -> object:
    """Return what a Python literal says, None if it is not one."""
    if len(text) > _LARGEST_LITERAL:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _listed(found: object) -> list[str]:
    """Return the names in a list, or an object of index and name; [] if there are none."""
    if isinstance(found, list):
        return [str(name) for name in found] if all(isinstance(name, (str, int)) for name in found) else []
    if not isinstance(found, Mapping):
        return []
    inner = next((found[key] for key in _KEYS if isinstance(found.get(key), (list, Mapping))), None)
    if inner is None:
        inner = next((value for value in found.values() if isinstance(value, list) and len(found) == 1), None)
    if inner is not None:
        return _listed(inner)
    if all(isinstance(value, int) for value in found.values()):  # label2id
        found = {index: name for name, index in found.items()}
    places = {int(key): value for key, value in found.items() if str(key).isdecimal()}
    if not places or len(places) != len(found) or max(places) >= 2 * len(places) + 1000:
        return []
    # ImageNet's index gives a number of WordNet and a name.
    words = {
        place: value[-1] if isinstance(value, (list, tuple)) and value else value for place, value in places.items()
    }
    return [str(words.get(place, "")) for place in range(max(words) + 1)]
