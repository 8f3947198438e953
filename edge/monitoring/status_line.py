"""The status line: what a running loop is doing, on one line of a terminal, or from time to time in a log."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rws.edge.common.closing import Closing
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.run_status import RunStatus
from rws.edge.pipeline import describe_mix

ON_TERMINAL, IN_LOG = 0.25, 10.0  # seconds between two lines


def status_line(status: RunStatus) -> str:
    """Return one line: rate, age, stage times, mix, what was lost, and the source's state."""
    source, result = status.source, status.result
    parts = [f"{status.fps:.1f} fps"]
    if result is not None:
        parts.append(f"age {result.age_ms:.0f} ms")
        parts.append(" ".join(f"{stage} {ms:.1f}" for stage, ms in result.times_ms.items() if ms >= 0.05) + " ms")
        parts.append(describe_mix(result.mix))
        parts.append(f"{result.label} {result.confidence:.0%}")
    if source.dropped:
        parts.append(f"dropped {source.dropped}")
    if source.rejected:
        parts.append("rejected " + ", ".join(f"{count} {why}" for why, count in source.rejected_by_reason.items()))
    if source.reconnects:
        parts.append(f"reconnects {source.reconnects}")
    parts.extend(f"{name.replace('_', ' ')} {count}" for name, count in status.events.items())
    if source.state != "running":
        parts.append(source.state + (f": {source.error}" if source.error else ""))
    return " · ".join(parts)


class StatusLine(Closing):
    """Shows `status_line` in place on a terminal, else every ten seconds; `also` is called with every line."""

    def __init__(
        self,
        monitor: Monitor,
        console: Console,
        also: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monitor, self._console, self._also, self._clock = monitor, console, also, clock
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._every = ON_TERMINAL if self._live else IN_LOG
        self._next = clock() + self._every

    def update(self) -> None:
        """Show the current line if it is time to."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._every
        line = status_line(self._monitor.status())
        self._also(line)
        if self._live is None:
            self._console.print(line, markup=False)
        else:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)

    def __enter__(self) -> "StatusLine":
        if self._live is not None:
            self._live.start()
        return self

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._live is not None:
            self._live.stop()
