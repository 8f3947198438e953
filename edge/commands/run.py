"""`rws run` and `rws oracle`. What needs time to import is imported when a command runs, not for its help text."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from enum import Enum
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from edge.loop import Result
    from edge.sources import Source


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
        str, typer.Argument(help="Camera index, video, image, folder, quoted glob, .txt list, .npy array, or URL.")
    ],
    bundle: BundleOption = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the annotated frames to this .mp4.", show_default=False)
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write one JSON line a frame to this file.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the summary to this file.", show_default=False)
    ] = None,
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
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)] = None,
) -> None:
    """Classify each frame of a source; the oracle patches the model as the picture goes bad and recovers.

    Prints a line at each change of the mix (for independent images: a line an image) and a summary at the end.
    Ctrl-C ends the run after the frame in hand; files are closed and the summary is printed.

    \b
    Examples:
        rws run 0                                     # the first camera, until Ctrl-C
        rws run video.mp4 --save annotated.mp4
        rws run photos/ --jsonl results.jsonl
        rws run "shots/*.png" --stream                # a sequence of images
        rws run rtsp://user:secret@camera/stream --bundle my_bundle --json summary.json
    """
    from rich.console import Console

    from edge.bundle import Bundle
    from edge.errors import SourceError
    from edge.loop import Runtime
    from edge.provenance import provenance, write_json
    from edge.sinks import JsonlSink, VideoSink, check_target
    from edge.sources import open_source, quiet_opencv
    from edge.summary import Summary

    quiet_opencv()
    if report is not None:
        check_target(report)
    console = Console(highlight=False, soft_wrap=True)
    loaded = Bundle.load(bundle)
    summary = Summary()
    lost: SourceError | None = None
    with ExitStack() as stack:
        frames = stack.enter_context(open_source(source))
        alone = not frames.sequential if independent is None else independent
        runtime = stack.enter_context(
            Runtime.from_bundle(
                loaded,
                backend="torch" if backend is Backend.torch else "onnx",
                threads=threads,
                provider=provider,
                way=way,
                independent=alone,
            )
        )
        console.print(f"model: {runtime.model.note}", markup=False)
        sinks: list[JsonlSink | VideoSink] = []
        if jsonl is not None:
            sinks.append(stack.enter_context(JsonlSink(jsonl)))
        if save is not None:
            sinks.append(stack.enter_context(VideoSink(save, frames.fps)))
        stop = stack.enter_context(_stop_on_signal())
        results = stack.enter_context(closing(_results(runtime.stream(frames, sinks), frames, limit, console)))
        try:
            for result in results:
                summary.add(result)
                if alone or result.changed:
                    console.print(_line(result, alone), markup=False)
                if stop.is_set():
                    break
        except SourceError as error:
            # What came before the loss is worth keeping: the sinks close as they would at the end of a file.
            if summary.frames == 0:
                raise
            lost = error
        summary.count_losses(frames)
    console.print(summary.render())
    if stop.is_set():
        console.print("stopped by a signal")
    if report is not None:
        write_json(
            report,
            {
                "source": frames.name,
                "bundle": loaded.manifest.name,
                "backend": backend.value,
                "way": runtime.model.way,
                "provider": runtime.model.provider,
                "threads": threads,
                "independent": alone,
                "stopped": stop.is_set(),
                **summary.to_json(),
                **provenance(),
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

    from edge.bundle import Bundle
    from edge.errors import SourceError
    from edge.preprocess import preprocess
    from edge.provenance import write_json
    from edge.sinks import check_target
    from edge.sources import ImageSource, open_source, quiet_opencv

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
    for frame in source:
        belief = network.observe(preprocess(frame.image, *size))
        ranked = belief.probability.argsort()[::-1].tolist()
        best = ranked[0]
        probability, severity = float(belief.probability[best]), float(belief.severity[best])
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
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(source.name, total=min(totals, default=None))
        for result in islice(results, limit):
            progress.advance(task)
            yield result


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

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
        f"{where}  {belief.type} {belief.probability.max():.0%}, severity {belief.expected_severity:.1f}"
        f"  ->  {mix}  {result.label} {result.confidence:.0%}"
    )
