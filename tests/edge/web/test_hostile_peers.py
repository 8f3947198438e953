"""Peers that mean harm, on real sockets: what they may take, and that the owner gets through meanwhile."""

import contextlib
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

import rws.edge.web.connections as connections
from rws.edge.faults.peers import ATTACKS, HostilePeers
from rws.edge.web import PageServer
from support.fakes import make_frame, make_result
from support.http import get, wait_until

TOKEN = "right-token"
EVENTS = f"GET /events HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def guarded(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}, token=TOKEN) as server:
        server.write(make_frame(), make_result())
        yield server


@pytest.fixture
def peers(guarded):
    with HostilePeers(guarded.port, TOKEN) as peers:
        yield peers


def connect(server, data=b""):
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(data)
    return client


def answer(client):
    """Read until the server closes; return what came, b"" if it reset the connection."""
    data = b""
    try:
        while more := client.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def metrics(server, **headers):
    text = get(server, "/metrics", **(headers or BEARER))[2].decode()
    found = dict(re.findall(r'^rws_http_refused_total\{reason="(\w+)"\} (\S+)$', text, re.M))
    return {reason: int(float(count)) for reason, count in found.items() if float(count)}, text


def opened(server):
    return int(float(re.search(r"^rws_http_connections (\S+)$", metrics(server)[1], re.M)[1]))


def test_a_thousand_half_open_connections_lock_nobody_out(guarded):
    with ExitStack() as stack:
        for index in range(1000):
            stack.enter_context(connect(guarded, b"GET / HTTP/1.1\r\nHost: x" if index % 2 else b""))
            if index % 100 == 0:
                assert get(guarded, "/health", **BEARER)[0] == 200
        assert get(guarded, "/health", **BEARER)[0] == 200
        assert opened(guarded) <= connections.MAX_UNKNOWN + 1
        assert metrics(guarded)[0]["too_many"] >= 1000 - connections.MAX_UNKNOWN - 20


def test_the_owner_gets_through_a_flood_from_the_same_address(guarded):
    stop = threading.Event()

    def flood():
        held = []
        while not stop.is_set():
            held.append(connect(guarded, b"GET /"))
            if len(held) > 500:
                held.pop(0).close()
        for client in held:
            client.close()

    floods = [threading.Thread(target=flood) for _ in range(2)]
    for thread in floods:
        thread.start()
    try:
        answers = [get(guarded, "/health", **BEARER)[0] for _ in range(10)]
    finally:
        stop.set()
        for thread in floods:
            thread.join()
    assert answers == [200] * 10


def test_late_requests_are_closed_however_slowly_they_come(guarded, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.6)
    with connect(guarded, b"GET /health HTTP/1.1\r\nX-Slow: ") as slow, connect(guarded) as silent:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < started + 10:
                slow.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() < started + 5
        assert answer(silent) == b""
    assert metrics(guarded)[0]["timeout"] == 2


def test_idle_connections_are_closed_and_not_counted_as_refused(guarded, monkeypatch):
    monkeypatch.setattr(connections, "IDLE_TIMEOUT", 0.3)
    request = f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    with connect(guarded, request) as client:
        assert answer(client).startswith(b"HTTP/1.1 200")
    assert metrics(guarded)[0] == {}


def test_streams_have_no_time_limit(guarded, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.2)
    monkeypatch.setattr(connections, "IDLE_TIMEOUT", 0.2)
    request = f"GET /events HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    with connect(guarded, request) as client:
        started = time.monotonic()
        while time.monotonic() < started + 2:
            assert client.recv(65536)


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("huge header", b"400", "no_request"),
        ("many headers", b"400", "no_request"),
        ("endless line", b"400", "no_request"),
        ("body", b"401", "no_token"),
        ("endless chunks", b"401", "no_token"),
        ("WebSocket", b"401", "no_token"),
        ("HTTP/2", b"400", "no_request"),
        ("TLS", b"400", "no_request"),
    ],
)
def test_what_is_no_plain_request_is_answered_in_a_line_and_closed(guarded, caplog, kind, status, reason):
    with connect(guarded) as client:
        with contextlib.suppress(ConnectionError):  # closed before all of it was sent
            client.sendall(ATTACKS[kind])
        assert answer(client)[9:12] in (status, b"")
    wait_until(lambda: metrics(guarded)[0].get(reason) == 1)
    assert get(guarded, "/health", **BEARER)[0] == 200
    assert not caplog.records


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        ("POST /health", 405, "method"),
        ("POST /", 405, "method"),
        ("PUT /frame.jpg", 405, "method"),
        ("DELETE /nowhere", 405, "method"),
        ("OPTIONS *", 405, "method"),
        ("CONNECT host:80", 405, "method"),
        ("TRACE /", 405, "method"),
        ("GET /health", 413, "body"),
        ("POST /signout", 413, "body"),
        ("POST /limits?leave_clean=1", 413, "body"),
    ],
)
def test_bodies_and_other_methods_are_refused_unread(guarded, head, status, reason):
    request = f"{head} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9999999999\r\n\r\n"
    with connect(guarded, request.encode()) as client:
        assert answer(client)[9:12] == str(status).encode()
    assert metrics(guarded)[0] == {reason: 1}


def test_pipelined_requests_are_answered_in_turn(guarded):
    one = f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    with connect(guarded, (one * 300).encode()) as client:
        data = b""
        while data.count(b"HTTP/1.1 200") < 300:
            more = client.recv(65536)
            assert more
            data += more


def test_viewers_have_a_limit_and_then_get_503(guarded):
    with ExitStack() as stack:
        for _ in range(connections.MAX_VIEWERS):
            stack.enter_context(connect(guarded, EVENTS))
        wait_until(lambda: guarded.viewers == connections.MAX_VIEWERS)
        for path in ("/events", "/stream.mjpg"):
            status, headers, body = get(guarded, path, **BEARER)
            assert (status, headers["Retry-After"]) == (503, "5")
            assert body == b"too many viewers have the page open; try again later\n"
        # Short requests have other room.
        assert get(guarded, "/health", **BEARER)[0] == 200
        assert metrics(guarded)[0] == {"too_many": 2}
    wait_until(lambda: guarded.viewers == 0)
    with connect(guarded, EVENTS) as client:
        assert client.recv(100).startswith(b"HTTP/1.0 200")


def test_the_oldest_idle_connection_makes_room_for_the_next(guarded):
    with ExitStack() as stack:
        idle = [http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10) for _ in range(60)]
        for client in idle:
            stack.callback(client.close)
            client.request("GET", "/health", headers=BEARER)
            assert client.getresponse().read()
        assert answer(idle[0].sock) == b""
        idle[-1].request("GET", "/health", headers=BEARER)
        assert idle[-1].getresponse().read()
    assert metrics(guarded)[0] == {"too_many": 60 - connections.MAX_KNOWN}


def test_all_kinds_of_attack_at_once_are_counted_one_by_one(guarded, peers, caplog):
    rounds = 4
    for _ in range(rounds):
        peers.attack(len(ATTACKS))
        peers.drip()
        assert get(guarded, "/health", **BEARER)[0] == 200
    peers.close()
    viewers = rounds  # they leave before they are too slow
    wait_until(lambda: sum(metrics(guarded)[0].values()) == sum(peers.made.values()) - viewers)
    assert peers.made == dict.fromkeys(ATTACKS, rounds)
    assert metrics(guarded)[0]["wrong_token"] == rounds
    assert not caplog.records


def test_with_few_descriptors_the_page_keeps_away_from_the_last_ones():
    code = f"""
import resource, socket, numpy as np, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from rws.edge.common.resources import free_descriptors
from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from rws.edge.web import PageServer
monitor = Monitor(ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="a"), bundle="b", strategy="live")
with PageServer("127.0.0.1:0", {{"": monitor}}, token="{TOKEN}") as server:
    print(server.port, flush=True)
    input()
    print(free_descriptors(), flush=True)
    held = []
    input()
    try:
        while True:
            held.append(socket.socket())
    except OSError:
        print("none left", flush=True)
    input()
    held.clear()
    print("some again", flush=True)
    input()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        server = type("Server", (), {"port": int(run.stdout.readline())})

        def go_on():
            run.stdin.write("\n")
            run.stdin.flush()
            return run.stdout.readline().strip()

        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(connect(server, b"GET /"))
            assert get(server, "/health", **BEARER)[0] == 200
            assert int(go_on()) >= connections.RESERVE - 4
            assert go_on() == "none left"
            for _ in range(20):
                stack.enter_context(connect(server, b"GET /"))
            time.sleep(0.5)
            assert go_on() == "some again"
            wait_until(lambda: metrics(server)[0].get("no_descriptor", 0) >= 1)
        _, errors = run.communicate("\n", timeout=20)
    assert errors == ""
    assert run.returncode == 0
