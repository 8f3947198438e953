"""Damage that no decoder reports is found, because it leaves data unread; sound frames need all of theirs."""

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.edge.sources.capture.decoding.checks import Checks
from rws.edge.sources.capture.decoding.evidence.unread import UnreadData
from rws.edge.sources.open import open_source

PIXELS = 1_000_000
PHOTO = Path(__file__).parents[5] / "data" / "photos" / "chelsea.jpg"


def encoded(container, count=40, quiet=False, **options):
    photo = cv2.cvtColor(cv2.imread(str(PHOTO)), cv2.COLOR_BGR2RGB)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        # With more threads, the number of slices follows the machine's cores.
        settings_ = {"g": "20", "preset": "veryfast", "crf": "23", "threads": "1", **options}
        stream = output.add_stream("libx264", rate=25, options=settings_)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(count):
            image = photo[number : 240 + number, 2 * number : 320 + 2 * number].copy()
            if quiet:  # one object moves, at the top
                image = photo[:240, :320].copy()
                image[10:60, number % 80 : 80 + number % 80] = photo[150:200, 180 + number % 80 : 260 + number % 80]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def packets(data):
    with av.open(io.BytesIO(data)) as container:
        header = bytes(container.streams.video[0].codec_context.extradata or b"")
        return header, list(container.demux(video=0))


def found(header, packets_):
    """The numbers of packets that left data unread, and how many frames were looked at."""
    unread = UnreadData(header, PIXELS)
    left = [n for number, packet in enumerate(packets_) for n in unread.look(packet, number, packet.is_keyframe)]
    return left, unread.sound + unread.found


@pytest.mark.parametrize("container", ["mpegts", "mp4"])
@pytest.mark.parametrize(
    "options",
    [
        {"bf": "0"},
        {"bf": "3"},
        {"bf": "3", "x264-params": "open-gop=1"},
        {"bf": "0", "x264-params": "intra-refresh=1"},
        {"x264-params": "cabac=0"},
        {"x264-params": "interlaced=1"},
        {"x264-params": "slices=2", "crf": "12"},
    ],
    ids=["no B-frames", "B-frames", "open GOP", "intra refresh", "CAVLC", "interlaced", "slices"],
)
def test_a_sound_stream_leaves_nothing_unread(container, options):
    left, looked = found(*packets(encoded(container, **options)))
    assert left == []
    assert looked >= 10


def test_a_long_group_of_a_quiet_scene_leaves_nothing_unread():
    left, looked = found(*packets(encoded("mp4", 100, quiet=True, g="250", crf="18")))
    assert left == []
    assert looked >= 30


def is_reported(data):
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].codec_context.thread_type = "NONE"
        try:
            frames = [frame for packet in container.demux(video=0) for frame in packet.decode()]
        except av.error.FFmpegError:
            return True
    return any(frame.is_corrupt for frame in frames)


def flipped(count):
    """Streams of which a byte is flipped that FFmpeg takes for another; and the number of the damaged packet."""
    data, rng = encoded("mp4", bf="0"), np.random.default_rng(0)
    _, sent = packets(data)
    while count:
        number = int(rng.integers(len(sent) - 1))
        size, hurt = sent[number].size, bytearray(data)
        hurt[sent[number].pos + int(rng.integers(max(20, size // 10), size * 4 // 5))] ^= int(rng.integers(1, 256))
        if not is_reported(bytes(hurt)):
            count -= 1
            yield bytes(hurt), number


def test_most_damage_without_a_report_is_found_in_its_packet():
    seen = [(found(*packets(data))[0], number) for data, number in flipped(30)]
    right = [left == [number] for left, number in seen]
    assert sum(right) >= 24
    assert all(left == [] for (left, _), is_right in zip(seen, right, strict=True) if not is_right)


def test_a_file_loses_what_refers_to_unread_data_unless_that_is_accepted(tmp_path):
    data, number = next((data, number) for data, number in flipped(30) if found(*packets(data))[0] == [number])
    (tmp_path / "hurt.mp4").write_bytes(data)
    with open_source(tmp_path / "hurt.mp4") as source:
        assert {frame.index for frame in source} == set(range(40)) - set(range(number, 20 if number < 20 else 40))
    with open_source(tmp_path / "hurt.mp4", checks=Checks(accept=("unread",))) as source:
        assert len(list(source)) == 40


def changed(sent, change):
    made = []
    for packet in sent:
        made.append(av.Packet(change(bytes(packet))) if packet.size else packet)
        made[-1].pts, made[-1].dts, made[-1].is_keyframe = packet.pts, packet.dts, packet.is_keyframe
    return made


def test_an_encoder_that_fills_its_frames_is_believed():
    header, sent = packets(encoded("mpegts"))
    left, looked = found(header, changed(sent, lambda data: data + b"\x55" * len(data)))
    assert len(left) <= 1
    assert looked >= 10


@pytest.mark.parametrize("container", ["mpegts", "mp4"])
def test_zeros_behind_a_slice_are_no_data(container):
    header, sent = packets(encoded(container))

    def filled(data):
        padding = b"\0\0\3" * 100
        if container == "mpegts":
            return data + padding
        place = 0
        while place + 4 + (length := int.from_bytes(data[place : place + 4], "big")) < len(data):
            place += 4 + length
        return data[:place] + (length + len(padding)).to_bytes(4, "big") + data[place + 4 :] + padding

    left, looked = found(header, changed(sent, filled))
    assert left == []
    assert looked >= 10


class WithNewHeader:
    """A packet behind which others are decoded with new data for all of them."""

    def __init__(self, packet):
        self._packet = packet

    def __bytes__(self):
        return bytes(self._packet)

    def has_sidedata(self, kind):
        return kind == "new_extradata"


def test_nothing_is_looked_at_behind_new_data_for_all_packets():
    header, sent = packets(encoded("mp4"))
    _, looked = found(header, sent[:20])
    unread = UnreadData(header, PIXELS)
    for number, packet in enumerate([*sent[:20], WithNewHeader(sent[20]), *sent[21:]]):
        unread.look(packet, number, number == 0)
    assert unread.sound == looked


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=150, max_size=300), max_size=3))
def test_no_bytes_are_an_error(parts):
    header, sent = packets(encoded("mpegts", 3))
    for number, part in enumerate(parts):
        packet = av.Packet(b"\0\0\1\x41" + part)
        packet.pts = packet.dts = 10**6 + number
        sent.insert(1, packet)
    found(header, sent)
