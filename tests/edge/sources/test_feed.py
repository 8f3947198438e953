import threading
import time

import numpy as np
import pytest

from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.base import Source
from rws.edge.sources.feed import Feed
from rws.errors import SourceError
from rws.records import Frame

IMAGES = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)


def counted(source):
    return source.delivered + source.dropped + source.rejected + source.buffered


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.002)


class LiveSource(Source):
    """Gives a frame each time that `go` is released; `fail` ends it."""

    live = sequential = True
    name = "live"

    def __init__(self, fail=None):
        super().__init__()
        self.go, self.fail, self.closed = threading.Semaphore(0), fail, False

    def frames(self):
        while not self.stopped:
            if not self.go.acquire(timeout=0.02):
                yield None
                continue
            if self.fail is not None:
                raise self.fail
            self.received += 1
            self.delivered += 1
            yield Frame(self.received - 1, IMAGES[0], time.monotonic(), self.name)

    def close(self):
        self.closed = True


def test_a_file_gives_each_frame_in_order_and_then_ends():
    arrived = threading.Event()
    taken = []
    with Feed(ArraySource(IMAGES), arrived.set) as feed:
        while not feed.ended:
            if feed.waiting:
                frame, read_ms = feed.take()
                taken.append(frame.index)
                assert read_ms >= 0
    assert taken == list(range(6))
    assert feed.error is None
    assert arrived.is_set()
    assert (feed.source.received, feed.source.delivered) == (6, 6)


def test_of_a_live_source_only_the_newest_frame_waits():
    source = LiveSource()
    with Feed(source, lambda: None) as feed:
        source.go.release(4)
        wait_for(lambda: source.received == 4 and source.dropped == 3)
        frame, _ = feed.take()
        assert frame.index == 3
        assert (source.delivered, source.dropped) == (1, 3)
        source.go.release()
        wait_for(lambda: feed.waiting)
    assert source.closed
    assert not feed.waiting
    assert source.received == counted(source) == 5


def test_what_nobody_takes_of_a_file_stays_in_it():
    with Feed(ArraySource(IMAGES), lambda: None) as feed:
        wait_for(lambda: feed.waiting)
    assert feed.ended
    assert (feed.source.delivered, feed.source.dropped) == (0, 0)
    assert feed.source.received == counted(feed.source)


@pytest.mark.parametrize("error", [SourceError("the camera is lost"), ZeroDivisionError("a bug")])
def test_what_ends_a_source_is_kept_for_the_loop(error):
    source = LiveSource(fail=error)
    with Feed(source, lambda: None) as feed:
        source.go.release()
        wait_for(lambda: feed.ended)
    assert feed.error is error
    assert source.closed


def test_a_frame_that_is_held_when_its_source_fails_is_still_given(monkeypatch):
    source = LiveSource()
    feed = Feed(source, lambda: None)
    with feed:
        source.go.release()
        wait_for(lambda: feed.waiting)
        source.fail = SourceError("lost")
        source.go.release()
        wait_for(lambda: feed.error is not None)
        assert not feed.ended
        assert feed.take()[0].index == 0
        wait_for(lambda: feed.ended)
    assert source.received == counted(source) == 1
    other = LiveSource()
    with Feed(other, lambda: None) as feed:
        other.go.release()
        wait_for(lambda: feed.waiting)
        other.fail = SourceError("lost")
        other.go.release()
        wait_for(lambda: feed.error is not None)
    assert (other.delivered, other.received) == (0, counted(other))


def test_a_source_that_hangs_is_abandoned(monkeypatch, caplog):
    class Hanging(LiveSource):
        def frames(self):
            self.go.acquire()
            yield None

    monkeypatch.setattr("rws.edge.sources.feed.PATIENCE", 0.1)
    source = Hanging()
    with Feed(source, lambda: None) as feed:
        pass
    assert not feed.ended
    assert "live has not stopped for 0.1 s and is abandoned" in caplog.text
    source.go.release()
