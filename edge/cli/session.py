"""One `rws run`: open what was asked for, loop over the results, report."""

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO, cast

from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rws import terminal
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import bundle_folder
from rws.edge.bundle.keys import trusted_keys
from rws.edge.bundle.options import ModelOptions
from rws.edge.bundle.self_test import self_test
from rws.edge.bundle.swap import check_same_classes
from rws.edge.bundle.watcher import BundleWatcher
from rws.edge.cli.frames import CORRUPT_SEED, SizeWarning, corrupter
from rws.edge.cli.outputs import OutputOptions, Outputs
from rws.edge.cli.results import change_line, image_block, image_line
from rws.edge.common.provenance import portable_path, provenance, write_json
from rws.edge.common.resources import return_memory
from rws.edge.monitoring.console import LossyOutput
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.status_line import StatusLine
from rws.edge.monitoring.summary import Summary
from rws.edge.monitoring.systemd import SystemdNotifier
from rws.edge.pipeline import Pipeline, Result
from rws.edge.runtime import Runtime
from rws.edge.sources.base import Source
from rws.edge.sources.capture.decoding.checks import Checks
from rws.edge.sources.capture.protocol import NetworkOptions
from rws.edge.sources.open import check_repeatable, open_images, open_source
from rws.edge.sources.repeated import RepeatedSource
from rws.errors import FrameError, RwsError, SourceError
from rws.oracle.policy import PatchLimits
from rws.records import Frame, SinkStatus
from rws.text import shown

RETURN_MEMORY_EVERY = 60.0  # seconds; of clients that have left, bundles that were refused or replaced, …
SURE_FRAMES, SURE_SECONDS = 10, 2.0  # after both, the time left is known well enough to be shown


@dataclass(frozen=True)
class RunOptions:
    """What `rws run` was asked for; see its help text."""

    source: tuple[str, ...]
    bundle: Path | None
    keys: tuple[Path, ...]  # public; () if any bundle may run
    model: ModelOptions
    outputs: OutputOptions
    independent: bool | None
    latest: bool | None
    corrupt: str | None
    oracle_every: int
    retries: int | None
    stall: float
    network: NetworkOptions
    checks: Checks
    label: str
    watch: bool
    other_classes: bool
    limit: int | None
    loop: bool
    limits: PatchLimits


class RunSession:
    """Runs once, from the source's first frame to the report."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._summary = Summary()
        self._live = False
        self._watch: BundleWatcher[Pipeline] | None = None
        self._status: StatusLine | None = None
        self._refused = 0
        self._failed: RwsError | None = None

    def run(self) -> None:
        """Do all of it; raises at its end if the source is lost, no frame has a result, or an output does not work."""
        with ExitStack() as stack:
            self._printed, lossy_log = (
                stack.enter_context(LossyOutput(stream, lambda: self._live))
                for stream in (terminal.stream(), sys.stderr)
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
                self._loop()
            if not self._single or self._options.outputs.timings:
                timings = self._options.outputs.timings
                self._console.print(self._summary.render(self._monitor.status(), timings, self._images))
            if self._stop.is_set():
                self._console.print("stopped by a signal")
        errors = [error for error in (self._failed, self._write_report(), self._incomplete()) if error is not None]
        if errors:
            raise errors[0] if len(errors) == 1 else type(errors[0])("; ".join(map(str, errors)))

    def _open(self, stack: ExitStack) -> None:
        options, keys = self._options, trusted_keys(self._options.keys)
        if options.loop:
            check_repeatable(options.source)
        source = RepeatedSource(self._open_source) if options.loop else self._open_source()
        self._source = stack.enter_context(source)
        self._stop = stack.enter_context(stop_on_signal(source))
        options.outputs.check([*map(Path, options.source), *source.paths])
        self._live = source.live
        self._independent = not source.sequential if options.independent is None else options.independent
        self._images = self._independent and not source.sequential and not source.live
        self._single = self._images and source.length == 1
        if options.watch:
            # Before the bundle is loaded, so that no change goes unseen.
            watch = BundleWatcher(bundle_folder(options.bundle), self._tested_pipeline, keys=keys)
            self._watch = stack.enter_context(watch)
        bundle = Bundle.load(options.bundle, keys)
        self._first = bundle.manifest
        pipeline = Pipeline.from_bundle(bundle, options.model, self._independent)
        self._runtime = stack.enter_context(Runtime(pipeline, oracle_every=options.oracle_every))
        self._changes: list[Callable[[Frame], Frame]] = [SizeWarning(bundle.manifest)]
        if options.corrupt is not None:
            self._changes.append(corrupter(options.corrupt))
        if not self._images or terminal.is_verbose():
            self._console.print(f"model: {pipeline.model.description}")
        self._monitor = Monitor(source)
        self._monitor.describe(pipeline)
        self._monitor.limits = self._runtime.limits = options.limits
        self._outputs = Outputs(options.outputs, stack, source, self._monitor, self._console)
        self._systemd = stack.enter_context(SystemdNotifier())
        self._monitor.sinks = self._sinks
        if source.live:
            status = StatusLine(self._monitor, self._console, self._systemd.status, timings=options.outputs.timings)
            self._status = stack.enter_context(status)
        self._systemd.ready()

    def _open_source(self) -> Source:
        options = self._options
        if len(options.source) > 1:
            return open_images(
                options.source,
                "several cameras or videos in one run are planned and cannot be used yet; start one `rws run` for each",
                options.checks,
            )
        return open_source(
            options.source[0],
            latest=options.latest,
            retries=options.retries,
            stall=options.stall,
            label=options.label,
            network=options.network,
            checks=options.checks,
        )

    def _loop(self) -> None:
        if self._status is not None:
            self._status.update()
        failure: FrameError | None = None
        gc.collect()
        gc.freeze()  # what is there by now stays: looking through it would hold up frames
        returned = time.monotonic()
        try:
            found = self._runtime.results(self._source, self._outputs.sinks, self._changes)
            with closing(found) as results, self._progress() as progress:
                for result in results:
                    self._live = self._source.live
                    self._systemd.alive()
                    if isinstance(result, FrameError):
                        self._monitor.reject(result)
                        failure = result
                    elif result is None:
                        self._monitor.idle()
                    else:
                        self._summary.add(result)
                        self._monitor.add(result)
                        self._print(result)
                        progress.advance(progress.task_ids[0])
                    if self._status is not None:
                        self._status.update()
                    if self._summary.results == self._options.limit or self._nobody_reads():
                        break
                    self._swap()
                    if time.monotonic() - returned > RETURN_MEMORY_EVERY:
                        returned = time.monotonic()
                        return_memory()
                    self._runtime.compare, self._runtime.limits = self._outputs.watched, self._monitor.limits
        except SourceError as error:
            # What came before the loss is worth keeping: the sinks close as they would at the end of a file.
            if self._summary.results == 0:
                raise
            self._failed = error
        finally:
            gc.unfreeze()
        if failure is not None and self._summary.results == 0 and not self._stop.is_set():
            self._failed = RwsError(f"{self._source.name}: no frame has a result; of the last one: {failure}")

    def _sinks(self) -> dict[str, SinkStatus]:
        systemd = {"systemd": self._systemd.sink_status} if self._systemd.sink_status.accepted else {}
        return self._outputs.status() | {"console": self._printed.sink_status} | systemd

    def _incomplete(self) -> RwsError | None:
        failing = self._monitor.status().failing_sinks
        # What page and service manager show is gone with the moment.
        kept = {name: sink for name, sink in failing.items() if name not in ("page", "systemd")}
        reasons = "; ".join(f"{name}: {sink.error or sink.state}" for name, sink in kept.items())
        return RwsError(f"the run is complete, but not each output: {reasons}") if kept else None

    def _nobody_reads(self) -> bool:
        return self._printed.unread and not self._outputs.sinks and self._options.outputs.report is None

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
        hidden = self._source.live or not self._console.is_terminal
        progress = Progress(*columns, console=self._console, transient=True, disable=hidden)
        totals = [count for count in (self._source.length, self._options.limit) if count is not None]
        progress.add_task(self._source.name, total=min(totals, default=None))
        return progress

    def _swap(self) -> None:
        if self._watch is None:
            return
        pipeline = self._watch.poll()
        if self._watch.failures > self._refused:
            self._refused = self._watch.failures
            self._monitor.count_event("bundle_refused")
            self._console.print(f"bundle refused, the old one stays: {shown(self._watch.error)}")
        if pipeline is None:
            return
        self._runtime.pipeline = pipeline
        self._monitor.describe(pipeline)
        self._monitor.count_event("bundle_swapped")
        self._console.print(f"bundle swapped: now {pipeline.name}, {pipeline.model.description}")

    def _tested_pipeline(self, bundle: Bundle) -> Pipeline:
        if not self._options.other_classes:
            check_same_classes(self._first, "the run", bundle.manifest, bundle.path)
        pipeline = Pipeline.from_bundle(bundle, self._options.model, self._independent)
        self_test(bundle, pipeline.model, pipeline.oracle)
        return pipeline

    def _write_report(self) -> RwsError | None:
        options, model, status = self._options, self._runtime.pipeline.model, self._monitor.status()
        if options.outputs.report is None:
            return None
        report = {
            "source": portable_path(self._source.name),
            "bundle": status.bundle,
            "backend": options.model.backend,
            "strategy": model.strategy,
            "provider": model.provider,
            "threads": options.model.threads,
            "independent": self._independent,
            "stopped": self._stop.is_set(),
            "corrupt": options.corrupt,
            **asdict(status.limits),
            **self._summary.to_dict(status),
            "sinks": {name: asdict(sink) for name, sink in status.sinks.items()},
            "events": status.events,
            **provenance(**({} if options.corrupt is None else {"seed": CORRUPT_SEED})),
        }
        try:
            write_json(options.outputs.report, "run-summary/1", report)
        except BrokenPipeError:
            raise
        except OSError as error:
            return RwsError(f"{options.outputs.report}: the report cannot be written ({error.strerror or error})")
        return None


class TimeLeft(TimeRemainingColumn):
    """The time left, from when enough frames have been processed to tell."""

    def render(self, task: Task) -> Text:
        """Return what a progress bar shows."""
        if task.completed < SURE_FRAMES or (task.elapsed or 0.0) < SURE_SECONDS:
            return Text("")
        return super().render(task)


@contextmanager
def stop_on_signal(source: Source) -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets, which also ends the source; a second one interrupts."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        source.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
