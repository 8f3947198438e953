"""The web server next to a running frame loop, in a separate thread."""

import asyncio
import json
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import av
from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Gauge
from prometheus_client.exposition import choose_encoder

from rws.edge.common.closing import Closing
from rws.edge.monitoring.metrics import installed_version, registry
from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import STAGES, Result
from rws.edge.web import address as addresses
from rws.edge.web.auth import TokenAuth, check_token
from rws.edge.web.connections import Connections
from rws.edge.web.health import health
from rws.edge.web.jpeg import JpegEncoder
from rws.errors import RwsError, first_line
from rws.oracle.belief import FAMILIES
from rws.oracle.policy import PatchLimits
from rws.records import Frame, SinkStatus
from rws.text import shown

EVENT_PERIOD = 0.2  # seconds between two server-sent events
LOOK_PERIOD = 1 / 60  # seconds between two checks for a newer image
REPEAT_AFTER = 0.2  # seconds until an image is sent again, because browsers show one only when the next begins
LAST_WORDS = 0.9  # seconds in which viewers get the last frame and the last state
SLOW_AFTER = 10.0  # seconds that a client may take for one image or event before it is disconnected
BOUNDARY = "rws-frame"
SIGN_OUT, LIMITS = "/signout", "/limits"
FULL = "too many viewers have the page open; try again later\n"
PLAIN_ONLY = "this page answers to GET and HEAD only\n"
CLIPPING = "another clip is being encoded; try again in a moment\n"
NO_BODY = "this page takes no request with a body\n"
SECURITY = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "rws",
    "X-Content-Type-Options": "nosniff",
}
BAD_LIMITS = "expected leave_clean=0 or 1, min_severity=0 to 5, or both\n"
NO_FRAME = "no frame received yet\n"
PAGE = {"page.html": "html", "page.css": "css", "page.js": "javascript", "timeline.js": "javascript"}
VOCABULARY: Mapping[str, object] = {"stages": STAGES, "families": FAMILIES}  # names that the page needs

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class PageServer(Closing):
    """Serves a page, an image stream, events, metrics and a health check of a run.

    A context manager that serves from entry to exit, and a sink: any thread may call `write`, which only keeps the
    frame. It costs nothing without viewers and does not wait for slow ones; connections are limited in number and time
    (see `Connections`). `address` is `HOST:PORT`; port 0 chooses a free one. Without a `token` one is generated, except
    at a loopback address, which needs none. After `stale_after` seconds without a result `/health` answers 503. Raises
    InputError for a bad token, RwsError on entry if it cannot.
    """

    def __init__(
        self, address: str, monitor: Monitor, *, token: str | None = None, stale_after: float = 10, max_fps: float = 15
    ) -> None:
        self.address, self.monitor, self.stale_after = address, monitor, stale_after
        self.token = None if token is None else check_token(token)
        self.port, self.url = 0, ""
        self._thread: threading.Thread | None = None
        self._encoder = JpegEncoder(max_fps)
        self._metrics = registry(monitor)
        size = Gauge("rws_clip_bytes", "Memory of the frames that are kept for a clip", registry=self._metrics)
        size.set_function(lambda: self._encoder.clip_bytes)
        self._streams: set[asyncio.Task[Any]] = set()
        self._reports = _Reports(monitor)
        self._compared_at = -math.inf  # when a frame was last compared with the clean model

    @property
    def url_with_token(self) -> str:
        """The URL of the page, with the token if one is needed."""
        return self.url if self.token is None else f"{self.url}?token={quote(self.token, safe='')}"

    @property
    def viewers(self) -> int:
        """The number of open image and event streams; an open page holds one of each."""
        return len(self._streams)

    @property
    def sink_status(self) -> SinkStatus:
        """Whether it serves, and the images that it has encoded for its viewers."""
        return self._encoder.status

    @property
    def wants_comparison(self) -> bool:
        """Whether viewers need the next frame compared with the clean model: one frame per event is enough for them."""
        return bool(self._streams) and time.monotonic() >= self._compared_at + EVENT_PERIOD

    def write(self, frame: Frame, result: Result) -> None:
        """Show this frame from now on; its image must not change afterwards."""
        self._encoder.newest_result = frame, result
        if result.unpatched is not None:
            self._compared_at = time.monotonic()

    def __enter__(self) -> "PageServer":
        listener = addresses.listen(self.address)
        host, self.port = listener.getsockname()[:2]
        self.url = addresses.url(self.address, listener)
        if self.token is None and not addresses.is_loopback(host):
            self.token = secrets.token_urlsafe(16)
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(listener, started), name="rws page", daemon=True)
        self._thread.start()
        started.result()
        return self

    def close(self) -> None:
        """Tell the viewers that the run has ended, and stop serving; a second call does nothing."""
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self, listener: socket.socket, started: Future[None]) -> None:
        try:
            asyncio.run(self._serve(listener, started))
        except Exception as error:
            if not started.done():
                started.set_exception(error)
                return
            reason = shown(f"the page is no longer served ({first_line(error)})")
            self._encoder.status = replace(self._encoder.status, state="failed", error=reason)
            log.warning(reason)

    async def _serve(self, listener: socket.socket, started: Future[None]) -> None:
        self._loop, self._stop, self._clipping = asyncio.get_running_loop(), asyncio.Event(), asyncio.Lock()
        self._loop.set_exception_handler(_note)
        log.addFilter(_worth_telling)
        self._connections = Connections(listener)
        self._metrics.register(self._connections)
        # A token in an address must not end up in a log. Handlers end with their client, or `viewers` would be wrong.
        # What a client goes on to send is never read.
        settings: dict[str, Any] = {"access_log": None, "handler_cancellation": True, "shutdown_timeout": 0.5}
        runner = web.AppRunner(self._application(), logger=log, lingering_time=0, **settings)
        tasks: list[asyncio.Task[None]] = []
        try:
            await runner.setup()
            assert runner.server is not None
            work = self._connections.accept(runner.server), self._connections.watch()
            tasks = [asyncio.create_task(part) for part in work]
            started.set_result(None)
            await self._stop.wait()
            if self._streams:
                await asyncio.wait(self._streams, timeout=LAST_WORDS)
        finally:
            listener.close()
            for task in [*tasks, *self._streams]:
                task.cancel()
            await runner.cleanup()

    def _application(self) -> web.Application:
        hosts = [addresses.parse(self.address)[0].lower()]
        self._auth = TokenAuth(self.token, port=self.port, clock=time.monotonic, hosts=hosts)
        application = web.Application(middlewares=[self._admit])
        application.on_response_prepare.append(_secure)
        for name, kind in PAGE.items():
            text = (files("rws.edge.web") / "static" / name).read_text("utf-8")
            application.router.add_get("/" if name == "page.html" else f"/{name}", partial(_page, text, kind))
        application.router.add_get("/frame.jpg", self._frame)
        application.router.add_get("/snapshot.jpg", self._snapshot)
        application.router.add_get("/clip.mp4", self._clip)
        application.router.add_get("/api/status", self._status)
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/health", self._health)
        application.router.add_post(SIGN_OUT, self._auth.sign_out)
        application.router.add_post(LIMITS, self._set_limits)
        parts, reports = f"multipart/x-mixed-replace; boundary={BOUNDARY}", "text/event-stream"
        application.router.add_get("/stream.mjpg", partial(self._stream, parts, self._parts), allow_head=False)
        application.router.add_get("/events", partial(self._stream, reports, self._events), allow_head=False)
        return application

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, or refuse and count it; after anything but a plain request the connection is closed."""
        with self._connections.serving(request) as connection:
            response: web.StreamResponse
            if refusal := self._auth.refusal(request, connection.address) or self._unusual(request):
                reason, response = refusal
                self._connections.refused[reason] += 1
            elif not self._connections.admit(connection):
                response = _full()
            elif request.path == "/" and "token" in request.query and self.token is not None:
                response = self._auth.sign_in(request)
            else:
                response = await handler(request)
            if response.status in (405, 413, 503) or request.body_exists or "Upgrade" in request.headers:
                response.force_close()
            return response

    def _unusual(self, request: web.Request) -> tuple[str, web.Response] | None:
        """Return why a request is refused although its sender has access, and the answer."""
        if request.method not in ("GET", "HEAD"):
            if request.method != "POST" or request.path not in (SIGN_OUT, LIMITS):
                return "method", web.Response(status=405, text=PLAIN_ONLY, headers={"Allow": "GET,HEAD"})
            if refusal := self._auth.foreign(request):
                return refusal
        return ("body", web.Response(status=413, text=NO_BODY)) if request.body_exists else None

    async def _frame(self, request: web.Request) -> web.Response:
        return _file(await self._encoder.newest(), "image/jpeg")

    async def _snapshot(self, request: web.Request) -> web.Response:
        return _file(await self._encoder.snapshot(), "image/jpeg", "jpg")

    async def _clip(self, request: web.Request) -> web.Response:
        if self._clipping.locked():  # encoding takes a second of a processor
            return web.Response(status=503, text=CLIPPING, headers={"Retry-After": "2"})
        async with self._clipping:
            try:
                return _file(await self._encoder.clip(), "video/mp4", "mp4")
            except (OSError, RwsError, av.FFmpegError) as error:
                return web.Response(status=503, text=f"no clip can be encoded ({shown(first_line(error))})\n")

    async def _status(self, request: web.Request) -> web.Response:
        return _json_response({**self.monitor.status(since=0.0).to_dict(), **VOCABULARY})

    async def _set_limits(self, request: web.Request) -> web.Response:
        """Change when the policy may patch, by what the query says: the loop looks before its next frame."""
        query, limits = request.query, self.monitor.limits
        try:
            leave_clean = {"0": False, "1": True}[query.get("leave_clean", str(int(limits.leave_clean)))]
            self.monitor.limits = PatchLimits(leave_clean, float(query.get("min_severity", limits.min_severity)))
        except (KeyError, ValueError):
            return web.Response(status=400, text=BAD_LIMITS)
        self.monitor.count_event("limits_set")
        return _json_response(asdict(self.monitor.limits))

    async def _show_metrics(self, request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics), headers={"Content-Type": kind})

    async def _health(self, request: web.Request) -> web.Response:
        found = health(self.monitor.status(), self.stale_after)
        return _json_response({"schema": "health/1", **asdict(found)}, status=200 if found.serves else 503)

    async def _stream(
        self, kind: str, chunks: Callable[[], AsyncIterator[bytes]], request: web.Request
    ) -> web.StreamResponse:
        """Send a streaming response; its client counts as a viewer until it leaves or is too slow."""
        if len(self._streams) >= self._connections.max_viewers:
            self._connections.refused["too_many"] += 1
            return _full()
        response = web.StreamResponse(headers={"Content-Type": kind, "X-Accel-Buffering": "no"})
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await response.prepare(request)
            async for chunk in chunks():
                await asyncio.wait_for(response.write(chunk), SLOW_AFTER)
        except asyncio.TimeoutError:
            self._connections.refused["slow_viewer"] += 1
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left
        finally:
            self._streams.discard(task)
        return response

    async def _parts(self) -> AsyncIterator[bytes]:
        shown, repeat_at, ending = None, math.inf, False
        while not ending:
            ending = self._stop.is_set()
            jpeg = await self._encoder.newest(at_once=ending)
            if jpeg is not None and (jpeg is not shown or time.monotonic() >= repeat_at):
                repeat_at = math.inf if jpeg is shown else time.monotonic() + REPEAT_AFTER
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                yield head.encode() + jpeg + b"\r\n"
                shown = jpeg
            await asyncio.sleep(min(max(LOOK_PERIOD, self._encoder.next_at - time.monotonic()), EVENT_PERIOD))
        if shown is not None:
            yield f"--{BOUNDARY}--\r\n".encode()

    async def _events(self) -> AsyncIterator[bytes]:
        """Stream the status as server-sent events; the whole timeline with the first, then only what is new."""
        since, classes = 0.0, None
        known = {**VOCABULARY, "version": installed_version(), "sign_out": self.token is not None}
        while not self._stop.is_set():
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
            event = f"data: {_json({**status.to_dict(classes=False), **fixed})}\n\n".encode()
            self._made[key] = event, status.timeline[-1].at if status.timeline else since
        return self._made[key]


def _worth_telling(record: logging.LogRecord) -> bool:
    # Requests that are not HTTP come with every port scan; aiohttp would print a traceback for each.
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Of one connection, which a client can provoke; asyncio would print a traceback.
    log.debug("page: %s: %s", context["message"], context.get("exception", ""))


def _file(content: bytes | None, kind: str, ending: str = "") -> web.Response:
    """Return a file, to be saved under a name with the time if an ending is given; 503 if there is no content."""
    if content is None:
        return web.Response(status=503, text=NO_FRAME)
    name = time.strftime(f'attachment; filename="rws-%Y%m%d-%H%M%S.{ending}"')
    return web.Response(body=content, content_type=kind, headers={"Content-Disposition": name} if ending else {})


def _full() -> web.Response:
    return web.Response(status=503, text=FULL, headers={"Retry-After": "5"})


async def _page(text: str, kind: str, request: web.Request) -> web.StreamResponse:
    return web.Response(text=text, content_type=f"text/{kind}")


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY)


def _json_response(content: Mapping[str, Any], status: int = 200) -> web.Response:
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
