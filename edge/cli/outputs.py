"""Where the frames and results of `rws run` go: files, page and window. Each fails alone."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rws.edge.monitoring.monitor import Monitor
from rws.edge.sinks.background import BackgroundSink, OnFailure, WhenFull
from rws.edge.sinks.base import Sink
from rws.edge.sinks.csv import CsvSink
from rws.edge.sinks.file import FileSink
from rws.edge.sinks.jsonl import JsonlSink
from rws.edge.sinks.video import VideoSink
from rws.edge.sinks.window import WindowSink
from rws.edge.sources.base import Source
from rws.errors import UsageError
from rws.records import SinkStatus
from rws.terminal import STDOUT

if TYPE_CHECKING:
    from rws.edge.web import PageServer


@dataclass(frozen=True)
class OutputOptions:
    """What `rws run` writes and shows; see its help text."""

    jsonl: Path | None
    csv: Path | None
    save: Path | None
    serve: str | None
    token: str | None
    show: bool
    report: Path | None
    timings: bool

    def check(self, read: Iterable[Path]) -> None:
        """Raise a `UsageError` if two outputs are one file, or if one would replace a file that is `read`."""
        taken = dict[tuple[int, int] | str, Path]()
        for path in (self.jsonl, self.csv, self.save, self.report):
            if path is None or path == STDOUT or (file := _file_at(path)) is None:
                continue
            if file in taken:
                raise UsageError(f"{path}: is given for two outputs; choose another name for one of them")
            taken[file] = path
        # Files that are not there yet cannot be read.
        if any(isinstance(file, tuple) for file in taken):
            for path in read:
                if target := taken.get(_file_at(path) or ""):
                    raise UsageError(f"{target}: is what is read, and would be replaced; choose another name")


# Frames that may wait: a machine that is busy for a second loses no row, and a window shows nothing old.
WAITING_FOR_A_FILE, WAITING = 32, 8
STOPPING = 5.0  # seconds after a signal in which the frames of a file still wait for an output


def _file_at(path: Path) -> tuple[int, int] | str | None:
    """Return what tells a regular file from others, whatever its name; None for anything else."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


class Outputs:
    """The sinks that were asked for, open until `stack` closes them; each is written by a separate thread.

    An output that fails neither ends the run nor disturbs the others. One that grows, and the window, are reopened; a
    file that appears only when it is complete is given up.
    """

    def __init__(
        self, options: OutputOptions, stack: ExitStack, source: Source, monitor: Monitor, console: Console
    ) -> None:
        self._stack, self._source = stack, source
        self._behind: dict[str, BackgroundSink] = {}
        self._page: PageServer | None = None
        self._stopped_at: float | None = None
        if options.jsonl is not None:
            self._write("jsonl", JsonlSink(options.jsonl, endless=source.live, on_close=source.stop))
        if options.csv is not None:
            self._write("csv", CsvSink(options.csv, endless=source.live, on_close=source.stop))
        if options.save is not None:
            self._write("save", VideoSink(options.save, source.fps, source=source))
        if options.serve is not None:
            from rws.edge.web import PageServer

            self._page = stack.enter_context(PageServer(options.serve, monitor, token=options.token))
            # Do not log a token that the user gave.
            url = self._page.url if options.token is not None else self._page.url_with_token
            console.print(f"page: {url}")
        if options.show:
            self._write("window", WindowSink(on_close=source.stop), lambda: "drop")
        self.sinks: list[Sink] = [*self._behind.values(), *([] if self._page is None else [self._page])]
        # Before any of them is closed, so that those that hang share one timeout.
        stack.push(self._end)

    @property
    def watched(self) -> bool:
        """Whether somebody looks at the page and needs the next frame compared with the clean model."""
        return self._page is not None and self._page.wants_comparison

    def status(self) -> dict[str, SinkStatus]:
        """Return the state and the counters of each output by its option's name."""
        page = {} if self._page is None else {"page": self._page.sink_status}
        return {name: sink.status() for name, sink in self._behind.items()} | page

    def _write(self, name: str, sink: Sink, when_full: Callable[[], WhenFull] | None = None) -> None:
        def on_failure() -> OnFailure:
            return "reopen" if not isinstance(sink, FileSink) or sink.endless else "give up"

        capacity = WAITING_FOR_A_FILE if isinstance(sink, FileSink) else WAITING
        behind = BackgroundSink(
            sink, name=name, capacity=capacity, when_full=when_full or self._when_full, on_failure=on_failure
        )
        self._behind[name] = self._stack.enter_context(behind)

    def _when_full(self) -> WhenFull:
        # Whether a stream has an end is known only when it is open.
        if self._source.live:
            return "drop"
        if self._source.stopped and self._stopped_at is None:
            self._stopped_at = time.monotonic()
        return "wait" if self._stopped_at is None or time.monotonic() - self._stopped_at < STOPPING else "drop"

    def _end(self, kind: object, error: BaseException | None, trace: object) -> None:
        for sink in self._behind.values():
            sink.end(error)
