"""Faults of what comes after capture: sinks, disk, model, bundle, signals, and a machine that is too slow."""

import gc
import json
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.watcher import BundleWatcher
from rws.edge.common.child import python_command
from rws.edge.common.confine import Limits
from rws.edge.faults.fakes import Step, endless, faulty, images, poisoned, scripted
from rws.edge.faults.frames import scene
from rws.edge.faults.harness import Case, Drill, NotHereError, Seen, fault, reached
from rws.edge.faults.peers import NEVER_READS, HostilePeers, Page
from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import Pipeline, Result
from rws.edge.preprocess import preprocess
from rws.edge.sinks.background import BackgroundSink
from rws.edge.sinks.base import Sink
from rws.edge.sinks.jsonl import JsonlSink
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import MissingExtraError, SourceError
from rws.records import Frame

FULL = Path("/dev/full")  # a device that has never room
TOKEN = "the-drills-token"


@fault(
    "a sink that blocks",
    "The loop goes on at its own speed; what the sink loses is counted; the end of three waits 1 s at most.",
    slow=True,
)
def _sink_blocks(drill: Drill) -> None:
    release = threading.Event()

    class Stuck:
        def write(self, frame: Frame, result: Result) -> None:
            if result.index > 0:
                release.wait()

    with ExitStack() as stack:
        sink, *others = (stack.enter_context(BackgroundSink(Stuck(), capacity=4, timeout=1.0)) for _ in range(3))
        seen = drill.play(PatternSource(64, 64, 100.0), reached(200), sinks=[sink, *others])
        started = time.monotonic()
        for one in (sink, *others):
            one.end()
    ending = time.monotonic() - started
    release.set()
    age = float(np.median([one.result.age_ms for one in seen]))
    drill.say(f"{len(seen)} results, age p50 {age:.1f} ms, sink lost {sink.dropped}, ended in {ending:.1f} s")
    drill.check(sink.accepted == len(seen), "the sink was offered each frame")
    drill.check(
        sink.written + sink.dropped + sink.waiting + sink.writing == sink.accepted, "the sink accounts for each frame"
    )
    drill.check(age < 50, "the loop does not wait for it")
    drill.check(ending < 2.0, "the end waits 1 s at most")


@fault(
    "the disk is full",
    "The loop and the other outputs go on, what is lost is counted; with room again, whole lines follow.",
)
def _disk_full(drill: Drill) -> None:
    if not FULL.exists():
        raise NotHereError(f"{FULL} is missing")
    rows, other = drill.folder / "rows.jsonl", drill.folder / "other.jsonl"
    rows.symlink_to(FULL)
    source, _, fake = scripted([("open", ""), *images(50, bad=True)])
    with ExitStack() as stack:
        sinks = [
            stack.enter_context(
                BackgroundSink(JsonlSink(path, endless=True), when_full="wait", on_failure="reopen", clock=fake)
            )
            for path in (rows, other)
        ]

        def steer(seen: list[Seen]) -> bool:
            if len(seen) == 25 and rows.is_symlink():
                drill.check(sinks[0].status().state == "failing", "it is known as failing")
                rows.unlink()
                fake.sleep(60)
            return len(seen) == 50

        seen = drill.play(source, steer, clock=fake, sinks=sinks)
    full, whole = (sink.status() for sink in sinks)
    written = [json.loads(line)["index"] for line in rows.read_text().splitlines()]
    drill.say(f"{len(seen)} results, of the full disk's output {full.failed} lost, {full.written} written after it")
    drill.check(len(seen) == whole.written == len(other.read_text().splitlines()) == 50, "the others are complete")
    drill.check(written == [one.result.index for one in seen][full.failed :], "each line is whole")
    drill.check(full.written + full.failed == 50 and full.failed >= 25, "what is lost is counted")
    drill.check(full.state == "up", "it works again at the end")


@fault("an exception in source, model or sink", "It surfaces with its type; the weights are clean.")
def _exceptions(drill: Drill) -> None:
    calls = iter(range(99))

    def break_model() -> None:
        if next(calls) == 3:
            raise ZeroDivisionError("the model broke")

    class Breaks:
        def write(self, frame: Frame, result: Result) -> None:
            if result.index == 2:
                raise KeyError("the sink broke")

    broken = replace(drill.pipeline, model=faulty(drill.pipeline.model, break_model))
    attempts: list[tuple[type[Exception], list[Step], list[Sink], Pipeline]] = [
        (SourceError, [("end", "unplugged")], [], drill.pipeline),
        (KeyError, [], [Breaks()], drill.pipeline),
        (ZeroDivisionError, [], [], broken),
    ]
    for expected, then, sinks, pipeline in attempts:
        source, _, fake = scripted([("open", ""), *images(4, bad=True), *then], retries=0)
        try:
            drill.play(source, reached(5), sinks=sinks, limit=5.0, clock=fake, pipeline=pipeline)
            drill.check(False, f"{expected.__name__} surfaces")
        except expected as error:
            drill.say(f"{type(error).__name__}: {error}")


@fault(
    "the oracle or the model gives NaN",
    "The frame has no result and is counted by reason; the next one is classified as after a cut, with clean weights.",
)
def _not_a_number(drill: Drill) -> None:
    clean, pictures = drill.pipeline, images(9, bad=True)
    poisoned_oracle, poisoned_model = poisoned(clean.oracle, good=3), poisoned(clean.model, good=3)
    for part, pipeline, reason in (
        ("oracle", replace(clean, oracle=poisoned_oracle), "bad_belief"),
        ("model", replace(clean, model=poisoned_model), "bad_output"),
    ):
        source, _, fake = scripted([("open", ""), *pictures])
        seen = drill.play(source, reached(8), clock=fake, pipeline=pipeline)
        fresh, _, fake = scripted([("open", ""), *pictures[4:]])
        alone = drill.play(fresh, reached(5), clock=fake)
        task = drill.pipeline.task
        found, expected = (
            [(task.to_dict(one.result.output), one.result.mix, one.result.belief.joint.tolist()) for one in played]
            for played in (seen[3:], alone)
        )
        drill.say(f"{part}: results of frames {[one.result.index for one in seen]}")
        drill.check(bool(seen[2].result.mix), "the weights are patched before")
        drill.check([one.result.index for one in seen] == [0, 1, 2, 4, 5, 6, 7, 8], "only that frame has no result")
        drill.check(drill.outcome.rejected_by_reason[reason] == 1, f"it is counted as {reason}")
        drill.check(found == expected, "the frames after it have the results of a fresh start")


@fault(
    "a model that is too slow",
    "Frames are skipped before it lags: the age stays that of one frame, drops are counted.",
    slow=True,
)
def _too_slow(drill: Drill) -> None:
    slow = faulty(drill.pipeline.model, lambda: time.sleep(0.2))
    source = PatternSource(160, 120, 30.0)
    seen = drill.play(source, reached(15), pipeline=replace(drill.pipeline, model=slow))
    old = sorted(one.result.age_ms for one in seen)[-2]  # the machine may be busy for a moment
    drill.say(f"{source.received} received, {len(seen)} results, {source.dropped} dropped, oldest but one {old:.0f} ms")
    drill.check(source.dropped >= 40, "frames are dropped")
    drill.check(old < 400, "all results but one are younger than two of its frames")


@fault("10,000 mix changes", "Each change is exact, the weights are clean afterwards, and memory stays flat.")
def _mix_changes(drill: Drill) -> None:
    model = drill.pipeline.model
    names = sorted(drill.bundle.signatures.names)
    rng = np.random.default_rng(0)
    x = preprocess(scene(drill.pipeline.input.height, drill.pipeline.input.width), drill.pipeline.input)[0]
    reference: dict[str, NDArray[np.float32]] = {}
    wrong = 0
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(10_000):
        chosen = rng.choice(len(names), 1 + number % 2, replace=False)
        mix = {names[i]: float(1 + rng.integers(0, 4)) / 4 for i in chosen}
        model.apply(mix)
        if number % 100 == 0:
            # The same mix gives the same output, whatever was in effect before.
            logits = model.predict(x)[0]
            model.apply({names[number // 100 % len(names)]: 1.0})
            model.apply(mix)
            wrong += not np.array_equal(model.predict(x)[0], logits)
            wrong += not np.array_equal(reference.setdefault(json.dumps(mix, sort_keys=True), logits), logits)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    model.reset()
    drill.check_clean()
    drill.say(f"10,000 changes, {wrong} of 200 checks wrong, peak memory grew by {grown:.1f} MB")
    drill.check(wrong == 0, "the same mix gives the same output")
    drill.check(grown < 5, "memory grows by less than 5 MB")


def _bad_bundle(drill: Drill, harm: Callable[[bytes], bytes], hashed: bool, reason: str) -> None:
    """Put a bundle with another model in place of the one that runs, and then a good one."""
    current = drill.folder / "current"
    shutil.copytree(drill.bundle.path, current)
    model, manifest = current / "model.onnx", current / "bundle.json"
    whole = model.read_bytes()
    bad = harm(whole)
    other = json.loads(manifest.read_text()) | {"name": "another"}
    good = json.dumps(other)
    if hashed:
        other["files"] = other["files"] | {model.name: {"sha256": sha256(bad).hexdigest(), "bytes": len(bad)}}
    built, switched = list[Bundle](), list[int]()

    def build(bundle: Bundle) -> Pipeline:
        built.append(bundle)
        return drill.pipeline

    # Ten times what a good one takes on a slow machine.
    with BundleWatcher(current, build, interval=0.1, limits=Limits(10.0, 40.0, 2**30)) as watch:
        stage, refused = "before", 0

        def steer(seen: list[Seen]) -> bool:
            nonlocal stage, refused
            if watch.poll() is not None:
                switched.append(len(seen))
            if stage == "before" and len(seen) == 20:
                model.write_bytes(bad)
                manifest.write_text(json.dumps(other))
                stage = "bad"
            elif stage == "bad" and watch.failures:
                refused = len(seen)
                drill.say(f"refused: {watch.error}")
                drill.check(reason in watch.error, f"the reason is given: {reason}")
                drill.check(not switched, "the old one stays")
                model.write_bytes(whole)
                manifest.write_text(good)
                stage = "mended"
            return bool(switched)

        seen = drill.play(PatternSource(64, 64, 100.0), steer, limit=120.0)
    before, during = (float(np.median([one.result.age_ms for one in part])) for part in (seen[:20], seen[20:refused]))
    drill.say(f"age p50 {before:.1f} ms before, {during:.1f} ms until it was refused")
    drill.say(f"{len(seen)} results in all, switched {len(switched)} time(s)")
    drill.check(during < 50, "the loop does not wait for it")
    drill.check(watch.failures == 1, "it is refused once")
    drill.check(switched != [] and len(built) == 1, "the good one takes over")


def _cut(model: bytes) -> bytes:
    return model[: len(model) // 2]


@fault(
    "hostile peers of the page",
    "The loop goes on at its own speed; connections are few, each refusal is counted once, and the owner is answered.",
    slow=True,
)
def _hostile_peers(drill: Drill) -> None:
    try:
        from rws.edge.web import PageServer
    except MissingExtraError as error:
        raise NotHereError(str(error)) from error
    source, answered = PatternSource(64, 64, 30.0), 0
    with PageServer("127.0.0.1:0", {"": Monitor(source)}, token=TOKEN) as page, HostilePeers(page.port, TOKEN) as peers:
        owner = Page(page.url, TOKEN)

        def attack() -> None:
            nonlocal answered
            while peers.made.total() < 1000:
                peers.attack(20)
                peers.drip()
                with owner.open("page.css"):
                    answered += 1
                time.sleep(0.05)

        attacker = threading.Thread(target=attack, daemon=True)
        attacker.start()
        seen = drill.play(source, lambda _: not attacker.is_alive(), sinks=[page])
        peers.close()
        time.sleep(2.0)  # the page notices within half a second
        refused, still_open = owner.refused()
    age = float(np.median([one.result.age_ms for one in seen]))
    made, viewers = peers.made.total(), peers.made[NEVER_READS]
    drill.say(f"{made} connections of {len(peers.made)} kinds, {answered} answers to the owner meanwhile")
    drill.say(f"{len(seen)} results, age p50 {age:.1f} ms, {source.dropped} dropped")
    drill.check(made == 1000 and answered == 50, "the owner is answered each time")
    # A viewer that leaves before it is too slow has done nothing wrong.
    drill.check(made - viewers <= refused.total() <= made, "each refusal is counted once")
    drill.check(still_open <= 2, "no connection is left open")
    drill.check(age < 50, "the loop does not wait for them")


def _terminate(drill: Drill, number: signal.Signals) -> None:
    rows, report = drill.folder / "rows.jsonl", drill.folder / "summary.json"
    command = ["run", "pattern:64x64@50", "--bundle", drill.bundle.path, "--jsonl", rows, "--json", report]
    program = python_command("from rws.cli import main; main()", *map(str, command))
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.read_bytes().count(b"\n") > 20) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    started = time.monotonic()
    message = process.communicate(timeout=30)[1].decode()
    summary = json.loads(report.read_text())
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    outcome = drill.outcome
    outcome.frames_in, outcome.frames_out, outcome.dropped = summary["received"], len(lines), summary["dropped"]
    drill.say(f"exit code {process.returncode} after {time.monotonic() - started:.1f} s, {len(lines)} lines")
    drill.check(process.returncode == 0, f"the exit code is 0 ({message.strip()[-200:]})")
    drill.check(summary["stopped"] is True, "the summary says that it was stopped")
    drill.check(len(lines) + summary["sinks"]["jsonl"]["dropped"] == summary["frames"], "the file holds each result")
    drill.check(outcome.accounted, "frames in = out + dropped + rejected")


_FINISHED = "The current frame is finished, files are complete, the exit code is 0."
_REFUSED = "It is refused with a reason and the old one stays; a good one takes over."
CASES = [_sink_blocks, _disk_full, _exceptions, _not_a_number, _too_slow, _mix_changes, _hostile_peers]
_CUT = partial(_bad_bundle, harm=_cut, hashed=False, reason="truncated")
_ENDLESS = partial(_bad_bundle, harm=endless, hashed=True, reason="did not finish within")
CASES += [Case("a broken bundle is put in place", _REFUSED, _CUT)]
CASES += [Case("a bundle that never ends is put in place", _REFUSED, _ENDLESS, slow=True)]
CASES += [Case(kind.name, _FINISHED, partial(_terminate, number=kind)) for kind in (signal.SIGTERM, signal.SIGINT)]
