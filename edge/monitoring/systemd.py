"""Notifies systemd of the state of a run (sd_notify(3)), without its library. Without systemd, nothing happens."""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

from rws.edge.common.closing import Closing
from rws.records import SinkStatus

log = logging.getLogger(__name__)


class SystemdNotifier(Closing):
    """Notifies the service manager. A context manager that announces at its exit that the process is stopping.

    Call `alive` from the frame loop itself, at every frame and while none comes, never from a separate thread: if the
    loop hangs, the notifications must end, so that the service manager restarts the process. `watchdog` is the seconds
    between two signs of life, half of WATCHDOG_USEC; None if it is not set for this process.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next = clock, clock()
        self._socket: socket.socket | None = None
        self._status = ""
        self.sink_status = SinkStatus()  # in messages
        address = environ.get("NOTIFY_SOCKET", "")
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = _watchdog(environ)

    def ready(self) -> None:
        """Say that the first frame can be classified now."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows; sent if it has changed."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        """Give a sign of life; sent no more often than needed."""
        if self.watchdog is not None and (now := self._clock()) >= self._next:
            self._next = now + self.watchdog
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Say that the process is stopping; a second call does nothing."""
        if self._socket is not None:
            self._send("STOPPING=1")
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
            self.sink_status = self.sink_status.after()
        except OSError as error:
            # A service manager that does not listen, or not fast enough, must not end the run it looks after.
            self.sink_status = self.sink_status.after(f"cannot be notified ({error.strerror})")
            log.debug("%s could not be sent to %s: %s", message, self._address, error)


def _watchdog(environ: Mapping[str, str]) -> float | None:
    wanted, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(wanted) / 2e6
