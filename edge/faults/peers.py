"""Hostile clients of the page: half and slow requests, huge headers and bodies, guesses, viewers that never read."""

import contextlib
import itertools
import json
import re
import socket
import struct
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import IO

from rws.edge.common.closing import Closing

_GET, _END = b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"\r\n\r\n"
NEVER_READS = "viewer that never reads"
# What each sends at once; each is counted by the page once, whatever becomes of it.
ATTACKS = {
    "silent": b"",
    "half request": _GET,
    "slow headers": _GET + b"X-Slow: ",  # goes on byte by byte
    "huge header": _GET + b"X-Huge: " + b"a" * 300_000,
    "many headers": _GET + b"".join(b"X-%d: a\r\n" % number for number in range(20_000)),
    "endless line": b"GET /" + b"a" * 300_000,
    "body": b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999" + _END + b"a" * 300_000,
    "endless chunks": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
    + _END
    + b"fff\r\n"
    + b"a" * 4095,
    "WebSocket": _GET + b"Connection: Upgrade\r\nUpgrade: websocket" + _END + b"\x81\x85" + b"a" * 300_000,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 64,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 512,
    "wrong token": _GET + b"Authorization: Bearer wrongwrong" + _END,
    "wrong cookie": _GET + b"Cookie: rws_8080=" + b"a" * 43 + _END,
    "reset": b"GET /",
    NEVER_READS: b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n",  # has the token
}


def read_refused(metrics: str) -> tuple[Counter[str], int]:
    """Return from the text of `/metrics` what the page refused, by reason, and how many connections are open."""
    found = re.findall(r'^rws_http_(?:connections|refused_total\{reason="(\w+)"\}) (\S+)$', metrics, re.MULTILINE)
    refused = Counter({reason: int(float(count)) for reason, count in found if float(count)})
    return refused, refused.pop("", 0)


class Page:
    """A signed-in client of a page."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        self.open(f"?token={token}").close()

    @property
    def port(self) -> int:
        """The port of the page."""
        return int(self.url.rstrip("/").rpartition(":")[2])

    def open(self, path: str) -> IO[bytes]:
        """Ask for a path; an OSError if there is no answer."""
        answer: IO[bytes] = self._opener.open(self.url + path, timeout=30)
        return answer

    def refused(self) -> tuple[Counter[str], int]:
        """Return what the page has refused, by reason, and how many connections are open."""
        with self.open("metrics") as answer:
            return read_refused(answer.read().decode())

    def events(self) -> Mapping[str, int]:
        """Return the run's other events."""
        with self.open("api/status") as answer:
            events: Mapping[str, int] = json.load(answer)["events"]
        return events


class HostilePeers(Closing):
    """Clients of a page on loopback, at its port; `made` counts them by what they do."""

    def __init__(self, port: int, token: str) -> None:
        self.made: Counter[str] = Counter()
        self._port, self._bearer = port, f"Authorization: Bearer {token}".encode() + _END
        self._kinds = itertools.cycle(ATTACKS)
        self._held: list[tuple[str, socket.socket]] = []

    def attack(self, count: int) -> None:
        """Open that many connections, of all kinds in turn; they stay open."""
        for kind in itertools.islice(self._kinds, count):
            client = socket.socket()
            # A viewer that never reads must not have room for minutes of images.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(5)
            with contextlib.suppress(OSError):  # it is refused in the middle, which is the point
                client.connect(("127.0.0.1", self._port))
                self.made[kind] += 1
                client.setblocking(False)
                client.send(ATTACKS[kind] + (self._bearer if kind == NEVER_READS else b""))
            if kind == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            else:
                self._held.append((kind, client))

    def drip(self) -> None:
        """Send the next byte of the slow headers."""
        for kind, client in self._held:
            if kind == "slow headers":
                with contextlib.suppress(OSError):
                    client.send(b"a")

    def close(self) -> None:
        """Leave."""
        for _, client in self._held:
            client.close()
        self._held.clear()
