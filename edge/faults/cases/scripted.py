"""Faults that take minutes or hours, with a scripted camera and a clock that moves when somebody waits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rws.edge.faults.fakes import FakeTime, ScriptedCapture
from rws.edge.faults.harness import Drill, Seen, case, noisy
from rws.edge.faults.stamp import scene
from rws.edge.sources.base import TICK
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.capture.stall import LAST_BACKOFF
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import SourceError

Step = tuple[str, Any]


def scripted(steps: Iterable[Step], **options: Any) -> tuple[CapturedSource, ScriptedCapture, FakeTime]:
    """A live source that follows a script."""
    time = FakeTime()
    capture = ScriptedCapture(steps, time)
    settings = CaptureSettings("scripted", "camera", "scripted camera")
    source = CapturedSource(settings, sleep=time.sleep, capture=capture, jitter=lambda: 1.0, **options)
    return source, capture, time


def pictures(count: int, start: int = 0, bad: bool = False) -> list[Step]:
    """Different pictures; `bad` ones are noisy, so that the oracle patches."""
    images = (scene(64, 64, seed) for seed in range(start, start + count))
    return [("frame", noisy(image) if bad else image) for image in images]


def reached(count: int) -> Any:
    """Until so many results are there."""
    return lambda seen: len(seen) >= count


@case("blocks for ever")
def blocks(drill: Drill) -> None:
    """A camera that says nothing is killed after 5 s and opened anew; it is never waited for longer."""
    steps = [("open", ""), *pictures(3, bad=True), ("hang", None), ("open", ""), *pictures(3, 3)]
    source, capture, time = scripted(steps)
    runtime = drill.with_clock(time)
    start = time.now
    seen = drill.play(source, reached(6), runtime=runtime)
    drill.say(f"killed {capture.kills - 1} time(s), back after {time.now - start:.1f} s, {len(seen)} results")
    drill.check(len(seen) == 6, "all 6 frames have results")
    drill.check(source.reconnects == 1, "it is opened anew once")
    drill.check(time.now - start <= 5 + 3 * TICK, "within 5 s of the silence")


@case("unplugged and plugged in again")
def unplugged(drill: Drill) -> None:
    """Sought with growing pauses of at most 1 s; meanwhile the weights are clean."""
    away = [("open", "cannot be opened")] * 40
    steps = [
        ("open", ""),
        *pictures(5, bad=True),
        ("end", "gives no more frames"),
        *away,
        ("open", ""),
        *pictures(5, 5),
    ]
    source, capture, time = scripted(steps)
    runtime = drill.with_clock(time)
    patched: list[bool] = []
    late_mixes: list[dict[str, float]] = []

    def watch(seconds: float) -> None:
        if seconds > 2.5 and source.state == "reconnecting":
            late_mixes.append(dict(runtime.pipeline.model.mix))

    def done(seen: list[Seen]) -> bool:
        patched.extend(bool(one.result.mix) for one in seen[len(patched) :])
        return len(seen) >= 10

    seen = drill.play(source, done, runtime=runtime, on_idle=watch)
    pauses = np.diff(capture.opened_at[1:])
    drill.say(
        f"{len(pauses) + 1} attempts, pauses {pauses[0]:.1f} to {pauses.max():.1f} s; patched before the loss: "
        f"{any(patched[:5])}; clean while lost: {all(mix == {} for mix in late_mixes)}"
    )
    drill.check(len(seen) == 10, "all 10 frames have results")
    drill.check(any(patched[:5]), "the noisy frames before the loss are patched")
    drill.check(bool(late_mixes) and all(mix == {} for mix in late_mixes), "the weights are clean while it is lost")
    drill.check(bool((np.diff(pauses) >= -1e-6).all()), "the pauses grow")
    drill.check(float(pauses.max()) <= LAST_BACKOFF + 1e-6, "no pause is longer than 1 s")


@case("stays lost, with --retries 3")
def gives_up(drill: Drill) -> None:
    """An error after the third attempt, with the cause, and clean weights."""
    steps = [("open", ""), *pictures(2, bad=True), ("end", "gives no more frames"), *[("open", "cannot be opened")] * 9]
    source, capture, time = scripted(steps, retries=3)
    try:
        drill.play(source, reached(99), runtime=drill.with_clock(time))
    except SourceError as error:
        drill.say(f"{len(capture.opened_at) - 1} attempts, then: {error}")
        drill.check("cannot be opened" in str(error), "the error tells the cause")
    else:
        drill.check(False, "it raises an error")
    drill.check(len(capture.opened_at) == 4, "it is sought three times")
    drill.check(source.state == "lost", "the state is `lost`")


@case("one frame a minute")
def one_a_minute(drill: Drill) -> None:
    """Its rhythm is learned; once it is, it is not opened anew."""
    time = FakeTime()

    class OnTheMinute(ScriptedCapture):
        """Sends on whole minutes, whenever it was opened."""

        def open(self) -> None:
            super().open()
            self._steps = itertools.chain([("open", "")], self._minutes())

        @staticmethod
        def _minutes() -> Iterator[Step]:
            for seed in itertools.count():
                yield ("wait", 60 - time() % 60)
                yield ("frame", scene(64, 64, seed))

    capture = OnTheMinute([], time)
    settings = CaptureSettings("scripted", "camera", "slow camera")
    source = CapturedSource(settings, sleep=time.sleep, capture=capture)
    opened: list[int] = []

    def enough(seen: list[Seen]) -> bool:
        opened.append(len(capture.opened_at))
        return len(seen) >= 120

    seen = drill.play(source, enough, runtime=drill.with_clock(time))
    drill.say(f"{len(seen)} frames in {(time() - 1000) / 60:.0f} minutes, opened {opened[-1]} times, all at the start")
    drill.check(len(seen) == 120, "120 frames have results")
    drill.check(opened[-1] <= 8, "it is opened anew at most seven times before its rhythm is known")
    drill.check(len(set(opened[-100:])) == 1, "it is not opened anew once its rhythm is known")


@case("gives only damaged frames")
def only_damage(drill: Drill) -> None:
    """They are kept from the oracle and counted; the camera is opened anew."""
    broken = [step for _ in range(12) for step in (("reject", "damaged"), ("wait", 0.5))]
    source, _, time = scripted([("open", ""), *pictures(2), *broken, ("hang", None), ("open", ""), *pictures(2, 2)])
    seen = drill.play(source, reached(4), runtime=drill.with_clock(time))
    drill.say(f"{source.rejections['damaged']} rejected, opened anew {source.reconnects} time(s)")
    drill.check(source.reconnects == 1, "it is opened anew")
    drill.check(len(seen) == 4, "good frames have results")


@case("the clock jumps")
def clock_jumps(drill: Drill) -> None:
    """No time of the loop is waited for: an hour forwards or back disturbs nothing."""
    source, _, time = scripted([("open", ""), *pictures(40)])
    jumps = itertools.cycle([3600.0, -7200.0, 3600.0])

    def jump(seen: list[Seen]) -> bool:
        if len(seen) % 4 == 3:
            time.now += next(jumps)
        return len(seen) >= 40

    seen = drill.play(source, jump, runtime=drill.with_clock(time))
    drill.say(f"{len(seen)} results over 10 jumps, reconnects {source.reconnects}")
    drill.check(len(seen) == 40, "each frame has a result")
    drill.check(source.reconnects == 0, "the source is not taken for lost")


@case("a 10 kHz source")
def ten_kilohertz(drill: Drill) -> None:
    """The freshest frames are classified, the others are dropped and counted; nothing piles up."""
    source = PatternSource(64, 64, 10_000.0)
    seen = drill.play(source, reached(300))
    ages = sorted(one.result.age_ms for one in seen)
    drill.say(f"{source.received} came, {source.dropped} dropped, age p95 {ages[int(0.95 * len(ages))]:.1f} ms")
    drill.check(source.dropped > 0, "frames are dropped")
    drill.check(all(b.result.index > a.result.index for a, b in itertools.pairwise(seen)), "frames stay in order")
    drill.check(ages[len(ages) // 2] < 50, "results are fresh")


@case("an empty frame")
def empty_frame(drill: Drill) -> None:
    """A frame without pixels is kept from the oracle and counted."""
    from rws.edge.sources.capture.checks import image_flaw

    flaw = image_flaw(np.empty((0, 0, 3), np.uint8))
    steps = [("open", ""), *pictures(2), ("reject", flaw), *pictures(2, 2)]
    source, _, time = scripted(steps)
    seen = drill.play(source, reached(4), runtime=drill.with_clock(time))
    drill.say(f"{len(seen)} results, rejected {dict(source.rejections)}")
    drill.check(source.rejections["empty"] == 1, "it is counted as empty")
