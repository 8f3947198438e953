"""Sinks that are slow, that raise, that never come back."""

import gc
import logging
import subprocess
import sys
import threading
import time
import traceback
import weakref
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.edge.sinks.background import BackgroundSink
from rws.edge.sinks.jsonl import JsonlSink
from rws.errors import InputError, RwsError
from support.fakes import StillClock, make_frame, make_result

LONG = 10.0  # seconds; only a failing test waits so long


class Gate:
    """A sink that stays in `write` until it is let go; notes what it got and how it was left."""

    def __init__(self, fail_at=None, slow=0.0):
        self.seen, self.left, self.threads = [], [], set()
        self.fail_at, self.slow = fail_at, slow
        self.inside, self.go = threading.Semaphore(0), threading.Event()

    def write(self, frame, result):
        self.threads.add(threading.current_thread())
        self.inside.release()
        assert self.go.wait(LONG)
        time.sleep(self.slow)
        if frame.index == self.fail_at:
            raise RwsError("out.mp4: cannot be written (no space)") from OSError("no space")
        self.seen.append(frame.index)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.left.append(error)

    def wait_inside(self):
        assert self.inside.acquire(timeout=LONG)


def put(sink, *indices):
    for index in indices:
        sink.write(make_frame(index), make_result(index))


def run(sink, *indices, error=None):
    """A run that puts frames into a sink, and is ended by an error if there is one."""
    with sink:
        put(sink, *indices)
        if error is not None:
            raise error


def counts(sink):
    return {name: value for name, value in asdict(sink.status()).items() if name not in ("state", "error", "failures")}


def balanced(sink):
    found = counts(sink)
    return found["accepted"] == sum(found.values()) - found["accepted"]


def wait_for(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_live_source_drops_the_oldest_frame_and_does_not_wait():
    gate = Gate()
    with BackgroundSink(gate, capacity=3) as sink:
        put(sink, 0)
        gate.wait_inside()
        put(sink, *range(1, 9))
        assert counts(sink) == {"accepted": 9, "written": 0, "dropped": 5, "failed": 0, "waiting": 3, "writing": 1}
        gate.go.set()
    assert gate.seen == [0, 6, 7, 8]
    assert counts(sink) == {"accepted": 9, "written": 4, "dropped": 5, "failed": 0, "waiting": 0, "writing": 0}
    assert gate.left == [None]
    assert gate.threads == {sink._thread}
    assert not sink.abandoned


def test_a_file_waits_and_loses_nothing():
    gate = Gate()
    with BackgroundSink(gate, capacity=2, when_full="wait") as sink:
        put(sink, 0)
        gate.wait_inside()
        put(sink, 1, 2)
        writer = threading.Thread(target=put, args=(sink, 3), daemon=True)
        writer.start()
        writer.join(0.1)
        assert writer.is_alive()
        assert sink.waiting == 2
        gate.go.set()
        writer.join(LONG)
        assert not writer.is_alive()
        put(sink, *range(4, 30))
    assert gate.seen == list(range(30))
    assert counts(sink) == {"accepted": 30, "written": 30, "dropped": 0, "failed": 0, "waiting": 0, "writing": 0}


@pytest.mark.parametrize("when_full", ["drop", "wait"])
def test_an_exception_surfaces_with_its_type_and_cause(when_full):
    gate = Gate(fail_at=1)
    gate.go.set()
    sink = BackgroundSink(gate, when_full=when_full)

    def run_on():
        with sink:
            put(sink, 0, 1)
            wait_for(lambda: sink.failed)
            put(sink, 2)

    with pytest.raises(RwsError, match="cannot be written") as caught:
        run_on()
    assert isinstance(caught.value.__cause__, OSError)
    assert gate.seen == [0]
    assert gate.left == [caught.value]
    assert counts(sink) == {"accepted": 2, "written": 1, "dropped": 0, "failed": 1, "waiting": 0, "writing": 0}
    with pytest.raises(RwsError) as again:
        sink.close()
    assert again.value is caught.value


def test_an_exception_at_the_last_frame_surfaces_at_the_exit():
    gate = Gate(fail_at=4)
    gate.go.set()
    with pytest.raises(RwsError, match="cannot be written"), BackgroundSink(gate, when_full="wait") as sink:
        put(sink, *range(5))
    assert gate.seen == [0, 1, 2, 3]
    assert balanced(sink)


def test_an_exception_wakes_a_writer_that_waits_for_room():
    gate = Gate(fail_at=0)
    sink = BackgroundSink(gate, capacity=2, when_full="wait")
    found = []

    def write():
        try:
            put(sink, 3)
        except RwsError as error:
            found.append(error)

    def run_on():
        with sink:
            put(sink, 0)
            gate.wait_inside()
            put(sink, 1, 2)
            writer = threading.Thread(target=write, daemon=True)
            writer.start()
            writer.join(0.05)
            gate.go.set()
            writer.join(LONG)

    with pytest.raises(RwsError) as caught:
        run_on()
    assert found == [caught.value]
    assert counts(sink) == {"accepted": 3, "written": 0, "dropped": 0, "failed": 3, "waiting": 0, "writing": 0}


def test_an_exception_of_the_sinks_exit_is_raised():
    class Unfinished(Gate):
        def __exit__(self, kind, error, trace):
            raise RwsError("the last fragment cannot be written")

    gate = Unfinished()
    gate.go.set()
    with pytest.raises(RwsError, match="last fragment"), BackgroundSink(gate) as sink:
        put(sink, 0)
    assert gate.seen == [0]


def test_an_error_of_the_run_reaches_the_sink_and_the_caller(caplog):
    gate = Gate(fail_at=1)
    gate.go.set()
    run_error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(BackgroundSink(gate), 0, error=run_error)
    assert gate.left == [run_error]
    assert gate.seen == [0]

    gate = Gate(fail_at=0)
    gate.go.set()
    with pytest.raises(KeyboardInterrupt):
        run(BackgroundSink(gate), 0, error=run_error)
    assert "Gate failed too: out.mp4: cannot be written" in caplog.text


def test_an_error_that_is_raised_for_months_does_not_grow():
    gate = Gate(fail_at=0)
    gate.go.set()
    sink = BackgroundSink(gate)
    sink.__enter__()
    put(sink, 0)
    wait_for(lambda: sink.failed)
    lengths = []
    for _ in range(50):
        with pytest.raises(RwsError) as caught:
            put(sink, 1)
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(lengths)) == 1


def test_a_sink_that_never_returns_is_abandoned(caplog):
    gate = Gate()
    sink = BackgroundSink(gate, capacity=4, timeout=0.1)
    with caplog.at_level(logging.WARNING), sink:
        put(sink, 0)
        gate.wait_inside()
        put(sink, 1, 2)
        started = time.monotonic()
    assert 0.09 < time.monotonic() - started < LONG / 2
    assert sink.abandoned
    assert counts(sink) == {"accepted": 3, "written": 0, "dropped": 2, "failed": 0, "waiting": 0, "writing": 1}
    assert "Gate has not returned for 0.1 s and is abandoned; 2 frames are lost" in caplog.text
    with pytest.raises(ValueError, match="not open"):
        put(sink, 3)
    # If it does come back, it is left in good order and the numbers still add up.
    gate.go.set()
    sink._thread.join(LONG)
    assert gate.left == [None]
    assert counts(sink) == {"accepted": 3, "written": 1, "dropped": 2, "failed": 0, "waiting": 0, "writing": 0}


def test_a_file_gets_more_time_than_a_live_view():
    assert BackgroundSink(Gate()).timeout == 5
    assert BackgroundSink(Gate(), when_full="wait").timeout == 60


def test_a_process_ends_though_its_sink_never_does():
    code = (
        "import threading\n"
        "from rws.edge.sinks.background import BackgroundSink\n"
        "from support.fakes import StillClock, make_frame, make_result\n"
        "class Stuck:\n"
        "    def write(self, frame, result): threading.Event().wait()\n"
        "with BackgroundSink(Stuck(), timeout=0.1) as sink:\n"
        "    for index in range(5): sink.write(make_frame(index), make_result(index))\n"
        "print('end')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "end\n"


def test_close_twice_and_outside_of_with():
    class Plain:
        seen = 0

        def write(self, frame, result):
            self.seen += 1

    plain = Plain()
    sink = BackgroundSink(plain)
    with pytest.raises(ValueError, match="not open"):
        put(sink, 0)
    with sink:
        put(sink, 0, 1)
        sink.close()
        assert plain.seen == 2
        with pytest.raises(ValueError, match="not open"):
            put(sink, 2)
    sink.close()
    assert counts(sink) == {"accepted": 2, "written": 2, "dropped": 0, "failed": 0, "waiting": 0, "writing": 0}


def test_a_sink_that_cannot_be_entered_is_refused(tmp_path):
    with pytest.raises(InputError, match="capacity is 0"):
        BackgroundSink(Gate(), capacity=0)
    sink = BackgroundSink(JsonlSink(tmp_path / "no" / "out.jsonl"))
    with pytest.raises(InputError, match="its folder does not exist"), sink:
        pass
    assert not sink._thread.is_alive()


def test_a_thread_that_cannot_start_exits_the_sink():
    gate = Gate()
    sink = BackgroundSink(gate)
    sink._thread.start = lambda: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
    with pytest.raises(RuntimeError, match="start new thread"), sink:
        pass
    assert [type(error) for error in gate.left] == [RuntimeError]


def test_frames_are_released_once_they_are_written():
    gate = Gate()
    gate.go.set()
    with BackgroundSink(gate) as sink:
        frame = make_frame(0)
        pixels = weakref.ref(frame.image)
        sink.write(frame, make_result(0))
        wait_for(lambda: sink.written)
        put(sink, 1)
        wait_for(lambda: sink.written == 2)
        del frame
        gc.collect()
        assert pixels() is None


def test_a_finite_file_behind_a_queue(tmp_path):
    path = tmp_path / "out.jsonl"
    with BackgroundSink(JsonlSink(path), when_full="wait") as sink:
        put(sink, *range(40))
    assert len(path.read_text().splitlines()) == 40
    with pytest.raises(ZeroDivisionError):
        run(BackgroundSink(JsonlSink(tmp_path / "other"), when_full="wait"), 0, error=ZeroDivisionError())
    assert [item.name for item in tmp_path.iterdir()] == ["out.jsonl"]


@settings(max_examples=60)
@given(
    capacity=st.integers(1, 5),
    when_full=st.sampled_from(["drop", "wait"]),
    writes=st.lists(st.sampled_from([0.0, 0.0005]), max_size=40),
    slow=st.sampled_from([0.0, 0.0003]),
    fail_at=st.none() | st.integers(0, 30),
)
def test_the_counters_always_add_up(capacity, when_full, writes, slow, fail_at):
    gate = Gate(fail_at, slow)
    gate.go.set()
    accepted, raised = [], None
    try:
        with BackgroundSink(gate, capacity=capacity, when_full=when_full) as sink:
            for index, pause in enumerate(writes):
                time.sleep(pause)
                put(sink, index)
                accepted.append(index)
                assert balanced(sink)
                assert counts(sink)["waiting"] <= capacity
    except RwsError as error:
        raised = error
    assert balanced(sink)
    assert counts(sink)["accepted"] == len(accepted)
    assert counts(sink)["waiting"] == counts(sink)["writing"] == 0
    assert gate.seen == sorted(set(gate.seen))
    assert len(gate.seen) == sink.written
    assert len(gate.left) == 1
    assert gate.left[0] is raised
    if when_full == "wait":
        assert gate.seen == list(range(len(writes) if fail_at is None else min(fail_at, len(writes))))
    elif raised is None and writes:
        assert gate.seen[-1] == len(writes) - 1


def test_a_sink_that_is_given_up_costs_its_own_frames_only(caplog):
    gate = Gate(fail_at=1)
    gate.go.set()
    with BackgroundSink(gate, name="jsonl", when_full="wait", on_failure="give up") as sink:
        put(sink, *range(50))
        wait_for(lambda: not sink.waiting)
        put(sink, *range(50, 60))
    status = sink.status()
    assert (status.state, status.error, status.failures) == ("failed", "out.mp4: cannot be written (no space)", 1)
    assert (status.accepted, status.written, status.failed) == (60, 1, 59)
    assert gate.seen == [0]
    assert [type(error) for error in gate.left] == [RwsError]  # exited once, at once, with the error
    assert len(caplog.records) == 1
    assert "jsonl: out.mp4: cannot be written (no space); the run goes on, it is given up" in caplog.text
    sink.close()


def test_a_failure_at_the_end_of_a_sink_that_is_given_up_is_in_its_status():
    class Unfinished(Gate):
        def __exit__(self, kind, error, trace):
            raise RwsError("the last fragment cannot be written")

    gate = Unfinished()
    gate.go.set()
    with BackgroundSink(gate, on_failure="give up") as sink:
        put(sink, 0)
    assert (sink.status().state, sink.status().error) == ("failed", "the last fragment cannot be written")


class Fragile(Gate):
    """Fails while it is `broken`; notes when it was entered."""

    broken = False

    def __init__(self, clock):
        super().__init__()
        self.clock, self.entered = clock, []
        self.go.set()

    def write(self, frame, result):
        if self.broken:
            raise OSError("broken")
        super().write(frame, result)

    def __enter__(self):
        self.entered.append(self.clock.now)
        return self


def test_the_pauses_grow_to_a_minute_and_there_is_one_warning_for_all_of_them(caplog):
    clock = StillClock(0.0)
    fragile = Fragile(clock)
    with BackgroundSink(fragile, on_failure="reopen", clock=clock) as sink:
        put(sink, 0)
        wait_for(lambda: sink.written)
        fragile.broken = True
        for _ in range(1200):
            failures = sink.failures
            put(sink, 1)
            wait_for(lambda: not sink.waiting and not sink.writing)
            clock.now += 0.25
            assert sink.failures - failures in (0, 1)
        assert [round(at) for at in fragile.entered] == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
        assert (sink.written, sink.failed, sink.failures) == (1, 1200, 10)
        assert len(caplog.records) == 1
        fragile.broken = False
        clock.now += 60
        put(sink, 2)
        wait_for(lambda: sink.written == 2)
        clock.now += 10
        put(sink, 3)
        wait_for(lambda: sink.written == 3)
        assert sink.status().state == "up"
    assert fragile.seen == [0, 2, 3]
    assert balanced(sink)
    assert [record.getMessage() for record in caplog.records][1:] == ["Fragile works again; 1200 frames were lost"]


def test_a_sink_that_fails_repeatedly_does_not_flood_the_log(caplog):
    clock = StillClock(0.0)
    fragile = Fragile(clock)
    with BackgroundSink(fragile, on_failure="reopen", clock=clock) as sink:
        for _ in range(100):
            for fragile.broken, pause in ((False, 1), (True, 61)):
                put(sink, 0)
                wait_for(lambda: not sink.waiting and not sink.writing)
                clock.now += pause
    assert (sink.failures, sink.written) == (100, 100)
    assert len(caplog.records) == 1


def test_the_pauses_stay_long_while_a_sink_cannot_even_be_opened():
    clock = StillClock(0.0)
    attempts = []

    class Gone(Fragile):
        def __enter__(self):
            if clock.now > 0:
                attempts.append(clock.now)
                raise OSError("no such folder")
            return self

    gone = Gone(clock)
    with BackgroundSink(gone, on_failure="reopen", clock=clock) as sink:
        gone.broken = True
        for _ in range(1200):
            put(sink, 0)
            wait_for(lambda: not sink.waiting and not sink.writing)
            clock.now += 0.25
    assert attempts == [1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_sinks_that_hang_share_one_timeout(monkeypatch):
    waited = []
    monkeypatch.setattr("rws.edge.sinks.background.time", SimpleNamespace(monotonic=lambda: 100.0 + sum(waited)))
    sinks = [BackgroundSink(Gate(), timeout=5.0) for _ in range(4)]
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
            monkeypatch.setattr(sink._thread, "join", waited.append)
            put(sink, 0)
        for sink in sinks:
            sink.end()
    assert waited == [5.0, 0.0, 0.0, 0.0]
    assert [sink.status().state for sink in sinks] == ["abandoned"] * 4
    for sink in sinks:
        sink.sink.go.set()


def test_large_frames_do_not_fill_the_memory():
    gate = Gate()
    with BackgroundSink(gate, capacity=8) as sink:
        put(sink, 0)
        gate.wait_inside()
        image = np.zeros((2160, 3840, 3), np.uint8)
        for index in range(1, 9):
            sink.write(replace(make_frame(index), image=image), make_result(index))
        assert (sink.waiting, sink.dropped) == (2, 6)
        sink.write(replace(make_frame(9), image=np.zeros((8000, 8000, 3), np.uint8)), make_result(9))
        assert (sink.waiting, sink.dropped) == (1, 8)
        gate.go.set()
    assert gate.seen == [0, 9]


def test_a_run_that_is_asked_to_stop_need_not_wait_for_a_sink_that_hangs():
    gate, stopped = Gate(), threading.Event()
    sink = BackgroundSink(gate, capacity=1, when_full=lambda: "drop" if stopped.is_set() else "wait", timeout=0.1)
    with sink:
        put(sink, 0)
        gate.wait_inside()
        put(sink, 1)
        writer = threading.Thread(target=put, args=(sink, 2), daemon=True)
        writer.start()
        writer.join(0.1)
        assert writer.is_alive()
        stopped.set()
        writer.join(LONG)
        assert not writer.is_alive()
    assert sink.status().state == "abandoned"
    gate.go.set()


def test_a_sink_that_hangs_counts_as_failing_until_it_goes_on():
    gate, clock = Gate(), StillClock()
    with BackgroundSink(gate, on_failure="reopen", clock=clock) as sink:
        put(sink, 0)
        gate.wait_inside()
        assert sink.status().state == "up"
        clock.now += 11
        assert (sink.status().state, sink.status().error) == ("failing", "has not taken a frame for 11 s")
        gate.go.set()
        wait_for(lambda: sink.written)
        assert sink.status().state == "up"
