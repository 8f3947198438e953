"""Parameters that several commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rws.edge.common.files import check_target
from rws.terminal import claim_stdout

argument = partial(typer.Argument, show_default=False)
optional = partial(typer.Option, show_default=False)  # the help text does not show its default, None


def output(path: Path | None) -> Path | None:
    """Check the file of a result when its option is read, before long work; `-` claims stdout."""
    return path and claim_stdout(check_target(path))


_BUNDLE = "Bundle folder, or detector or cifar10, which ship, or imagenet (see rws adopt); default: "
BundleOption = Annotated[Path | None, optional("--bundle", help=f"{_BUNDLE}detector.")]
Cifar10Option = Annotated[Path | None, optional("--bundle", help=f"{_BUNDLE}cifar10, the small classifier.")]
KeyOption = Annotated[
    list[Path] | None,
    optional(
        metavar="FILE",
        envvar="RWS_KEY",
        help="Run only bundles that are signed with this public key; repeatable: with any; needs the extra `sign`.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of model and oracle; default: the backend chooses.")
]
JsonOption = Annotated[
    Path | None,
    optional("--json", metavar="FILE", callback=output, help="Write the result as JSON to this file; -: stdout."),
]
