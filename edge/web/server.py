"""The web server next to a running frame loop, in a separate thread."""

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Gauge
from prometheus_client.exposition import choose_encoder

from rws.edge.common.closing import Closing
from rws.edge.monitoring.metrics import registry
from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import Result
from rws.edge.web import address as addresses
from rws.edge.web.auth import TokenAuth, check_token
from rws.edge.web.connections import Connections
from rws.edge.web.health import PAUSED, health_of_all
from rws.edge.web.overview import overview
from rws.edge.web.view import BOUNDARY, LAST_WORDS, View, Views, as_event, json_response
from rws.errors import first_line
from rws.records import Frame, SinkStatus
from rws.text import shown

SLOW_AFTER = 10.0  # seconds that a client may take for one image or event before it is disconnected
CHANGES = ("signout", "limits")  # the ends of the paths that take POST
FULL = "too many viewers have the page open; try again later\n"
PLAIN_ONLY = "this page answers to GET and HEAD only\n"
NO_BODY = "this page takes no request with a body\n"
NO_CAMERA = "there is no such camera\n"
SECURITY = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "rws",
    "X-Content-Type-Options": "nosniff",
}
KINDS = {"html": "html", "css": "css", "js": "javascript"}
PAGE = ("page.html", "page.css", "page.js", "connection.js", "timeline.js")
OVERVIEW = ("cameras.html", "page.css", "cameras.js", "connection.js", "timeline.js")
PREFIX = "/camera/{camera}"  # of the pages of several cameras
OVERVIEW_PERIOD = 0.5  # seconds between two events about all cameras
COUNTS = ("accepted", "written", "dropped", "failed", "failures", "waiting", "writing")
CAMERA: Mapping[str, Callable[[View, web.Request], Awaitable[web.Response]]] = {
    "frame.jpg": View.frame,
    "tile.jpg": View.tile,
    "snapshot.jpg": View.snapshot,
    "clip.mp4": View.clip,
    "api/status": View.status,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class PageServer(Closing):
    """Serves a page, an image stream, events, metrics and a health check of a run.

    A context manager that serves from entry to exit, and a sink: any thread may call `write`, which only keeps the
    frame. It costs nothing without viewers and does not wait for slow ones; connections are limited in number and time
    (see `Connections`). `address` is `HOST:PORT`; port 0 chooses a free one. `monitors` are by the name of the camera:
    the only one, "", has its page at `/`; of several, `/` shows all, and `/camera/NAME/` is the page of each. They may
    change. Without a `token` one is generated, except at a loopback address, which needs none. After `stale_after`
    seconds without a result `/health` answers 503. Raises InputError for a bad token, RwsError on entry if it cannot.
    """

    def __init__(
        self,
        address: str,
        monitors: Mapping[str, Monitor],
        *,
        token: str | None = None,
        stale_after: float = 10,
        max_fps: float = 15,
    ) -> None:
        self.address, self.stale_after = address, stale_after
        self.token = None if token is None else check_token(token)
        self.port, self.url = 0, ""
        self._thread: threading.Thread | None = None
        self._monitors, self._views = monitors, Views(monitors, max_fps)
        self._metrics = registry(monitors)
        size = Gauge("rws_clip_bytes", "Memory of the frames that are kept for a clip", registry=self._metrics)
        size.set_function(lambda: sum(view.encoder.clip_bytes for view in self._views.all()))
        self._streams: set[asyncio.Task[Any]] = set()
        self._failed = ""

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
        found = SinkStatus()
        for status in (view.encoder.status for view in self._views.all()):
            counts = {name: getattr(found, name) + getattr(status, name) for name in COUNTS}
            worse = status if status.error else found
            found = replace(found, state=worse.state, error=worse.error, **counts)
        return replace(found, state="failed", error=self._failed) if self._failed else found

    def wants_comparison(self, camera: str = "") -> bool:
        """Return whether viewers need a camera's next frame compared with the clean model."""
        view = self._views.get(camera)
        return view is not None and view.wants_comparison

    def write(self, frame: Frame, result: Result) -> None:
        """Show this frame from now on; its image must not change afterwards."""
        if view := self._views.get(result.camera):
            view.write(frame, result)

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
            self._failed = shown(f"the page is no longer served ({first_line(error)})")
            log.warning(self._failed)

    async def _serve(self, listener: socket.socket, started: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
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
        several = "" not in self._monitors
        add, post = application.router.add_get, application.router.add_post
        for prefix, names in (("", OVERVIEW if several else PAGE), *([(PREFIX, PAGE)] if several else [])):
            for name in names:
                text = (files("rws.edge.web") / "static" / name).read_text("utf-8")
                ending = name.rpartition(".")[2]
                add(f"{prefix}/" if ending == "html" else f"{prefix}/{name}", partial(_page, text, KINDS[ending]))
            add(f"{prefix}/metrics", self._show_metrics)
            add(f"{prefix}/health", self._health)
            post(f"{prefix}/signout", self._auth.sign_out)
        if several:
            add("/events", partial(self._stream, "text/event-stream", self._overview), allow_head=False)
            add("/api/status", self._status_of_all)
        for name, answer in CAMERA.items():
            add(f"{PREFIX if several else ''}/{name}", partial(self._of_camera, answer))
        post(f"{PREFIX if several else ''}/limits", partial(self._of_camera, View.set_limits))
        parts, events = f"multipart/x-mixed-replace; boundary={BOUNDARY}", "text/event-stream"
        for name, kind, chunks in (("stream.mjpg", parts, self._parts), ("events", events, self._events)):
            add(f"{PREFIX if several else ''}/{name}", partial(self._stream, kind, chunks), allow_head=False)
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
            if request.method != "POST" or request.path.rpartition("/")[2] not in CHANGES:
                return "method", web.Response(status=405, text=PLAIN_ONLY, headers={"Allow": "GET,HEAD"})
            if refusal := self._auth.foreign(request):
                return refusal
        return ("body", web.Response(status=413, text=NO_BODY)) if request.body_exists else None

    async def _of_camera(
        self, answer: Callable[[View, web.Request], Awaitable[web.Response]], request: web.Request
    ) -> web.Response:
        view = self._view(request)
        return web.Response(status=404, text=NO_CAMERA) if view is None else await answer(view, request)

    def _view(self, request: web.Request) -> View | None:
        return self._views.get(request.match_info.get("camera", ""))

    async def _status_of_all(self, request: web.Request) -> web.Response:
        return json_response(overview(self._monitors, self.token is not None))

    async def _show_metrics(self, request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics), headers={"Content-Type": kind})

    async def _health(self, request: web.Request) -> web.Response:
        name = request.match_info.get("camera")
        found = {key: one for key, one in list(self._monitors.items()) if name in (None, key)}
        asked = {key: monitor.status() for key, monitor in found.items() if not monitor.paused}
        health = PAUSED if found and not asked else health_of_all(asked, self.stale_after)
        return json_response({"schema": "health/1", **health.to_dict()}, status=200 if health.serves else 503)

    async def _stream(
        self, kind: str, chunks: Callable[[View | None], AsyncIterator[bytes]], request: web.Request
    ) -> web.StreamResponse:
        """Send a streaming response; its client counts as a viewer until it leaves or is too slow."""
        view = self._view(request)
        if view is None and "camera" in request.match_info:
            return web.Response(status=404, text=NO_CAMERA)
        if len(self._streams) >= self._connections.max_viewers:
            self._connections.refused["too_many"] += 1
            return _full()
        response = web.StreamResponse(headers={"Content-Type": kind, "X-Accel-Buffering": "no"})
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        if view is not None:
            view.viewers += 1
        try:
            await response.prepare(request)
            async for chunk in chunks(view):
                await asyncio.wait_for(response.write(chunk), SLOW_AFTER)
        except asyncio.TimeoutError:
            self._connections.refused["slow_viewer"] += 1
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left
        finally:
            self._streams.discard(task)
            if view is not None:
                view.viewers -= 1
        return response

    def _parts(self, view: View | None) -> AsyncIterator[bytes]:
        assert view is not None
        return view.parts(self._stop)

    def _events(self, view: View | None) -> AsyncIterator[bytes]:
        assert view is not None
        return view.events(self._stop, self.token is not None)

    async def _overview(self, view: View | None) -> AsyncIterator[bytes]:
        while not self._stop.is_set():
            yield as_event(overview(self._monitors, self.token is not None))
            await asyncio.sleep(OVERVIEW_PERIOD)
        yield as_event({**overview(self._monitors, self.token is not None), "ended": True})


def _worth_telling(record: logging.LogRecord) -> bool:
    # Requests that are not HTTP come with every port scan; aiohttp would print a traceback for each.
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Of one connection, which a client can provoke; asyncio would print a traceback.
    log.debug("page: %s: %s", context["message"], context.get("exception", ""))


def _full() -> web.Response:
    return web.Response(status=503, text=FULL, headers={"Retry-After": "5"})


async def _page(text: str, kind: str, request: web.Request) -> web.StreamResponse:
    return web.Response(text=text, content_type=f"text/{kind}")


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY)
