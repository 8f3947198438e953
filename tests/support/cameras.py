"""Cameras of others on loopback: HTTP ones that answer as a function says, and an RTSP one that sends over UDP only."""

import contextlib
import hashlib
import re
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import cv2
import numpy as np

NONCE = "abc123"


def picture(value, suffix=".jpg"):
    """A noisy image of that mean, coded."""
    noise = np.random.default_rng(value).integers(-9, 9, (48, 64, 3))
    return cv2.imencode(suffix, np.clip(noise + value, 0, 255).astype(np.uint8))[1].tobytes()


PICTURES = [picture(value) for value in range(20, 240, 4)]


@contextlib.contextmanager
def http_camera(answer):
    """Serve `answer(handler)`; yields the address, without a path. `server.paths` lists the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.paths.append(self.path)
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.paths, server.running = True, [], True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield server
    finally:
        server.running = False
        server.shutdown()
        server.server_close()


def send(handler, data, kind="image/jpeg", status=200, **headers):
    """Answer with one body."""
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def send_parts(handler, kind, part, rate=40):
    """Answer without end: `part(n, jpeg)` is the n-th part, whole."""
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.end_headers()
    number = 0
    while handler.server.running:
        handler.wfile.write(part(number, PICTURES[number % len(PICTURES)]))
        number += 1
        time.sleep(1 / rate)


def digest_accepted(handler, user, password):
    """Whether the request carries the right answer to our challenge; sends the challenge if not."""
    md5 = lambda text: hashlib.md5(text.encode()).hexdigest()  # noqa: E731
    fields = dict(re.findall(r'(\w+)="?([^",]+)"?', handler.headers.get("Authorization") or ""))
    if fields.get("nonce") == NONCE:
        first, second = md5(f"{user}:cam:{password}"), md5(f"GET:{fields['uri']}")
        if fields["response"] == md5(f"{first}:{NONCE}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}:{second}"):
            return True
    send(handler, b"", status=401, WWW_Authenticate=f'Digest realm="cam", qop="auth", nonce="{NONCE}", algorithm=MD5')
    return False


@contextlib.contextmanager
def rtsp_camera():
    """An RTSP camera that refuses TCP and sends MPEG-TS over UDP; yields its address."""
    lines = (
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=cam",
        "c=IN IP4 127.0.0.1",
        "t=0 0",
        "m=video 0 RTP/AVP 33",
        "a=control:t",
    )
    sdp = "".join(line + "\r\n" for line in lines)
    stopped = threading.Event()

    def play(port):
        with av.open(f"rtp://127.0.0.1:{port}?pkt_size=1316", "w", format="rtp_mpegts") as out:
            stream = out.add_stream("mpeg4", 25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(10_000):
                image = np.full((48, 64, 3), 40 + number % 100, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                if stopped.wait(0.04):
                    return

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            port = None
            while lines := self.read():
                head = {line.split(": ")[0].lower(): line.split(": ")[-1] for line in lines[1:]}
                method, transport = lines[0].split()[0], head.get("transport", "")
                extra, body, status = "Session: 1\r\n", "", "200 OK"
                if method == "DESCRIBE":
                    body, extra = sdp, f"Content-Type: application/sdp\r\nContent-Base: {lines[0].split()[1]}/\r\n"
                elif method == "SETUP" and "TCP" in transport:
                    status = "461 Unsupported Transport"
                elif method == "SETUP":
                    port = int(re.search(r"client_port=(\d+)", transport)[1])
                    extra += f"Transport: {transport};server_port=7000-7001\r\n"
                elif method == "PLAY":
                    threading.Thread(target=play, args=(port,), daemon=True).start()
                head = f"RTSP/1.0 {status}\r\nCSeq: {head['cseq']}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
                self.wfile.write((head + body).encode())

        def read(self):
            lines = []
            while line := self.rfile.readline().decode().strip():
                lines.append(line)
            return lines

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/cam"
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
