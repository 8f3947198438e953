"""A camera of `rws run`: its source, runtime, monitor and summary."""

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict

from rws.edge.bundle.bundle import Bundle
from rws.edge.cameras import Camera
from rws.edge.cli.running.frames import CORRUPT_SEED, SizeWarning, corrupter
from rws.edge.cli.running.options import CameraOptions
from rws.edge.common.closing import Closing
from rws.edge.common.provenance import portable_path
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.summary import Summary
from rws.edge.pipeline import Pipeline, Result
from rws.edge.runtime import Runtime
from rws.edge.sinks.base import Sink
from rws.edge.sources.feed import Feed
from rws.errors import FrameError, RwsError
from rws.records import Frame


class CameraRun(Closing):
    """A camera of a run, from its options to its summary. A context manager that closes its source.

    Raises as `open_source`. `connect` gives it a pipeline; before that it processes nothing.
    """

    def __init__(self, options: CameraOptions, loop: bool) -> None:
        self.options, self.name = options, options.name
        self._corrupt = None if options.corrupt is None else corrupter(options.corrupt)
        self.source = options.open(loop)
        asked = options.independent
        self.independent = not self.source.sequential if asked is None else asked
        self.monitor, self.summary = Monitor(self.source), Summary()
        self.monitor.limits = options.limits
        self.sinks: Sequence[Sink] = ()
        self.failed: RwsError | None = None
        self._failure: FrameError | None = None  # of the last frame without a result

    def connect(self, pipeline: Pipeline, bundle: Bundle, warning: SizeWarning) -> Runtime:
        """Make its runtime of a pipeline that others share; the warning is given once for all of them."""
        options = self.options
        self.changes: list[Callable[[Frame], Frame]] = [warning, *([self._corrupt] if self._corrupt else [])]
        own = pipeline.sharing(bundle, self.independent)
        self.monitor.describe(own)
        self.runtime = Runtime(own, oracle_every=options.oracle_every, camera=self.name)
        self.runtime.limits = options.limits
        return self.runtime

    def camera(self, arrived: Callable[[], None]) -> Camera:
        """Return what the loop of several cameras takes."""
        feed = Feed(self.source, arrived, latest=self.options.latest)
        period = 1 / self.options.max_fps if self.options.max_fps else 0.0
        return Camera(self.name, self.runtime, feed, self.sinks, self.changes, period)

    def swap(self, pipeline: Pipeline, bundle: Bundle) -> None:
        """Go on with the pipeline of another bundle."""
        self.runtime.pipeline = pipeline.sharing(bundle, self.independent)
        self.monitor.describe(self.runtime.pipeline)
        self.monitor.count_event("bundle_swapped")

    def add(self, event: Result | FrameError | None) -> None:
        """Count what has become of a frame; None: there was none."""
        if isinstance(event, FrameError):
            self.monitor.reject(event)
            self._failure = event
        elif event is None:
            self.monitor.idle()
        else:
            self.summary.add(event)
            self.monitor.add(event)

    def end(self, error: Exception | None) -> None:
        """Note that its source has ended, and why."""
        if isinstance(error, RwsError):
            self.failed = error
        elif error is not None:
            self.failed = RwsError(f"{self.source.name}: {type(error).__name__}: {error}")

    def look_for_results(self) -> None:
        """Note it as a failure if there is no result although frames came."""
        if self._failure is not None and self.summary.results == 0 and self.failed is None:
            self.failed = RwsError(f"{self.source.name}: no frame has a result; of the last one: {self._failure}")

    def record(self) -> dict[str, object]:
        """Return what is its own in the run's report."""
        status = self.monitor.status()
        seed = {} if self.options.corrupt is None else {"seed": CORRUPT_SEED}
        return {
            "source": portable_path(self.source.name),
            "independent": self.independent,
            "corrupt": self.options.corrupt,
            **asdict(status.limits),
            **self.summary.to_dict(status),
            "events": status.events,
            **seed,
        }

    def close(self) -> None:
        """Release the source."""
        self.source.close()


class Opening:
    """Opens cameras in a thread: `done`, then all `cameras`, or the `error` for which none is kept open.

    `kept` are the names of those that go on.
    """

    def __init__(self, options: Sequence[CameraOptions], kept: Collection[str], loop: bool) -> None:
        self.kept, self.cameras = kept, list[CameraRun]()
        self.error: RwsError | None = None
        self._lock, self._abandoned = threading.Lock(), False
        # A daemon: a pipe waits for its writer, however long.
        self._thread = threading.Thread(target=self._open, args=(options, loop), name="opens cameras", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Close what is open, now or when it is."""
        with self._lock:
            self._abandoned = True
            for camera in self.cameras:
                camera.close()
            self.cameras = []

    def _open(self, options: Sequence[CameraOptions], loop: bool) -> None:
        with ExitStack() as opened:
            try:
                cameras = [opened.enter_context(CameraRun(each, loop)) for each in options]
            except RwsError as error:
                self.error = error
            except Exception as error:  # a bug is no reason to change anything
                self.error = RwsError(f"{type(error).__name__}: {error}")
            else:
                with self._lock:
                    if not self._abandoned:
                        self.cameras = cameras
                        opened.pop_all()  # the feeds close them
