"""The `rws` command: a group of the commands below and of third parties' entry points of the group `rws.commands`.

Each is loaded when it is needed. One that cannot be loaded stays in the list and says why when called.
"""

import errno
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import typer
from typer.core import TyperGroup

from rws.errors import RwsError

GROUP = "rws.commands"
COMMANDS = {
    "adopt": "rws.training.cli.adopt:adopt",
    "bench": "rws.benchmarks.cli.bench:bench",
    "bundle": "rws.edge.cli.bundle:bundle",
    "demo": "rws.benchmarks.cli.demo:demo",
    "drill": "rws.edge.cli.drill:drill",
    "extract": "rws.training.cli.extract:extract",
    "inspect": "rws.edge.cli.bundle:inspect",
    "oracle": "rws.edge.cli.oracle:oracle",
    "replay": "rws.benchmarks.cli.replay:replay",
    "reproduce": "rws.benchmarks.cli.reproduce:reproduce",
    "run": "rws.edge.cli.run:run",
    "train": "rws.training.cli.train:train",
    "verify": "rws.edge.cli.bundle:verify",
}
"""Name and place, `module:function`, of our own commands; a third party's command cannot replace one."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # what a write fails with without a file name


class CommandGroup(TyperGroup):
    """Finds commands among the entry points, and prints an `RwsError` as one line, with exit code 2."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*COMMANDS, *entry_points(group=GROUP).names})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, a stand-in that explains itself if it cannot be loaded, or None."""
        if cmd_name in COMMANDS:
            return _load(EntryPoint(cmd_name, COMMANDS[cmd_name], GROUP))
        found = list(entry_points(group=GROUP, name=cmd_name))
        return _load(found[0]) if found else None

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except RwsError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.filename is None and error.errno not in _DISK:
                raise
            named = "" if error.filename is None else f"{error.filename}: "
            typer.echo(f"error: {named}{error.strerror}", err=True)
            raise typer.Exit(2) from error


def _load(entry_point: EntryPoint) -> Any:
    try:
        loaded = entry_point.load()
    except Exception as error:
        return _unavailable(entry_point.name, error)
    if isinstance(loaded, typer.Typer):
        loaded.rich_markup_mode = None
        return typer.main.get_group(loaded)
    return _single(entry_point.name, loaded)


def _single(name: str, function: Callable[..., Any], **settings: Any) -> Any:
    # Rich's markup would swallow the brackets of `pip install 'rws-edge[train]'` in help texts.
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, **settings)(function)
    return typer.main.get_command(single)


def _unavailable(name: str, error: Exception) -> Any:
    reason = f"{type(error).__name__}: {error}"

    def stand_in() -> None:
        raise RwsError(f"`rws {name}` is installed but cannot be loaded here ({reason})") from error

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return _single(name, stand_in, help=f"Unavailable here ({reason}).", context_settings=settings)


app = typer.Typer(cls=CommandGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rws {version('rws-edge')}")
        raise typer.Exit


@app.callback()
def rws(
    show_version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Keep a deployed image classifier seeing when the picture goes bad.

    \b
    Examples:
        rws run 0                                # classify the first camera
        rws run video.mp4 --save annotated.mp4   # every frame of a file
        rws oracle photos/ --json beliefs.json   # which corruption does each image carry?
        rws run --help                           # more about one command
    """


def main() -> None:
    """Entry point of the `rws` script."""
    # ONNX Runtime's newer wheels report their use to their maker unless this is set before they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    typer.main.get_command(app)(prog_name="rws")
