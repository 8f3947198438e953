"""Real cameras on loopback: MJPEG over HTTP, and RTSP through GStreamer. They can misbehave, and be killed."""

import contextlib
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rws.edge.common.closing import Closing
from rws.edge.faults.frames import BITS, encode_jpeg, scene, stamped

_RTSP_SERVER = Path(__file__).with_name("rtsp_server.py")
_SYSTEM_PYTHON = "/usr/bin/python3"
Camera = Callable[[int], bytes | None]


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a client that leaves."""


class HttpServer(Closing):
    """Listens at `url` of loopback."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler], port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class MjpegServer(HttpServer):
    """A camera that sends JPEG images over HTTP at `url`; `camera(n)` gives the n-th image, or None to send nothing."""

    def __init__(self, camera: Camera, fps: float = 30.0, port: int = 0) -> None:
        self.number = self.sent = 0
        self._camera, self._period = camera, 1 / fps
        self._connections: list[socket.socket] = []
        self._running = True
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._serve(self)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        super().__init__(Handler, port)
        self.url += "video.mjpg"

    def close(self) -> None:
        """Cut all connections at once and stop listening, like a camera that loses power."""
        self._running = False
        super().close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        self._connections.append(handler.connection)
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        due = time.monotonic()
        while self._running:
            number, self.number = self.number, self.number + 1
            if (jpeg := self._camera(number)) is not None:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                handler.wfile.write(head + jpeg + b"\r\n")
                self.sent += 1
            due += self._period
            time.sleep(max(0.0, due - time.monotonic()))


class FileServer(HttpServer):
    """Serves the files of a folder over HTTP at `url`, which ends in a slash."""

    def __init__(self, folder: Path) -> None:
        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Quiet."""

        super().__init__(partial(Handler, directory=str(folder)))


class RtspServer(Closing):
    """GStreamer's RTSP server, in a separate process: H.264, 640 x 480, 30 frames per second."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/camera"
        self._process = subprocess.Popen(
            [_SYSTEM_PYTHON, "-I", str(_RTSP_SERVER), str(self.port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != b"ready":
            self.close()
            raise OSError(f"the RTSP server did not start on port {self.port}")

    @staticmethod
    def missing() -> str:
        """Return what this machine lacks for it, or ""."""
        if shutil.which(_SYSTEM_PYTHON) is None:
            return f"{_SYSTEM_PYTHON} is missing"
        check = (
            "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0');"
            "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
            "names = ('videotestsrc', 'videoconvert', 'x264enc', 'rtph264pay');"
            "raise SystemExit(any(Gst.ElementFactory.find(name) is None for name in names))"
        )
        if subprocess.run([_SYSTEM_PYTHON, "-I", "-c", check], capture_output=True, check=False).returncode:
            return (
                "GStreamer's RTSP server is missing; on Debian: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
                "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
            )
        return ""

    def close(self) -> None:
        """Kill it, like a camera that loses power."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def milliseconds() -> int:
    """Return the system's monotonic clock, modulo what a stamp holds."""
    return int(time.monotonic() * 1e3) % (1 << BITS)


def age_ms(stamp: int) -> int:
    """Return how long ago the frame with that stamp was made, milliseconds."""
    return (milliseconds() - stamp) % (1 << BITS)


def serve_stamped() -> None:
    """Serve stamped frames at `sys.argv[1]` Hz until standard input closes.

    The camera dies every `sys.argv[2]` seconds, 0 for never, and comes back at the same address after a tenth of that
    time, 5 s at most. Prints its address; at the end the number of frames that it has sent, and how often it has died.
    """
    fps, every = float(sys.argv[1]), float(sys.argv[2])
    scenes = [scene(480, 640, seed) for seed in range(8)]
    sent, deaths, port = 0, -1, 0
    ended = False
    while not ended:
        server = MjpegServer(lambda n: encode_jpeg(stamped(scenes[n % 8], milliseconds())), fps, port)
        if not port:
            print(server.url, flush=True)
        port, deaths = server.port, deaths + 1
        ended = bool(select.select([sys.stdin], [], [], every or None)[0])
        server.close()
        time.sleep(0 if ended else min(5.0, every / 10))
        sent += server.sent
    print(sent, deaths, flush=True)
