"""Where the frames and results of `rws run` go: files, page and window. Each fails alone."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rws.edge.cli.running.options import RunOptions
from rws.edge.monitoring.events import EventRecorder, EventWatch
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
    from rws.edge.cli.running.camera import CameraRun
    from rws.edge.mqtt import MqttPublisher
    from rws.edge.web import PageServer

# Frames that may wait: a machine that is busy for a second loses no row, and a window shows nothing old.
WAITING_FOR_A_FILE, WAITING = 32, 8
STOPPING = 5.0  # seconds after a signal in which the frames of a file still wait for an output
_WINDOW = ("window", Path())

Key = tuple[str, Path]  # of an output: its option, and its file


def check_files(options: RunOptions, read: Iterable[Path]) -> None:
    """Raise a `UsageError` if two outputs are one file, or if one would replace a file that is `read`."""
    taken = dict[tuple[int, int] | str, tuple[str, Path]]()
    wanted = [(name, path) for camera in options.cameras for name, path in camera.files.named()]
    wanted += [] if options.report is None else [("json", options.report)]
    for name, path in dict.fromkeys(wanted):
        if path == STDOUT or (file := _file_at(path)) is None:
            continue
        if file in taken:
            raise UsageError(f"{path}: is given for two outputs; choose another name for one of them")
        taken[file] = name, path
    # Files that are not there yet cannot be read.
    if any(isinstance(file, tuple) for file in taken):
        for path in read:
            if target := taken.get(_file_at(path) or ""):
                raise UsageError(f"{target[1]}: is what is read, and would be replaced; choose another name")


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
    """The sinks of a run, open until `stack` closes them; each is written by a separate thread.

    An output that fails neither ends the run nor disturbs the others. One that grows, and the window, are reopened; a
    file that appears only when it is complete is given up. Cameras may share a file of lines.

    Args:
        cameras: those of the run by name, as they are at any time.
        stop: ends the run: the reader of stdout has gone, or the window was closed.
        stopped: whether the run is to end.
    """

    def __init__(
        self,
        options: RunOptions,
        cameras: Mapping[str, CameraRun],
        stack: ExitStack,
        stop: Callable[[], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._options, self._cameras, self._stack, self._stop, self._stopped = options, cameras, stack, stop, stopped
        self._behind: dict[Key, BackgroundSink] = {}
        self._ended: list[BackgroundSink] = []  # of cameras that have gone; their counters stay
        self._page: PageServer | None = None
        self._mqtt: MqttPublisher | None = None
        self._watch = EventWatch({})
        self._recorder: EventRecorder | None = None
        self._stopped_at: float | None = None

    def serve(self, monitors: Mapping[str, Monitor], console: Console) -> None:
        """Serve the page of the cameras, publish their state and watch for events, if asked for."""
        options, self._watch = self._options, EventWatch(monitors)
        if options.mqtt is not None:
            from rws.edge.mqtt import MqttPublisher

            self._mqtt = self._stack.enter_context(MqttPublisher(options.mqtt, monitors, self._watch))
        if options.events is not None or options.on_event:
            recorder = self._stack.enter_context(EventRecorder(options.events, options.on_event))
            self._watch.listeners.append(recorder)
            self._recorder = recorder
        if options.serve is None:
            return
        from rws.edge.web import PageServer

        self._page = self._stack.enter_context(PageServer(options.serve, monitors, token=options.token))
        # Do not log a token that the user gave.
        url = self._page.url if options.token is not None else self._page.url_with_token
        console.print(f"page: {url}")

    def open(self, camera: CameraRun) -> list[Sink]:
        """Open the files of a camera that are not open yet, and return all its sinks."""
        keys: list[Key] = [*camera.options.files.named(), *([_WINDOW] if self._options.show else [])]
        for key in keys:
            if key not in self._behind:
                self._behind[key] = self._open(key)
                self._stack.enter_context(self._behind[key])
        # Before any of them is closed, so that those that hang share one timeout.
        self._stack.push(self._end)
        watch = self._watch if self._watch.listeners else None
        shared = (sink for sink in (self._page, self._mqtt, watch) if sink is not None)
        return [*(self._behind[key] for key in keys), *shared]

    def close(self, camera: CameraRun) -> None:
        """Close the files of a camera that has gone, unless another one writes into them, too."""
        for key in camera.options.files.named():
            if key in self._behind and not self._sources(key):
                self._ended.append(self._behind.pop(key))
                self._ended[-1].end()

    def watched(self, camera: str) -> bool:
        """Return whether somebody looks at a camera's page and needs its next frame compared with the clean model."""
        return self._page is not None and self._page.wants_comparison(camera)

    def status(self) -> dict[str, SinkStatus]:
        """Return the state and the counters of each output by its option's name."""
        page = {} if self._page is None else {"page": self._page.sink_status}
        mqtt = {} if self._mqtt is None else {"mqtt": self._mqtt.status()}
        events = {} if self._recorder is None else {"events": self._recorder.status()}
        # Asked by other threads, too, while cameras come and go.
        sinks = [*self._ended, *list(self._behind.values())]
        return {sink.name: sink.status() for sink in sinks} | page | mqtt | events

    def __bool__(self) -> bool:
        """Return whether there is any output."""
        return bool(self._behind) or self._page is not None or bool(self._watch.listeners)

    def _sources(self, key: Key) -> list[Source]:
        """Return the sources whose frames an output gets."""
        wanted = (camera for camera in self._cameras.values() if key == _WINDOW or key in camera.options.files.named())
        return [camera.source for camera in wanted]

    def _open(self, key: Key) -> BackgroundSink:
        sources = self._sources(key)
        sink = self._make(key, sources)
        owner = next(camera.name for camera in self._cameras.values() if camera.source is sources[0])

        def on_failure() -> OnFailure:
            return "reopen" if not isinstance(sink, FileSink) or sink.endless else "give up"

        return BackgroundSink(
            sink,
            name=self._unused(f"{key[0]} {owner}".rstrip() if len(sources) == 1 else key[0]),
            capacity=WAITING_FOR_A_FILE if isinstance(sink, FileSink) else WAITING,
            when_full="drop" if isinstance(sink, WindowSink) else self._when_full,
            on_failure=on_failure,
        )

    def _unused(self, name: str) -> str:
        """Return a name that no other output has or had: `jsonl`, `jsonl 2`, …"""
        taken = {sink.name for sink in [*self._ended, *self._behind.values()]}
        names = (name, *(f"{name} {number}" for number in range(2, len(taken) + 3)))
        return next(one for one in names if one not in taken)

    def _when_full(self) -> WhenFull:
        # Whether a stream has an end is known only when it is open.
        if any(camera.source.live for camera in self._cameras.values()):
            return "drop"  # waiting would hold up the live ones, too
        if self._stopped() and self._stopped_at is None:
            self._stopped_at = time.monotonic()
        return "wait" if self._stopped_at is None or time.monotonic() - self._stopped_at < STOPPING else "drop"

    def _make(self, key: Key, sources: Sequence[Source]) -> JsonlSink | CsvSink | VideoSink | WindowSink:
        name, path = key
        if key == _WINDOW:
            return WindowSink(on_close=self._stop)
        if name == "save":
            return VideoSink(path, sources[0].fps, source=sources[0])
        kind = JsonlSink if name == "jsonl" else CsvSink
        return kind(path, endless=any(source.live for source in sources), on_close=self._stop)

    def _end(self, kind: object, error: BaseException | None, trace: object) -> None:
        for sink in self._behind.values():
            sink.end(error)
