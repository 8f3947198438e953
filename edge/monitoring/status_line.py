"""The status line of a running loop: updated in place on a terminal, repeated every ten seconds in a log."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rws.edge.common.closing import Closing
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.run_status import RunStatus
from rws.edge.pipeline import describe_mix

WAITING = ("opening", "reconnecting")  # states of a source that gives no frame yet, or again
ON_TERMINAL, IN_LOG = 0.25, 10.0  # seconds between two lines


def status_line(status: RunStatus, timings: bool = False, how_to_end: str = "") -> str:
    """Return one line: rate, age, mix, class and losses, with `timings` of each stage too.

    While the loop waits for the source, the line begins with its name, `how_to_end` and the reason instead.
    """
    source, result = status.source, status.result
    parts = [f"{status.fps:.1f} fps"]
    if source.state in WAITING:
        parts = [f"waiting for {source.name}{how_to_end}", *([source.error] if source.error else [])]
    elif result is not None:
        parts.append(f"age {result.age_ms:.0f} ms")
        if timings:
            parts.append(" ".join(f"{stage} {ms:.1f}" for stage, ms in result.times_ms.items() if ms >= 0.05) + " ms")
        parts.append(describe_mix(result.mix))
        parts.append(result.describe(result.output))
    if source.dropped:
        parts.append(f"dropped {source.dropped}")
    if rejected := status.rejected_by_reason:
        parts.append("rejected " + ", ".join(f"{count} {why}" for why, count in rejected.items()))
    if source.reconnects:
        parts.append(f"reconnects {source.reconnects}")
    parts.extend(f"{name.replace('_', ' ')} {count}" for name, count in status.events.items())
    parts.extend(f"{name} {sink.state}, {sink.failed} lost" for name, sink in status.failing_sinks.items())
    return " · ".join(parts)


class StatusLine(Closing):
    """Shows `status_line` in place on a terminal, else every ten seconds, and at once when it begins to wait.

    `also` is called with every line.
    """

    def __init__(
        self,
        monitor: Monitor,
        console: Console,
        also: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        timings: bool = False,
    ) -> None:
        self._monitor, self._console, self._also, self._clock = monitor, console, also, clock
        self._timings = timings
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._every = ON_TERMINAL if self._live else IN_LOG
        self._next = clock() + self._every
        self._waiting = False

    def update(self) -> None:
        """Show the current line if it is time to, or it begins to wait for the source."""
        now, waiting = self._clock(), self._monitor.source.state in WAITING
        begins, self._waiting = waiting and not self._waiting, waiting
        if now < self._next and not begins:
            return
        self._next = now + self._every
        status = self._monitor.status()
        self._also(status_line(status, self._timings))
        line = status_line(status, self._timings, "; Ctrl-C ends")
        if self._live is None:
            self._console.print(line)
        else:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)

    def __enter__(self) -> "StatusLine":
        if self._live is not None:
            self._live.start()
        return self

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._live is not None:
            self._live.stop()
