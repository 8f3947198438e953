"""Where the frames and results of `rws run` go: files, page and window."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rws.edge.sinks.background import BackgroundSink

if TYPE_CHECKING:
    from rich.console import Console

    from rws.edge.monitoring.monitor import Monitor
    from rws.edge.sinks.base import Sink
    from rws.edge.sinks.window import WindowSink
    from rws.edge.sources.base import Source
    from rws.edge.web import PageServer


@dataclass(frozen=True)
class OutputOptions:
    """What `rws run` writes and shows; None and False: not.

    Args:
        jsonl, csv: files with a line per frame.
        save: an .mp4 file of annotated frames.
        serve: address of the page, HOST:PORT.
        token: what a visitor of the page must know; None: generated if the address is not loopback.
        show: open a window.
        report: a JSON file for the summary.
    """

    jsonl: Path | None = None
    csv: Path | None = None
    save: Path | None = None
    serve: str | None = None
    token: str | None = None
    show: bool = False
    report: Path | None = None


class Outputs:
    """The sinks that were asked for; files are written by separate threads.

    Args:
        options: what was asked for.
        stack: closes them.
        source: a live one loses frames rather than waits for an output.
        monitor: what the page shows.
        console: for the page's address.

    Attributes:
        sinks: for the loop.
    """

    def __init__(
        self, options: OutputOptions, stack: ExitStack, source: Source, monitor: Monitor, console: Console
    ) -> None:
        self.sinks: list[Sink] = []
        self._stack, self._source = stack, source
        self._behind: dict[str, BackgroundSink] = {}
        self._page: PageServer | None = None
        self._window: WindowSink | None = None
        self._open_files(options)
        if options.serve is not None:
            self._open_page(options.serve, options.token, monitor, console)
        if options.show:
            self._open_window()

    @property
    def watched(self) -> bool:
        """Whether somebody looks at the page."""
        return self._page is not None and self._page.viewers > 0

    def idle(self) -> None:
        """Do what the outputs need while no frame comes."""
        if self._window is not None:
            self._window.refresh()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what each file took and lost."""
        return {name: sink.counts() for name, sink in self._behind.items()}

    def _open_files(self, options: OutputOptions) -> None:
        from rws.edge.sinks.csv import CsvSink
        from rws.edge.sinks.jsonl import JsonlSink
        from rws.edge.sinks.video import VideoSink

        live = self._source.live
        if options.jsonl is not None:
            self._add("jsonl", JsonlSink(options.jsonl, endless=live))
        if options.csv is not None:
            self._add("csv", CsvSink(options.csv, endless=live))
        if options.save is not None:
            self._add("save", VideoSink(options.save, self._source.fps, endless=live))

    def _open_page(self, address: str, token: str | None, monitor: Monitor, console: Console) -> None:
        from rws.edge.web import PageServer

        self._page = self._stack.enter_context(PageServer(address, monitor, token=token))
        self.sinks.append(self._page)
        # Do not log a token that the user gave.
        url = self._page.url if token is not None else self._page.url_with_token
        console.print(f"page: {url}", markup=False)

    def _open_window(self) -> None:
        from rws.edge.sinks.window import WindowSink

        # The window must be served by the loop's own thread.
        self._window = self._stack.enter_context(WindowSink(on_close=self._source.stop))
        self.sinks.append(self._window)

    def _add(self, name: str, sink: Sink) -> None:
        # Whether a stream has an end is known only when it is open.
        behind = BackgroundSink(sink, when_full=lambda: "drop" if self._source.live else "wait")
        self._behind[name] = behind
        self.sinks.append(self._stack.enter_context(behind))
