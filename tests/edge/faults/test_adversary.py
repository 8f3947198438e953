from dataclasses import replace

from rws.edge.faults.adversary import Attacked
from rws.edge.faults.bundles import BAD
from rws.edge.faults.peers import ATTACKS, read_refused

SINKS = {
    "jsonl": {"failures": 3, "accepted": 10, "written": 0, "failed": 9, "dropped": 1},
    "csv": {"failures": 0, "accepted": 10, "written": 10, "failed": 0, "dropped": 0},
}
KEPT = Attacked(
    bad_bundles=tuple(BAD),
    bundles_refused=20,
    good_bundles=1,
    bundles_swapped=1,
    connections=dict.fromkeys(ATTACKS, 10),
    refused={"no_request": 140, "wrong_token": 6, "guessing": 4},
    connections_at_end=2,
)


def test_there_are_twenty_bad_bundles():
    assert len(BAD) == 20


def test_all_promises_can_be_kept():
    assert all(KEPT.promises(SINKS).values())


def test_each_promise_can_be_broken():
    broken = [
        replace(KEPT, bundles_refused=19),
        replace(KEPT, bundles_swapped=0),
        replace(KEPT, refused={"no_request": 151, "wrong_token": 10}),
        replace(KEPT, refused={"no_request": 135, "wrong_token": 9}),
        replace(KEPT, connections_at_end=30),
    ]
    failed = [[promise for promise, kept in one.promises(SINKS).items() if not kept] for one in broken]
    failed += [
        [promise for promise, kept in KEPT.promises({**SINKS, name: sink}).items() if not kept]
        for name, sink in {
            "jsonl": {**SINKS["jsonl"], "failed": 8},
            "csv": {**SINKS["csv"], "written": 9},
        }.items()
    ]
    assert failed == [[promise] for promise in KEPT.promises(SINKS)]


def test_refusals_are_read_from_the_metrics():
    text = 'rws_http_connections 3.0\nrws_http_refused_total{reason="timeout"} 2.0\nrws_up 1\n'
    text += 'rws_http_refused_total{reason="body"} 0.0\n'
    assert read_refused(text) == ({"timeout": 2}, 3)
