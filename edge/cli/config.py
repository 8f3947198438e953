"""`--config FILE`: a command's options in a TOML file, checked against the command's own parameters."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import Field
from pydantic.dataclasses import dataclass
from typer.models import ArgumentInfo, OptionInfo

from rws.edge.common.schema import STRICT, read_toml, shorten, validate
from rws.errors import FormatError

CAMERA = "camera"  # [camera.NAME]: a table for each of several cameras
MOST_CAMERAS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # fits into a file name, a metric's label and an MQTT topic


class Config(NamedTuple):
    """The values of a file by the name of the command's parameter: for all cameras, and for each of several."""

    options: Mapping[str, Any]
    cameras: Mapping[str, Mapping[str, Any]]


def read_config(command: Callable[..., None], path: Path, of_cameras: Collection[str] = ()) -> Config:
    """Read the values of a TOML file for a command.

    The annotations of the command's parameters are the schema. A key is an option's long name with underscores
    (`oracle_every`) or an argument's name; what takes several values may have one. Paths are relative to the
    working directory. A table [camera.NAME] may have the keys `of_cameras`, and must have `source`.

    Raises an `InputError` or `FormatError` if the file, a key, a type or a value is not accepted.
    """
    document, keys = read_toml(path), _keys(command)
    cameras = document.pop(CAMERA, {})
    options = _checked(document, keys, str(path))
    if not isinstance(cameras, dict) or not all(isinstance(table, dict) for table in cameras.values()):
        raise FormatError(f"{path}: [camera] holds no tables; write [camera.NAME] above the options of each camera")
    if len(cameras) > MOST_CAMERAS:
        raise FormatError(f"{path}: has {len(cameras)} cameras, {MOST_CAMERAS} are allowed; start several runs")
    found = {}
    for name, table in cameras.items():
        where = f"{path}: camera {shorten(name)}"
        if not _NAME.fullmatch(name):
            raise FormatError(
                f"{where}: a name has 1 to 40 letters, digits, - and _, and begins with a letter or digit"
            )
        if whole := [key for key in table if key in keys and key not in of_cameras]:
            raise FormatError(f"{where}: {whole[0]} is an option of the whole run; write it above the first table")
        found[name] = _checked(table, {key: keys[key] for key in of_cameras}, where)
        if not found[name].get("source"):
            raise FormatError(f"{where}: has no source; add one, such as source = 0")
    return Config(options, found)


class _Key(NamedTuple):
    parameter: str
    kind: Any  # with its limits
    several: bool


def _keys(command: Callable[..., None]) -> dict[str, _Key]:
    keys = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        hint = parameter.annotation
        for info in getattr(hint, "__metadata__", ()):
            key = name if isinstance(info, ArgumentInfo) else _key(name, info)
            several = any(get_origin(kind) is list for kind in get_args(hint.__origin__))
            limits = Field(ge=info.min, le=info.max, description="text or a list of texts" if several else None)
            keys[key] = _Key(name, Annotated[hint.__origin__, limits], several)
    del keys["config"]
    return keys


def _checked(document: dict[str, Any], keys: Mapping[str, _Key], where: str) -> dict[str, Any]:
    """Return the values by the names of the parameters."""
    for key, (_, _, several) in keys.items():
        if several and type(document.get(key)) in (str, int):
            document[key] = [str(document[key])]
    for key, value in document.items():
        if r"\x00" in repr(value):
            raise FormatError(f"{where}: {shorten(key)} contains a NUL character; correct the file")
    fields = [(key, kind, None) for key, (_, kind, _) in keys.items()]
    schema: Any = dataclass(dataclasses.make_dataclass("Options", fields), config=STRICT)
    validate(schema, document, where, cure="correct the file")
    return {keys[key].parameter: value for key, value in document.items()}


def _key(name: str, info: OptionInfo) -> str:
    # In an annotation, Typer takes what stands where the default would be for the option's name.
    spelled = (text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str))
    long = next((text for text in spelled if text.startswith("--")), name)
    return long.partition("/")[0].removeprefix("--").replace("-", "_")
