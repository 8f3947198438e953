"""What jobs report while they run: the log of a folder, the time that is left, lines on the terminal."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as ProgressBar

from rws.edge.common.files import os_errors, read_regular
from rws.edge.common.schema import parse_json
from rws.records import utc
from rws.terminal import console, is_verbose, say

Progress = Callable[[dict[str, Any]], None]

_IN_LINE = ("job", "seconds", "done", "minutes_left")
_LARGEST_LOG = 2**30  # bytes
_SHORT_PROBE = 5.0  # seconds: a probe that took less ran cold, so it is repeated


class TimeLeft:
    """Estimates how long planned work will take: units of each kind that are left, at the rate measured so far.

    A rate is the mean over all units of a kind, so that the estimate does not follow the last job up and down. A kind
    that no job has worked at yet is probed.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._left: dict[str, dict[str, float]] = {}
        self._probes: dict[str, tuple[Callable[[], object], float]] = {}
        self._units, self._seconds = defaultdict[str, float](float), defaultdict[str, float](float)

    def plan(
        self, job: str, kind: str, units: float, probe: Callable[[], object] | None = None, probe_units: float = 1
    ) -> None:
        """Add units of a kind that a job will do to what is left; `probe` does `probe_units` of them, to time it."""
        self._left.setdefault(job, {})[kind] = units
        if probe is not None:
            self._probes[kind] = probe, probe_units

    def begin(self) -> None:
        """Start the time of the units that are done next."""
        self._began = self._clock()

    def did(self, job: str, kind: str, units: float, left: float) -> None:
        """Count units of a job, of which `left` are left; they took the time since the last call, or since `begin`."""
        self._seconds[kind] += self._clock() - self._began
        self._units[kind] += units
        if kind in self._left.get(job, {}):
            self._left[job][kind] = left
        self.begin()

    def finish(self, job: str) -> None:
        """Take what is left of a job off."""
        self._left.pop(job, None)

    def minutes(self) -> float | None:
        """Return the minutes left; None if nothing is planned, or the rate of a kind is unknown and has no probe."""
        needed = defaultdict[str, float](float)
        for kind, count in chain.from_iterable(units.items() for units in self._left.values()):
            needed[kind] += count
        for kind in [kind for kind, count in needed.items() if count and not self._units[kind]]:
            if kind not in self._probes:
                return None
            self._probe(kind, *self._probes.pop(kind))
        seconds = sum(count * self._seconds[kind] / self._units[kind] for kind, count in needed.items() if count)
        return seconds / 60 if needed else None

    def _probe(self, kind: str, probe: Callable[[], object], units: float) -> None:
        import torch  # only what trains has a probe

        with torch.random.fork_rng():  # a training in progress keeps its draws
            for _ in range(2):
                if self._seconds[kind] < _SHORT_PROBE:
                    self.begin()
                    probe()
                    self._units[kind], self._seconds[kind] = units, self._clock() - self._began
        self.begin()


def job_log(
    folder: Path,
    job: str,
    progress: Progress | None,
    left: TimeLeft | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Progress:
    """Append what a job reports to `log.jsonl` of a folder, as {job, seconds since now, …}, and pass it on.

    The last record of a job has the key `done`; with `left`, records also have `minutes_left`, if known.

    Args:
        kinds: what a record counts, such as `steps`, with `steps_left`; and the kind of these units in `left`.
    """
    start = time.monotonic()
    if left is not None:
        left.begin()

    def report(record: dict[str, Any]) -> None:
        record = {"job": job, "seconds": round(time.monotonic() - start, 1), **record}
        if left is not None:
            for key, kind in (kinds or {}).items():
                if key in record:
                    left.did(job, kind, record[key], record[f"{key}_left"])
            if "done" in record:
                left.finish(job)
            if (minutes := left.minutes()) is not None:
                record["minutes_left"] = round(minutes, 1)
        line = {"schema": "job-log/1", "written_at": utc(time.time()), **record}
        with open(folder / "log.jsonl", "a") as handle:
            handle.write(json.dumps(line) + "\n")
        if progress is not None:
            progress(record)

    return report


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a `log.jsonl`; what is none, such as a half line of a killed process, is left out.

    Raises InputError if the file cannot be read.
    """
    with os_errors(path, "read", "run the jobs again"):
        lines = read_regular(path, _LARGEST_LOG).splitlines()
    records = []
    for line in lines:
        with suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict) and {"job", "seconds"} <= record.keys():
                records.append(record)
    return records


class JobLines:
    """Prints a line with the time left per finished job, at the first estimate, and per minute; with -v, all records.

    As a context it also shows a bar on a terminal, below the lines.

    Args:
        every: seconds.
    """

    def __init__(self, every: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock, self._estimated, self._due = every, clock, False, clock() + every
        self._began, self._bar = (
            clock(),
            ProgressBar(
                TextColumn("{task.description:30s}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                console=console(),
                auto_refresh=False,
                transient=True,
            ),
        )
        self._whole = self._bar.add_task("", total=None, left="")

    def __enter__(self) -> "JobLines":
        """Show the bar, if there is a terminal."""
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        if self._bar.live.is_started:
            self._bar.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        """Print what a job reported."""
        minutes = record.get("minutes_left")
        done, left = "done" in record, left_in_words(minutes)
        if minutes is not None:
            spent = self._clock() - self._began
            self._bar.update(self._whole, total=spent + 60 * minutes, completed=spent)
        self._bar.update(self._whole, description=record["job"], left=left)
        if self._bar.live.is_started:
            self._bar.refresh()
        line = f"{record['job']:32s} {record['seconds']:8.1f} s  {left:20s}"
        values = [f"{key} {value}" for key, value in record.items() if key not in _IN_LINE]
        due = done or self._clock() >= self._due or bool(left and not self._estimated)
        if due or is_verbose():
            say("  ".join([line, *(values if done or is_verbose() else [])]).rstrip())
        if due:
            self._due, self._estimated = self._clock() + self._every, self._estimated or bool(left)


def left_in_words(minutes: float | None) -> str:
    """Return `about 7 min left` or the like; nothing if it is unknown."""
    if minutes is None:
        return ""
    if minutes < 1:
        return "under a minute left"
    return f"about {minutes / 60:.1f} h left" if minutes >= 100 else f"about {minutes:.0f} min left"
