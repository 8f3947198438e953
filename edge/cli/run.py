"""`rws run`. What needs time to import is imported when the command runs, not for its help text."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rws.edge.cli.parameters import BundleOption, ThreadsOption, optional


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
    save: Annotated[Path | None, optional(help="Write the annotated frames to this .mp4.")] = None,
    jsonl: Annotated[Path | None, optional(help="Write one JSON line per frame to this file.")] = None,
    csv: Annotated[Path | None, optional(help="Write one row per frame to this file.")] = None,
    report: Annotated[Path | None, optional("--json", help="Write the summary to this file.")] = None,
    serve: Annotated[
        str | None,
        optional(
            metavar="HOST:PORT",
            help="Serve a page with the live picture, /metrics for Prometheus and /health; needs the extra `serve`.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        optional(
            envvar="RWS_TOKEN", help="Access token for --serve; default: generated if the address is not loopback."
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the annotated frames in a window; q ends the run.")
    ] = False,
    backend: Annotated[Backend, typer.Option(help="Inference backend; torch needs the extra `torch`.")] = Backend.onnx,
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
        optional(
            "--independent/--stream",
            help="Judge each frame alone, or let the oracle remember the frames before. "
            "Default: images are independent, videos and cameras are streams.",
        ),
    ] = None,
    latest: Annotated[
        bool | None,
        optional(
            "--latest/--every-frame",
            help="Classify the freshest frame and drop what came before it (a file then plays at its own speed), or "
            "every frame. Default: the freshest of cameras and streams, every frame of files.",
        ),
    ] = None,
    corrupt: Annotated[
        str | None,
        optional(
            metavar="TYPE:SEVERITY",
            help="Corrupt each frame on purpose, e.g. fog:3, and compare with the clean one; needs the extra `train`.",
        ),
    ] = None,
    oracle_every: Annotated[int, typer.Option(min=1, help="The oracle looks at every n-th frame only.")] = 1,
    retries: Annotated[
        int | None, optional(min=0, help="Consecutive reconnect attempts before giving up; default: unlimited.")
    ] = None,
    stall: Annotated[float, typer.Option(min=0.5, help="Seconds without a frame after which a camera is lost.")] = 5.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="When the bundle's folder changes, verify the new one and swap to it.")
    ] = False,
    limit: Annotated[int | None, optional(min=1, help="Stop after N frames.")] = None,
) -> None:
    """Classify each frame of a source; the oracle patches the model as the picture goes bad and recovers.

    Prints a line at each change of the mix (for independent images: a line per image), what the loop is doing now, and
    a summary at the end. A lost camera is reconnected until you stop. Ctrl-C finishes the current frame, then stops:
    files are closed and the summary is printed. Files of a live source grow as it runs (--jsonl and --csv are appended
    to, --save can be played at any time); those of a video or folder appear when it has ended.

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
    model = ModelOptions(backend.value, threads, provider, strategy=way)
    outputs = OutputOptions(jsonl, csv, save, serve, token, show, report)
    asked = RunOptions(
        source, bundle, model, outputs, independent, latest, corrupt, oracle_every, retries, stall, watch, limit
    )
    RunSession(asked).run()
