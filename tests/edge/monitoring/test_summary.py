import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.summary import Reservoir, Summary
from rws.edge.sources.arrays import ArraySource
from rws.oracle.belief import certain
from rws.records import SinkStatus
from support.fakes import CORRUPTIONS, LEVELS, TickingClock, make_result

SOURCE = ArraySource(np.zeros((1, 8, 8, 3), np.uint8))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_exact_within_the_capacity(values, q):
    reservoir = Reservoir(capacity=50)
    for value in values:
        reservoir.add(value)
    assert reservoir.percentile(q) == pytest.approx(np.percentile(values, q))


def test_beyond_the_capacity_memory_is_bounded_and_percentiles_are_near():
    reservoir = Reservoir(capacity=2000)
    for value in np.random.default_rng(0).permutation(40_000):
        reservoir.add(float(value))
    assert reservoir.count == 40_000
    assert reservoir.percentile(50) == pytest.approx(20_000, rel=0.06)
    assert reservoir.percentile(95) == pytest.approx(38_000, rel=0.02)


def test_counts_and_times():
    summary, monitor = Summary(TickingClock(step=0.1)), Monitor(SOURCE)
    for index in range(10):
        belief = certain(CORRUPTIONS, LEVELS, *(("clean", 0.0) if index < 3 else ("snow", 5.0)))
        label = "dog" if index < 4 else "cat"
        for taker in (summary, monitor):
            taker.add(make_result(index, label=label, belief=belief, changed=index in (3, 7), predict_ms=float(index)))
    found = json.loads(json.dumps(summary.to_dict(monitor.status()), allow_nan=False))
    assert (found["frames"], found["mix_changes"], found["dropped"], found["rejected"]) == (10, 2, 0, 0)
    assert found["classes"] == {"cat": 6, "dog": 4}
    assert found["corruptions"] == {"snow": 7, "clean": 3}
    assert found["fps"] == pytest.approx(10.0)
    assert found["times_ms"]["predict"] == {"p50": 4.5, "p95": 8.55}
    assert found["times_ms"]["total"] == {"p50": 7.0, "p95": 11.05}
    assert found["age_ms"] == {"p50": 5.0, "p95": 5.0}


def render(summary, monitor, **options):
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(summary.render(monitor.status(), **options))
    return capture.get()


def test_the_printed_summary():
    summary, monitor = Summary(TickingClock()), Monitor(SOURCE)
    assert render(summary, monitor).strip() == "frames 0 · mix changes 0 · dropped 0 · rejected 0"
    for index in range(4):
        summary.add(make_result(index, changed=index == 1))
        monitor.add(make_result(index, changed=index == 1))
    assert render(summary, monitor).splitlines()[1:] == ["classes: cat 4", "corruptions: fog 4"]
    assert render(summary, monitor, images=True).splitlines() == ["images 4", "classes: cat 4", "corruptions: fog 4"]
    text = render(summary, monitor, timings=True, images=True)
    assert "frames 4, 1000.0 per second · mix changes 1" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("ms", "p50", "p95"))}
    assert rows["ms"] == ["read", "preprocess", "oracle", "policy", "patch", "predict", "total", "age"]
    assert rows["p50"] == ["0.50", "0.25", "1.00", "0.25", "0.50", "2.00", "4.50", "5.00"]


def test_the_summary_names_the_outputs_that_lost_frames():
    monitor = Monitor(SOURCE)
    monitor.sinks = lambda: {
        "jsonl": SinkStatus("failing", "no space", 2, accepted=9, written=3, dropped=1, failed=5),
        "csv": SinkStatus(accepted=9, written=9),
        "save": SinkStatus(accepted=9, written=8, dropped=1),
        "window": SinkStatus("abandoned"),
    }
    assert render(Summary(), monitor).splitlines()[1:] == [
        "jsonl: written 3, dropped 1, failed 5 · failing: no space",
        "save: written 8, dropped 1, failed 0",
        "window: written 0, dropped 0, failed 0 · abandoned",
    ]


def test_an_empty_summary_is_valid_json():
    found = json.loads(json.dumps(Summary().to_dict(Monitor(SOURCE).status()), allow_nan=False))
    assert (found["times_ms"], found["age_ms"], found["fps"]) == ({}, {}, None)
