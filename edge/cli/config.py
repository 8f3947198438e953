"""`--config FILE`: a command's options in a TOML file, checked against the command's own parameters."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer.models import ArgumentInfo, OptionInfo

from rws.edge.common.schema import STRICT, read_toml, shorten, validate
from rws.errors import FormatError

CAMERA = "camera"  # a table for each of several cameras, one day


def read_config(command: Callable[..., None], context: typer.Context, path: Path) -> None:
    """Make the values of a TOML file the defaults of a command; command line and environment come before them.

    The annotations of the command's parameters are the schema. A key is an option's long name with underscores
    (`oracle_every`) or an argument's name; what takes several values may have one. Paths are relative to the
    working directory. Raises an `InputError` or `FormatError` if the file, a key, a type or a value is not accepted.
    """
    document, fields, names = read_toml(path), [], {}
    if CAMERA in document:
        raise FormatError(
            f"{path}: the table [{CAMERA}.NAME] is reserved, because several cameras are planned and cannot be used "
            "yet; write the options above any table and start one `rws run` per camera"
        )
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        hint = parameter.annotation
        for info in getattr(hint, "__metadata__", ()):
            key = name if isinstance(info, ArgumentInfo) else _key(name, info)
            several = any(get_origin(kind) is list for kind in get_args(hint.__origin__))
            if key != "config":
                names[key] = name
                expected = "text or a list of texts" if several else None
                limits = Field(ge=info.min, le=info.max, description=expected)
                fields.append((key, Annotated[hint.__origin__, limits], None))
            if several and type(document.get(key)) in (str, int):
                document[key] = [str(document[key])]
    for key, value in document.items():
        if r"\x00" in repr(value):
            raise FormatError(f"{path}: {shorten(key)} contains a NUL character; correct the file")
    schema: Any = dataclass(dataclasses.make_dataclass("Options", fields), config=STRICT)
    validate(schema, document, str(path), cure="correct the file")
    context.default_map = {names[key]: value for key, value in document.items()}


def _key(name: str, info: OptionInfo) -> str:
    # In an annotation, Typer takes what stands where the default would be for the option's name.
    spelled = (text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str))
    long = next((text for text in spelled if text.startswith("--")), name)
    return long.partition("/")[0].removeprefix("--").replace("-", "_")
