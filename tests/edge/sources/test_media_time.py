"""The time of sources: from the file or stream to its frames, and to the file that `VideoSink` saves."""

from fractions import Fraction

import av
import numpy as np
import pytest

from rws.edge.faults.cases.media_time import write_playlist, write_segments
from rws.edge.faults.frames import encode_video, scene, without_rate
from rws.edge.faults.servers import FileServer
from rws.edge.sinks.mp4 import VideoFile
from rws.edge.sinks.video import VideoSink
from rws.edge.sources.open import open_source
from support.fakes import make_result, write_images

COUNT, STEP = 50, 1 / 25
WRAP = 2**33 / 90_000  # seconds after which the counter of TS starts again
KEEP = {"avoid_negative_ts": "disabled"}  # of the time stamps that a test writes


def even(number):
    return number * STEP


def paused(number):
    return number * STEP + (6 if number >= 20 else 0)


def paused_last(number):
    return number * STEP + (6 if number == COUNT - 1 else 0)


def doubled_rate(number):
    return number * STEP if number < 25 else 1 + (number - 25) * STEP / 2


# Name: when each frame is shown, and how the file is written.
FILES = {
    "even.mp4": (even, {}),
    "even.mkv": (even, {}),
    "even.avi": (even, {"codec": "mpeg4"}),
    "b_frames.avi": (even, {"options": {"bf": "2"}}),
    "even.ts": (even, {}),
    "late.ts": (lambda n: 1.4 + even(n), {"container_options": KEEP}),
    "wraps.ts": (lambda n: WRAP - 1 + even(n), {"container_options": KEEP}),
    "begins_after_wrap.ts": (lambda n: WRAP + 1 + even(n), {"container_options": KEEP}),
    "paused.mp4": (paused, {}),
    "paused.mkv": (paused, {}),
    "paused.ts": (paused, {}),
    "paused_last.mp4": (paused_last, {}),
    "two_rates.mp4": (doubled_rate, {}),
    "even.flv": (even, {}),
    "even.mov": (even, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, (time, options) in FILES.items():
        encode_video(folder / name, COUNT, time, **options)
    encode_video(folder / "browser.webm", COUNT, paused, codec="libvpx", container_options={"live": "1"})
    (folder / "browser.webm").write_bytes(without_rate((folder / "browser.webm").read_bytes()))
    return folder


def save(spec, path, reject=(), limit=None, **options):
    """Save a source; return its frames' times and the source."""
    with open_source(spec, **options) as source, VideoSink(path, source.fps, source=source) as sink:
        times = []
        for frame in source:
            if frame.index not in reject:
                sink.write(frame, make_result(frame.index))
            times.append(frame.media_time)
            if len(times) == limit:
                break
    return times, source


def saved(path):
    """Return when the frames of a saved file are shown, and how long the file lasts, seconds."""
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
        return times, container.duration / av.time_base


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("http", [False, True])
def test_a_saved_file_shows_each_frame_when_its_source_does(folder, tmp_path, name, http):
    time = FILES[name][0]
    with FileServer(folder) as server:
        times, source = save(f"{server.url}{name}" if http else folder / name, tmp_path / "saved.mp4")
    expected = [time(number) - time(0) for number in range(COUNT)]
    assert not source.live
    assert times == pytest.approx(expected, abs=2e-3)
    shown, length = saved(tmp_path / "saved.mp4")
    assert shown == pytest.approx(expected, abs=2e-3)
    assert length == pytest.approx(expected[-1] + STEP, abs=STEP + 1e-3)


@pytest.mark.parametrize("http", [False, True])
def test_a_browsers_webm_has_no_length_and_no_rate(folder, tmp_path, http):
    with av.open(str(folder / "browser.webm")) as container:
        assert container.duration is None
    with FileServer(folder) as server:
        times, source = save(f"{server.url}browser.webm" if http else folder / "browser.webm", tmp_path / "saved.mp4")
    assert not source.live
    assert times == pytest.approx([paused(number) for number in range(COUNT)], abs=2e-3)
    assert saved(tmp_path / "saved.mp4")[1] == pytest.approx(8.0, abs=STEP + 1e-3)


def test_a_pause_at_the_end_is_kept(tmp_path):
    with VideoFile(tmp_path / "clip.mp4", (320, 240), Fraction(25), timed=True, endless=False) as video:
        for number in range(COUNT):
            video.write(scene(240, 320, number), even(number))
        video.end = 5.0
    _, source = save(tmp_path / "clip.mp4", tmp_path / "saved.mp4")
    assert source.media_end == pytest.approx(5.0, abs=1e-3)
    shown, length = saved(tmp_path / "saved.mp4")
    assert (len(shown), shown[-1]) == (COUNT, pytest.approx(even(COUNT - 1), abs=1e-3))
    assert length == pytest.approx(5.0, abs=1e-3)


def test_an_edit_list_that_cuts_the_start_counts_for_nothing(tmp_path):
    encode_video(tmp_path / "cut.mp4", COUNT, lambda number: even(number) - 1, container_options=KEEP)
    times, _ = save(tmp_path / "cut.mp4", tmp_path / "saved.mp4")
    assert times == pytest.approx([even(number) for number in range(25)], abs=1e-3)
    assert saved(tmp_path / "saved.mp4")[1] == pytest.approx(1.0, abs=STEP)


@pytest.mark.parametrize("suffix", ["h264", "mjpeg"])
def test_a_raw_stream_has_no_time_and_plays_at_its_rate(tmp_path, suffix):
    encode_video(tmp_path / f"raw.{suffix}", COUNT, codec="mjpeg" if suffix == "mjpeg" else "libx264")
    times, source = save(tmp_path / f"raw.{suffix}", tmp_path / "saved.mp4")
    assert set(times) == {None}
    assert source.fps == 25
    assert saved(tmp_path / "saved.mp4")[1] == pytest.approx(2.0)


def test_images_have_no_time_and_play_at_a_constant_rate(tmp_path):
    times, _ = save(write_images(tmp_path / "folder", 10), tmp_path / "saved.mp4")
    assert set(times) == {None}
    assert saved(tmp_path / "saved.mp4")[1] == pytest.approx(10 / 25)


def test_rejected_frames_leave_their_time(folder, tmp_path):
    gone = {0, 1, 2, 10, 11, 12, 13, COUNT - 2, COUNT - 1}
    save(folder / "even.mp4", tmp_path / "saved.mp4", reject=gone)
    shown, length = saved(tmp_path / "saved.mp4")
    kept = [number for number in range(COUNT) if number not in gone]
    assert shown == pytest.approx([0.0, *(even(number) for number in kept[1:])], abs=1e-3)
    assert length == pytest.approx(2.0, abs=1e-3)


def test_a_limit_ends_the_file_after_its_last_frame(folder, tmp_path):
    _, source = save(folder / "paused.mp4", tmp_path / "saved.mp4", limit=30)
    assert source.media_end is None
    assert saved(tmp_path / "saved.mp4")[1] == pytest.approx(paused(29) + STEP, abs=1e-3)


def test_the_latest_frames_of_a_file_keep_their_times(folder, tmp_path):
    times, source = save(folder / "two_rates.mp4", tmp_path / "saved.mp4", latest=True)
    assert len(times) + source.dropped == COUNT
    shown, length = saved(tmp_path / "saved.mp4")
    assert np.diff(shown) == pytest.approx(np.diff(times), abs=1e-3)
    assert length == pytest.approx(1.5, abs=STEP)


@pytest.mark.parametrize("discontinuity", [True, False])
def test_an_hls_recording_of_parts_that_start_again_is_continuous(tmp_path, caplog, discontinuity):
    segments = write_segments(tmp_path, 3)
    if not discontinuity:  # as a careless recorder writes it
        segments = [line.replace("#EXT-X-DISCONTINUITY\n", "") for line in segments]
    write_playlist(tmp_path / "recorded.m3u8", segments, ended=True)
    with FileServer(tmp_path) as server:
        times, source = save(f"{server.url}recorded.m3u8", tmp_path / "saved.mp4")
    assert not source.live
    assert times == pytest.approx([even(number) for number in range(75)], abs=1e-3)
    assert source.rejected == 0
    assert saved(tmp_path / "saved.mp4")[1] == pytest.approx(3.0, abs=STEP)
    assert [record.getMessage() for record in caplog.records if "jump" in record.getMessage()] == [
        f"{source.name}: its time stamps jump; what lies between its parts is left out"
    ]


def test_a_live_playlist_that_ends_is_not_played_again(tmp_path):
    write_playlist(tmp_path / "live.m3u8", write_segments(tmp_path, 2))
    with FileServer(tmp_path) as server, open_source(f"{server.url}live.m3u8") as source:
        for frame in source:
            if frame.index == 0:
                assert source.live
                assert source.bursts
                write_playlist(tmp_path / "live.m3u8", [f"#EXTINF:1.0,\n{n}.ts\n" for n in range(2)], ended=True)
    assert source.state == "ended"
    assert (source.delivered, source.live) == (25, True)
    assert source.received == source.delivered + source.dropped


def test_a_server_says_that_a_file_ends_and_a_camera_does_not(folder):
    with FileServer(folder) as server, open_source(f"{server.url}browser.webm") as source:
        assert source.live  # nobody knows yet
        next(iter(source))
        assert not source.live
