"""A camera that follows a script and a clock that moves only when somebody waits: hours of trouble in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.capture.protocol import Ended, Opened
from rws.edge.sources.capture.shared import Counters, shared_memory
from rws.records import Frame


class FakeTime:
    """Seconds that pass when they are waited for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ScriptedCapture:
    """Stands for the capture process of `CapturedSource`.

    Args:
        steps: `("open", "")` or `("open", why not)`; `("frame", image)`; `("reject", reason)`; `("wait", seconds)`;
            `("end", reason)`; `("hang", None)`, until it is killed. After the last step it hangs.
        time: passes while it is silent.

    Attributes:
        kills: how often it was killed.
        opened_at: the time of each attempt to open.
    """

    def __init__(self, steps: Iterable[tuple[str, NDArray[np.uint8] | float | str | None]], time: FakeTime) -> None:
        descriptor = shared_memory(Counters.SIZE)
        self.counters = Counters(descriptor)
        os.close(descriptor)
        self.pid: int | None = None
        self.kills = 0
        self.opened_at: list[float] = []
        self._steps, self._time = iter(steps), time
        self._silence = 0.0

    def open(self) -> None:
        """Note when."""
        self.opened_at.append(self._time.now)

    def ask(self) -> None:
        """The script answers when it likes."""

    def answer(self, timeout: float) -> Opened | Frame | Ended | None:
        """The next step that is an answer, if it comes in time."""
        while self._silence <= timeout:
            self._time.sleep(self._silence)
            timeout -= self._silence
            self._silence = 0.0
            kind, what = next(self._steps, ("hang", None))
            if kind == "open":
                return Ended(str(what)) if what else Opened(fps=30.0, length=None, finite=False)
            if kind == "end":
                return Ended(str(what))
            if kind == "frame":
                assert isinstance(what, np.ndarray)
                return Frame(self.counters.add("received"), what, self._time.now, "scripted camera")
            if kind == "reject":
                self.counters.add("received")
                self.counters.add(str(what))
            else:
                self._silence = float("inf") if kind == "hang" else float(what)  # type: ignore[arg-type]
        self._time.sleep(timeout)
        self._silence -= timeout
        return None

    def kill(self) -> None:
        """Ends a silence, as a new process does."""
        self.kills += 1
        self._silence = 0.0

    def close(self) -> None:
        """Nothing is held."""
