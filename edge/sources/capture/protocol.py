"""Messages between the frame loop, which asks, and its capture process: JSON lines with the question's number."""

import json
from dataclasses import dataclass, field
from typing import Literal

from rws.errors import UsageError
from rws.text import printable

RTSP_TRANSPORTS = ("auto", "tcp", "udp")  # auto: TCP, or UDP if the camera refuses it
FILE_PIXELS, STREAM_PIXELS = 64_000_000, 34_000_000  # most pixels by default: a large photo, a frame of 8K


@dataclass(frozen=True)
class NetworkOptions:
    """How a stream is asked for."""

    rtsp_transport: str = "auto"  # of `RTSP_TRANSPORTS`
    poll: float = 1.0  # seconds between two requests to an address that gives one image per request

    def check(self) -> None:
        """Raise a `UsageError` if a value is impossible."""
        if self.rtsp_transport not in RTSP_TRANSPORTS or not 0.05 <= self.poll <= 3600:
            found = f"the RTSP transport is {printable(self.rtsp_transport)}, the poll {self.poll:g}"
            raise UsageError(f"{found}; expected one of {', '.join(RTSP_TRANSPORTS)}, and a poll of 0.05 to 3600 s")


DEFAULT_NETWORK = NetworkOptions()


@dataclass(frozen=True)
class CaptureSettings:
    """What to open and how; `Opened` or `Ended` answers."""

    target: int | str  # a camera's index or device, a GStreamer pipeline, a path or a URL; a descriptor of the loop
    kind: Literal["camera", "file", "pipe", "network"]  # OpenCV reads a camera, PyAV the others
    name: str  # for people, printable; of a URL scheme and host only
    latest: bool | None = None  # give the newest frame and drop the others; None: unless it is a file
    rtsp_transport: str = "auto"  # of `RTSP_TRANSPORTS`
    poll: float = 1.0  # seconds between two requests to an address that gives one image per request
    max_pixels: int = STREAM_PIXELS  # of a frame
    accept: str = ""  # flaws of frames that are none, joined by commas


@dataclass(frozen=True)
class Next:
    """Asks for the next frame; `FrameReady` or `Ended` answers."""


@dataclass(frozen=True)
class Opened:
    """The source is open: declared frames per second and number of frames, and whether it has a regular end."""

    fps: float | None
    length: int | None
    finite: bool
    bursts: bool = False  # a live stream whose frames arrive many at a time


@dataclass(frozen=True)
class FrameReady:
    """A frame lies in shared memory, uint8 (height, width, 3) RGB; `index` is its number among all received."""

    height: int
    width: int
    captured_at: float
    index: int
    media_time: float | None = None
    remarks: list[str] = field(default_factory=list)  # on the frames of this source, for people


@dataclass(frozen=True)
class Ended:
    """There are no more frames, or the source could not be opened; `reason` is "" for a regular end."""

    reason: str
    media_end: float | None = None  # when the last frame ends, as in `Frame.media_time`


Message = CaptureSettings | Next | Opened | FrameReady | Ended
_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in (CaptureSettings, Next, Opened, FrameReady, Ended)}


def encode(question: int, message: Message) -> bytes:
    """Return the line for a message; an answer bears the number of its question."""
    return json.dumps({"question": question, "type": type(message).__name__, **vars(message)}).encode() + b"\n"


def decode(line: bytes | str) -> tuple[int, Message]:
    """Return the number of the question, and the message."""
    fields = json.loads(line)
    return fields.pop("question"), _TYPES[fields.pop("type")](**fields)
