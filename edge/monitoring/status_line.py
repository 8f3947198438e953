"""The status line of a running loop: updated in place on a terminal, repeated every ten seconds in a log."""

import time
from collections.abc import Callable, Mapping

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
    """Shows `status_line` of each camera in place on a terminal, else every ten seconds, and once one begins to wait.

    `monitors` are by the name of the camera, "" for the only one; they may change. `also` gets every line.
    """

    def __init__(
        self,
        monitors: Mapping[str, Monitor],
        console: Console,
        also: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        timings: bool = False,
    ) -> None:
        self._monitors, self._console, self._also, self._clock = monitors, console, also, clock
        self._timings = timings
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._every = ON_TERMINAL if self._live else IN_LOG
        self._next = clock() + self._every
        self._waiting: set[str] = set()

    def update(self) -> None:
        """Show the current lines if it is time to, or a camera begins to wait for its source."""
        now = self._clock()
        waiting = {name for name, monitor in self._monitors.items() if monitor.source.state in WAITING}
        begins, self._waiting = waiting - self._waiting, waiting
        if now < self._next and not begins:
            return
        self._next = now + self._every
        statuses = [(f"{name}: " if name else "", monitor.status()) for name, monitor in self._monitors.items()]
        self._also(" | ".join(name + status_line(status, self._timings) for name, status in statuses))
        lines = [name + status_line(status, self._timings, "; Ctrl-C ends") for name, status in statuses]
        if self._live is None:
            self._console.print("\n".join(lines))
        else:
            self._live.update(Text("\n".join(lines), overflow="ellipsis", no_wrap=True), refresh=True)

    def __enter__(self) -> "StatusLine":
        if self._live is not None:
            self._live.start()
        return self

    def close(self) -> None:
        """Remove the lines from the terminal."""
        if self._live is not None:
            self._live.stop()
