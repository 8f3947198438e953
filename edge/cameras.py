"""Several cameras, one model: a frame of each in turn, those that need the same patch one after the other."""

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from rws.edge.pipeline import Decision, Result
from rws.edge.runtime import Runtime
from rws.edge.sinks.base import Sink
from rws.edge.sources.base import TICK, Source
from rws.edge.sources.feed import Feed
from rws.errors import FrameError
from rws.records import Clock, Frame


@dataclass(eq=False)
class Camera:
    """A camera and what is its own: belief, policy and limits in its runtime, budget, changes and sinks.

    The pipelines of all runtimes share one model: see `Pipeline.sharing`. `paused`: its frames are dropped, of a file
    none is read.
    """

    name: str
    runtime: Runtime
    feed: Feed
    sinks: Sequence[Sink] = ()
    changes: Sequence[Callable[[Frame], Frame]] = ()  # to each frame, before anything else
    period: float = 0.0  # seconds from one of its frames to the next, at least
    paused: bool = False
    served_at: float = float("-inf")
    reset_at: float = float("-inf")  # when it was paused or lost
    seen_at: float = float("-inf")  # when the loop last said something of it

    @property
    def source(self) -> Source:
        """Where its frames come from."""
        return self.feed.source

    @property
    def has_frame(self) -> bool:
        """Whether a frame of it may be processed."""
        return self.feed.waiting and not self.paused


@dataclass(frozen=True)
class Ended:
    """A camera gives no more frames; `error` is why, None at a regular end."""

    error: Exception | None


Event = tuple[Camera, Result | FrameError | Ended | None]


class Cameras:
    """The frame loop of several cameras, for one thread.

    In each round every camera that has a frame gets one, the one that has waited longest first, so that none starves.
    First belief and mix of all are found; then those with equal mixes run one after the other, and weights change
    once for all of them. A camera that hangs, is lost or fails holds up no other.

    Args:
        between: called between two rounds; it may add and remove cameras, and give their runtimes other pipelines.
        grouped: whether frames run by their mix; otherwise in the order of the cameras.
    """

    def __init__(
        self, between: Callable[[], None] = lambda: None, *, grouped: bool = True, clock: Clock = time.monotonic
    ) -> None:
        self.weight_changes = 0
        self.rounds = 0
        self._between, self._grouped, self._clock = between, grouped, clock
        self._arrived = threading.Event()
        self._cameras: dict[str, Camera] = {}
        self._leaving: list[Feed] = []
        self._stopped = False

    @property
    def arrived(self) -> Callable[[], None]:
        """What a feed calls when it has a frame."""
        return self._arrived.set

    @property
    def cameras(self) -> Collection[Camera]:
        """Those that there are now."""
        return self._cameras.values()

    def add(self, camera: Camera) -> None:
        """Begin with a camera whose name no other one has."""
        self._cameras[camera.name] = camera
        camera.feed.__enter__()

    def remove(self, name: str) -> None:
        """End with a camera, if it is still there; nothing waits for it until the end of `results`."""
        if camera := self._cameras.pop(name, None):
            camera.feed.stop()
            camera.runtime.reset()
            self._leaving = [feed for feed in self._leaving if not feed.ended] + [camera.feed]

    def pause(self, name: str, paused: bool) -> None:
        """Let a camera rest, or go on; unknown names are left alone."""
        if name in self._cameras:
            self._cameras[name].paused = paused

    def stop(self) -> None:
        """End `results` soon; any thread or signal handler may call it."""
        self._stopped = True
        for camera in list(self._cameras.values()):
            camera.source.stop()
        # The event is not set: a signal handler may have interrupted its wait, which holds its lock.

    def results(self) -> Generator[Event, None, None]:
        """Process frames until all cameras have ended; yields what happens to each camera, as `Runtime.results` does.

        None each 0.25 s in which a camera gives no frame; after `Ended`, a camera is gone.
        """
        try:
            while self._cameras and not self._stopped:
                self._arrived.wait(self._pause())
                self._arrived.clear()
                ready = self._ready()
                with closing(self._round(ready)) as events:
                    yield from events
                yield from self._others()
                self._between()
        finally:
            for name in list(self._cameras):
                self.remove(name)  # all at once, so that they share one wait
            for feed in self._leaving:
                feed.close()

    def _pause(self) -> float:
        """Return the seconds until a camera that has a frame may have another, at most `TICK`."""
        now = self._clock()
        due = (camera.served_at + camera.period for camera in self._cameras.values() if camera.has_frame)
        return min(TICK, max(0.0, min(due, default=now + TICK) - now))

    def _ready(self) -> list[Camera]:
        now = self._clock()
        waiting = (camera for camera in self._cameras.values() if camera.has_frame)
        ready = (camera for camera in waiting if now >= camera.served_at + camera.period)
        return sorted(ready, key=lambda camera: camera.served_at)

    def _round(self, ready: Iterable[Camera]) -> Generator[Event, None, None]:
        decided: list[tuple[Camera, Decision]] = []
        self.rounds += 1
        for camera in ready:
            frame, read_ms = camera.feed.take()
            camera.served_at = camera.seen_at = self._clock()
            for change in camera.changes:
                frame = change(frame)
            try:
                decided.append((camera, camera.runtime.decide(frame, read_ms)))
            except FrameError as error:
                yield camera, error
        for camera, decision in self._ordered(decided):
            model = camera.runtime.pipeline.model
            before = model.mix
            try:
                result = camera.runtime.answer(decision)
            except FrameError as error:
                yield camera, error
                continue
            self.weight_changes += model.mix != before
            for sink in camera.sinks:
                sink.write(decision.frame, result)
            yield camera, result

    def _ordered(self, decided: Sequence[tuple[Camera, Decision]]) -> Iterable[tuple[Camera, Decision]]:
        if not self._grouped or len(decided) < 2:
            return decided
        groups: dict[frozenset[tuple[str, float]], list[tuple[Camera, Decision]]] = {}
        for camera, decision in decided:
            groups.setdefault(_key(decision.mix), []).append((camera, decision))
        # The mix that is in effect needs no change.
        first = groups.pop(_key(decided[0][0].runtime.pipeline.model.mix), [])
        return chain(first, *groups.values())

    def _others(self) -> Iterator[Event]:
        """Say of each camera without a frame that it has none, or has ended."""
        now = self._clock()
        for camera in list(self._cameras.values()):
            if camera.feed.ended:
                del self._cameras[camera.name]
                camera.runtime.reset()
                yield camera, Ended(camera.feed.error)
            elif now - camera.seen_at >= TICK:
                camera.seen_at = now
                if (camera.paused or camera.source.gone) and camera.served_at > camera.reset_at:
                    camera.reset_at = now
                    camera.runtime.reset()
                yield camera, None


def _key(mix: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset(mix.items())
