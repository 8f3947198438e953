"""Telling systemd how a run is doing (sd_notify(3)), without its library. Where nobody listens, nothing happens."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)


class Supervisor:
    """The service manager's view of this process. A context manager that says at its exit that the process is stopping.

    Call `alive` from the frame loop itself, at every frame and while none comes, never from a thread of its own: a loop
    that hangs must fall silent, so that the service manager starts the process anew.

    Args:
        environ: `NOTIFY_SOCKET` is where to send, a path or an abstract name (`@…`); `WATCHDOG_USEC`, microseconds, how
            often a sign of life is due, of the process `WATCHDOG_PID`, if that is given.
        clock: seconds, monotonic.

    Attributes:
        watchdog: seconds between two signs of life, half of what is asked for; None if nobody asks.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._socket: socket.socket | None = None
        self._status = ""
        self._next = clock()
        address = environ.get("NOTIFY_SOCKET", "")
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = _watchdog(environ)

    def ready(self) -> None:
        """The first frame can be classified now."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """What `systemctl status` shows, one line; sent when it changes."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        """A sign of life, sent no more often than needed."""
        if self.watchdog is None:
            return
        now = self._clock()
        if now >= self._next:
            self._next = now + self.watchdog
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Say that the process is stopping; a second call does nothing."""
        if self._socket is not None:
            self._send("STOPPING=1")
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            # A service manager that does not listen, or not fast enough, must not end the run it looks after.
            log.debug("%s could not be sent to %s: %s", message, self._address, error)


def _watchdog(environ: Mapping[str, str]) -> float | None:
    wanted, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(wanted) / 2e6
