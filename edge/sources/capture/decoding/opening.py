"""Opens files, pipes and addresses with FFmpeg: its options, what is tried next, and what a failure means."""

import shutil
import tempfile
import time
from itertools import islice
from typing import Any

from rws.edge.sources.capture.decoding.still import IMAGE_SUFFIXES
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.errors import SourceError, first_line
from rws.text import encoding_advice

LONGEST_SILENCE = 300.0  # seconds after which reading fails even without a watchdog
# A live playlist is entered at its newest segment.
_NETWORK_OPTIONS = {"analyzeduration": "1000000", "fpsprobesize": "0", "live_start_index": "-1"}
_HTTP_OPTIONS = {"formatprobesize": "131072"}  # of small images a megabyte would take too long
_FIRST_SHARE = 0.7  # of the time to open an HTTP address; the rest is for a second attempt
_HTTP = ("http://", "https://")
_RTSP = ("rtsp://", "rtsps://")
_TRANSPORTS = {"auto": {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"}}
_HEAD = 2**16  # bytes of a pipe that are looked at


def open_container(settings: CaptureSettings, timeout: float, scan: bool = False) -> Any:
    """Open a file, pipe or address; `timeout` seconds is the limit for an address.

    An HTTP stream of JPEGs whose parts are not as multipart says, and any if `scan`, is opened as JPEGs that their own
    marks delimit. Each of its images is complete when the next one begins, so it is one image older.

    A `SourceError` says in one line why it cannot be opened, and what to do.
    """
    import av

    av.logging.set_level(None)
    target = str(settings.target)
    network, http = settings.kind == "network", target.startswith(_HTTP)
    options = dict(_NETWORK_OPTIONS) if network else {}
    if target.startswith(_RTSP):
        # Packets that were read to identify a live stream are old when it is open.
        options |= {"fflags": "nobuffer"}
        options |= _TRANSPORTS.get(settings.rtsp_transport, {"rtsp_transport": settings.rtsp_transport})
    if http:
        options |= _HTTP_OPTIONS
    if http and target.lower().endswith(tuple(IMAGE_SUFFIXES)):
        target += "#"  # which is not sent: what comes decides what it is, not the ending
    # The loop decides if a stream is silent, because it knows its rhythm; only opening has a limit here.
    limit = timeout * (_FIRST_SHARE if http else 1)
    limits = (limit, LONGEST_SILENCE) if network else None
    began, container, refusal = time.monotonic(), None, None
    try:
        if not (http and scan):
            file = _piped(settings) if settings.kind == "pipe" else target
            container = av.open(file, options=options, timeout=limits)
            if container.format.name != "mpjpeg" or container.streams.video[0].codec_context.width:
                return container
    except (av.error.FFmpegError, OSError, ValueError) as error:
        refusal = SourceError(_refused(error, settings, limit))
        if not http or not isinstance(error, av.error.InvalidDataError):
            raise refusal from error
    try:
        return _scan_for_jpegs(target, timeout - min(time.monotonic() - began, limit))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if container is not None:
            return container  # its first image is still to come
        raise refusal or SourceError(_refused(error, settings, timeout)) from error


def _scan_for_jpegs(target: str, timeout: float) -> Any:
    import av

    options = _NETWORK_OPTIONS | {"analyzeduration": "100000"}
    container = av.open(target, format="mjpeg", options=options, timeout=(timeout, LONGEST_SILENCE))
    if not container.streams.video or not container.streams.video[0].codec_context.width:
        container.close()
        raise ValueError("no JPEG image")
    return container


def is_one_image(container: Any) -> bool:
    """Return whether what is open ends after one image; a few packets are read from it if it may."""
    import av

    name: str = container.format.name
    if not name.endswith("_pipe"):
        return name in ("image2", "gif")
    try:
        return len([packet for packet in islice(container.demux(), 2) if packet.size]) < 2
    except (av.error.FFmpegError, OSError):
        return False  # reading on will say why


def why(error: BaseException, timeout: float) -> str:
    """Return in one line why something cannot be read, without its address; see `open_container`."""
    name = type(error).__name__
    if name in ("ExitError", "TimeoutError"):
        return f"timed out: nothing received for {timeout:g} s"
    if name == "HTTPUnauthorizedError":
        return "asks for a user name and password (401); put the right ones into the address, before its host"
    # PyAV repeats the address, with its password, in the message.
    return f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"


def _refused(error: BaseException, settings: CaptureSettings, timeout: float) -> str:
    reason, target = why(error, timeout), str(settings.target)
    if settings.kind != "network":
        return f"is not a video, or {reason}; expected .mp4, .avi or .mkv"
    if target.startswith(_RTSP) and "401" not in reason:
        reason += "; if others reach it, try --rtsp-transport " + ("tcp" if settings.rtsp_transport == "udp" else "udp")
    return reason + encoding_advice(target)


def _piped(settings: CaptureSettings) -> Any:
    """Return what comes through a pipe; an MP4 with its index at its end is copied to a temporary file first."""
    pipe: Any = open(0 if isinstance(settings.target, int) else settings.target, "rb", buffering=_HEAD)  # noqa: SIM115
    head = pipe.peek(_HEAD)
    if pipe.seekable() or head[4:8] != b"ftyp" or b"moov" in head:
        return pipe
    copy = tempfile.TemporaryFile()  # noqa: SIM115, the container keeps it open
    shutil.copyfileobj(pipe, copy)
    copy.seek(0)
    return copy
