"""Faults that take minutes or hours, with a scripted camera and a clock that moves only while the loop waits."""

import itertools
from collections.abc import Iterator

import numpy as np

from rws.edge.faults.fakes import FakeTime, Step, images, scripted
from rws.edge.faults.frames import scene
from rws.edge.faults.harness import Drill, Seen, fault, reached
from rws.edge.sources.base import TICK
from rws.edge.sources.capture.decoding.checks import image_flaw
from rws.edge.sources.capture.stall import LAST_BACKOFF
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import SourceError


@fault("blocks indefinitely", "A camera that sends nothing is killed after 5 s and reopened; no wait takes longer.")
def _blocks(drill: Drill) -> None:
    source, capture, time = scripted([("open", ""), *images(3, bad=True), ("hang", None), ("open", ""), *images(3, 3)])
    start = time.now
    seen = drill.play(source, reached(6), clock=time)
    drill.say(f"killed {capture.kills - 1} time(s), back after {time.now - start:.1f} s, {len(seen)} results")
    drill.check(len(seen) == 6, "all 6 frames have results")
    drill.check(source.reconnects == 1, "it is reopened once")
    drill.check(time.now - start <= 5 + 3 * TICK, "within 5 s of the silence")


@fault("unplugged and plugged in again", "Retried with growing pauses of at most 1 s; meanwhile the weights are clean.")
def _unplugged(drill: Drill) -> None:
    away = [("end", "gives no more frames"), *[("open", "cannot be opened")] * 40]
    source, capture, time = scripted([("open", ""), *images(5, bad=True), *away, ("open", ""), *images(5, 5)])
    late_mixes: list[dict[str, float]] = []

    def done(seen: list[Seen]) -> bool:
        if source.idle_for > 2.5 and source.state == "reconnecting":
            late_mixes.append(dict(drill.pipeline.model.mix))
        return len(seen) >= 10

    seen = drill.play(source, done, clock=time)
    pauses = np.diff(capture.opened_at[1:])
    patched = any(one.result.mix for one in seen[:5])
    clean = not any(late_mixes)
    drill.say(f"{len(pauses) + 1} attempts, pauses {pauses[0]:.1f} to {pauses.max():.1f} s")
    drill.say(f"patched before the loss: {patched}; clean while lost: {clean}")
    drill.check(len(seen) == 10, "all 10 frames have results")
    drill.check(patched, "the noisy frames before the loss are patched")
    drill.check(bool(late_mixes) and clean, "the weights are clean while it is lost")
    drill.check(bool((np.diff(pauses) >= -1e-6).all()), "the pauses grow")
    drill.check(float(pauses.max()) <= LAST_BACKOFF + 1e-6, "no pause is longer than 1 s")


@fault("stays lost, with --retries 3", "An error after the third attempt, with the cause, and clean weights.")
def _gives_up(drill: Drill) -> None:
    steps = [("open", ""), *images(2, bad=True), ("end", "gives no more frames"), *[("open", "cannot be opened")] * 9]
    source, capture, time = scripted(steps, retries=3)
    try:
        drill.play(source, reached(99), clock=time)
    except SourceError as error:
        drill.say(f"{len(capture.opened_at) - 1} attempts, then: {error}")
        drill.check("cannot be opened" in str(error), "the error states the cause")
    else:
        drill.check(False, "it raises an error")
    drill.check(len(capture.opened_at) == 4, "it is retried three times")
    drill.check(source.state == "lost", "the state is `lost`")


def _on_the_minute(time: FakeTime) -> Iterator[Step]:
    yield "open", ""
    for seed in itertools.count():
        yield "wait", 60 - time() % 60
        yield "frame", scene(64, 64, seed)


@fault("one frame per minute", "Its frame interval is learned; after that, it is not reopened.")
def _one_a_minute(drill: Drill) -> None:
    source, capture, time = scripted(_on_the_minute)
    opened: list[int] = []

    def enough(seen: list[Seen]) -> bool:
        opened.append(len(capture.opened_at))
        return len(seen) >= 120

    seen = drill.play(source, enough, clock=time)
    drill.say(f"{len(seen)} frames in {(time() - 1000) / 60:.0f} minutes, opened {opened[-1]} times, all at the start")
    drill.check(len(seen) == 120, "120 frames have results")
    drill.check(opened[-1] <= 8, "it is reopened at most seven times before its frame interval is known")
    drill.check(len(set(opened[-100:])) == 1, "it is not reopened once its frame interval is known")


@fault("gives only damaged frames", "They are kept from the oracle and counted; the camera is reopened.")
def _only_damage(drill: Drill) -> None:
    broken = [step for _ in range(12) for step in (("reject", "damaged"), ("wait", 0.5))]
    source, _, time = scripted([("open", ""), *images(2), *broken, ("hang", None), ("open", ""), *images(2, 2)])
    seen = drill.play(source, reached(4), clock=time)
    drill.say(f"{source.rejections['damaged']} rejected, reopened {source.reconnects} time(s)")
    drill.check(source.reconnects == 1, "it is reopened")
    drill.check(len(seen) == 4, "good frames have results")


@fault("the clock jumps", "No time of the loop is waited for: an hour forwards or back disturbs nothing.")
def _clock_jumps(drill: Drill) -> None:
    source, _, time = scripted([("open", ""), *images(40)])
    jumps = itertools.cycle([3600.0, -7200.0, 3600.0])

    def jump(seen: list[Seen]) -> bool:
        if len(seen) % 4 == 3:
            time.now += next(jumps)
        return len(seen) >= 40

    seen = drill.play(source, jump, clock=time)
    drill.say(f"{len(seen)} results over 10 jumps, reconnects {source.reconnects}")
    drill.check(len(seen) == 40, "each frame has a result")
    drill.check(source.reconnects == 0, "the source does not count as lost")


@fault("a 10 kHz source", "The freshest frames are classified, the others are dropped and counted; nothing piles up.")
def _ten_kilohertz(drill: Drill) -> None:
    source = PatternSource(64, 64, 10_000.0)
    seen = drill.play(source, reached(300))
    ages = sorted(one.result.age_ms for one in seen)
    drill.say(f"{source.received} received, {source.dropped} dropped, age p95 {ages[int(0.95 * len(ages))]:.1f} ms")
    drill.check(source.dropped > 0, "frames are dropped")
    drill.check(all(b.result.index > a.result.index for a, b in itertools.pairwise(seen)), "frames stay in order")
    drill.check(ages[len(ages) // 2] < 50, "results are fresh")


@fault("an empty frame", "A frame without pixels is kept from the oracle and counted.")
def _empty_frame(drill: Drill) -> None:
    flaw = image_flaw(np.empty((0, 0, 3), np.uint8))
    source, _, time = scripted([("open", ""), *images(2), ("reject", flaw), *images(2, 2)])
    seen = drill.play(source, reached(4), clock=time)
    drill.say(f"{len(seen)} results, rejected {dict(source.rejections)}")
    drill.check(source.rejections["empty"] == 1, "it is counted as empty")


@fault("the wall clock jumps", "Results come as without it, with the same ages; their time of day follows the jump.")
def _wall_clock(drill: Drill) -> None:
    offsets = [1e9, 1e9, 1e9 - 3600, 1e9 - 3600, 1e9 + 86400, 1e9 + 86400]  # it is read once per result
    script = [("open", ""), *itertools.chain(*zip([("wait", 0.5)] * 6, images(6, bad=True), strict=True))]

    def played(jumps: list[float]) -> list[Seen]:
        source, _, time = scripted(script)
        left = iter(jumps)
        return drill.play(source, reached(6), clock=time, wall_clock=lambda: time() + next(left))

    steady, jumped = played([1e9] * 6), played(offsets)
    drill.say(f"{len(jumped)} results, one hour back and a day on")
    same = [(one.at, one.result.age_ms, one.result.mix) for one in steady]
    drill.check([(one.at, one.result.age_ms, one.result.mix) for one in jumped] == same, "nothing else changes")
    found = [one.result.captured_time - one.result.captured_at for one in jumped]
    drill.check(np.allclose(found, offsets, rtol=0, atol=1e-3), "each result has the time of day of its capture")


CASES = [_blocks, _unplugged, _gives_up, _one_a_minute, _only_damage]
CASES += [_clock_jumps, _wall_clock, _ten_kilohertz, _empty_frame]
