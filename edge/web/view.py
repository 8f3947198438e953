"""What the page shows of one camera: its frames as JPEGs, its status and events, and what a person sets."""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

import av
from aiohttp import web

from rws.edge.common.provenance import installed_version
from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import STAGES, Result
from rws.edge.web.jpeg import MAX_WIDTH, TILE_WIDTH, JpegEncoder
from rws.errors import RwsError, first_line
from rws.oracle.belief import FAMILIES
from rws.oracle.policy import PatchLimits
from rws.records import Frame
from rws.text import shown

EVENT_PERIOD = 0.2  # seconds between two server-sent events
LOOK_PERIOD = 1 / 60  # seconds between two checks for a newer image
REPEAT_AFTER = 0.2  # seconds until an image is sent again, because browsers show one only when the next begins
LAST_WORDS = 0.9  # seconds in which viewers get the last frame and the last state
TILE_FPS = 4.0
BOUNDARY = "rws-frame"
CLIPPING = "another clip is being encoded; try again in a moment\n"
BAD_LIMITS = "expected leave_clean=0 or 1, paused=0 or 1, min_severity=0 to 5, or several of them\n"
NO_FRAME = "no frame received yet\n"
VOCABULARY: Mapping[str, object] = {"stages": STAGES, "families": FAMILIES}  # names that the page needs


class View:
    """One camera on the page. Any thread may call `write`; all else belongs to the thread of the page."""

    def __init__(self, name: str, monitor: Monitor, max_fps: float) -> None:
        self.name, self.monitor = name, monitor
        self.encoder, self.tiles = JpegEncoder(max_fps, MAX_WIDTH), JpegEncoder(TILE_FPS, TILE_WIDTH)
        self.viewers = 0  # open image and event streams
        self._reports = _Reports(monitor)
        self._clipping = asyncio.Lock()
        self._compared_at = -math.inf  # when a frame was last compared with the clean model

    @property
    def wants_comparison(self) -> bool:
        """Whether viewers need the next frame compared with the clean model: one frame per event is enough for them."""
        return self.viewers > 0 and time.monotonic() >= self._compared_at + EVENT_PERIOD

    def write(self, frame: Frame, result: Result) -> None:
        """Show this frame from now on; its image must not change afterwards."""
        self.encoder.newest_result = self.tiles.newest_result = frame, result
        if result.unpatched is not None:
            self._compared_at = time.monotonic()

    async def frame(self, request: web.Request) -> web.Response:
        """Answer with the newest frame."""
        return file_response(await self.encoder.newest(), "image/jpeg")

    async def tile(self, request: web.Request) -> web.Response:
        """Answer with the newest frame, small."""
        return file_response(await self.tiles.newest(), "image/jpeg")

    async def snapshot(self, request: web.Request) -> web.Response:
        """Answer with the newest frame and its result, to be saved."""
        return file_response(await self.encoder.snapshot(), "image/jpeg", "jpg")

    async def clip(self, request: web.Request) -> web.Response:
        """Answer with what was shown in the last seconds, to be saved."""
        if self._clipping.locked():  # encoding takes a second of a processor
            return web.Response(status=503, text=CLIPPING, headers={"Retry-After": "2"})
        async with self._clipping:
            try:
                return file_response(await self.encoder.clip(), "video/mp4", "mp4")
            except (OSError, RwsError, av.FFmpegError) as error:
                return web.Response(status=503, text=f"no clip can be encoded ({shown(first_line(error))})\n")

    async def status(self, request: web.Request) -> web.Response:
        """Answer with all that is known."""
        return json_response({**self.monitor.status(since=0.0).to_dict(), **VOCABULARY})

    async def set_limits(self, request: web.Request) -> web.Response:
        """Change what the query says: the loop looks before its next frame."""
        query, limits = request.query, self.monitor.limits
        try:
            leave_clean = _FLAGS[query.get("leave_clean", str(int(limits.leave_clean)))]
            paused = _FLAGS[query.get("paused", str(int(self.monitor.paused)))]
            if paused and not self.name:
                return web.Response(status=400, text="the only camera of a run cannot be paused; stop the run\n")
            wanted = PatchLimits(leave_clean, float(query.get("min_severity", limits.min_severity)))
        except (KeyError, ValueError):
            return web.Response(status=400, text=BAD_LIMITS)
        self.monitor.limits, self.monitor.paused = wanted, paused
        self.monitor.count_event("limits_set")
        return json_response(asdict(self.monitor.limits))

    async def parts(self, stop: asyncio.Event) -> AsyncIterator[bytes]:
        """Stream the frames as the parts of a message, until `stop`."""
        shown, repeat_at, ending = None, math.inf, False
        while not ending:
            ending = stop.is_set()
            jpeg = await self.encoder.newest(at_once=ending)
            if jpeg is not None and (jpeg is not shown or time.monotonic() >= repeat_at):
                repeat_at = math.inf if jpeg is shown else time.monotonic() + REPEAT_AFTER
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                yield head.encode() + jpeg + b"\r\n"
                shown = jpeg
            await asyncio.sleep(min(max(LOOK_PERIOD, self.encoder.next_at - time.monotonic()), EVENT_PERIOD))
        if shown is not None:
            yield f"--{BOUNDARY}--\r\n".encode()

    async def events(self, stop: asyncio.Event, sign_out: bool) -> AsyncIterator[bytes]:
        """Stream the status as server-sent events; the whole timeline with the first, then only what is new."""
        since, classes = 0.0, None
        known = {**VOCABULARY, "version": installed_version(), "sign_out": sign_out, "camera": self.name}
        while not stop.is_set():
            fixed: Mapping[str, object] = {}
            if self.monitor.classes is not classes:  # at first, and after a swap
                classes = self.monitor.classes
                fixed = {**known, "classes": list(map(shown, classes))}
            event, since = self._reports.newest(since, fixed)
            yield event
            await asyncio.sleep(EVENT_PERIOD)
        await asyncio.sleep(LAST_WORDS / 3)  # the last frame first
        source = self.monitor.source
        ended = "stopped" if source.stopped else "source" if source.state == "ended" else "run"
        yield self._reports.newest(since, {"ended": ended})[0]


_FLAGS = {"0": False, "1": True}


class Views:
    """The views of the cameras that there are now; `monitors` is by name, and may change in another thread."""

    def __init__(self, monitors: Mapping[str, Monitor], max_fps: float) -> None:
        self._monitors, self._max_fps = monitors, max_fps
        self._lock = threading.Lock()
        self._views: dict[str, View] = {}

    def get(self, name: str) -> View | None:
        """Return the view of a camera; None if there is none of this name."""
        monitor = self._monitors.get(name)
        with self._lock:
            view = self._views.get(name)
            if monitor is None:
                self._views.pop(name, None)
                return None
            if view is None or view.monitor is not monitor:
                view = self._views[name] = View(name, monitor, self._max_fps)
            return view

    def all(self) -> list[View]:
        """Return the views of all cameras."""
        return [view for view in map(self.get, list(self._monitors)) if view is not None]


class _Reports:
    """The status as events, put together at most once per period for all viewers who have seen the same of it."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._made_at = -math.inf
        self._made: dict[tuple[object, ...], tuple[bytes, float]] = {}

    def newest(self, since: float, fixed: Mapping[str, object]) -> tuple[bytes, float]:
        """Return an event with the timeline from `since` on and what is `fixed`, and from when on the next one is."""
        now = time.monotonic()
        if now >= self._made_at + EVENT_PERIOD / 2:
            self._made_at, self._made = now, {}
        key = since, *fixed
        if key not in self._made:
            status = self._monitor.status(since=since)
            # With a thousand classes, their totals would be most of what is sent; `/api/status` has them.
            event = as_event({**status.to_dict(classes=False), **fixed})
            self._made[key] = event, status.timeline[-1].at if status.timeline else since
        return self._made[key]


def as_event(content: Mapping[str, object]) -> bytes:
    """Return a server-sent event."""
    return f"data: {_json(content)}\n\n".encode()


def file_response(content: bytes | None, kind: str, ending: str = "") -> web.Response:
    """Return a file, to be saved under a name with the time if an ending is given; 503 if there is no content."""
    if content is None:
        return web.Response(status=503, text=NO_FRAME)
    name = time.strftime(f'attachment; filename="rws-%Y%m%d-%H%M%S.{ending}"')
    return web.Response(body=content, content_type=kind, headers={"Content-Disposition": name} if ending else {})


def json_response(content: Mapping[str, Any], status: int = 200) -> web.Response:
    """Return plain types as JSON."""
    return web.Response(text=_json(content) + "\n", status=status, content_type="application/json")


def _json(content: Any) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which browsers refuse to read, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
