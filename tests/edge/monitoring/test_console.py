import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rws.edge.monitoring.console import MOST_WAITING, LossyOutput


def pipe():
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), os.fdopen(writing, "w")


def test_everything_is_printed_in_order_if_it_is_read():
    reader, stream = pipe()
    with stream, LossyOutput(stream, lambda: False) as output:
        thread = threading.Thread(target=lambda: [output.write(f"{n} ä\n") for n in range(5000)])
        thread.start()
        lines = [reader.readline().decode() for _ in range(5000)]
        thread.join()
    assert lines == [f"{n} ä\n" for n in range(5000)]
    reader.close()


def test_printing_does_not_wait_for_a_reader_that_does_not_read():
    reader, stream = pipe()
    with reader, stream:
        started = time.monotonic()
        with LossyOutput(stream, lambda: True) as output:
            for _ in range(3 * MOST_WAITING):
                output.write("x" * 1000)
            assert time.monotonic() - started < 1.5
        assert time.monotonic() - started < 4


def test_a_closed_pipe_is_not_an_error():
    reader, stream = pipe()
    reader.close()
    with LossyOutput(stream, lambda: True) as output:
        output.write("nobody hears this")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_counted_and_a_reader_that_has_gone_is_none():
    with open("/dev/full", "w") as stream, LossyOutput(stream, lambda: False) as output:
        for _ in range(3):
            output.write("lost")
    status = output.sink_status
    assert (status.state, status.error) == ("failing", "cannot be written (No space left on device)")
    assert (status.accepted, status.written, status.failed, status.failures) == (3, 0, 3, 3)
    reader, stream = pipe()
    reader.close()
    with stream, LossyOutput(stream, lambda: False) as output:
        output.write("nobody hears this")
    assert output.unread
    assert output.sink_status.state == "up"


def test_a_pipe_that_does_not_wait_loses_nothing():
    reader, stream = pipe()
    os.set_blocking(stream.fileno(), False)
    found = []
    reading = threading.Thread(target=lambda: found.append(reader.read()))
    with stream, LossyOutput(stream, lambda: False) as output:
        for _ in range(100):
            output.write("x" * 10_000)
        reading.start()
    reading.join(10)
    reader.close()
    assert len(found[0]) == 1_000_000


def test_without_a_file_it_is_written_directly():
    text = io.StringIO()
    with LossyOutput(text, lambda: True) as output:
        output.write("here")
        assert text.getvalue() == "here"
        assert not output.isatty()


def test_a_terminal_that_is_stopped_stops_neither_the_loop_nor_its_end(tiny_bundle, tmp_path):
    rows = tmp_path / "r.jsonl"
    command = ["run", "pattern:64x64@200", "--bundle", tiny_bundle.path, "--independent", "--jsonl", rows]
    process = subprocess.Popen(
        [sys.executable, "-c", "from rws.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        # One line per frame, and nobody reads: the pipe is full after a few hundred of them.
        deadline = time.monotonic() + 30
        while not (rows.exists() and rows.read_bytes().count(b"\n") > 2500):
            assert time.monotonic() < deadline, "the loop has stopped"
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
    finally:
        process.kill()
        process.stdout.close()
