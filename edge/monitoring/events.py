"""Events of a run: a camera sees badly, and well again. They are kept with images and sent to a program or address."""

import json
import logging
import os
import re
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rws.edge.common.child import child_environment
from rws.edge.common.closing import Closing
from rws.edge.common.files import atomic_write_bytes
from rws.edge.monitoring.health import Alert, Health
from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import Result
from rws.edge.tasks.annotate import draw, to_jpeg
from rws.errors import UsageError, first_line
from rws.oracle.belief import CLEAN
from rws.records import Frame, SinkStatus, utc
from rws.text import printable, shown, shown_address

log = logging.getLogger(__name__)

ONLY = "camera"  # name of the only camera of a run
MOST_WAITING, MOST_BYTES = 100, 64 * 2**20  # events that wait, and their images; one may always wait
MOST_KEPT = 1000  # events in a folder; older ones are removed
LONGEST = 30.0  # seconds that a program or an address may take
RESTS = 10.0  # seconds from one telling of a camera to the next, at least
PICTURE_WIDTH = 1280
_KEPT = re.compile(r"\d{8}T\d{9}Z-[\w-]+-(?:degraded|recovered)\.(?:json|before\.jpg|now\.jpg)")


@dataclass(frozen=True, eq=False)
class CameraEvent:
    """A problem that has lasted for a while (`degraded`), or has been away for as long (`recovered`)."""

    camera: str
    event: str
    alert: Alert
    at: float  # seconds since 1970, UTC, when the frame was captured that showed it
    before: tuple[Frame, Result] | None  # the last clear frame
    now: tuple[Frame, Result]

    @property
    def nbytes(self) -> int:
        """The bytes of its images."""
        return sum(seen[0].image.nbytes for seen in (self.before, self.now) if seen is not None)

    @property
    def name(self) -> str:
        """A name that sorts by time, and fits into a file's."""
        stamp = re.sub(r"[-:.]", "", utc(self.at))
        return f"{stamp}-{self.camera}-{self.event}"

    def to_dict(self) -> dict[str, object]:
        """Return what `camera-event/1` documents, in plain types."""
        head = {"schema": "camera-event/1", "camera": self.camera, "event": self.event, "captured_at": utc(self.at)}
        return {**head, **asdict(self.alert)}


class EventWatch:
    """A sink that watches the health of each camera and tells listeners of its events, in the loop's thread.

    `monitors` are by the name of the camera, "" for the only one. A file is watched on its own time line.
    """

    def __init__(self, monitors: Mapping[str, Monitor]) -> None:
        self._monitors = monitors
        self.listeners: list[Callable[[CameraEvent], None]] = []
        self._watched: dict[str, Monitor | None] = {}
        self._healths: dict[str, Health] = {}
        self._clear: dict[str, tuple[Frame, Result]] = {}

    def write(self, frame: Frame, result: Result) -> None:
        """Take a frame of a camera; its image must not change afterwards."""
        name, monitor, at = result.camera or ONLY, self._monitors.get(result.camera), result.captured_at
        if name not in self._watched or self._watched[name] is not monitor:  # another camera of this name
            self._watched[name], self._healths[name] = monitor, Health()
            self._clear.pop(name, None)
        if monitor is not None and not monitor.source.live and result.media_time is not None:
            at = result.media_time
        alert = self._healths[name].add(result.belief, at)
        if alert is not None:
            kind = "degraded" if alert.ended is None else "recovered"
            event = CameraEvent(name, kind, alert, result.captured_time, self._clear.get(name), (frame, result))
            for listener in self.listeners:
                listener(event)
        if result.belief.type == CLEAN:
            self._clear[name] = frame, result

    def degraded(self, camera: str) -> bool:
        """Return whether a problem of a camera has lasted, and is not over; any thread may ask."""
        health = self._healths.get(camera)
        return health is not None and bool(health.alerts) and health.alerts[-1].ended is None


class EventRecorder(Closing):
    """Keeps events and tells them, in a thread that nothing waits for; a listener of an `EventWatch`.

    Args:
        folder: gets `TIME-CAMERA-EVENT.json`, and next to it what the camera saw before and now, as JPEG; the newest
            thousand events stay. None keeps none.
        tell: a program with its arguments, which gets the event as JSON on its standard input, or an address to which
            it is posted; at most every ten seconds for a camera. "" tells nobody.

    Raises UsageError if the folder cannot be made, or `tell` cannot be read.
    """

    def __init__(self, folder: Path | None, tell: str) -> None:
        self._folder, self._tell = folder, tell
        self._command = [] if _is_address(tell) else _words(tell)
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{folder}: no folder for events ({error.strerror or error})") from error
        self._waiting = deque[CameraEvent]()
        self._changed = threading.Condition()
        self._closing = False
        self._counts: Counter[str] = Counter()
        self._error = ""
        self._sent_at: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="rws events", daemon=True)

    def __call__(self, event: CameraEvent) -> None:
        """Take an event; the oldest one that waits is dropped if there are too many."""
        with self._changed:
            self._counts["accepted"] += 1
            self._waiting.append(event)
            while len(self._waiting) > 1 and (
                len(self._waiting) > MOST_WAITING or sum(one.nbytes for one in self._waiting) > MOST_BYTES
            ):
                self._waiting.popleft()
                self._counts["dropped"] += 1
            self._changed.notify_all()

    def status(self) -> SinkStatus:
        """Return whether the last event was kept and sent, and the counters of all."""
        with self._changed:
            counts = {key: self._counts[key] for key in ("accepted", "written", "dropped", "failed", "writing")}
            state = "failing" if self._error else "up"
            return SinkStatus(state, self._error, self._counts["failed"], **counts, waiting=len(self._waiting))

    def __enter__(self) -> "EventRecorder":
        self._thread.start()
        return self

    def close(self) -> None:
        """Finish the events that wait, for a while."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(LONGEST)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                event = self._waiting.popleft()
                self._counts["writing"] = 1
            reason = ""
            try:
                self._keep(event)
                self._say(event)
            except Exception as error:  # whatever it is, the next event is kept
                reason = shown(f"the event cannot be kept or sent ({_explained(error)})")
            with self._changed:
                self._counts["writing"] = 0
                self._counts["failed" if reason else "written"] += 1
                first, self._error = bool(reason) and reason != self._error, reason
            if first:
                log.warning("%s", reason)

    def _keep(self, event: CameraEvent) -> None:
        if self._folder is None:
            return
        for what, seen in (("before", event.before), ("now", event.now)):
            if seen is not None:
                frame, result = seen
                jpeg = to_jpeg(draw(frame.image, result, PICTURE_WIDTH))
                atomic_write_bytes(self._folder / f"{event.name}.{what}.jpg", jpeg)
        record = json.dumps(event.to_dict(), ensure_ascii=False) + "\n"
        atomic_write_bytes(self._folder / f"{event.name}.json", record.encode())
        kept = sorted(path.name for path in self._folder.iterdir() if _KEPT.fullmatch(path.name))
        for old in sorted({name.split(".")[0] for name in kept})[:-MOST_KEPT]:
            for ending in ("json", "before.jpg", "now.jpg"):
                (self._folder / f"{old}.{ending}").unlink(missing_ok=True)

    def _say(self, event: CameraEvent) -> None:
        now = time.monotonic()
        if not self._tell or now < self._sent_at.get(event.camera, -RESTS) + RESTS:
            return
        self._sent_at[event.camera] = now
        record = {**event.to_dict(), "folder": None if self._folder is None else str(self._folder), "name": event.name}
        content = json.dumps(record, ensure_ascii=False).encode()
        if not self._command:
            request = urllib.request.Request(self._tell, content, {"Content-Type": "application/json"}, method="POST")
            with urllib.request.urlopen(request, timeout=LONGEST):
                return
        environment = {**child_environment(), "RWS_CAMERA": event.camera, "RWS_EVENT": event.event}
        subprocess.run(
            self._command,
            input=content,
            env=environment,
            timeout=LONGEST,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _is_address(tell: str) -> bool:
    if not tell.startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(tell)
        fits = parts.hostname is not None and parts.username is None and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise UsageError("--on-event: an address needs a host, and has no user in it; put a secret into its query")
    return True


def _words(tell: str) -> list[str]:
    try:
        return shlex.split(tell)
    except ValueError as error:
        raise UsageError(f"--on-event {printable(tell)[:80]!r}: cannot be read ({error})") from error


def _explained(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{os.path.basename(error.cmd[0])} ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{os.path.basename(error.cmd[0])} took longer than {LONGEST:g} s"
    if isinstance(error, urllib.error.HTTPError):
        return f"{shown_address(error.url)} answered {error.code}"
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
