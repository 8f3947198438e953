"""`rws run` and `rws oracle`. What needs time to import is imported when a command runs, not for its help text."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from enum import Enum
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from rws.edge.bundle.bundle import Bundle, Manifest
    from rws.edge.bundle.watcher import BundleWatch
    from rws.edge.monitoring.console import LossyOutput
    from rws.edge.monitoring.monitor import Monitor
    from rws.edge.runtime import Result, Runtime, Sink
    from rws.edge.sinks.background import BackgroundSink
    from rws.edge.sinks.window import WindowSink
    from rws.edge.sources.open import Source
    from rws.edge.web import PageServer
    from rws.records import Frame


log = logging.getLogger(__name__)

_CORRUPT_SEED = 0
"""Of what --corrupt draws; a frame's noise depends on it and on the frame's number."""


class Backend(str, Enum):
    """What runs the model."""

    onnx = "onnx"
    torch = "torch"


BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle folder; left out: the bundled default.", show_default=False)
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of model and oracle; left out: the backend chooses.")
]


def run(
    source: Annotated[
        str,
        typer.Argument(
            help="Camera index, video, image, folder, quoted glob, .txt list, .npy array, URL, GStreamer pipeline, "
            "or `pattern`, a test picture.",
            envvar="RWS_SOURCE",
            metavar="SOURCE",
        ),
    ],
    bundle: BundleOption = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the annotated frames to this .mp4.", show_default=False)
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write one JSON line a frame to this file.", show_default=False)
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one row a frame to this file.", show_default=False)] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the summary to this file.", show_default=False)
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve a page with the live picture, /metrics for Prometheus and /health; needs the extra `serve`.",
            show_default=False,
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="RWS_TOKEN",
            help="What a visitor of --serve must know; made up where the address is not loopback.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the annotated frames in a window; q ends the run.")
    ] = False,
    backend: Annotated[Backend, typer.Option(help="What runs the model; torch needs the extra.")] = Backend.onnx,
    provider: Annotated[
        str,
        typer.Option(help="auto, cpu or cuda; with onnx also tensorrt or the full name of an ONNX Runtime provider."),
    ] = "auto",
    way: Annotated[
        str, typer.Option(help="How weights are changed: auto; live, split, inputs (onnx); torch, torch_compile, …")
    ] = "auto",
    threads: ThreadsOption = None,
    independent: Annotated[
        bool | None,
        typer.Option(
            "--independent/--stream",
            help="Judge each frame alone, or let the oracle remember the frames before. "
            "Left out: images are independent, videos and cameras are streams.",
            show_default=False,
        ),
    ] = None,
    latest: Annotated[
        bool | None,
        typer.Option(
            "--latest/--every-frame",
            help="Classify the freshest frame and drop what came before it (a file then plays at its own speed), or "
            "every frame. Left out: the freshest of cameras and streams, every frame of files.",
            show_default=False,
        ),
    ] = None,
    corrupt: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE:SEVERITY",
            help="Corrupt each frame on purpose, e.g. fog:3, and compare with the clean one; needs the extra `train`.",
            show_default=False,
        ),
    ] = None,
    oracle_every: Annotated[int, typer.Option(min=1, help="The oracle looks at every n-th frame only.")] = 1,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How often in a row a lost camera or stream is sought again; left out: for ever.",
            show_default=False,
        ),
    ] = None,
    stall: Annotated[float, typer.Option(min=0.5, help="Seconds without a frame after which a camera is lost.")] = 5.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="When the bundle's folder changes, verify the new one and go on with it.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)] = None,
) -> None:
    """Classify each frame of a source; the oracle patches the model as the picture goes bad and recovers.

    Prints a line at each change of the mix (for independent images: a line an image), what the loop is doing now, and a
    summary at the end. A lost camera is sought again, for ever. Ctrl-C ends the run after the frame in hand; files are
    closed and the summary is printed. Files of a live source grow as it runs (--jsonl and --csv are appended to, --save
    can be played at any time); those of a video or folder appear when it has ended.

    \b
    Examples:
        rws run 0                                     # the first camera, until Ctrl-C
        rws run 0 --serve 127.0.0.1:8080              # and a page to watch it
        rws run video.mp4 --save annotated.mp4
        rws run video.mp4 --corrupt fog:3 --save fog.mp4   # what would it see in fog?
        rws run photos/ --jsonl results.jsonl
        rws run "shots/*.png" --stream                # a sequence of images
        rws run rtsp://user:secret@camera/stream --bundle my_bundle --watch --jsonl results.jsonl
    """
    from rich.console import Console

    from rws.edge.bundle.bundle import DEFAULT_BUNDLE, Bundle
    from rws.edge.bundle.watcher import BundleWatch
    from rws.edge.common.provenance import portable_path, provenance, write_json
    from rws.edge.monitoring.console import LossyOutput
    from rws.edge.monitoring.monitor import Monitor
    from rws.edge.monitoring.status_line import StatusLine
    from rws.edge.monitoring.summary import Summary
    from rws.edge.monitoring.systemd import Supervisor
    from rws.edge.runtime import Runtime
    from rws.edge.sinks.files import check_target
    from rws.edge.sources.open import open_source, quiet_opencv
    from rws.errors import SourceError

    quiet_opencv()
    if report is not None:
        check_target(report)
    summary = Summary()
    lost: SourceError | None = None
    frames: Source | None = None

    def is_live() -> bool:
        return frames is not None and frames.live

    with ExitStack() as outer:
        printed = outer.enter_context(LossyOutput(sys.stdout, is_live))
        outer.enter_context(_warnings_to(outer.enter_context(LossyOutput(sys.stderr, is_live))))
        console = Console(file=cast("TextIO", printed), highlight=False, soft_wrap=True)
        stack = outer.enter_context(ExitStack())
        # Made before the bundle is loaded, so that no change goes unseen.
        renewed = (
            stack.enter_context(BundleWatch(bundle or DEFAULT_BUNDLE, lambda parts: _checked(parts, start)))
            if watch
            else None
        )
        loaded = Bundle.load(bundle)
        frames = stack.enter_context(open_source(source, latest=latest, retries=retries, stall=stall))
        alone = not frames.sequential if independent is None else independent

        def start(parts: Bundle) -> Runtime:
            return Runtime.from_bundle(
                parts,
                backend="torch" if backend is Backend.torch else "onnx",
                threads=threads,
                provider=provider,
                way=way,
                independent=alone,
            )

        runtime = stack.enter_context(start(loaded))
        console.print(f"model: {runtime.model.note}", markup=False)
        monitor = Monitor(frames, bundle=loaded.manifest.name, way=runtime.model.way)
        outputs = _Outputs(stack, frames, monitor, console)
        outputs.files(jsonl, csv, save)
        if serve is not None:
            outputs.page(serve, token)
        if show:
            outputs.window()
        swap = None if renewed is None else _Swap(renewed, monitor, console)
        stop = stack.enter_context(_stop_on_signal(frames))
        supervisor = stack.enter_context(Supervisor())
        status = stack.enter_context(StatusLine(monitor, console, supervisor.status)) if frames.live else None
        supervisor.ready()

        def idle(seconds: float) -> None:
            monitor.idle()
            supervisor.alive()
            outputs.idle()
            if status is not None:
                status.update()

        stream = runtime.stream(
            frames,
            outputs.sinks,
            change=_SizeWarning(loaded.manifest, _changer(corrupt, lambda: runtime.input_size)),
            oracle_every=oracle_every,
            compare=outputs.watched,
            renew=swap if swap is not None else lambda: None,
            on_idle=idle,
        )
        results = stack.enter_context(closing(_results(stream, frames, limit, console)))
        try:
            for result in results:
                summary.add(result)
                monitor.add(result)
                supervisor.alive()
                if alone or result.changed:
                    console.print(_line(result, alone), markup=False)
                if status is not None:
                    status.update()
        except SourceError as error:
            # What came before the loss is worth keeping: the sinks close as they would at the end of a file.
            if summary.frames == 0:
                raise
            lost = error
        stack.close()
        summary.count_losses(frames)
        console.print(summary.render())
        if stop.is_set():
            console.print("stopped by a signal")
    if report is not None:
        write_json(
            report,
            {
                "source": portable_path(frames.name),
                "bundle": monitor.bundle,
                "backend": backend.value,
                "way": runtime.model.way,
                "provider": runtime.model.provider,
                "threads": threads,
                "independent": alone,
                "stopped": stop.is_set(),
                "corrupt": corrupt,
                **summary.to_json(),
                "sinks": outputs.counts(),
                "events": dict(monitor.notes),
                **provenance(**({} if corrupt is None else {"seed": _CORRUPT_SEED})),
            },
        )
    if lost is not None:
        raise lost


def oracle(
    images: Annotated[list[str], typer.Argument(help="Images, folders or quoted globs.")],
    bundle: BundleOption = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the beliefs to this file.", show_default=False)
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Say for each image which corruption it carries and how strong it is, each image on its own.

    \b
    Examples:
        rws oracle photo.jpg
        rws oracle photos/ --json beliefs.json        # a list of {file, corruption, probability, severity}
        rws oracle a.png b.png "shots/*.jpg" --bundle my_bundle
    """
    from rich.console import Console

    from rws.edge.bundle.bundle import Bundle
    from rws.edge.common.provenance import write_json
    from rws.edge.preprocess import preprocess
    from rws.edge.sinks.files import check_target
    from rws.edge.sources.open import ImageSource, open_source, quiet_opencv
    from rws.errors import SourceError

    quiet_opencv()
    if report is not None:
        check_target(report)
    paths: list[Path] = []
    for image in images:
        found = open_source(image)
        if not isinstance(found, ImageSource):
            found.close()
            raise SourceError(f"{image}: is not an image, folder or glob; for anything else there is `rws run`")
        paths.extend(found.paths)
    source = ImageSource(paths, ", ".join(images))
    loaded = Bundle.load(bundle)
    network = loaded.oracle(threads=threads)
    size = loaded.manifest.input.height, loaded.manifest.input.width
    console = Console(highlight=False, soft_wrap=True)
    rows: list[dict[str, object]] = []
    checked = _SizeWarning(loaded.manifest)
    for frame in map(checked, source):
        belief = network.observe(preprocess(frame.image, *size))
        ranked = belief.probability.argsort()[::-1].tolist()
        best = ranked[0]
        probability, severity = float(belief.probability[best]), belief.type_severity
        rows.append(
            {
                "file": frame.name,
                "corruption": belief.names[best],
                "probability": round(probability, 4),
                "severity": round(severity, 3),
            }
        )
        others = ", ".join(f"{belief.names[i]} {belief.probability[i]:.0%}" for i in ranked[1:3])
        line = f"{frame.name}  {belief.type} {probability:.0%}, severity {severity:.1f}  ({others})"
        console.print(line, markup=False)
    console.print(f"{len(rows)} images, {source.rejected} rejected")
    if report is not None:
        write_json(report, rows)


def _results(
    results: Generator[Result, None, None], source: Source, limit: int | None, console: Console
) -> Generator[Result, None, None]:
    """The results, at most `limit`, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    totals = [count for count in (source.length, limit) if count is not None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        closing(results),
        # A live source has a status line of its own.
        Progress(*columns, console=console, transient=True, disable=source.live or not console.is_terminal) as progress,
    ):
        task = progress.add_task(source.name, total=min(totals, default=None))
        for result in islice(results, limit):
            progress.advance(task)
            yield result


class _Outputs:
    """Where frames and results go; files are written by threads of their own.

    Args:
        stack: closes them.
        source: a live one loses frames rather than waits for an output.
        monitor: what the page shows.
        console: for the page's address.
    """

    def __init__(self, stack: ExitStack, source: Source, monitor: Monitor, console: Console) -> None:
        self.sinks: list[Sink] = []
        self._stack, self._source, self._monitor, self._console = stack, source, monitor, console
        self._behind: dict[str, BackgroundSink] = {}
        self._page: PageServer | None = None
        self._window: WindowSink | None = None

    def files(self, jsonl: Path | None, csv: Path | None, save: Path | None) -> None:
        """The files that were asked for."""
        from rws.edge.sinks.files import CsvSink, JsonlSink, VideoSink

        live = self._source.live
        if jsonl is not None:
            self._add("jsonl", JsonlSink(jsonl, endless=live))
        if csv is not None:
            self._add("csv", CsvSink(csv, endless=live))
        if save is not None:
            self._add("save", VideoSink(save, self._source.fps, endless=live))

    def page(self, address: str, token: str | None) -> None:
        """The page."""
        from rws.edge.web import PageServer

        self._page = self._stack.enter_context(PageServer(address, self._monitor, token=token))
        self.sinks.append(self._page)
        # A token that was given is known, and has no place in a log.
        url = self._page.url if token is not None else self._page.url_with_token
        self._console.print(f"page: {url}", markup=False)

    def window(self) -> None:
        """The window, which must be served by the loop's own thread."""
        from rws.edge.sinks.window import WindowSink

        self._window = self._stack.enter_context(WindowSink(on_close=self._source.stop))
        self.sinks.append(self._window)

    def watched(self) -> bool:
        """Whether somebody looks at the page."""
        return self._page is not None and self._page.viewers > 0

    def idle(self) -> None:
        """What the outputs need while no frame comes."""
        if self._window is not None:
            self._window.refresh()

    def counts(self) -> dict[str, dict[str, int]]:
        """What each output took and lost."""
        return {name: sink.counts() for name, sink in self._behind.items()}

    def _add(self, name: str, sink: Sink) -> None:
        from rws.edge.sinks.background import BackgroundSink

        # Whether a stream has an end is known only when it is open.
        behind = BackgroundSink(sink, when_full=lambda: "drop" if self._source.live else "wait")
        self._behind[name] = behind
        self.sinks.append(self._stack.enter_context(behind))


class _Swap:
    """Hands a new bundle's runtime to the loop, and says so."""

    def __init__(self, watch: BundleWatch[tuple[str, Runtime]], monitor: Monitor, console: Console) -> None:
        self._watch, self._monitor, self._console = watch, monitor, console
        self._failures = 0

    def __call__(self) -> Runtime | None:
        ready = self._watch.poll()
        if self._watch.failures > self._failures:
            self._failures = self._watch.failures
            self._monitor.note("bundle_refused")
            self._console.print(f"bundle refused, the old one stays: {self._watch.error}", markup=False)
        if ready is None:
            return None
        self._monitor.bundle, runtime = ready
        self._monitor.way = runtime.model.way
        self._monitor.note("bundle_switched")
        self._console.print(f"bundle switched to {self._monitor.bundle}: {runtime.model.note}", markup=False)
        return runtime


class _SizeWarning:
    """Passes frames on, and warns at the first one that is larger than what the oracle was calibrated on.

    Args:
        manifest: of the bundle that runs.
        change: then applied to each frame.
    """

    def __init__(self, manifest: Manifest, change: Callable[[Frame], Frame] = lambda frame: frame) -> None:
        self._manifest, self._change = manifest, change
        self._warned = False

    def __call__(self, frame: Frame) -> Frame:
        if not self._warned and (warning := self._manifest.size_warning(*frame.image.shape[:2])):
            self._warned = True
            log.warning("%s", warning)
        return self._change(frame)


def _changer(spec: str | None, size: Callable[[], tuple[int, int]]) -> Callable[[Frame], Frame]:
    """What --corrupt does to a frame; the room that can corrupt pictures offers itself by an entry point.

    The model's size is asked for at each frame: another bundle may have another.
    """
    from importlib import import_module

    from rws.edge.common.extras import require
    from rws.edge.preprocess import cover

    if spec is None:
        return lambda frame: frame
    with require("train"):
        # By its name, because this room imports nothing of the room that makes the corruptions.
        corrupter = import_module("rws.training.corruptions.frames").corrupter
        make = lru_cache(maxsize=1)(partial(corrupter, spec, seed=_CORRUPT_SEED))
    make(size())

    def change(frame: Frame) -> Frame:
        original = cover(frame.image, *size())
        return replace(frame, image=make(size())(original, frame.index), original=original)

    return change


def _checked(bundle: Bundle, start: Callable[[Bundle], Runtime]) -> tuple[str, Runtime]:
    """A new bundle's name and runtime, after all of its parts have run."""
    from rws.edge.bundle.bundle import self_test

    self_test(bundle)
    runtime = start(bundle)
    runtime.warm_up()
    return bundle.manifest.name, runtime


@contextmanager
def _warnings_to(output: LossyOutput) -> Iterator[None]:
    """What the project's modules warn of goes to this stream while it runs."""
    handler = logging.StreamHandler(output)
    logger = logging.getLogger("rws")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, bool(logging.getLogger().handlers)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def _stop_on_signal(source: Source) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets, which also ends the source; a second one interrupts at once."""
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


def _line(result: Result, alone: bool) -> str:
    belief = result.belief
    mix = " + ".join(f"{name} {alpha:.2f}" for name, alpha in result.mix.items()) or "clean weights"
    where = result.name if alone else f"frame {result.index}"
    return (
        f"{where}  {belief.type} {belief.probability.max():.0%}, severity {belief.type_severity:.1f}"
        f"  ->  {mix}  {result.label} {result.confidence:.0%}"
    )
