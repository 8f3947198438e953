"""The web server next to a running frame loop, in a separate thread."""

import asyncio
import json
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client.exposition import choose_encoder

from rws.edge.common.closing import Closing
from rws.edge.monitoring.metrics import registry
from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import STAGES, Result
from rws.edge.web import address as addresses
from rws.edge.web.auth import TokenAuth, check_token
from rws.edge.web.health import health
from rws.edge.web.jpeg import JpegEncoder
from rws.errors import first_line
from rws.oracle.belief import FAMILIES
from rws.records import Frame, SinkStatus
from rws.text import shown

EVENT_PERIOD = 0.2  # seconds between two server-sent events
LOOK_PERIOD = 1 / 60  # seconds between two checks for a newer image
REPEAT_AFTER = 0.2  # seconds until an image is sent again, because browsers show one only when the next begins
SLOW_AFTER = 10.0  # seconds that a client may take for one image or event before it is disconnected
BOUNDARY = "rws-frame"
SECURITY = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "rws",
    "X-Content-Type-Options": "nosniff",
}
PAGE = {"page.html": "html", "page.css": "css", "page.js": "javascript", "timeline.js": "javascript"}
VOCABULARY: Mapping[str, object] = {"stages": STAGES, "families": FAMILIES}  # names that the page needs

log = logging.getLogger(__name__)


class PageServer(Closing):
    """Serves a page, an image stream, events, metrics and a health check of a run.

    A context manager that serves from entry to exit, and a sink: any thread may call `write`, which only keeps the
    frame. It costs nothing without viewers and does not wait for slow ones. `address` is `HOST:PORT`; port 0 chooses a
    free one. Without a `token` one is generated, except at a loopback address, which needs none. After `stale_after`
    seconds without a result `/health` answers 503. Raises InputError for a bad token, RwsError on entry if it cannot.
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
        self._streams: set[asyncio.Task[Any]] = set()

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

    def write(self, frame: Frame, result: Result) -> None:
        """Show this frame from now on; its image must not change afterwards."""
        self._encoder.frame = frame

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
        """Stop serving; a second call does nothing."""
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
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        log.addFilter(_worth_telling)
        # A token in an address must not end up in a log. Handlers end with their client, or `viewers` would be wrong.
        settings: dict[str, Any] = {"access_log": None, "handler_cancellation": True, "shutdown_timeout": 0.5}
        runner = web.AppRunner(self._application(), logger=log, **settings)
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            started.set_result(None)
            await self._stop.wait()
        finally:
            for stream in self._streams:
                stream.cancel()
            await runner.cleanup()

    def _application(self) -> web.Application:
        auth = TokenAuth(self.token, port=self.port, hosts=[addresses.parse(self.address)[0].lower()])
        application = web.Application(middlewares=[auth.admit])
        application.on_response_prepare.append(_secure)
        for name, kind in PAGE.items():
            text = (files("rws.edge.web") / "static" / name).read_text("utf-8")
            application.router.add_get("/" if name == "page.html" else f"/{name}", partial(_page, text, kind))
        application.router.add_get("/frame.jpg", self._frame)
        application.router.add_get("/api/status", self._status)
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/health", self._health)
        parts, reports = f"multipart/x-mixed-replace; boundary={BOUNDARY}", "text/event-stream"
        application.router.add_get("/stream.mjpg", partial(self._stream, parts, self._parts), allow_head=False)
        application.router.add_get("/events", partial(self._stream, reports, self._reports), allow_head=False)
        return application

    async def _frame(self, request: web.Request) -> web.Response:
        if (jpeg := await self._encoder.newest()) is None:
            return web.Response(status=503, text="no frame received yet\n")
        return web.Response(body=jpeg, content_type="image/jpeg")

    async def _status(self, request: web.Request) -> web.Response:
        return _json_response({**self.monitor.status(since=0.0).to_dict(), **VOCABULARY})

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
        response = web.StreamResponse(headers={"Content-Type": kind, "X-Accel-Buffering": "no"})
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await response.prepare(request)
            async for chunk in chunks():
                await asyncio.wait_for(response.write(chunk), SLOW_AFTER)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left
        finally:
            self._streams.discard(task)
        return response

    async def _parts(self) -> AsyncIterator[bytes]:
        shown, repeat_at = None, math.inf
        while not self._stop.is_set():
            jpeg = await self._encoder.newest()
            if jpeg is not None and (jpeg is not shown or time.monotonic() >= repeat_at):
                repeat_at = math.inf if jpeg is shown else time.monotonic() + REPEAT_AFTER
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                yield head.encode() + jpeg + b"\r\n"
                shown = jpeg
            await asyncio.sleep(max(LOOK_PERIOD, self._encoder.next_at - time.monotonic()))

    async def _reports(self) -> AsyncIterator[bytes]:
        """Stream the status as server-sent events; the whole timeline with the first, then only what is new."""
        since = 0.0
        fixed: Mapping[str, object] = VOCABULARY
        while not self._stop.is_set():
            status = self.monitor.status(since=since)
            # With a thousand classes, their totals would be most of what is sent; `/api/status` has them.
            report = status.to_dict(classes=False)
            since = status.timeline[-1].at if status.timeline else since
            yield f"data: {_json({**report, **fixed})}\n\n".encode()
            fixed = {}
            await asyncio.sleep(EVENT_PERIOD)


def _worth_telling(record: logging.LogRecord) -> bool:
    # Requests that are not HTTP come with every port scan; aiohttp would print a traceback for each.
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


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
