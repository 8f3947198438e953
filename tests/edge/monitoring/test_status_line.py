import io

import numpy as np
from rich.console import Console

from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.status_line import StatusLine, status_line
from rws.edge.sources.arrays import ArraySource
from support.fakes import TickingClock, make_result


def monitor(**state):
    clock = TickingClock(step=0.0)
    source = ArraySource(np.zeros((1, 4, 4, 3), np.uint8))
    for name, value in state.items():
        setattr(source, name, value)
    return Monitor(source, bundle="tiny", clock=clock), source, clock


def test_before_the_first_frame_it_says_what_the_source_is_doing():
    watched, _, _ = monitor(state="opening")
    assert status_line(watched.status()) == "0.0 fps · opening"


def test_it_tells_rate_age_stages_mix_losses_and_the_error():
    watched, source, clock = monitor(dropped=3, reconnects=2)
    source.rejections["damaged"] += 4
    for index in range(6):
        clock.now += 0.5
        watched.add(make_result(index, mix={"fog": 0.5, "snow": 0.25}))
    watched.count_event("bundle_refused")
    line = status_line(watched.status())
    assert line == (
        "2.0 fps · age 5 ms · read 0.5 preprocess 0.2 oracle 1.0 policy 0.2 patch 0.5 predict 2.0 ms · "
        "fog 0.50 + snow 0.25 · cat 75% · dropped 3 · rejected 4 damaged · reconnects 2 · bundle refused 1"
    )
    source.state, source.error = "reconnecting", "no frame for 5 s"
    assert status_line(watched.status()).endswith("reconnecting: no frame for 5 s")


def test_a_log_gets_a_line_every_ten_seconds_and_whoever_else_wants_it_too():
    watched, _, clock = monitor()
    output, told = io.StringIO(), []
    with StatusLine(watched, Console(file=output), told.append, clock) as status:
        for _ in range(25):
            clock.now += 1.0
            status.update()
    assert output.getvalue().count(" fps") == 2 == len(told)


def test_a_terminal_gets_one_line_that_is_written_over():
    watched, _, clock = monitor()
    output = io.StringIO()
    with StatusLine(watched, Console(file=output, force_terminal=True), clock=clock) as status:
        for index in range(4):
            clock.now += 0.3
            watched.add(make_result(index))
            status.update()
    assert output.getvalue().count(" fps") >= 4
    assert "\x1b[2K" in output.getvalue()
