"""The `rws` command: a group of the commands below and of third parties' entry points of the group `rws.commands`.

Each is loaded when it is needed. One that cannot be loaded stays in the list and says why when called.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rws import terminal
from rws.errors import RwsError, UsageError
from rws.text import shown, shown_lines

GROUP = "rws.commands"
COMMANDS = {
    "adopt": "rws.training.cli.adopt:adopt",
    "bench": "rws.benchmarks.cli.bench:bench",
    "bundle": "rws.edge.cli.bundle:bundle",
    "demo": "rws.benchmarks.cli.demo:demo",
    "drill": "rws.edge.cli.drill:drill",
    "extract": "rws.training.cli.extract:extract",
    "health": "rws.edge.cli.oracle:health",
    "inspect": "rws.edge.cli.bundle:inspect",
    "job": "rws.training.cli.job:job",
    "oracle": "rws.edge.cli.oracle:oracle",
    "replay": "rws.benchmarks.cli.replay:replay",
    "reproduce": "rws.benchmarks.cli.reproduce:reproduce",
    "run": "rws.edge.cli.run:run",
    "train": "rws.training.cli.train:train",
    "verify": "rws.edge.cli.bundle:verify",
}
"""Name and place, `module:function`, of our own commands; a third party's command cannot replace one."""

_UsageError: Any = typer.BadParameter.__bases__[0]  # Typer does not export it.
_INTERRUPTED = 130
_WIDEST = 120  # columns of a help text
_CURES = {
    errno.EMFILE: "; raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "; end other programs, or raise the system's limit of open files",
    errno.ENOMEM: "; end other programs, or raise the limit of memory",
    errno.ENOSPC: "; free space, or choose another disk",
    errno.EDQUOT: "; free space of your quota, or choose another disk",
    errno.EROFS: "; choose another disk, this one is read-only",
}
"""What to do if the system lacks something."""


class CommandGroup(TyperGroup):
    """Finds commands among the entry points; an `RwsError` or OSError is one line, and an exit code."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.extend(_common_options())

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*COMMANDS, *entry_points(group=GROUP).names})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, a stand-in that explains itself if it cannot be loaded, or None."""
        if cmd_name in COMMANDS:
            return _with_common_options(_load(EntryPoint(cmd_name, COMMANDS[cmd_name], GROUP)))
        found = list(entry_points(group=GROUP, name=cmd_name))
        return _with_whole_help(_load(found[0])) if found else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name; the error for an unknown one suggests others."""
        if args and args[0] == "build" and "build" not in self.list_commands(ctx):
            raise UsageError("`build` is now `rws adopt MODEL IMAGES`, or `rws train DATA` for labelled images")
        names: dict[str, Any] = dict.fromkeys(self.list_commands(ctx))
        self.commands = names  # Typer looks here for names to suggest.
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command line."""
        with terminal.session():
            return super().main(*args, **settings)

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """Read the options that stand before the command."""
        with _errors_in_one_line():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with _errors_in_one_line():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Replace errors that are not our mistakes by an exit code, after a line that says what is wrong."""
    try:
        yield
    except _UsageError as error:
        error.message = shown(_with_suggestion(error.message))
        raise
    except RwsError as error:
        raise _failed(f"{error}{_cure(error.__cause__)}", error.exit_code) from error
    except BrokenPipeError:
        raise  # Whoever read our output has gone: Typer ends quietly.
    except OSError as error:
        named = "" if error.filename is None else f"{error.filename}: "
        raise _failed(f"{named}{error.strerror or error}{_cure(error)}", RwsError.exit_code) from error
    except MemoryError as error:
        raise _failed(f"{os.strerror(errno.ENOMEM)}{_CURES[errno.ENOMEM]}", RwsError.exit_code) from error
    except (KeyboardInterrupt, ImportError) as error:
        # Ctrl-C while a compiled module is imported is an ImportError.
        if isinstance(error, ImportError) and not isinstance(error.__cause__, KeyboardInterrupt):
            # What the loader says if there is no memory for a library has no code.
            texts = {os.strerror(code): cure for code, cure in _CURES.items()}
            texts["failed to map segment"] = _CURES[errno.ENOMEM]
            if not (cures := [cure for text, cure in texts.items() if text in str(error)]):
                raise
            raise _failed(f"{error}{cures[0]}", RwsError.exit_code) from error
        raise _failed("interrupted", _INTERRUPTED) from error


def _cure(error: BaseException | None) -> str:
    return _CURES.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def _hide_unless_verbose(unraisable: Any) -> None:
    """Keep what Python cannot raise, such as an error of a destructor, from the terminal."""
    if terminal.is_verbose():
        sys.__unraisablehook__(unraisable)


def _failed(message: str, code: int) -> typer.Exit:
    if terminal.is_verbose():
        print(shown_lines(traceback.format_exc()), end="", file=sys.stderr)
    with suppress(OSError):  # stderr is full or closed
        print(f"error: {shown(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return typer.Exit(code)


def _with_suggestion(message: str) -> str:
    message = message.removeprefix("Value error, ")
    value, *choices = re.findall(r"'([^']*)'", message) if " is not one of " in message else [""]
    close = get_close_matches(value, choices, 1)
    return f"{message} Did you mean '{close[0]}'?" if close else message


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


def _common_options() -> list[Any]:
    hidden = partial(typer.Option, expose_value=False)
    quiet = hidden("--quiet", "-q", callback=terminal.set_quiet, help="Print errors and results only.")
    verbose = hidden("--verbose", "-v", callback=terminal.set_verbose, help="Print details, log and tracebacks.")

    def holder(quiet: Annotated[bool, quiet] = False, verbose: Annotated[bool, verbose] = False) -> None:
        """Hold the options."""

    options: list[Any] = _single("common", holder).params
    return options


def _with_common_options(command: Any) -> Any:
    """Add the options of every command, to its subcommands too."""
    command.params.extend(_common_options())
    _with_whole_help(command)
    for child in getattr(command, "commands", {}).values():
        _with_common_options(child)
    return command


def _with_whole_help(command: Any) -> Any:
    """Let lists of commands show the whole first sentence."""
    command.short_help = (command.help or "").split("\n\n")[0].replace("\n", " ")
    return command


def _unavailable(name: str, error: Exception) -> Any:
    reason = f"{type(error).__name__}: {error}"

    def stand_in() -> None:
        raise RwsError(f"`rws {name}` is installed but cannot be loaded here ({reason})") from error

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return _single(name, stand_in, help=f"Unavailable here ({reason}).", context_settings=settings)


app = typer.Typer(
    cls=CommandGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST},
)


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
    """Keep a deployed image classifier accurate in noise, blur and bad weather.

    \b
    Examples:
        rws demo                            # see it work
        rws run 0                           # classify the first camera
        rws run video.mp4 --save out.mp4    # every frame of a file
        rws oracle photos/ --json -         # which corruption does each image have?
        rws adopt model.onnx photos/        # a bundle for your own model
    """


def main() -> None:
    """Entry point of the `rws` script."""
    # ONNX Runtime's newer wheels report their use to their maker unless this is set before they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # A parent that has closed them leaves None, and a later file would get their descriptors.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115
            os.set_inheritable(nowhere.fileno(), True)  # by the capture process, whose files would get them, too
            setattr(sys, name, nowhere)
    sys.unraisablehook = _hide_unless_verbose
    if "_RWS_COMPLETE" in os.environ:
        os.environ["COLUMNS"] = "1000"  # Typer breaks the lines of a completion there.
    try:
        typer.main.get_command(app)(prog_name="rws")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a full disk, of which the exit code tells; Python would try again and complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
