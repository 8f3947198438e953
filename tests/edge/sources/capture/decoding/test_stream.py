"""Decoding from real streams on loopback, and the reader that keeps a slow decoder from lagging."""

import gc
import itertools
import time
from types import SimpleNamespace

import av
import pytest

from rws.edge.faults.frames import encode_jpeg, read_stamp, scene, stamped
from rws.edge.faults.servers import MjpegServer
from rws.edge.sources.capture.decoding.opening import open_container
from rws.edge.sources.capture.decoding.packets import MOST_BYTES, PacketReader
from rws.edge.sources.capture.decoding.stream import DROPPED, StreamDecoder
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.edge.sources.open import open_source
from rws.errors import SourceError
from support.fakes import StillClock

BASE = scene(48, 400)
SIZE = MOST_BYTES // 64


def jpeg(number):
    return encode_jpeg(stamped(BASE, number))


def without_end(jpeg):
    return jpeg[:-2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda jpeg: jpeg + b"\r\n",
        lambda jpeg: jpeg + bytes(100),
        lambda jpeg: jpeg + b"\xff" * 40,
        lambda jpeg: jpeg + b"\x01\x02\x03\x04",
        without_end,
    ],
    ids=["line end", "zeros", "ones", "trailer", "no end at all"],
)
def test_cameras_with_unusual_ends_of_jpeg_are_trusted(spoil):
    server = MjpegServer(lambda number: spoil(jpeg(number)), 100.0)
    try:
        with open_source(server.url) as source:
            stamps = [read_stamp(frame.image) for frame, _ in zip(source, range(10), strict=False)]
        assert None not in stamps
        assert source.rejected == 0
    finally:
        server.close()


def test_frames_are_freed_without_the_garbage_collector():
    server = MjpegServer(jpeg, 200.0)
    gc.collect()
    gc.disable()
    try:
        settings = CaptureSettings(server.url, "network", "camera")
        decoder = StreamDecoder(open_container(settings, 10.0), settings)
        assert len(list(itertools.islice(decoder, 20))) == 20
        assert sum(isinstance(found, av.VideoFrame) for found in gc.get_objects()) <= 2
        decoder.close()
    finally:
        gc.enable()
        server.close()


def test_a_cut_frame_among_whole_ones_is_damaged():
    server = MjpegServer(lambda number: jpeg(number)[:-200] if number % 5 == 4 else jpeg(number), 100.0)
    try:
        with open_source(server.url, latest=False) as source:
            stamps = [read_stamp(frame.image) for frame, _ in zip(source, range(20), strict=False)]
        assert all(stamp % 5 != 4 for stamp in stamps)
        assert source.rejections["damaged"] >= 4
    finally:
        server.close()


def packets(*keys):
    return [SimpleNamespace(is_keyframe=key, number=number, size=SIZE) for number, key in enumerate(keys)]


def ready(reader, count):
    deadline = time.monotonic() + 5
    while len(reader.waiting()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def numbers(found):
    return [None if packet is None else packet.number for packet, _ in found]


def test_decodes_the_newest_queued_frame_and_counts_the_others():
    reader = PacketReader(iter(packets(*[True] * 5)), lambda: 0.0)
    ready(reader, 5)
    assert numbers(reader.fresh(independent=True)) == [None] * 4 + [4]


def test_a_small_lag_is_accepted_and_a_larger_one_ends_at_the_newest_key_frame():
    stream = packets(True, False, False, True, False, True, False)
    for lag, expected in [(0.1, list(range(7))), (0.6, [None] * 5 + [5, 6])]:
        clock = StillClock()
        reader = PacketReader(iter(stream), clock)
        ready(reader, 7)
        clock.now += lag
        assert numbers(reader.fresh(independent=False)) == expected


def test_every_frame_is_delivered_on_request():
    reader = PacketReader(iter(packets(*[True] * 5)), lambda: 0.0)
    ready(reader, 5)
    assert numbers(reader) == list(range(5))


def test_the_readers_error_is_raised_after_the_last_packet():
    def broken():
        yield from packets(True, True)
        raise SourceError("gone")

    reader = iter(PacketReader(broken(), lambda: 0.0))
    assert [next(reader)[0].number for _ in range(2)] == [0, 1]
    with pytest.raises(SourceError, match="gone"):
        next(reader)


def test_a_stopped_reader_ends():
    reader = PacketReader((packet for packet in itertools.cycle(packets(True))), lambda: 0.0)
    ready(reader, 64)
    time.sleep(0.05)
    assert len(reader.waiting()) == 64
    reader.skip(30)
    ready(reader, 64)
    assert reader.stop()


def test_a_decoder_that_is_too_slow_does_not_lag():
    server = MjpegServer(jpeg, 100.0)
    settings = CaptureSettings(server.url, "network", "camera")
    decoder = StreamDecoder(open_container(settings, timeout=5.0), settings)
    lags, skipped = [], 0
    try:
        for frame in decoder:
            if frame.loss == DROPPED:
                skipped += 1
                continue
            lags.append(time.monotonic() - frame.captured_at)
            time.sleep(0.1)
            if len(lags) == 12:
                break
    finally:
        decoder.close()
        server.close()
    assert skipped > 50
    assert max(lags) < 0.15
