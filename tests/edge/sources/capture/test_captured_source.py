import gc
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.edge.faults.fakes import FakeTime, ScriptedCapture
from rws.edge.faults.frames import encode_h264, flip_bytes, scene
from rws.edge.sources.capture.decoding.checks import REASONS
from rws.edge.sources.capture.process import CaptureProcess
from rws.edge.sources.capture.protocol import CaptureSettings, Ended, FrameReady, Opened, encode
from rws.edge.sources.capture.shared import shared_memory
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.open import open_source
from rws.errors import SourceError
from rws.records import Frame
from support.fakes import write_video

IMAGE = scene(16, 24)


def play(source, stop):
    """The frames of a source that is stopped once `stop()` holds while no frame comes."""
    for frame in source.frames():
        if frame is not None:
            yield frame
        elif stop():
            source.stop()


def scripted(*steps, **options):
    time = FakeTime()
    capture = ScriptedCapture(steps, time)
    return live_source(capture, time, **options), capture, time


def live_source(capture, time, **options):
    settings = CaptureSettings("fake", "camera", "fake")
    return CapturedSource(settings, sleep=time.sleep, capture=capture, jitter=lambda: 1.0, **options)


STEP = st.one_of(
    st.just(("frame", IMAGE)),
    st.tuples(st.just("reject"), st.sampled_from(REASONS)),
    st.tuples(st.just("wait"), st.floats(0.0, 8.0)),
    st.just(("end", "unplugged")),
    st.tuples(st.just("open"), st.sampled_from(["", "busy"])),
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=40), st.integers(1, 12))
def test_whatever_happens_each_frame_is_accounted_for_and_the_pauses_stay_short(steps, wanted):
    # Between an opening and its answer nothing else comes, so openings are answered from a separate script.
    answers = [step for step in steps if step[0] == "open"] or [("open", "")]
    rest = [step for step in steps if step[0] != "open"]

    def script(time):
        answer = answers[len(capture.opened_at) % len(answers)]
        return [answer, *(rest if not answer[1] else [])]

    time = FakeTime()
    capture = ScriptedCapture(script, time)
    source = live_source(capture, time)
    count = 0
    for frame in play(source, lambda: time.now > 1000 + 600):
        assert frame.image is IMAGE
        count += 1
        assert source.received == source.delivered + source.dropped + source.rejected + source.buffered
        if count == wanted:
            source.stop()
    source.close()
    assert source.delivered == count
    assert source.buffered == 0
    assert source.received == count + source.dropped + source.rejected


def test_frames_come_with_their_numbers_and_times():
    source, _, _ = scripted(("open", ""), ("frame", IMAGE), ("reject", "black"), ("wait", 2.0), ("frame", IMAGE))
    frames = iter(source)
    first, second = next(frames), next(frames)
    assert (first.index, second.index) == (0, 2)
    assert second.captured_at - first.captured_at == pytest.approx(2.0)
    assert (source.state, source.fps, source.rejections) == ("running", 30.0, {"black": 1})


def test_none_comes_four_times_per_second_while_no_frame_comes():
    source, _, _ = scripted(("open", ""), ("frame", IMAGE), ("wait", 1.1), ("frame", IMAGE))
    frames = source.frames()
    assert next(frames) is not None
    idle = []
    while next(frames) is None:
        idle.append(source.idle_for)
    assert idle == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert source.idle_for == 0


def test_a_capture_process_that_dies_is_reported_and_replaced():
    source, capture, _ = scripted(
        ("open", ""),
        ("frame", IMAGE),
        ("end", "the capture process died (signal 9)"),
        ("open", ""),
        ("frame", IMAGE),
    )
    frames = iter(source)
    next(frames)
    next(frames)
    assert source.error == "the capture process died (signal 9)"
    assert (source.reconnects, len(capture.opened_at)) == (1, 2)


def test_a_source_that_is_lost_repeatedly_is_named_once(caplog):
    lost = [("open", ""), ("frame", IMAGE), ("frame", IMAGE), ("end", "busy (503)")]
    source, _, _ = scripted(*lost * 4, ("open", ""), *[("frame", IMAGE)] * 20)
    frames = iter(source)
    for _ in range(20):
        next(frames)
    assert [record.getMessage() for record in caplog.records] == [
        f"{source.name}: busy (503); reconnecting",
        f"{source.name} is back",
    ]


def test_a_source_that_is_given_up_is_not_said_to_be_reconnected(caplog):
    capture = CaptureProcess(CaptureSettings("/nowhere", "camera", "nowhere"))
    with CapturedSource(capture.settings, retries=0, capture=capture) as source, pytest.raises(SourceError):
        list(source)
    assert caplog.text == ""


@pytest.fixture
def process_and_worker():
    """A capture process that does nothing, and the worker's end of its connection."""
    ours, worker = socket.socketpair()
    idle = subprocess.Popen(["sleep", "60"])
    process = CaptureProcess(CaptureSettings("nothing", "file", "nothing"), lambda counters: (idle, ours))
    yield process, worker
    process.close()
    worker.close()


def test_an_answer_to_an_old_question_is_ignored(process_and_worker):
    process, worker = process_and_worker
    process.open()
    process.ask()
    process.ask()
    process.counters.add("received", 2)
    late, right = (encode(2 + index, FrameReady(16, 24, 1.0 + index, index)) for index in range(2))
    descriptor = shared_memory(IMAGE.nbytes)
    socket.send_fds(worker, [late + right], [descriptor])
    os.close(descriptor)
    assert process.answer(1.0) is None
    answer = process.answer(1.0)
    assert (answer.index, answer.captured_at, answer.image.shape, answer.name) == (1, 2.0, (16, 24, 3), "nothing")
    assert process.counters.whole == 1


def test_a_process_that_closes_the_connection_is_killed(process_and_worker):
    process, worker = process_and_worker
    process.open()
    worker.close()
    assert process.answer(1.0) == Ended("the capture process exited while sending an answer")
    assert process.pid is None


def test_frozen_frames_are_retried_at_the_same_pace_indefinitely():
    # Each opening gives a good frame or none, then the same one over and over.
    frozen = [("reject", "frozen"), ("wait", 0.5)]
    time = FakeTime()
    capture = ScriptedCapture(lambda time: itertools.chain([("open", "")], itertools.cycle(frozen)), time)
    source = live_source(capture, time)
    assert list(play(source, lambda: time.now > 1300)) == []
    assert max(np.diff(capture.opened_at)) < 7
    assert source.rejections["frozen"] > 400


def test_a_frame_that_is_being_checked_is_not_a_sign_of_life():
    class Slow(ScriptedCapture):
        """Counts a frame as received in one tick, and as frozen in the next."""

        def answer(self, timeout):
            answer = super().answer(timeout)
            if answer is None:
                self.counters.add("frozen" if self.counters["received"] > self.counters["frozen"] else "received")
            return answer

    time = FakeTime()
    source = live_source(Slow([("open", "")], time), time)
    assert list(play(source, lambda: source.error or time.now > 1000 + 60)) == []
    assert source.error == "gives only frozen frames for 5 s"


def test_bursts_are_learned_from_their_longest_gap():
    def bursts(time):
        """Twenty frames every ten seconds, by the clock on the wall."""
        yield ("open", "")
        while True:
            yield ("wait", 10 - time() % 10)
            for _ in range(20):
                yield ("frame", IMAGE)
                yield ("wait", 0.02)

    time = FakeTime()
    capture = ScriptedCapture(bursts, time)
    source = live_source(capture, time)
    count = sum(1 for _ in play(source, lambda: time.now > 1000 + 3600))
    assert count > 7000
    assert len(capture.opened_at) < 5


def test_stopping_while_it_opens_is_no_failure():
    source, _, _ = scripted(("hang", None), retries=0)
    assert list(play(source, lambda: source.idle_for > 2)) == []
    assert (source.state, source.error) == ("ended", "")


def test_a_silent_process_gets_two_seconds_beyond_its_own_limit_to_open():
    source, capture, _ = scripted(("hang", None), ("open", ""), ("frame", IMAGE))
    next(iter(source))
    assert capture.kills == 1
    assert capture.opened_at[1] - capture.opened_at[0] == pytest.approx(12.25 + 0.1, abs=0.3)


@pytest.fixture
def process(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 240, 11))
    process = CaptureProcess(CaptureSettings(str(path), "file", "clip"))
    yield process
    process.close()


def wait(process):
    for _ in range(200):
        if (answer := process.answer(0.1)) is not None:
            return answer
    raise AssertionError("no answer")


def test_the_process_answers_one_question_at_a_time(process):
    process.open()
    assert wait(process) == Opened(25.0, 20, True)
    for index in range(20):
        assert process.answer(0.0) is None
        process.ask()
        frame = wait(process)
        assert isinstance(frame, Frame)
        assert (frame.index, frame.image.shape) == (index, (48, 64, 3))
        assert abs(frame.image.mean() - (20 + 11 * index)) < 5
    process.ask()
    assert wait(process) == Ended("", media_end=0.8)
    assert (process.counters["received"], process.counters.whole) == (20, 20)


def test_a_killed_process_is_an_end_and_the_counters_stay(process):
    process.open()
    wait(process)
    process.ask()
    wait(process)
    os.kill(process.pid, signal.SIGKILL)
    process.ask()
    answers = [wait(process)]
    if isinstance(answers[-1], Frame):
        answers.append(wait(process))
    assert answers[-1] == Ended("the capture process died (signal 9)")
    delivered = 1 + (len(answers) == 2)
    process.counters.drop_leftovers(delivered)
    values = process.counters.snapshot()
    assert values["received"] == delivered + values["dropped"] + values["discarded"]
    assert process.counters.whole == delivered
    assert process.answer(0.0) == Ended("the capture process is not running")
    process.open()
    assert isinstance(wait(process), Opened)


def test_the_process_ends_when_its_parent_is_killed(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 240))
    script = (
        "from rws.edge.sources.open import open_source\nimport sys, time\n"
        f"source = open_source({str(path)!r}); next(iter(source))\n"
        "print(source.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().split()[2] == "Z":
                return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the capture process outlived its parent")


def test_no_process_or_descriptor_is_left_behind(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 240))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_source(path) as source:
            next(iter(source))
            pid = source.pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    del source
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_program_in_the_working_directory_is_not_imported(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", range(20, 240, 20))
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert len(list(open_source(path))) == 11


def test_a_file_that_is_cut_off_while_it_is_read_ends_and_is_not_retried(tmp_path):
    path = write_video(tmp_path / "clip.mkv", range(20, 240))
    path.write_bytes(path.read_bytes()[:-500])
    with open_source(path) as source:
        frames = [frame.index for frame in source]
    assert 0 < len(frames) <= 220
    assert source.reconnects == 0


def test_damage_in_a_file_is_counted_and_the_rest_is_played(tmp_path):
    encode_h264(tmp_path / "whole.mp4", 120)
    flip_bytes(tmp_path / "whole.mp4", tmp_path / "bad.mp4", flips=4, seed=1, part=0.5)
    with open_source(tmp_path / "bad.mp4") as source:
        last = max(frame.index for frame in source)
    assert source.rejected > 0
    assert last >= 96
    assert source.received == source.delivered + source.rejected


def test_a_rotated_video_is_turned_upright_as_opencv_does(tmp_path):
    encode_h264(tmp_path / "lying.mp4", 5)
    data = bytearray((tmp_path / "lying.mp4").read_bytes())
    matrix = data.find(b"tkhd") + 44
    assert struct.unpack(">9i", data[matrix : matrix + 36])[0] == 0x10000
    quarter = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 240 << 16, 0, 0x40000000)
    data[matrix : matrix + 36] = quarter
    (tmp_path / "lying.mp4").write_bytes(data)
    frame = next(iter(open_source(tmp_path / "lying.mp4")))
    _, upright = cv2.VideoCapture(str(tmp_path / "lying.mp4")).read()
    assert frame.image.shape == upright.shape == (320, 240, 3)
    assert np.abs(frame.image.astype(int) - upright[..., ::-1]).mean() < 1


def test_a_file_of_black_frames_alone_is_an_error(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [0] * 5)
    with open_source(path) as source, pytest.raises(SourceError, match=r"holds no usable frame .*black 5"):
        list(source)


def test_images_keep_their_values(tmp_path):
    frames = list(open_source(write_video(tmp_path / "clip.mp4", range(20, 240, 20))))
    first = frames[0].image.copy()
    assert frames[0].image.flags.writeable
    np.testing.assert_array_equal(frames[0].image, first)
    assert len({id(frame.image) for frame in frames}) == len(frames)


@pytest.mark.parametrize(("latest", "lost"), [(None, "buffered"), (False, "buffered"), (True, "dropped")])
def test_frames_decoded_ahead_count_as_dropped_only_if_the_newest_is_wanted(latest, lost):
    class File(ScriptedCapture):
        def answer(self, timeout):
            answer = super().answer(timeout)
            return replace(answer, finite=True) if isinstance(answer, Opened) else answer

    time = FakeTime()
    capture = File([("open", ""), ("frame", IMAGE)], time)
    settings = CaptureSettings("fake", "file", "fake", latest)
    source = CapturedSource(settings, sleep=time.sleep, capture=capture)
    next(iter(source))
    capture.counters.add("received", 3)  # decoded ahead
    source.close()
    counts = {"received": 4, "delivered": 1, "dropped": 0, "buffered": 0, lost: 3}
    assert {name: getattr(source, name) for name in counts} == counts


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), OSError(12, "Cannot allocate memory")])
def test_a_process_that_cannot_be_started_is_tried_again(error):
    attempts = []

    def start(counters):
        attempts.append(counters)
        if len(attempts) < 4:
            raise error
        source.stop()
        raise error

    settings = CaptureSettings("fake", "camera", "fake")
    time = FakeTime()
    source = CapturedSource(settings, sleep=time.sleep, capture=CaptureProcess(settings, start), jitter=lambda: 1.0)
    assert list(play(source, lambda: False)) == []
    source.close()
    assert len(attempts) == 4
    assert source.error == f"the capture process cannot be started: {error.strerror}"


def test_a_file_whose_process_cannot_be_started_is_an_error_in_a_line():
    def start(counters):
        raise OSError(24, "Too many open files")

    settings = CaptureSettings("clip.mp4", "file", "clip.mp4")
    with pytest.raises(SourceError, match=r"^clip.mp4: the capture process cannot be started: Too many open files$"):
        CapturedSource(settings, capture=CaptureProcess(settings, start))


def test_without_a_descriptor_for_the_frame_it_is_reopened():
    # The kernel drops the descriptor of the frame's memory if the loop cannot have another one.
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    capture = CaptureProcess(CaptureSettings("fake", "camera", "fake"), lambda counters: (process, ours))
    capture.open()
    theirs.sendall(encode(1, FrameReady(0, 4, 4, 0.0)))
    assert capture.answer(1.0) == Ended("the memory of a frame cannot be opened: descriptors or memory are short")
    assert capture.pid is None
    capture.close()
