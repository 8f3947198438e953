"""`rws run`. What needs time to import is imported when the command runs, not for its help text."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rws.edge.cli.parameters import BundleOption, ThreadsOption


class Backend(str, Enum):
    """Inference backend."""

    onnx = "onnx"
    torch = "torch"


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
    from rws.edge.bundle.options import ModelOptions
    from rws.edge.cli.outputs import OutputOptions
    from rws.edge.cli.session import RunOptions, RunSession
    from rws.edge.sources.open import quiet_opencv

    quiet_opencv()
    options = RunOptions(
        source,
        bundle,
        ModelOptions(backend.value, threads, provider, strategy=way),
        OutputOptions(jsonl, csv, save, serve, token, show),
        report,
        independent=independent,
        corrupt=corrupt,
        oracle_every=oracle_every,
        latest=latest,
        retries=retries,
        stall=stall,
        watch=watch,
        limit=limit,
    )
    RunSession(options).run()
