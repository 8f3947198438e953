"""Parameters that several commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rws.terminal import claim_stdout

argument = partial(typer.Argument, show_default=False)
optional = partial(typer.Option, show_default=False)  # the help text does not show its default, None

BundleOption = Annotated[Path | None, optional("--bundle", help="Bundle folder; default: the bundled one.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of model and oracle; default: the backend chooses.")
]
JsonOption = Annotated[
    Path | None,
    optional("--json", metavar="FILE", callback=claim_stdout, help="Write the result as JSON to this file; -: stdout."),
]
