"""Headers of H.264 say which frames others refer to, and that one of those is missing."""

import io

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.faults.frames import scene
from rws.edge.sources.capture.decoding.evidence.damage import DamageTracker
from rws.edge.sources.capture.decoding.evidence.h264 import HeaderReader


def encoded(container, b_frames):
    """The codec's data for all packets, and the packets of 30 frames, in the order of decoding."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": str(b_frames), "g": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(30):
            image = np.roll(scene(96, 128, 0), 2 * number, 1)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container_:
        header = bytes(container_.streams.video[0].codec_context.extradata or b"")
        return header, [bytes(packet) for packet in container_.demux(video=0) if packet.size]


def gaps(header, packets):
    reader = HeaderReader(header)
    return [reader.look(packet).gap for packet in packets]


@pytest.mark.parametrize("container", ["mpegts", "mp4"])
def test_a_stream_that_is_whole_has_no_gap(container):
    header, packets = encoded(container, 3)
    known = gaps(header, packets)
    # In MP4, where containers mark nothing, frames have no numbers that are read.
    assert known == [False if container == "mpegts" else None] * 30


def test_only_the_loss_of_a_frame_that_others_refer_to_is_a_gap():
    header, packets = encoded("mpegts", 3)
    disposable = [HeaderReader(header).look(packet).disposable for packet in packets]
    assert 5 < sum(disposable) < 25
    for lost in range(1, 18):
        known = gaps(header, packets[:lost] + packets[lost + 1 :])
        assert any(known) == (not disposable[lost]), lost
        assert not known[lost] or known.index(True) == lost


def test_the_number_begins_at_0_with_a_key_frame():
    header, packets = encoded("mpegts", 0)
    assert not any(gaps(header, packets[:3] + packets[20:]))


@pytest.mark.parametrize("container", ["rtsp", "mpegts"])
def test_a_frame_that_nobody_saw_go_missing_damages_those_that_refer_to_it(container):
    header, packets = encoded("mpegts", 0)
    decoder, tracker = av.CodecContext.create("h264", "r"), DamageTracker(container, "h264", header)
    decoder.thread_type = "NONE"
    known = {}
    for number, data in enumerate(packets):
        if number != 7:
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.is_keyframe = number in (0, 20)
            tracker.sent(packet)
            known |= {f.pts: bad for frame in decoder.decode(packet) for f, bad in tracker.received(frame)}
    known |= {frame.pts: damaged for frame, damaged in tracker.rest()}
    assert {pts for pts, damaged in known.items() if damaged} == set(range(8, 20))


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_bytes_are_an_error(parts):
    reader = HeaderReader(b"")
    for part in parts:
        reader.look(b"\0\0\1\x67" + part + b"\0\0\1\x06\x06" + part + b"\0\0\1\x41" + part)
