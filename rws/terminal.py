"""What a command prints for people: on stdout, or on stderr if a document such as `--json -` takes stdout.

The front door knows of `-q` and `-v` and opens a `session` for each command line; all commands print through this.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rws.errors import UsageError
from rws.text import shown_lines

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = Path("-")
"""The name of a file that means stdout."""

_PIPED_WIDTH = 140
"""Columns of a table that goes to no terminal; rich would cut it at 80."""

# Brackets and colons in a name are no markup.
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}

_logger = logging.getLogger("rws")


@dataclass
class _State:
    quiet: bool = False
    verbose: bool = False
    document: bool = False  # stdout carries one
    opened: ExitStack = field(default_factory=ExitStack)  # until the end of the session


_state = _State()


@contextmanager
def session() -> Iterator[None]:
    """Forget at the end what the options of a command line have set."""
    global _state
    try:
        yield
    finally:
        _state.opened.close()
        _logger.setLevel(logging.NOTSET)
        _state = _State()


def set_quiet(value: bool) -> None:
    """Print errors and results only, if `value` is true; UsageError with -v."""
    _set_verbosity(_state.quiet or value, _state.verbose)


def set_verbose(value: bool) -> None:
    """Print details, tracebacks and the package's whole log, if `value` is true; UsageError with -q."""
    _set_verbosity(_state.quiet, _state.verbose or value)


def is_quiet() -> bool:
    """Return whether only errors and results are printed."""
    return _state.quiet


def is_verbose() -> bool:
    """Return whether details were asked for."""
    return _state.verbose


def claim_stdout(target: Path | None) -> Path | None:
    """Return the target; if it is `-`, a document takes stdout from now on; UsageError for a second one."""
    if target == STDOUT:
        if _state.document:
            raise UsageError("only one output can go to stdout; give the others the name of a file instead of -")
        _state.document = True
    return target


def stream() -> TextIO:
    """Return the stream for lines and tables."""
    return sys.stderr if _state.document else sys.stdout


def say(line: str = "") -> None:
    """Print a line about the work; nothing with -q."""
    if not _state.quiet:
        print(shown_lines(line), file=stream(), flush=True)


def show(result: object) -> None:
    """Print what the command was asked for, a text or something that rich renders; also with -q.

    With -q and a document on stdout, the document is the result, and nothing is printed.
    """
    if not isinstance(result, str):
        result_console().print(result)
    elif not (_state.quiet and _state.document):
        print(shown_lines(result), file=stream(), flush=True)


def console(file: TextIO | None = None, *, wrap: bool = False) -> Console:
    """Return a console for lines and progress that prints nothing with -q.

    Args:
        file: a stream in place of `stream()`.
        wrap: break lines at the width of the terminal.
    """
    from rich.console import Console

    return Console(file=file, quiet=_state.quiet, soft_wrap=not wrap, stderr=_state.document, **_PLAIN)


def result_console(file: TextIO | None = None) -> Console:
    """Return a console for results; see `show`, and `console` for the file."""
    from rich.console import Console

    width = None if stream().isatty() else _PIPED_WIDTH
    quiet = _state.quiet and _state.document
    return Console(file=file, quiet=quiet, width=width, stderr=_state.document, **_PLAIN)


@contextmanager
def log_to(output: TextIO) -> Iterator[None]:
    """Send the package's log to this stream: warnings, with -v all of it, with -q errors."""
    handler = logging.StreamHandler(output)
    handler.setFormatter(_LogFormat("%(levelname)s %(name)s: %(message)s" if _state.verbose else None))
    before, _logger.handlers = _logger.handlers, [handler]
    try:
        yield
    finally:
        _logger.handlers = before


class _LogFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a record as it may be shown."""
        return shown_lines(super().format(record))


def _set_verbosity(quiet: bool, verbose: bool) -> None:
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them")
    if verbose and not _state.verbose:
        _state.verbose = True
        _state.opened.enter_context(log_to(sys.stderr))
    _state.quiet = quiet
    _logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.NOTSET)
