"""Where the frames and results of `rws run` go: files, page and window."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rws.edge.monitoring.monitor import Monitor
from rws.edge.sinks.background import BackgroundSink
from rws.edge.sinks.base import Sink
from rws.edge.sinks.csv import CsvSink
from rws.edge.sinks.jsonl import JsonlSink
from rws.edge.sinks.video import VideoSink
from rws.edge.sinks.window import WindowSink
from rws.edge.sources.base import Source

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


class Outputs:
    """The sinks that were asked for, open until `stack` closes them; files are written by separate threads."""

    def __init__(
        self, options: OutputOptions, stack: ExitStack, source: Source, monitor: Monitor, console: Console
    ) -> None:
        self._stack, self._source = stack, source
        self._files: dict[str, BackgroundSink] = {}
        self._page: PageServer | None = None
        self._window: WindowSink | None = None
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
            self._window = stack.enter_context(WindowSink(on_close=source.stop))
        # The window is served by the loop's own thread.
        possible: list[Sink | None] = [*self._files.values(), self._page, self._window]
        self.sinks = [sink for sink in possible if sink is not None]

    @property
    def watched(self) -> bool:
        """Whether somebody looks at the page."""
        return self._page is not None and self._page.viewers > 0

    def idle(self) -> None:
        """Do what the outputs need while no frame comes."""
        if self._window is not None:
            self._window.refresh()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many frames each file received, wrote and lost."""
        return {name: sink.counts() for name, sink in self._files.items()}

    def _write(self, name: str, sink: Sink) -> None:
        # Whether a stream has an end is known only when it is open.
        behind = BackgroundSink(sink, when_full=lambda: "drop" if self._source.live else "wait")
        self._files[name] = self._stack.enter_context(behind)
