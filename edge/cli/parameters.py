"""Parameters that several commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

argument = partial(typer.Argument, show_default=False)
optional = partial(typer.Option, show_default=False)  # its default, None, is left out of the help text

BundleOption = Annotated[Path | None, optional("--bundle", help="Bundle folder; default: the bundled one.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of model and oracle; default: the backend chooses.")
]
