import os
import threading

import numpy as np
import pytest

from rws.edge.faults.frames import scene
from rws.edge.sources.capture.decoding.base import DecodedFrame, Decoder, lost_frame
from rws.edge.sources.capture.decoding.checks import REASONS, FlawCheck, FreezeDetector
from rws.edge.sources.capture.grabber import Grabber
from rws.edge.sources.capture.shared import Counters, shared_memory
from rws.errors import SourceError


class ScriptedDecoder(Decoder):
    def __init__(self, frames, error=None, fps=None):
        self.frames, self.error, self.fps, self.closed = frames, error, fps, False

    def __iter__(self):
        yield from self.frames
        if self.error is not None:
            raise self.error

    def close(self):
        self.closed = True


def good(count, start=0):
    return [DecodedFrame(scene(16, 24, start + n), float(start + n)) for n in range(count)]


@pytest.fixture
def counters():
    descriptor = shared_memory(Counters.SIZE)
    yield Counters(descriptor)
    os.close(descriptor)


def rejections(counters):
    return {reason: counters[reason] for reason in REASONS if counters[reason]}


def grab(frames, counters, *, latest=False, freeze=None, error=None):
    decoder = ScriptedDecoder(frames, error)
    grabber = Grabber(decoder, latest=latest, flaws=FlawCheck(), freeze=freeze, pace=False, counters=counters)
    grabber.start()
    return grabber, decoder


def taken(grabber):
    found = []
    while (frame := grabber.next(5.0)) is not None:
        found.append(frame)
    grabber.join(5.0)
    return found


def test_every_frame_is_delivered_in_order_and_decoding_waits_for_the_reader(counters):
    frames = good(20)
    grabber, decoder = grab(frames, counters)
    found = taken(grabber)
    assert found == list(enumerate(frames))
    assert (counters["received"], counters["dropped"], rejections(counters)) == (20, 0, {})
    assert grabber.reason == ""
    assert decoder.closed


def test_the_latest_one_is_kept_and_the_others_are_counted(counters):
    grabber, _ = grab(good(50), counters, latest=True)
    grabber.join(5.0)
    (last,) = taken(grabber)
    assert last[0] == 49
    assert (counters["received"], counters["dropped"], counters.whole) == (50, 49, 1)


def test_flawed_frames_are_counted_by_reason_and_not_delivered(counters):
    flawed = [
        lost_frame(0.0, "undecodable"),
        DecodedFrame(scene(16, 24), 0.0, "damaged"),
        DecodedFrame(np.zeros((16, 24, 3), np.uint8), 0.0),
        DecodedFrame(np.empty((0, 0, 3), np.uint8), 0.0),
    ]
    grabber, _ = grab([*good(2), *flawed, *good(1, 2)], counters)
    assert [index for index, _ in taken(grabber)] == [0, 1, 6]
    assert rejections(counters) == {"damaged": 1, "undecodable": 1, "empty": 1, "black": 1}
    assert counters.whole == 3


def test_a_freeze_is_detected_across_two_openings(counters):
    detector = FreezeDetector(2.0)
    same = [DecodedFrame(scene(16, 24), 0.5 * n) for n in range(20)]
    first = taken(grab(same[:4], counters, freeze=detector)[0])
    second = taken(grab(same[4:], counters, freeze=detector)[0])
    assert (len(first), len(second)) == (4, 1)
    assert rejections(counters) == {"frozen": 15}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SourceError("was closed by the other side"), "was closed by the other side"),
        (ZeroDivisionError("oh"), "cannot be read (ZeroDivisionError: oh)"),
    ],
)
def test_the_cause_of_the_end_is_reported_after_the_last_frame(counters, error, reason):
    grabber, decoder = grab(good(3), counters, error=error)
    assert len(taken(grabber)) == 3
    assert grabber.reason == reason
    assert decoder.closed


def test_stopping_counts_frames_that_were_not_read_as_dropped(counters):
    grabber, decoder = grab(good(30), counters)
    assert grabber.next(5.0)[0] == 0
    grabber.stop()
    grabber.join(5.0)
    assert not grabber.is_alive()
    assert counters["received"] == 1 + counters["dropped"]
    assert decoder.closed


def test_counting_from_several_threads_loses_nothing(counters):
    def count():
        for _ in range(2000):
            counters.add("received")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters["received"] == 8000
