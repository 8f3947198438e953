"""Plain sockets against a page server: what a test needs to see is on the wire."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time


def get(server, path, *, method="GET", **headers):
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def stream(server, path, receive_buffer=None):
    """A connection that has asked for an endless answer, HTTP/1.0 so that the body comes as it is."""
    with socket.socket() as client:
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(10)
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        yield client


def read_until(client, pattern, data=b""):
    """Read on until the pattern is there; what came up to the end of it, and what came after it."""
    while not (match := re.search(pattern, data, re.DOTALL)):
        more = client.recv(65536)
        if not more:
            raise EOFError(data[-200:])
        data += more
    return data[: match.end()], data[match.end() :]


class PartReader:
    """Yield the images of a multipart stream, one after the other."""

    def __init__(self, client, boundary=b"rws-frame"):
        self.client, self.boundary = client, boundary
        self.head, self.rest = read_until(client, b"\r\n\r\n")

    def next(self):
        head, rest = read_until(self.client, b"\r\n\r\n", self.rest)
        assert head.startswith(b"--" + self.boundary + b"\r\nContent-Type: image/jpeg\r\n")
        size = int(re.search(rb"Content-Length: (\d+)", head)[1])
        while len(rest) < size + 2:
            more = self.client.recv(65536)
            if not more:
                raise EOFError
            rest += more
        assert rest[size : size + 2] == b"\r\n"
        self.rest = rest[size + 2 :]
        return rest[:size]


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class Events:
    """The server-sent events of a connection that has asked for them."""

    def __init__(self, client):
        self.client, self.rest = client, b""
        head, self.rest = read_until(client, b"\r\n\r\n")
        assert b"text/event-stream" in head

    def next(self):
        event, self.rest = read_until(self.client, b"\n\n", self.rest)
        assert event.startswith(b"data: ")
        return json.loads(event[len(b"data: ") :])
