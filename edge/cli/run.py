"""`rws run`. What needs time to import is imported when the command runs, not for its help text."""

import logging
import os
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws import terminal
from rws.edge.cli.parameters import BundleOption, JsonOption, KeyOption, ThreadsOption, argument, optional
from rws.errors import UsageError

if TYPE_CHECKING:
    from rws.edge.cli.config import Config
    from rws.edge.cli.running.options import CameraOptions
    from rws.edge.mqtt import MqttOptions

log = logging.getLogger(__name__)

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


OF_CAMERAS = (
    "source",
    "label",
    "jsonl",
    "csv",
    "save",
    "independent",
    "latest",
    "corrupt",
    "oracle_every",
    "min_severity",
    "leave_clean",
    "max_fps",
    "retries",
    "stall",
    "rtsp_transport",
    "poll",
    "max_pixels",
    "accept",
)
"""Keys of a configuration file that each camera may have for itself."""
CONFIG = "rws.config"  # where the context of a command line keeps what its file says


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from rws.edge.cli.config import read_config

        config = read_config(run, path, OF_CAMERAS)
        context.default_map = dict(config.options)
        context.meta[CONFIG] = config
    return path


def run(
    context: typer.Context,
    source: Annotated[
        list[str] | None,
        argument(
            help="Camera index or device, video, image, folder, quoted glob, .txt list, .npy array, URL, GStreamer "
            "pipeline, `-` or a named pipe, or `pattern`, a moving test image. Several images are one list; of several "
            "others, each is a camera.",
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
            "(`oracle_every = 5`); the command line comes before it. A table [camera.NAME] is a camera; SIGHUP reads "
            "the tables again.",
        ),
    ] = None,
    bundle: BundleOption = None,
    key: KeyOption = None,
    save: Annotated[
        Path | None, optional(help="Write the annotated frames to this .mp4; {camera} stands for a camera's name.")
    ] = None,
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
    mqtt: Annotated[
        str | None,
        optional(
            metavar="URL",
            envvar="RWS_MQTT",
            help="Publish the state of the cameras to this broker, such as mqtt://me@host:1883/topic (mqtts: by TLS), "
            "and announce them to Home Assistant; the password is RWS_MQTT_PASSWORD; needs the extra `mqtt`.",
        ),
    ] = None,
    mqtt_ca: Annotated[
        Path | None, optional(metavar="FILE", help="Certificates (PEM) that may have signed the broker's.")
    ] = None,
    mqtt_discovery: Annotated[
        str, typer.Option(metavar="PREFIX", help="Of Home Assistant's discovery topics; empty: announce nothing.")
    ] = "homeassistant",
    mqtt_images: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="From one published image of a camera to the next; 0: none.")
    ] = 10.0,
    events: Annotated[
        Path | None,
        optional(
            metavar="FOLDER",
            help="Keep an event here when a camera has seen badly for ten seconds, and when it sees well again, with "
            "what it saw before and sees now.",
        ),
    ] = None,
    on_event: Annotated[
        str,
        optional(
            metavar="COMMAND",
            help="Start this program at an event, which it reads as JSON on its standard input; or post it to this "
            "http:// or https:// address. At most every ten seconds for a camera.",
        ),
    ] = "",
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
    max_fps: Annotated[float | None, optional(min=0.001, help="Process at most N frames per second.")] = None,
    limit: Annotated[
        int | None, optional(min=1, help="Stop after N frames, of each camera if there are several.")
    ] = None,
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
        rws run 0 1 rtsp://host/door --serve 8080     # three cameras, one model
        rws run 0 --mqtt mqtt://user@broker/rws       # and the camera's health in Home Assistant
    """
    from rws.edge.bundle.options import ModelOptions
    from rws.edge.cli.running.options import RunOptions
    from rws.edge.cli.running.session import RunSession
    from rws.edge.common.resources import raise_descriptor_limit, use_one_heap
    from rws.edge.sources.open import quiet_opencv

    if (origin := context.get_parameter_source("source")) and origin.name == "ENVIRONMENT":
        source = [os.environ["RWS_SOURCE"]]  # one source: a pipeline or path may hold spaces
    found = context.meta.get(CONFIG)
    if source and found and found.cameras:
        raise UsageError(f"{config}: names cameras, and a source is given as well; give one or the other")
    if not source and not (found and found.cameras):
        typer.echo(SOURCES, err=True)
        raise typer.Exit(2)
    quiet_opencv()
    raise_descriptor_limit()
    use_one_heap()
    asked = RunOptions(
        cameras=_cameras(context, source or [], found),
        bundle=bundle,
        keys=tuple(key or ()),
        model=ModelOptions(backend.value, threads, provider, strategy=strategy),
        serve=serve,
        token=token,
        mqtt=_broker(mqtt, mqtt_ca, mqtt_discovery, mqtt_images),
        events=events,
        on_event=on_event,
        show=show,
        report=report,
        timings=timings or terminal.is_verbose(),
        watch=watch,
        other_classes=other_classes,
        limit=limit,
        loop=loop,
        reread=partial(_cameras_now, context, config) if config and found and found.cameras else None,
    )
    RunSession(asked).run()


def _broker(url: str | None, ca: Path | None, discovery: str, images: float) -> "MqttOptions | None":
    if url is None:
        return None
    from rws.edge.mqtt import mqtt_options

    return mqtt_options(url, os.environ, ca=ca, discovery=discovery, images=images)


def _cameras_now(context: typer.Context, path: Path) -> tuple["CameraOptions", ...]:
    """Read the cameras again, whose other options are those of the run."""
    from rws.edge.cli.config import read_config

    config = read_config(run, path, OF_CAMERAS)
    if config.options != context.meta[CONFIG].options:
        log.warning("%s: only what the tables of cameras say is read again; restart for the other options", path)
    if not config.cameras:
        raise UsageError(f"{path}: names no camera any more")
    return _cameras(context, [], config)


def _cameras(context: typer.Context, source: list[str], config: "Config | None") -> tuple["CameraOptions", ...]:
    """Return the cameras of a command line: the one that all others begin from, or those of its file."""
    from rws.edge.cli.config import MOST_CAMERAS
    from rws.edge.cli.running.options import camera_options, named_cameras
    from rws.edge.sources.open import is_stream

    if config is not None and config.cameras:
        if any(table.get(key) == str(terminal.STDOUT) for table in config.cameras.values() for key in ("jsonl", "csv")):
            raise UsageError("stdout is for all cameras: write jsonl or csv = '-' above the tables of the cameras")
        return tuple(camera_options(name, {**context.params, **table}) for name, table in config.cameras.items())
    one = camera_options("", {**context.params, "source": source})
    streams = [spec for spec in source if is_stream(spec)]
    if len(source) == 1 or not streams:
        return (one,)
    if len(streams) < len(source):
        raise UsageError("images and cameras or videos are mixed; name each camera in a file, see --config")
    if len(source) > MOST_CAMERAS:
        raise UsageError(f"{len(source)} cameras or videos are given, {MOST_CAMERAS} are allowed; start several runs")
    return named_cameras(one)
