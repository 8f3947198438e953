import io

import numpy as np
from rich.console import Console

from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.status_line import StatusLine, status_line
from rws.edge.sources.arrays import ArraySource
from rws.records import SinkStatus
from support.fakes import TickingClock, make_result


def monitor(**state):
    clock = TickingClock(step=0.0)
    source = ArraySource(np.zeros((1, 4, 4, 3), np.uint8))
    for name, value in state.items():
        setattr(source, name, value)
    return Monitor(source, bundle="tiny", clock=clock), source, clock


def test_before_the_first_frame_it_says_what_the_source_is_doing():
    watched, _, _ = monitor(state="opening")
    assert status_line(watched.status()) == "waiting for array"
    watched.source.error = "cannot be opened"
    assert (
        status_line(watched.status(), how_to_end="; Ctrl-C ends") == "waiting for array; Ctrl-C ends · cannot be opened"
    )


def test_it_shows_rate_age_stages_mix_losses_and_the_error():
    watched, source, clock = monitor(dropped=3, reconnects=2)
    source.rejections["damaged"] += 4
    for index in range(6):
        clock.now += 0.5
        watched.add(make_result(index, mix={"fog": 0.5, "snow": 0.25}))
    watched.count_event("bundle_refused")
    seen = "fog 0.50 + snow 0.25 · cat 75% · dropped 3 · rejected 4 damaged · reconnects 2 · bundle refused 1"
    stages = "read 0.5 preprocess 0.2 oracle 1.0 policy 0.2 patch 0.5 predict 2.0 ms"
    assert status_line(watched.status()) == f"2.0 fps · age 5 ms · {seen}"
    assert status_line(watched.status(), timings=True) == f"2.0 fps · age 5 ms · {stages} · {seen}"
    source.state, source.error = "reconnecting", "no frame for 5 s"
    assert status_line(watched.status()).startswith("waiting for array · no frame for 5 s · dropped 3")


def test_an_output_that_fails_stands_in_it_until_it_works_again():
    watched, _, _ = monitor()
    watched.sinks = lambda: {"csv": SinkStatus("failing", "no space", failed=12), "jsonl": SinkStatus()}
    assert status_line(watched.status()).endswith(" · csv failing, 12 lost")
    watched.sinks = lambda: {"csv": SinkStatus(failed=12)}
    assert "csv" not in status_line(watched.status())


def test_a_log_and_a_listener_get_a_line_every_ten_seconds():
    watched, _, clock = monitor()
    output, lines = io.StringIO(), []
    with StatusLine({"": watched}, Console(file=output), lines.append, clock) as status:
        for _ in range(25):
            clock.now += 1.0
            status.update()
    assert output.getvalue().count(" fps") == 2 == len(lines)


def test_it_says_at_once_that_it_waits_for_a_source_and_then_every_ten_seconds():
    watched, source, clock = monitor(state="opening")
    output, lines = io.StringIO(), []
    with StatusLine({"": watched}, Console(file=output, width=200), lines.append, clock) as status:
        for state, updates in (("opening", 12), ("running", 3), ("reconnecting", 3)):
            source.state = state
            for _ in range(updates):
                status.update()
                clock.now += 1.0
    assert output.getvalue().splitlines() == ["waiting for array; Ctrl-C ends"] * 3
    assert lines == ["waiting for array"] * 3


def test_a_terminal_gets_one_line_that_is_updated_in_place():
    watched, _, clock = monitor()
    output = io.StringIO()
    with StatusLine({"": watched}, Console(file=output, force_terminal=True), clock=clock) as status:
        for index in range(4):
            clock.now += 0.3
            watched.add(make_result(index))
            status.update()
    assert output.getvalue().count(" fps") >= 4
    assert "\x1b[2K" in output.getvalue()
