"""One `rws run`: open what was asked for, loop over the results, report."""

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TextIO, cast

from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rws import terminal
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import bundle_folder
from rws.edge.bundle.keys import trusted_keys
from rws.edge.bundle.self_test import self_test
from rws.edge.bundle.swap import check_same_classes
from rws.edge.bundle.watcher import BundleWatcher
from rws.edge.cameras import Cameras, Ended
from rws.edge.cli.running.camera import CameraRun, Opening
from rws.edge.cli.running.frames import SizeWarning
from rws.edge.cli.running.options import RunOptions
from rws.edge.cli.running.outputs import Outputs, check_files
from rws.edge.cli.running.results import change_line, image_block, image_line
from rws.edge.common.provenance import provenance, write_json
from rws.edge.common.resources import return_memory
from rws.edge.monitoring.console import LossyOutput
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.status_line import StatusLine
from rws.edge.monitoring.systemd import SystemdNotifier
from rws.edge.pipeline import Pipeline, Result
from rws.errors import FrameError, RwsError, SourceError
from rws.records import SinkStatus
from rws.text import shown

RETURN_MEMORY_EVERY = 60.0  # seconds; of clients that have left, bundles that were refused or replaced, …
SURE_FRAMES, SURE_SECONDS = 10, 2.0  # after both, the time left is known well enough to be shown


class RunSession:
    """Runs once, from the first frame to the report."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._cameras: dict[str, CameraRun] = {}
        self._monitors: dict[str, Monitor] = {}  # of these
        self._over: list[CameraRun] = []  # those that have ended or were taken out
        self._watch: BundleWatcher[tuple[Pipeline, Bundle]] | None = None
        self._status: StatusLine | None = None
        self._refused = 0
        self._loop = Cameras(self._between)
        self._reread = self._ending = False
        self._opening: Opening | None = None
        self._bars: dict[str, TaskID] = {}

    def run(self) -> None:
        """Do all of it; raises at its end if a source is lost, no frame has a result, or an output does not work."""
        with ExitStack() as stack:
            self._printed, lossy_log = (
                stack.enter_context(LossyOutput(stream, self._any_live)) for stream in (terminal.stream(), sys.stderr)
            )
            printed, logged = cast("TextIO", self._printed), cast("TextIO", lossy_log)
            self._console = terminal.console(printed)
            if self._console.is_terminal and sys.stderr.isatty() and not self._console.quiet:
                # Above the status line or progress bar, not into it.
                logged = cast("TextIO", FileProxy(self._console, logged))
            stack.enter_context(terminal.log_to(logged))
            self._results = terminal.result_console(printed) if self._console.quiet else self._console
            with ExitStack() as opened:
                self._open(opened)
                self._process()
            if not self._single or self._options.timings:
                for camera in self._all():
                    if camera.name:
                        self._console.print(Text(camera.source.name, style="bold"))
                    status = camera.monitor.status()
                    self._console.print(camera.summary.render(status, self._options.timings, self._images))
            if self._stop.is_set():
                self._console.print("stopped by a signal")
        failed = [camera.failed for camera in self._all()]
        errors = [error for error in (*failed, self._write_report(), self._incomplete()) if error is not None]
        if errors:
            raise errors[0] if len(errors) == 1 else type(errors[0])("; ".join(map(str, errors)))

    def _any_live(self) -> bool:
        return any(camera.source.live for camera in self._cameras.values())

    def _all(self) -> list[CameraRun]:
        return [*self._over, *self._cameras.values()]

    def _open(self, stack: ExitStack) -> None:
        options, keys = self._options, trusted_keys(self._options.keys)
        options.check()
        for each in options.cameras:
            self._cameras[each.name] = stack.enter_context(CameraRun(each, options.loop))
        cameras = list(self._cameras.values())
        self._stop = stack.enter_context(stop_on_signal(self._end))
        sources = [camera.source for camera in cameras]
        check_files(options, [path for camera in cameras for path in _read_by(camera)])
        self._looped = options.several or options.cameras[0].max_fps is not None
        self._images = not self._looped and _of_images(cameras[0])
        self._independent = not self._looped and cameras[0].independent
        self._single = self._images and sources[0].length == 1
        if options.watch:
            # Before the bundle is loaded, so that no change goes unseen.
            watch = BundleWatcher(bundle_folder(options.bundle), self._tested, keys=keys)
            self._watch = stack.enter_context(watch)
        self._bundle = Bundle.load(options.bundle, keys)
        self._first = self._bundle.manifest
        self._pipeline = Pipeline.from_bundle(self._bundle, options.model)
        self._warning = SizeWarning(self._first)
        for camera in cameras:
            stack.enter_context(camera.connect(self._pipeline, self._bundle, self._warning))
            self._monitors[camera.name] = camera.monitor
        if not self._images or terminal.is_verbose():
            self._console.print(f"model: {self._pipeline.model.description}")
        self._outputs = Outputs(options, self._cameras, stack, self._end, lambda: self._ending)
        self._outputs.serve(self._monitors, self._console)
        self._systemd = stack.enter_context(SystemdNotifier())
        for camera in cameras:
            camera.monitor.sinks = self._sinks
            self._begin(camera)
        if self._any_live():
            status = StatusLine(self._monitors, self._console, self._systemd.status, timings=options.timings)
            self._status = stack.enter_context(status)
        if options.reread is not None:
            stack.callback(self._abandon_opening)
            stack.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, self._read_again_soon))
        self._systemd.ready()

    def _begin(self, camera: CameraRun) -> None:
        camera.sinks = self._outputs.open(camera)
        if self._looped:
            self._loop.add(camera.camera(self._loop.arrived))

    def _end(self) -> None:
        self._ending = True
        for camera in list(self._cameras.values()):
            camera.source.stop()
        self._loop.stop()

    def _events(self) -> Generator[tuple[CameraRun, Result | FrameError | Ended | None], None, None]:
        if self._looped:
            self._pipeline.warm_up()
            with closing(self._loop.results()) as events:
                yield from ((self._cameras[camera.name], event) for camera, event in events)
            return
        (camera,) = self._cameras.values()
        try:
            with closing(camera.runtime.results(camera.source, camera.sinks, camera.changes)) as results:
                yield from ((camera, result) for result in results)
        except SourceError as error:
            # What came before the loss is worth keeping: the sinks close as they would at the end of a file.
            if camera.summary.results == 0:
                raise
            yield camera, Ended(error)

    def _process(self) -> None:
        if self._status is not None:
            self._status.update()
        gc.collect()
        gc.freeze()  # what is there by now stays: looking through it would hold up frames
        returned = time.monotonic()
        try:
            with closing(self._events()) as events, self._progress() as progress:
                for camera, event in events:
                    self._systemd.alive()
                    self._take(camera, event, progress)
                    if self._status is not None:
                        self._status.update()
                    if self._is_over(camera):
                        break
                    if not self._looped:
                        self._between()
                    if time.monotonic() - returned > RETURN_MEMORY_EVERY:
                        returned = time.monotonic()
                        return_memory()
                    camera.runtime.compare = self._outputs.watched(camera.name)
                    camera.runtime.limits = camera.monitor.limits
                    self._loop.pause(camera.name, camera.monitor.paused)
        finally:
            gc.unfreeze()
        if not self._stop.is_set():
            for camera in self._all():
                camera.look_for_results()

    def _take(self, camera: CameraRun, event: Result | FrameError | Ended | None, progress: Progress) -> None:
        if isinstance(event, Ended):
            camera.end(event.error)
            if camera.failed is not None and self._looped:
                self._console.print(str(camera.failed))
            return
        camera.add(event)
        if isinstance(event, Result):
            self._print(event)
            if camera.name in self._bars:
                progress.advance(self._bars[camera.name])

    def _is_over(self, camera: CameraRun) -> bool:
        """Return whether the run has all the frames that it was asked for, or nobody wants more."""
        if not self._looped and camera.summary.results == self._options.limit:
            return True
        return self._printed.unread and not self._outputs and self._options.report is None

    def _between(self) -> None:
        """Do what may not happen while a frame is processed."""
        self._swap()
        self._read_again()
        if self._looped:
            for name, camera in self._cameras.items():
                if camera.summary.results == self._options.limit:
                    self._loop.remove(name)

    def _sinks(self) -> dict[str, SinkStatus]:
        systemd = {"systemd": self._systemd.sink_status} if self._systemd.sink_status.accepted else {}
        return self._outputs.status() | {"console": self._printed.sink_status} | systemd

    def _incomplete(self) -> RwsError | None:
        # What page, broker and service manager show is gone with the moment.
        shown = ("page", "mqtt", "systemd")
        kept = {name: sink for name, sink in self._sinks().items() if sink.state != "up" and name not in shown}
        reasons = "; ".join(f"{name}: {sink.error or sink.state}" for name, sink in kept.items())
        return RwsError(f"the run is complete, but not each output: {reasons}") if kept else None

    def _print(self, result: Result) -> None:
        console = self._results if self._images else self._console
        if self._single:
            console.print(image_block(result), soft_wrap=True)
        elif self._independent:
            console.print(image_line(result, console.width if console.is_terminal else None), soft_wrap=True)
        elif result.changed:
            console.print(change_line(result))

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeLeft())
        hidden = self._any_live() or not self._console.is_terminal
        progress = Progress(*columns, console=self._console, transient=True, disable=hidden)
        for name, camera in self._cameras.items():
            totals = [count for count in (camera.source.length, self._options.limit) if count is not None]
            self._bars[name] = progress.add_task(camera.source.name, total=min(totals, default=None))
        return progress

    def _swap(self) -> None:
        if self._watch is None:
            return
        found = self._watch.poll()
        if self._watch.failures > self._refused:
            self._refused = self._watch.failures
            for camera in self._cameras.values():
                camera.monitor.count_event("bundle_refused")
            self._console.print(f"bundle refused, the old one stays: {shown(self._watch.error)}")
        if found is None:
            return
        self._pipeline, self._bundle = found
        for camera in self._cameras.values():
            camera.swap(*found)
        self._console.print(f"bundle swapped: now {self._pipeline.name}, {self._pipeline.model.description}")

    def _tested(self, bundle: Bundle) -> tuple[Pipeline, Bundle]:
        if not self._options.other_classes:
            check_same_classes(self._first, "the run", bundle.manifest, bundle.path)
        pipeline = Pipeline.from_bundle(bundle, self._options.model)
        self_test(bundle, pipeline.model, pipeline.oracle)
        pipeline.warm_up()
        return pipeline, bundle

    def _read_again_soon(self, number: int, frame: FrameType | None) -> None:
        self._reread = True

    def _read_again(self) -> None:
        """Begin and end cameras as the configuration file says now; one whose table has not changed goes on.

        What is new is opened by a thread first: the loop does not wait, and if one cannot be opened, nothing changes.
        """
        if self._reread and self._options.reread is not None:
            self._reread = False
            try:
                asked = replace(self._options, cameras=tuple(self._options.reread()))
                asked.check()
                check_files(asked, [Path(source) for camera in asked.cameras for source in camera.source])
            except RwsError as error:
                self._console.print(f"the configuration is not used: {error}")
                return
            kept = {camera.name: camera.options for camera in self._cameras.values()}
            new = [camera for camera in asked.cameras if kept.get(camera.name) != camera]
            names = {camera.name for camera in asked.cameras} - {camera.name for camera in new}
            self._abandon_opening()
            self._opening = Opening(new, names, self._options.loop)
        if self._opening is None or not self._opening.done:
            return
        opening, self._opening = self._opening, None
        if opening.error is not None:
            self._console.print(f"the configuration is not used: {opening.error}")
            return
        for name, camera in list(self._cameras.items()):
            if name not in opening.kept:
                self._loop.remove(name)
                self._over.append(self._cameras.pop(name))
                del self._monitors[name]
                self._outputs.close(camera)
                self._console.print(f"{camera.source.name}: taken out")
        for camera in opening.cameras:
            self._take_in(camera)

    def _abandon_opening(self) -> None:
        if self._opening is not None:
            self._opening.abandon()

    def _take_in(self, camera: CameraRun) -> None:
        camera.connect(self._pipeline, self._bundle, self._warning)
        self._cameras[camera.name], self._monitors[camera.name] = camera, camera.monitor
        camera.monitor.sinks = self._sinks
        try:
            self._begin(camera)
        except RwsError as error:  # an output; which of them work is known only when they are opened
            del self._cameras[camera.name], self._monitors[camera.name]
            self._outputs.close(camera)
            camera.close()
            camera.end(error)
            self._over.append(camera)
            self._console.print(f"{camera.source.name}: is not used: {error}")
        else:
            self._console.print(f"{camera.source.name}: taken in")

    def _write_report(self) -> RwsError | None:
        options, model, cameras = self._options, self._pipeline.model, self._all()
        if options.report is None:
            return None
        report: dict[str, object] = {
            "bundle": cameras[0].monitor.bundle,
            "backend": options.model.backend,
            "strategy": model.strategy,
            "provider": model.provider,
            "threads": options.model.threads,
            "stopped": self._stop.is_set(),
            "sinks": {name: asdict(sink) for name, sink in self._sinks().items()},
        }
        if options.several:
            report |= {"cameras": [{"camera": camera.name, **camera.record()} for camera in cameras]}
            report |= {"weight_changes": self._loop.weight_changes, "rounds": self._loop.rounds}
        else:
            report |= cameras[0].record()
        schema = "cameras-summary/1" if options.several else "run-summary/1"
        try:
            write_json(options.report, schema, report | provenance())
        except BrokenPipeError:
            raise
        except OSError as error:
            return RwsError(f"{options.report}: the report cannot be written ({error.strerror or error})")
        return None


def _read_by(camera: CameraRun) -> list[Path]:
    return [*map(Path, camera.options.source), *camera.source.paths]


def _of_images(camera: CameraRun) -> bool:
    """Return whether its frames are images that have nothing to do with each other."""
    return camera.independent and not camera.source.sequential and not camera.source.live


class TimeLeft(TimeRemainingColumn):
    """The time left, from when enough frames have been processed to tell."""

    def render(self, task: Task) -> Text:
        """Return what a progress bar shows."""
        if task.completed < SURE_FRAMES or (task.elapsed or 0.0) < SURE_SECONDS:
            return Text("")
        return super().render(task)


@contextmanager
def stop_on_signal(end: Callable[[], None]) -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets, which also calls `end`; a second one interrupts."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        end()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
