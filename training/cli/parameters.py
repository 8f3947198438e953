"""Options of commands whose work is made of jobs."""

from pathlib import Path
from typing import Annotated

from typer import Option

OnOption = Annotated[
    str,
    Option(
        metavar="WHERE",
        help="here, or a Ray cluster: ray (of this machine) or ray://HOST:PORT; needs the extra `cluster`.",
    ),
]
WorkersOption = Annotated[int, Option(min=1, help="Processes that share the jobs; on a cluster, jobs in flight.")]
ThreadsOfJobOption = Annotated[
    int | None, Option(min=1, help="CPU threads of each process. Default: the cores, shared; on a cluster 1.")
]
ExplainOption = Annotated[bool, Option("--explain", help="Say of each job whether it is done, or why not, and end.")]


def absolute(source: str) -> str:
    """Return a file, folder or pattern with its whole path, for processes that work elsewhere; other names as given."""
    is_path = Path(source).exists() or (any(sign in source for sign in "*?[") and "://" not in source)
    return str(Path(source).absolute()) if is_path else source
