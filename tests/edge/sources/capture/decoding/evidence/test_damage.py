"""Damage is joined to the frames that show it, and to those that refer to them."""

import io
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest

from rws.edge.faults.frames import scene
from rws.edge.sources.capture.decoding.evidence.damage import MOST_HELD, DamageTracker
from rws.edge.sources.open import open_source

KEY, REFERENCE, ALONE = b"\0\0\1\x65" + bytes(9), b"\0\0\1\x41" + bytes(9), b"\0\0\1\x01" + bytes(9)


class Packet:
    def __init__(self, pts, data=REFERENCE, marked=False, left_out=False):
        self.pts, self.data, self.is_corrupt, self.is_discard = pts, data, marked, left_out
        self.is_keyframe = data == KEY

    def __bytes__(self):
        return self.data


class Frame:
    def __init__(self, pts, corrupt=False, key=False):
        self.pts, self.is_corrupt, self.key_frame, self.interlaced_frame, self.pict_type = pts, corrupt, key, False, 2


def known(tracker, *frames):
    return {frame.pts: damaged for given in frames for frame, damaged in tracker.received(given)}


def sent(packets, container="mpegts"):
    tracker = DamageTracker(container, "h264", b"")
    for packet in packets:
        tracker.sent(packet)
    return tracker


def test_frames_shown_before_the_damaged_one_that_they_refer_to_wait_for_it():
    tracker = sent([Packet(0, KEY), Packet(3), Packet(1, ALONE), Packet(2, ALONE), Packet(4)])
    assert known(tracker, Frame(0, key=True), Frame(1), Frame(2)) == {0: False}
    assert known(tracker, Frame(3, corrupt=True), Frame(4)) == {1: True, 2: True, 3: True, 4: True}


def test_damage_to_a_frame_that_no_other_refers_to_is_its_own():
    tracker = sent([Packet(0, KEY), Packet(2), Packet(1, ALONE), Packet(3)])
    frames = (Frame(0, key=True), Frame(1, corrupt=True), Frame(2), Frame(3))
    assert known(tracker, *frames) == {0: False, 1: True, 2: False, 3: False}


def test_what_is_shown_before_a_key_frame_and_decoded_after_it_refers_back():
    tracker = sent([Packet(0, KEY), Packet(1), Packet(4, KEY), Packet(2), Packet(3), Packet(5)])
    frames = (Frame(0, key=True), Frame(1, corrupt=True), Frame(2), Frame(3), Frame(4, key=True), Frame(5))
    assert known(tracker, *frames) == {0: False, 1: True, 2: True, 3: True, 4: False, 5: False}


@pytest.mark.parametrize(("container", "first"), [("mpegts", 3), ("rtsp", 2), (None, 9)])
def test_a_mark_in_ts_stands_on_the_packet_before(container, first):
    tracker = sent([Packet(0, KEY), Packet(1), Packet(2, marked=True), Packet(3)], container)
    found = known(tracker, Frame(0, key=True), Frame(1), Frame(2), Frame(3))
    assert found == {pts: pts >= first for pts in range(4)}


def test_a_packet_without_a_frame_damages_those_after_it_until_a_key_frame():
    tracker = sent([Packet(0, KEY), Packet(1), Packet(2), Packet(3), Packet(4, KEY)])
    tracker.failed()
    found = known(tracker, Frame(0, key=True), Frame(1), Frame(3), Frame(4, key=True))
    assert found == {0: False, 1: False, 3: True, 4: False}


def test_packets_skipped_before_a_key_frame_damage_only_what_refers_back():
    tracker = DamageTracker("rtsp", "h264", b"")
    tracker.sent(Packet(0, KEY))
    tracker.skipped()
    for packet in (Packet(9, KEY), Packet(8), Packet(10)):
        tracker.sent(packet)
    found = known(tracker, Frame(0, key=True), Frame(8), Frame(9, key=True), Frame(10))
    assert found == {0: False, 8: True, 9: False, 10: False}


def test_time_stamps_that_jump_delay_no_frame_for_long():
    tracker = sent([Packet(0, KEY), Packet(10**6), *map(Packet, range(1, 100))])
    waiting = 100 - len(known(tracker, Frame(0, key=True), *map(Frame, range(1, 100))))
    assert waiting <= MOST_HELD
    assert len(list(tracker.rest())) == waiting


def moving(count):
    background = scene(240, 320 + 2 * count)
    return [np.ascontiguousarray(background[:, 2 * n : 2 * n + 320]) for n in range(count)]


def encoded(images, container, **options):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=25, options={"g": "25", "threads": "1", "crf": "20", **options})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def read(path):
    with open_source(path) as source:
        return {frame.index: frame.image for frame in source}, source


def without_ten_packets_of_a_key_frame(data, which):
    with av.open(io.BytesIO(data)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe and packet.size]
    middle = (keys[which].pos + keys[which].size // 2) // 188 * 188
    return data[:middle] + data[middle + 1880 :]


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="this PyAV cannot write H.264")
@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({"bf": "0"}, range(50, 75)),
        ({"bf": "3"}, range(50, 75)),
        # The frames that lead to the next key frame refer back; how many they are is up to the encoder.
        ({"bf": "3", "x264-params": "open-gop=1:scenecut=0"}, None),
    ],
    ids=["no B-frames", "B-frames", "open GOP"],
)
def test_lost_packets_of_a_key_frame_cost_its_group_and_nothing_else(tmp_path, options, lost):
    data = encoded(moving(100), "mpegts", **options)
    (tmp_path / "whole.ts").write_bytes(data)
    (tmp_path / "lossy.ts").write_bytes(without_ten_packets_of_a_key_frame(data, 2))
    whole, _ = read(tmp_path / "whole.ts")
    passed, source = read(tmp_path / "lossy.ts")
    assert all(np.array_equal(image, whole[index]) for index, image in passed.items())
    assert dict(source.rejections) == {"damaged": 100 - len(passed)}
    if lost is None:
        assert 20 <= 100 - len(passed) <= 29
    else:
        assert sorted(set(whole) - set(passed)) == list(lost)


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="this PyAV cannot write H.264")
def test_a_gradual_refresh_ends_the_damage_of_a_stream_without_key_frames(tmp_path):
    data = encoded(moving(150), "mpegts", bf="0", **{"x264-params": "intra-refresh=1"})
    (tmp_path / "whole.ts").write_bytes(data)
    middle = len(data) // 3 // 188 * 188
    (tmp_path / "lossy.ts").write_bytes(data[:middle] + data[middle + 5 * 188 :])
    whole = {image.tobytes() for image in read(tmp_path / "whole.ts")[0].values()}
    passed, source = read(tmp_path / "lossy.ts")
    assert 10 <= source.rejections["damaged"] <= 60
    assert all(image.tobytes() in whole for image in passed.values())
    assert max(passed) > 140


HOLE = b"\0\0\1\x41" + b"\7" * 9 + bytes(40) + b"\7" * 9


def behind_lengths(packet):
    return (len(packet) - 3).to_bytes(4, "big") + packet[3:]


@pytest.mark.parametrize("header", [b"", b"\1\x64\0\x1f\xff"], ids=["start codes", "lengths"])
def test_a_hole_of_zeros_is_damage_and_zeros_at_the_end_are_not(header):
    form = behind_lengths if header else bytes
    key, filled, hole = (form(data) for data in (b"\0\0\1\x65" + b"\7" * 9, b"\0\0\1\x41" + b"\7" * 9, HOLE))
    tracker = DamageTracker("mp4", "h264", header)
    for packet in (Packet(0, key), Packet(1, filled + bytes(5) * (not header)), Packet(2, hole), Packet(3, filled)):
        tracker.sent(packet)
    found = known(tracker, Frame(0, key=True), Frame(1), Frame(2), Frame(3))
    assert found == {0: False, 1: False, 2: True, 3: True}


REFRESH_OF_TWO = b"\0\0\1\x06\x06\x01\x70\0\0\0\0" + REFERENCE


def test_what_a_decoder_holds_back_until_a_refresh_is_complete_is_no_new_damage():
    packets = [Packet(0, KEY), Packet(1, marked=True), Packet(2), Packet(3, REFRESH_OF_TWO), *map(Packet, range(4, 7))]
    found = known(sent(packets, "rtsp"), Frame(0, key=True), Frame(5), Frame(6))
    assert found == {0: False, 5: False, 6: False}


def test_a_lost_frame_that_no_other_refers_to_damages_none():
    tracker = sent([Packet(0, KEY), Packet(1, ALONE), Packet(2)])
    assert known(tracker, Frame(0, key=True), Frame(2)) == {0: False, 2: False}


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="this PyAV cannot write H.264")
def test_an_end_that_cannot_be_decoded_costs_no_frame_before_it(tmp_path):
    data = encoded(moving(100), "mp4", bf="3")
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    end = packets[-1].pos + packets[-1].size
    (tmp_path / "hole.mp4").write_bytes(data[: packets[75].pos] + bytes(end - packets[75].pos) + data[end:])
    with av.open(str(tmp_path / "hole.mp4")) as container:
        stream, given = container.streams.video[0], 0  # some are lost in FFmpeg, more where it has more threads
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):
                given += len(packet.decode())
    passed, _ = read(tmp_path / "hole.mp4")
    assert len(passed) == given > 50
