import json
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.run_status import Moment, RunTotals
from rws.edge.sources.arrays import ArraySource
from rws.oracle.belief import certain
from support.fakes import CORRUPTIONS, LEVELS, StillClock, make_result, spread_belief


@pytest.fixture
def clock():
    return StillClock(50.0)


@pytest.fixture
def source():
    return ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="camera 0")


@pytest.fixture
def monitor(source, clock):
    return Monitor(source, bundle="tiny", strategy="live", window=10, clock=clock, wall_clock=lambda: 1e9 + clock())


def test_before_the_first_result(monitor, clock):
    clock.now += 2.5
    status = monitor.status(since=0)
    found = json.loads(json.dumps(status.to_dict()))
    assert next(iter(found)) == "schema"
    assert found == {
        "schema": "status/1",
        "started_at": "2001-09-09T01:47:30.000Z",
        "written_at": "2001-09-09T01:47:32.500Z",
        "bundle": "tiny",
        "strategy": "live",
        "uptime_s": 2.5,
        "fps": 0.0,
        "since_result_s": None,
        "counts": {"results": 0, "mix_changes": 0, "rejected_by_reason": {}, "classes": {}, "corruptions": {}},
        "events": {},
        "failed": 0,
        "failure": "",
        "timeline": [],
        "limits": {"leave_clean": False, "min_severity": 0.0},
        "sinks": {},
        "source": {
            "name": "camera 0",
            "live": False,
            "state": "running",
            "received": 0,
            "delivered": 0,
            "dropped": 0,
            "buffered": 0,
            "rejected": 0,
            "rejected_by_reason": {},
            "left_out": {},
            "reconnects": 0,
            "error": "",
        },
        "result": None,
    }


def test_totals_and_the_latest_result(monitor, clock):
    monitor.add(make_result(0, label="cat", belief=certain(CORRUPTIONS, LEVELS, "clean")))
    monitor.add(make_result(1, label="dog", changed=True))
    clock.now += 0.5
    monitor.add(make_result(2, label="dog", changed=True))
    clock.now += 1.25
    status = monitor.status()
    assert status.totals == RunTotals(3, 2, {"cat": 1, "dog": 2}, {"clean": 1, "fog": 2})
    assert status.to_dict()["counts"]["mix_changes"] == 2
    assert status.result.to_dict() == make_result(2, label="dog", changed=True).to_dict()
    assert status.since_result_s == 1.25
    assert status.timeline == ()


def test_the_rate_is_that_of_the_last_seconds(monitor, clock):
    monitor.add(make_result())
    assert monitor.status().fps == 1.0  # one frame in a millisecond is not a thousand a second
    for _ in range(100):
        clock.now += 0.1
        monitor.add(make_result())
    assert monitor.status().fps == pytest.approx(10, abs=0.4)
    clock.now += 2
    assert monitor.status().fps == pytest.approx(10 / 3, abs=0.4)
    clock.now += 2
    assert monitor.status().fps == 0


def test_the_source_is_read_at_each_snapshot_and_its_password_hidden(monitor, source):
    source.name = source.error = "rtsp://user:hunter22@camera/"
    source.rejections["damaged"] += 2
    source.received, source.state = 7, "reconnecting"
    monitor.add(replace(make_result(), name=source.name))
    status = monitor.status()
    assert (status.source.received, status.source.state) == (7, "reconnecting")
    assert (status.source.rejected, status.source.rejected_by_reason) == (2, {"damaged": 2})
    assert status.source.name == status.source.error == status.result.name == "rtsp://camera"


def test_the_timeline_has_one_moment_per_second_with_its_last_frame(monitor, clock):
    monitor.add(make_result(0, label="cat"))
    clock.now += 0.9
    monitor.add(
        make_result(1, label="dog", mix={"fog": 0.5, "snow": 0.25}, belief=certain(CORRUPTIONS, LEVELS, "snow", 4.0))
    )
    clock.now += 0.2
    monitor.add(make_result(2))
    first, second = monitor.status(since=0).timeline
    mix = {"fog": 0.5, "snow": 0.25}
    assert first == Moment(at=0, frames=2, corruption="snow", severity=4.0, alpha=0.75, label="dog", mix=mix)
    assert (second.at, second.frames, second.corruption) == (1, 1, "fog")
    assert monitor.status(since=1).timeline == (second,)


def test_a_loss_is_shown_and_a_pause_is_not(monitor, clock, source):
    monitor.add(make_result())
    monitor.idle()
    assert not monitor.status(since=0).timeline[0].lost
    clock.now += 3
    monitor.idle()
    source.state = "reconnecting"
    clock.now += 1
    monitor.idle()
    clock.now += 0.5
    source.state = "running"
    monitor.add(make_result())
    timeline = monitor.status(since=0).timeline
    assert [(moment.at, moment.frames, moment.lost) for moment in timeline] == [(0, 1, False), (4, 1, True)]


def test_memory_does_not_grow_with_the_run(monitor, clock):
    for index in range(500):
        clock.now += 0.25
        monitor.add(make_result(index))
    assert [moment.at for moment in monitor.status(since=0).timeline] == list(range(116, 126))
    clock.now += 60
    monitor.add(make_result())
    assert len(monitor.status(since=0).timeline) == 1


def test_of_an_hour_the_old_seconds_are_joined_and_no_bad_one_is_lost(source, clock):
    monitor = Monitor(source, clock=clock)
    for second in range(4500):
        bad = second % 1000 == 3
        belief = certain(CORRUPTIONS, LEVELS, *(("snow", 5.0) if bad else ("fog", 1.0)))
        mix = {"snow": 1.0} if bad else {}
        monitor.add(make_result(second, belief=belief, mix=mix, changed=bad))
        clock.now += 1
    timeline = monitor.status(since=0).timeline
    assert len(timeline) <= 300 + 331
    assert timeline[0].at == pytest.approx(900, abs=10)
    assert timeline[-1].at == 4499
    for before, after in pairwise(timeline):
        assert before.at + before.seconds == after.at
    assert {moment.seconds for moment in timeline[-300:]} == {1}
    assert {moment.seconds for moment in timeline[1:300]} == {10}
    assert all(moment.frames == moment.seconds for moment in timeline)
    worst = [moment for moment in timeline if moment.changes]
    assert [moment.at for moment in worst] == [1000, 2000, 3000, 4000]
    assert {(moment.corruption, moment.severity, moment.changes) for moment in worst} == {("snow", 5.0, 1)}
    assert worst[0].mix == {"snow": 1.0}


def test_a_loss_in_an_old_second_is_kept(source, clock):
    monitor = Monitor(source, clock=clock)
    monitor.add(make_result())
    clock.now += 2
    source.state = "lost"
    monitor.idle()
    source.state = "running"
    clock.now += 400
    monitor.add(make_result())
    clock.now += 1
    monitor.add(make_result())
    first = monitor.status(since=0).timeline[0]
    assert (first.at, first.seconds, first.frames, first.lost, first.corruption) == (0, 3, 1, True, "fog")


def test_events_are_counted(monitor):
    for event in ("bundle_swapped", "sink_dropped", "sink_dropped"):
        monitor.count_event(event)
    assert monitor.status().events == {"bundle_swapped": 1, "sink_dropped": 2}


def test_snapshots_from_other_threads_are_consistent():
    source = ArraySource(np.zeros((1, 8, 8, 3), np.uint8))
    monitor = Monitor(source)
    stop = threading.Event()
    broken = []

    def look():
        while not stop.is_set():
            try:
                status = monitor.status(since=0)
                json.dumps(status.to_dict())
                assert sum(status.totals.classes.values()) == status.totals.results
                assert sum(moment.frames for moment in status.timeline) == status.totals.results
            except Exception as error:
                broken.append(error)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    for index in range(2000):
        source.rejections[f"reason {index}"] += 1
        monitor.add(make_result(index, label=f"class {index % 700}", belief=spread_belief()))
        monitor.count_event(f"event {index % 50}")
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert broken == []
