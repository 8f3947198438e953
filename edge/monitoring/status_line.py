"""The status line: what a running loop is doing, on one line of a terminal, or now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.text import Text

from rws.edge.monitoring.monitor import Monitor

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self

ON_TERMINAL, IN_LOG = 0.25, 10.0  # seconds between two lines


def status_line(snapshot: Mapping[str, Any]) -> str:
    """One line of a `Monitor.snapshot`: rate, age, stage times, mix, what was lost, and the source's state."""
    source, result = snapshot["source"], snapshot["result"]
    parts = [f"{snapshot['fps']:.1f} fps"]
    if result is not None:
        parts.append(f"age {result['age_ms']:.0f} ms")
        parts.append(" ".join(f"{stage} {ms:.1f}" for stage, ms in result["times_ms"].items() if ms >= 0.05) + " ms")
        parts.append(" + ".join(f"{name} {alpha:.2f}" for name, alpha in result["mix"].items()) or "clean weights")
        parts.append(f"{result['label']} {result['confidence']:.0%}")
    if source["dropped"]:
        parts.append(f"dropped {source['dropped']}")
    if source["rejected"]:
        parts.append("rejected " + ", ".join(f"{count} {reason}" for reason, count in source["rejected"].items()))
    if source["reconnects"]:
        parts.append(f"reconnects {source['reconnects']}")
    parts.extend(f"{name.replace('_', ' ')} {count}" for name, count in snapshot["events"].items())
    if source["state"] != "running":
        parts.append(source["state"] + (f": {source['error']}" if source["error"] else ""))
    return " · ".join(parts)


class StatusLine:
    """Shows `status_line` while a run goes on: in place on a terminal, else a line every ten seconds.

    Args:
        monitor: what to show.
        console: where.
        also: told each line, too.
        clock: seconds, monotonic.
    """

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
        """Show the line anew if it is time to."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._every
        line = status_line(self._monitor.snapshot())
        self._also(line)
        if self._live is None:
            self._console.print(line, markup=False)
        else:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
