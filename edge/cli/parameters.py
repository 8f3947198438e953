"""Parameters that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle folder; default: the bundled one.", show_default=False)
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of model and oracle; default: the backend chooses.")
]
