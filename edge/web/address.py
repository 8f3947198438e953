"""Opens a listening socket for an address such as `127.0.0.1:8080`."""

import errno
import ipaddress
import re
import socket

from rws.errors import InputError, RwsError, UsageError

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]/@\s]+)):)?(?P<port>[0-9]{1,5})")
_REASONS = {
    errno.EADDRINUSE: "another program uses this port; choose another port, or 0 for any that is free",
    errno.EACCES: "ports below 1024 need special rights; choose a higher one, for example 8080",
    errno.EADDRNOTAVAIL: "this machine has no such address; "
    "127.0.0.1 is this machine alone, 0.0.0.0 is all of its networks",
}
# The kernel buffers no more than this for a slow client, so that the frames it sees are not much older than now.
_SEND_BUFFER = 128 * 1024
_RECEIVE_BUFFER = 16 * 1024  # twice what a request may have; what else is sent is not even read
_BACKLOG = 256  # connections that wait until they are accepted, a second at most
_DEAD_AFTER = 15_000  # milliseconds without an acknowledgement


def parse(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[IPv6]:PORT` or a port alone (on this machine); else raise InputError."""
    match = _ADDRESS.fullmatch(address)
    port = int(match["port"]) if match else -1
    if match is None or port > 65535:
        raise UsageError(f"{address!r} is not an address to serve at; expected HOST:PORT, for example {LOOPBACK}:8080")
    return match["v6"] or match["host"] or LOOPBACK, port


def listen(address: str) -> socket.socket:
    """Return a socket that listens at `address`, port 0 at any; raise InputError if unknown, RwsError if taken."""
    host, port = parse(address)
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{address}: the host {host!r} is unknown here; give an IP address of this machine") from error
    try:
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(place, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise RwsError(f"{address}: cannot serve there: {reason}") from error
    # Each connection inherits these.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER)
    return listener


def is_loopback(host: str) -> bool:
    """Return whether an IP address, with or without brackets, is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def url(address: str, listener: socket.socket) -> str:
    """Return the URL to open: with the host as given, or this machine's address for `0.0.0.0` and `::`."""
    host, _ = parse(address)
    if host in ("0.0.0.0", "::"):
        host = _own_address()
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _own_address() -> str:
    # Connecting a UDP socket sends nothing; it only selects the local address of outgoing packets.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
