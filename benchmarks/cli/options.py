"""Options that several commands share, and the file of a result."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle

Models = Annotated[
    list[str] | None,
    typer.Option(help="NAME:PIXELS such as vgg16:224, or an .onnx file; repeatable; default: a bundle."),
]
Layers = Annotated[int, typer.Option(min=1, help="Shallowest layers that are patched; a bundle has its own.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each case per repeat.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repeats; each reloads everything.")]


def open_bundle(folder: Path | None, any_range: bool = False) -> "Bundle":
    """Load a classifier's bundle, for None the one of CIFAR-10 that ships; see `Bundle.load_classifier`."""
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.contents import CIFAR10_BUNDLE

    return Bundle.load_classifier(folder or CIFAR10_BUNDLE, any_range)


def save(
    report: Path | None, schema: str, result: Mapping[str, object], data: str | None = None, **made: object
) -> None:
    """Write a result as JSON, if a file is asked for, with its provenance: images, and what else `made` says."""
    from rws.edge.common.provenance import provenance, write_json

    if report is not None:
        images = {} if data is None else {"data": Path(data).name}
        write_json(report, schema, provenance(**images, **made) | dict(result))
