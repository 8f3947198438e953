"""Accepts the page's connections: a limited number, each for a limited time, and counts what is refused."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rws.edge.common.resources import free_descriptors
from rws.edge.monitoring.metrics import counters

# An open page is two viewers, of images and events; what remains of the known ones is for short requests, so that
# viewers cannot keep a health check out. The unknown ones have not said yet who they are: enough of them for somebody
# who opens the page while others flood the server.
MAX_KNOWN, MAX_VIEWERS, MAX_UNKNOWN = 48, 32, 32
RESERVE = 32  # descriptors for the rest of the run: a capture process that is restarted, a bundle that is swapped
FEWEST = 4  # of each kind, however few descriptors there are
REQUEST_TIMEOUT = 10.0  # seconds in which a new connection has to send its request line and headers
IDLE_TIMEOUT = 15.0  # seconds in which a connection has to take its answer and send the next request
LOOK_PERIOD = 0.5  # seconds between two looks for connections that are late
ACCEPT_BURST, ACCEPT_PAUSE = 20, 0.08  # 250 connections per second at most: the frame loop shares the processor
EXHAUSTED_PAUSE = 0.2  # seconds without a new connection if there is no descriptor for it
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
REASONS = (
    "too_many",  # closed for a newer one, or no room among those who have access
    "timeout",  # no complete request in time, or its answer was not read
    "no_request",  # closed by the client without an HTTP request that could be read
    "slow_viewer",
    "no_descriptor",
    "no_token",
    "wrong_token",
    "guessing",  # not looked at, after too many wrong tokens
    "wrong_host",
    "origin",  # sent by another web page
    "method",
    "body",
)


@dataclass(eq=False)
class Connection:
    """A connection, the client's address (of IPv6 the network), and when its next request is due at the latest."""

    transport: asyncio.Transport
    address: str
    deadline: float
    known: bool = False  # whether it has had access once
    serving: bool = False
    requests: int = 0


class Connections(Collector):
    """Accepts connections at a listener for an HTTP server, and closes those that are too many or too slow.

    Clients that have had access and those that have not are limited separately. Of the latter, the oldest one of the
    address that has most makes room for a new one; of the former, the oldest one that is idle.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.refused = Counter(dict.fromkeys(REASONS, 0))
        share = min(1.0, max(0, free_descriptors() - RESERVE) / (MAX_KNOWN + MAX_UNKNOWN))
        self.max_known = max(FEWEST, int(MAX_KNOWN * share))
        self.max_viewers = self.max_known * MAX_VIEWERS // MAX_KNOWN
        self.max_unknown = max(FEWEST, int(MAX_UNKNOWN * share))
        self._listener = listener
        self._open: dict[asyncio.Transport, Connection] = {}  # the oldest one first

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield GaugeMetricFamily("rws_http_connections", "Open connections of the page", len(self._open))
        yield counters("rws_http_refused", "Refused connections and requests by reason", "reason", self.refused)

    async def accept(self, make_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        accepted = 0
        while True:
            try:
                client, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self.refused["no_descriptor"] += 1
                    self._close_one_unknown()
                    await asyncio.sleep(EXHAUSTED_PAUSE)
                continue
            self._look()
            if sum(not one.known for one in self._open.values()) >= self.max_unknown:
                self._close_one_unknown()
            try:
                transport, _ = await loop.connect_accepted_socket(make_protocol, client)
            except OSError:  # the client has left
                client.close()
                continue
            self._open[transport] = Connection(transport, _network(peer[0]), time.monotonic() + REQUEST_TIMEOUT)
            accepted += 1
            if accepted % ACCEPT_BURST == 0:
                await asyncio.sleep(ACCEPT_PAUSE)

    async def watch(self) -> None:
        """Close late connections until cancelled."""
        while True:
            await asyncio.sleep(LOOK_PERIOD)
            self._look()

    @contextlib.contextmanager
    def serving(self, request: web.Request) -> Iterator[Connection]:
        """Give the connection of a request; it has no time limit while its request is answered."""
        assert request.transport is not None
        connection = self._open.get(request.transport)
        if connection is None:  # found closed already
            connection = Connection(request.transport, _network(request.remote or ""), 0.0)
        connection.requests += 1
        connection.serving = True
        try:
            yield connection
        finally:
            connection.serving = False
            connection.deadline = time.monotonic() + IDLE_TIMEOUT

    def admit(self, connection: Connection) -> bool:
        """Note that a connection has access; return False if there is no room for it."""
        if not connection.known:
            known = [one for one in self._open.values() if one.known]
            idle = [one for one in known if not one.serving]
            if len(known) >= self.max_known and not idle:
                self.refused["too_many"] += 1
                return False
            if len(known) >= self.max_known:
                self._close(idle[0], "too_many")
            connection.known = True
        return True

    def _look(self) -> None:
        """Forget what is closed, and close what is late."""
        now = time.monotonic()
        for one in list(self._open.values()):
            if one.transport.is_closing():
                self.refused["no_request"] += one.requests == 0
                del self._open[one.transport]
            elif not one.serving and now >= one.deadline:
                idle = one.requests and not one.transport.get_write_buffer_size()
                self._close(one, None if idle else "timeout")

    def _close_one_unknown(self) -> None:
        unknown = [one for one in self._open.values() if not one.known]
        count = Counter(one.address for one in unknown)
        if unknown:
            oldest = max(unknown, key=lambda one: count[one.address])
            self._close(oldest, None if oldest.requests else "too_many")  # the former was refused and counted

    def _close(self, connection: Connection, reason: str | None) -> None:
        connection.transport.abort()
        del self._open[connection.transport]
        if reason is not None:
            self.refused[reason] += 1


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    # A client of IPv6 has as many addresses as it likes in its network.
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))
