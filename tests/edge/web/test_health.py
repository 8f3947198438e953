import json

import pytest

from rws.edge.web import PageServer
from rws.errors import FrameError
from rws.records import SinkStatus
from support.fakes import make_result
from support.http import get


@pytest.fixture
def ask(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}, stale_after=10) as server:

        def once():
            status, headers, body = get(server, "/health")
            assert headers["Content-Type"].startswith("application/json")
            return status, json.loads(body)

        yield once


def test_a_start_is_healthy_until_it_takes_too_long(ask, clock):
    clock.now += 9.9
    assert ask() == (
        200,
        {"schema": "health/1", "status": "ok", "reason": "", "since_result_s": None, "source": "running"},
    )
    clock.now += 0.2
    status, answer = ask()
    assert (status, answer["status"], answer["reason"]) == (503, "stale", "no result for 10 s")


def test_results_keep_it_healthy(ask, clock, monitor):
    for _ in range(5):
        monitor.add(make_result())
        clock.now += 9.5
        assert ask()[0] == 200
    clock.now += 3
    status, answer = ask()
    assert (status, answer["status"], answer["since_result_s"]) == (503, "stale", 12.5)
    monitor.add(make_result())
    assert ask()[0] == 200


@pytest.mark.parametrize("state", ["reconnecting", "lost"])
def test_a_lost_source_is_named_and_comes_back(ask, clock, monitor, source, state):
    monitor.add(make_result())
    source.state, source.error = state, "no frame for 5 s"
    assert ask()[0] == 200
    clock.now += 11
    status, answer = ask()
    assert (status, answer["status"], answer["reason"]) == (503, "lost", "camera 0 is lost: no frame for 5 s")
    assert answer["source"] == state
    source.state = "running"
    monitor.add(make_result())
    assert ask()[0] == 200


def test_an_end_is_not_a_loss(ask, clock, monitor, source):
    monitor.add(make_result())
    source.state = "ended"
    clock.now += 60
    status, answer = ask()
    assert (status, answer["status"], answer["reason"]) == (503, "ended", "no result for 60 s")


def test_frames_without_a_result_degrade_it_until_they_stop(ask, clock, monitor):
    bad = FrameError("bad_belief", "belief: the least number is nan")
    monitor.add(make_result())
    for _ in range(2):
        monitor.reject(bad)
        assert ask()[0] == 200
    monitor.reject(bad)
    status, answer = ask()
    expected = "3 of the last 10 frames have no result: bad_belief: belief: the least number is nan"
    assert (status, answer["status"], answer["reason"]) == (503, "degraded", expected)
    clock.now += 20  # not a word about silence: its cause is known
    assert ask()[1]["status"] == "degraded"
    for _ in range(8):
        monitor.add(make_result())
    assert ask()[1] == {
        "schema": "health/1", "status": "ok", "reason": "", "since_result_s": 0.0, "source": "running",
    }  # fmt: skip


def test_an_output_that_fails_is_named_but_asks_for_no_restart(ask, monitor):
    monitor.add(make_result())
    full = SinkStatus("failing", "/data/r.csv: cannot be written (No space left on device)", 3, accepted=9, failed=9)
    monitor.sinks = lambda: {"csv": full, "save": SinkStatus("abandoned"), "jsonl": SinkStatus()}
    status, answer = ask()
    expected = "csv: /data/r.csv: cannot be written (No space left on device); save: abandoned"
    assert (status, answer["status"], answer["reason"]) == (200, "impaired", expected)
    for _ in range(3):
        monitor.reject(FrameError("bad_belief", "belief: the least number is nan"))
    assert ask()[:1] == (503,)
    assert ask()[1]["status"] == "degraded"


def test_a_share_of_frames_without_a_result_degrades_it(ask, monitor):
    for _ in range(10):
        monitor.add(make_result())
        monitor.add(make_result())
        monitor.reject(FrameError("bad_output", "2 of 10 logits are not finite"))
    assert ask()[1]["status"] == "degraded"
    assert monitor.status().totals.rejected == {"bad_output": 10}
