"""`rws run`. What needs time to import is imported when the command runs, not for its help text."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rws import terminal
from rws.edge.cli.parameters import BundleOption, JsonOption, KeyOption, ThreadsOption, argument, optional

SOURCES = """\
`rws run` needs a source:
  rws run 0                            a camera, by its index; or /dev/video0
  rws run clip.mp4                     a video
  rws run photo.jpg other.png          one image or several
  rws run photos/                      a folder of images, with its subfolders
  rws run "shots/*.png"                a quoted glob
  rws run list.txt                     a list of images, one path per line
  rws run images.npy                   an array, uint8 (N, H, W, 3), RGB
  rws run rtsp://user:secret@host/cam  a stream: rtsp://, http://, ...
  rws run http://host/snap.jpg         a camera that gives single images
  cat clip.mp4 | rws run -             a video through a pipe, or a named pipe
  rws run "v4l2src ! videoconvert ! appsink"  a GStreamer pipeline
  rws run pattern                      a moving test image
See `rws run --help` for the options."""


class Backend(str, Enum):
    """Inference backend."""

    onnx = "onnx"
    torch = "torch"


class RtspTransport(str, Enum):
    """Transport of an RTSP stream."""

    auto = "auto"
    tcp = "tcp"
    udp = "udp"


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from rws.edge.cli.config import read_config

        read_config(run, context, path)
    return path


def run(
    context: typer.Context,
    source: Annotated[
        list[str] | None,
        argument(
            help="Camera index or device, video, image, folder, quoted glob, .txt list, .npy array, URL, GStreamer "
            "pipeline, `-` or a named pipe, or `pattern`, a moving test image. Several are one list of images.",
            envvar="RWS_SOURCE",
            metavar="SOURCE",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        optional(
            is_eager=True,
            callback=_read_config,
            help="Read `source` and options from this TOML file under their long names, with underscores "
            "(`oracle_every = 5`); the command line comes before it.",
        ),
    ] = None,
    bundle: BundleOption = None,
    key: KeyOption = None,
    save: Annotated[Path | None, optional(help="Write the annotated frames to this .mp4.")] = None,
    jsonl: Annotated[
        Path | None, optional(callback=terminal.claim_stdout, help="Write one JSON line per frame here; -: stdout.")
    ] = None,
    csv: Annotated[
        Path | None, optional(callback=terminal.claim_stdout, help="Write one row per frame here; -: stdout.")
    ] = None,
    report: JsonOption = None,
    serve: Annotated[
        str | None,
        optional(
            metavar="HOST:PORT",
            help="Serve a page with the live frames, /metrics for Prometheus and /health; needs the extra `serve`.",
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
    strategy: Annotated[
        str, typer.Option(help="Weight update strategy: auto; live, split, inputs (onnx); torch, torch_compile, …")
    ] = "auto",
    threads: ThreadsOption = None,
    independent: Annotated[
        bool | None,
        optional(
            "--independent/--stream",
            help="Treat each frame on its own, or let the oracle use the frames before it. "
            "Default: images are independent, videos and cameras are streams.",
        ),
    ] = None,
    latest: Annotated[
        bool | None,
        optional(
            "--latest/--every-frame",
            help="Process the newest frame and drop older ones (a file then plays at its own speed), or every frame. "
            "Default: the newest of cameras and streams, every frame of files.",
        ),
    ] = None,
    corrupt: Annotated[
        str | None,
        optional(
            metavar="TYPE:SEVERITY",
            help="Corrupt each frame on purpose, e.g. fog:3, and compare with the clean one; needs the extra `train`.",
        ),
    ] = None,
    oracle_every: Annotated[int, typer.Option(min=1, help="Run the oracle on every n-th frame only.")] = 1,
    min_severity: Annotated[
        float, typer.Option(min=0, max=5, help="Patch only if the corruption is at least this severe; 0: always.")
    ] = 0.0,
    leave_clean: Annotated[
        bool, typer.Option("--leave-clean", help="Never patch, whatever the oracle says; the page can change both.")
    ] = False,
    retries: Annotated[
        int | None, optional(min=0, help="Consecutive reconnect attempts before giving up; default: unlimited.")
    ] = None,
    stall: Annotated[
        float, typer.Option(min=0.5, help="Reconnect a camera after this many seconds without a frame.")
    ] = 5.0,
    rtsp_transport: Annotated[
        RtspTransport, typer.Option(help="How an RTSP camera sends; auto: by TCP, or by UDP if it refuses TCP.")
    ] = RtspTransport.auto,
    poll: Annotated[
        float,
        typer.Option(
            min=0.05, max=3600, help="Seconds between two requests to a URL that gives one image per request."
        ),
    ] = 1.0,
    max_pixels: Annotated[
        int | None,
        optional(
            min=1,
            help="Reject an image of more pixels before it is decoded; default: 64 million for image files, "
            "34 million for cameras, videos and streams.",
        ),
    ] = None,
    accept: Annotated[
        str,
        optional(
            metavar="FLAWS",
            help="Use images although they look black, half-decoded or frozen; unread: decode H.264 files only once; "
            "several are joined by commas.",
        ),
    ] = "",
    label: Annotated[
        str,
        optional(help="Name of the camera, stream or video; of an address only scheme and host are shown."),
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="If the bundle's folder changes, verify the new bundle and swap to it.")
    ] = False,
    other_classes: Annotated[
        bool,
        typer.Option("--other-classes", help="With --watch, accept a bundle with other classes, or in another order."),
    ] = False,
    limit: Annotated[int | None, optional(min=1, help="Stop after N frames.")] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="Start a video, images or an array again at the end, until stopped.")
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Print stage times, rates and frame counters, of images too; as -v does.")
    ] = False,
) -> None:
    """Run the model on each frame of a source; the oracle detects its corruption, and the model is patched for it.

    Prints what a single image shows and how good it is; a line per image for several; for a video or camera, a line
    per change of the mix, the current state, and a summary at the end. A lost camera is reconnected until you stop.
    Ctrl-C finishes the current frame, closes the files and prints the summary; a second one ends at once. Files of a
    live source grow as it runs (--jsonl and --csv append, --save can be played at any time); those of images and
    videos appear at the end.

    \b
    Examples:
        rws run photo.jpg
        rws run a.jpg b.png "shots/*.jpg" --jsonl results.jsonl
        rws run 0                                     # the first camera, until Ctrl-C
        rws run 0 --serve 127.0.0.1:8080              # and a page to watch it
        rws run video.mp4 --save annotated.mp4
        rws run video.mp4 --loop --latest --serve 8080     # over and over, at its own speed
        rws run video.mp4 --corrupt fog:3 --save fog.mp4   # what would it see in fog?
        rws run "shots/*.png" --stream                # a sequence of images
        rws run clip.mp4 --jsonl - | head -3          # JSON lines on stdout, the rest on stderr
        rws run --config run.toml                     # source = "rtsp://camera/stream", watch = true, ...
    """
    from rws.edge.bundle.options import ModelOptions
    from rws.edge.cli.outputs import OutputOptions
    from rws.edge.cli.session import RunOptions, RunSession
    from rws.edge.common.resources import raise_descriptor_limit, use_one_heap
    from rws.edge.sources.capture.decoding.checks import Checks
    from rws.edge.sources.capture.protocol import NetworkOptions
    from rws.edge.sources.open import quiet_opencv
    from rws.oracle.policy import PatchLimits

    if (origin := context.get_parameter_source("source")) and origin.name == "ENVIRONMENT":
        source = [os.environ["RWS_SOURCE"]]  # one source: a pipeline or path may hold spaces
    if not source:
        typer.echo(SOURCES, err=True)
        raise typer.Exit(2)
    quiet_opencv()
    raise_descriptor_limit()
    use_one_heap()
    model = ModelOptions(backend.value, threads, provider, strategy=strategy)
    outputs = OutputOptions(jsonl, csv, save, serve, token, show, report, timings or terminal.is_verbose())
    asked = RunOptions(
        tuple(source),
        bundle,
        tuple(key or ()),
        model,
        outputs,
        independent,
        latest,
        corrupt,
        oracle_every,
        retries,
        stall,
        NetworkOptions(rtsp_transport.value, poll),
        Checks(max_pixels, tuple(flaw for flaw in accept.split(",") if flaw)),
        label,
        watch,
        other_classes,
        limit,
        loop,
        PatchLimits(leave_clean, min_severity),
    )
    RunSession(asked).run()
