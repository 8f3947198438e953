import itertools
import logging
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from rws.edge.common.child import child_environment
from rws.edge.faults.servers import free_port
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.images import ImageSource
from rws.edge.sources.open import open_source
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import InputError, RwsError, SourceError, UsageError
from support.fakes import StillClock, TickingClock, write_images, write_video


def test_video_gives_every_frame_in_order_as_rgb(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 236, 18), fps=29.97)
    with open_source(path, TickingClock()) as source:
        assert (source.live, source.sequential, source.length) == (False, True, 12)
        assert source.fps == pytest.approx(29.97)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert all(frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 for frame in frames)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], range(20, 236, 18), atol=5)
    stamps = [frame.captured_at for frame in frames]
    assert stamps == sorted(set(stamps))
    assert (source.dropped, source.rejected) == (0, 0)


def test_colours_are_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))
    (frame,) = open_source(tmp_path / "red.png")
    assert frame.image[0, 0].tolist() == [255, 0, 0]


def test_grey_and_transparent_images_become_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 5), 70, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((4, 5, 4), 70, np.uint8))
    assert [frame.image.shape for frame in open_source(tmp_path)] == [(4, 5, 3), (4, 5, 3)]


def test_folder_is_read_recursively_in_natural_order_and_other_files_are_skipped(tmp_path):
    write_images(tmp_path / "b", 1)
    write_images(tmp_path / "a", 11)
    (tmp_path / "notes.md").write_text("no image")
    with open_source(tmp_path) as source:
        names = [frame.name for frame in source]
    assert names == [str(tmp_path / "a" / f"{n}.png") for n in range(11)] + [str(tmp_path / "b" / "0.png")]
    assert (source.length, source.rejected, source.sequential) == (12, 0, False)


def test_glob_and_list_file(tmp_path):
    write_images(tmp_path, 3)
    assert [frame.index for frame in open_source(f"{tmp_path}/[12].png")] == [0, 1]
    (tmp_path / "list.txt").write_text("# mine\n2.png\n\n0.png\n")
    names = [frame.name for frame in open_source(tmp_path / "list.txt")]
    assert names == [str(tmp_path / "2.png"), str(tmp_path / "0.png")]


def test_undecodable_images_are_counted_and_named_and_the_numbers_show_the_gap(tmp_path, caplog):
    write_images(tmp_path, 4)
    (tmp_path / "1.png").write_bytes(b"\x89PNG but not really")
    (tmp_path / "2.png").write_bytes(b"")
    source = open_source(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [frame.index for frame in source] == [0, 3]
    assert source.rejected == 2
    assert [name in caplog.text for name in ("1.png", "2.png")] == [True, True]


def test_a_list_with_a_missing_file_continues(tmp_path, caplog):
    write_images(tmp_path, 1)
    (tmp_path / "list.txt").write_text("nowhere.png\n0.png\n")
    source = open_source(tmp_path / "list.txt")
    assert [frame.index for frame in source] == [1]
    assert source.rejected == 1
    assert "nowhere.png" in caplog.text


def test_nothing_decodable_is_an_error(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(SourceError, match="none of its 2 image files"):
        list(open_source(tmp_path))
    with pytest.raises(SourceError, match=r"a\.png: is not an image"):
        list(open_source(tmp_path / "a.png"))


def make_empty_folder(path):
    path.mkdir()


BROKEN = {
    "missing.mp4": (lambda path: None, "no such file"),
    "empty": (make_empty_folder, "holds no image file"),
    "text.mp4": (lambda path: path.write_text("not a video" * 100), "is not a video"),
    "zero.mp4": (lambda path: path.write_bytes(b""), "is not a video"),
    "table.csv": (lambda path: path.write_text("a,b\n1,2\n"), "is not a video"),
    "empty.txt": (lambda path: path.write_text("# nothing\n"), "lists no file"),
    "broken.npy": (lambda path: path.write_bytes(b"\x93NUMPY"), "is not a NumPy array file"),
    "grey.npy": (lambda path: np.save(path, np.zeros((2, 8, 8), np.uint8)), r"uint8 of shape \(2, 8, 8\)"),
    "none.npy": (lambda path: np.save(path, np.zeros((0, 8, 8, 3), np.uint8)), "holds no image"),
    "flat.npy": (lambda path: np.save(path, np.zeros((2, 0, 8, 3), np.uint8)), "holds no image"),
    "float.npy": (lambda path: np.save(path, np.zeros((2, 8, 8, 3))), "float64"),
    "archive.npy": (lambda path: np.savez(path.open("wb"), np.zeros(2)), "is not a NumPy array file"),
    "pickle.npy": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "is not a NumPy array file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources_are_one_line_errors_that_name_the_source(tmp_path, name):
    make, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(RwsError, match=message) as caught:
        open_source(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_glob_without_a_match_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="holds no image file"):
        open_source(f"{tmp_path}/*.png")


def test_a_missing_camera_is_an_error_without_retries():
    with open_source("93", retries=0) as source, pytest.raises(SourceError, match="camera 93: cannot be opened"):
        next(iter(source))
    assert (source.state, source.received) == ("lost", 0)


def test_passwords_are_absent_from_names_errors_and_lists_of_processes(caplog):
    address = f"rtsp://me:hush@127.0.0.1:{free_port()}/one"
    with open_source(address, retries=0) as source:
        with pytest.raises(SourceError) as caught:
            next(iter(source))
        pid = source.pid
        assert b"hush" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"hush" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert "rtsp://127.0.0.1:" in str(caught.value)
    assert "hush" not in str(caught.value) + source.name + source.error + caplog.text


@pytest.mark.parametrize(
    "address", ["http://me:hush@cam/live?token=" + "a" * 5000, "rtspsrc location=rtsp://cam ! appsink"]
)
def test_an_address_is_not_a_path_however_long_it_is(address):
    with open_source(address) as source:
        assert source.live
        assert source.name in ("pipeline", "http://cam")


def test_a_truncated_video_ends_early_and_says_so(tmp_path, caplog):
    path = write_video(tmp_path / "clip.mkv", range(20, 220, 4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = list(open_source(path))
    assert 0 < len(frames) < 50
    assert f"clip.mkv ended after {len(frames)} frames; its header declares 50" in caplog.text


def test_array_source(tmp_path):
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.save(tmp_path / "images.npy", images)
    for source in (ArraySource(images, names=["a", "b"]), open_source(tmp_path / "images.npy")):
        assert source.length == 2
        np.testing.assert_array_equal([frame.image for frame in source], images)
    assert [frame.name for frame in ArraySource(images, names=["a", "b"])] == ["a", "b"]


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_arrays_of_another_shape_or_type_are_refused(images):
    with pytest.raises(InputError, match=r"expected uint8 of shape \(N, H, W, 3\)"):
        ArraySource(images)


def test_names_must_match_images():
    with pytest.raises(InputError, match="1 names for 2 images"):
        ArraySource(np.zeros((2, 4, 4, 3), np.uint8), names=["a"])


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_http_video_is_a_file_that_ends(tmp_path, kind):
    data = write_video(tmp_path / f"clip.{kind}", range(20, 220, 20)).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_source(f"http://127.0.0.1:{server.server_port}/clip.{kind}") as source:
            assert len(list(source)) == 10
            assert (source.live, source.length, source.state) == (False, 10, "ended")
            assert source.reconnects == 0
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_at_its_own_speed_gives_the_newest_frame_and_counts_the_others(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 200, 3), fps=50.0)
    with open_source(path, latest=True) as source:
        indices = []
        for frame in source:
            indices.append(frame.index)
            time.sleep(0.1)
    assert indices == sorted(set(indices))
    assert 5 <= len(indices) < 40
    assert (source.received, source.delivered, source.buffered) == (60, len(indices), 0)
    assert source.dropped == 60 - len(indices)


def test_a_name_with_colons_is_a_file_and_no_protocol(tmp_path, monkeypatch):
    write_video(tmp_path / "12:30:00.mp4", range(20, 220, 20))
    monkeypatch.chdir(tmp_path)
    with open_source("12:30:00.mp4") as source:
        assert source.name == "12:30:00.mp4"
        assert len(list(source)) == 10


def test_stop_ends_any_source(tmp_path):
    write_images(tmp_path / "folder", 5)
    video = write_video(tmp_path / "clip.mp4", range(20, 200, 3))
    for source in (open_source(tmp_path / "folder"), ArraySource(np.zeros((5, 4, 4, 3), np.uint8)), open_source(video)):
        with source:
            for frame in source:
                if frame.index == 1:
                    source.stop()
            assert source.delivered == 2
        assert source.dropped == 0
        assert source.received == source.delivered + source.rejected + source.buffered


def test_the_test_pattern_moves_and_skips_late_frames():
    opened = open_source("pattern:64x48@25")
    assert isinstance(opened, PatternSource)
    assert (opened.live, opened.sequential, opened.fps) == (True, True, 25)
    clock = TickingClock(step=0.001)
    source = PatternSource(64, 48, 25, clock=clock, sleep=lambda s: setattr(clock, "now", clock.now + s))
    frames = iter(source)
    first, second = next(frames), next(frames)
    assert (first.index, second.index, first.image.shape) == (0, 1, (48, 64, 3))
    assert (first.image != second.image).any()
    clock.now += 1.0
    assert next(frames).index >= 25
    assert source.received == source.delivered + source.dropped
    assert source.dropped >= 23


def test_none_comes_four_times_per_second_while_a_slow_test_pattern_waits():
    clock = StillClock()
    source = PatternSource(64, 48, 0.02, clock=clock, sleep=lambda s: setattr(clock, "now", clock.now + s))
    frames = source.frames()
    assert next(frames) is not None
    idle = [source.idle_for for _ in itertools.takewhile(lambda frame: frame is None, frames)]
    assert idle == pytest.approx(np.arange(1, 201) * 0.25)  # 50 s, four times a second
    assert source.idle_for == 0
    assert next(frames) is None
    assert source.idle_for == pytest.approx(0.25)  # counted from the last frame


@pytest.mark.parametrize("spec", ["pattern:8x48@25", "pattern:64x48@0", "pattern:64x48@99999"])
def test_an_impossible_pattern_is_refused(spec):
    with pytest.raises(InputError, match="expected 32 to 8192 pixels"):
        open_source(spec)


def test_image_sources_are_distinguished_from_video(tmp_path):
    write_images(tmp_path, 1)
    assert isinstance(open_source(tmp_path / "0.png"), ImageSource)


BAD_NAMES = [b"caf\xe9.png", b"a\x1b]0;title\x07.png", b"b\n[red]:warning:.png", "c\u202egnp.png".encode(), b"=1+1.png"]
SHOWN = [r"caf\xe9.png", r"a\x1b]0;title\x07.png", r"b\n[red]:warning:.png", r"c\u202egnp.png", "=1+1.png"]


@pytest.fixture
def named_badly(tmp_path):
    write_images(tmp_path, 1)
    data = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").unlink()
    for name in BAD_NAMES:
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    return tmp_path


def test_images_are_read_whatever_their_names_and_named_in_printable_text(named_badly):
    frames = list(open_source(named_badly))
    assert sorted(Path(frame.name).name for frame in frames) == sorted(SHOWN)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_may_begin_with_a_mark_and_name_files_that_are_not_utf8(named_badly, mark, end):
    lines = [b"# comment", b"caf\xe9.png", b" =1+1.png ", "c\u202egnp.png".encode(), b"nul\0.png", b""]
    (named_badly / "list.txt").write_bytes(mark + end.join(lines))
    source = open_source(named_badly / "list.txt")
    assert [Path(frame.name).name for frame in source] == [r"caf\xe9.png", "=1+1.png", r"c\u202egnp.png"]
    assert source.rejections == {"undecodable": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_needs_a_mark(named_badly, encoding):
    text = "=1+1.png\r\nc\u202egnp.png\r\n"
    (named_badly / "list.txt").write_bytes(("" if encoding == "utf-16" else "\ufeff").join(["", text]).encode(encoding))
    assert len(list(open_source(named_badly / "list.txt"))) == 2


def test_a_url_in_a_list_is_refused_and_not_shown(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nrtsp://me:hush@cam/one\n")
    with pytest.raises(SourceError, match="lists a URL") as caught:
        open_source(tmp_path / "list.txt")
    assert "hush" not in str(caught.value)


def test_a_video_whose_name_is_not_utf8_is_read(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [20, 120, 220]).rename(tmp_path / os.fsdecode(b"caf\xe9\x1b[31m.mp4"))
    with open_source(path) as source:
        assert source.name.endswith(r"caf\xe9\x1b[31m.mp4")
        assert len(list(source)) == 3


@pytest.mark.parametrize("spec", ["me:hush@cam/one", "http:/me:hush@cam/one", "rtsp:me:hush@cam"])
def test_half_a_url_is_not_shown(spec):
    with pytest.raises(SourceError, match=r"^the source: no such file or folder") as caught:
        open_source(spec)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["rtsp://cam/\udce9", "v4l2src ! \udce9 ! appsink", "http://me:hu\0sh@cam/", "a ! \x1b ! appsink"]
)
def test_text_that_native_code_cannot_read_is_refused(spec):
    with pytest.raises(UsageError, match="control character") as caught:
        open_source(spec)
    assert str(caught.value).isprintable()
    assert "hu" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["9" * 5000, "x" * 5000, "nul\0.png", "pattern:" + "9" * 5000 + "x32", "\ud800", "\x1b[31m"]
)
def test_a_source_that_cannot_exist_is_one_short_printable_line(spec):
    with pytest.raises((SourceError, InputError)) as caught:
        open_source(spec)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("password", ["hu#sh", "hu/sh", "hu?sh", "p@s:s/w#d?1"])
def test_a_password_that_must_be_encoded_is_named_as_the_cause(password, caplog):
    with open_source(f"http://me:{password}@127.0.0.1:{free_port()}/one", retries=0) as source:
        with pytest.raises(SourceError, match="percent-encode it: # is %23, / is %2F") as caught:
            next(iter(source))
        assert password not in str(caught.value) + source.name + source.error + caplog.text
        assert "hu" not in str(caught.value)


def test_the_capture_process_gets_what_libraries_need_and_no_secret(tmp_path, monkeypatch):
    secrets = (
        "RWS_TOKEN",
        "RWS_SOURCE",
        "RWS_OPTIONS",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "NOTIFY_SOCKET",
        "DB_URL",
    )
    needed = ("GST_PLUGIN_PATH", "http_proxy", "OPENCV_VIDEOIO_DEBUG", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
    for name in (*secrets, *needed):
        monkeypatch.setenv(name, "hush")
    with open_source(write_video(tmp_path / "clip.mp4", [20, 120])) as source:
        found = Path(f"/proc/{source.pid}/environ").read_bytes().decode().split("\0")
        assert len(list(source)) == 2
    names = {entry.partition("=")[0] for entry in found}
    assert names.isdisjoint(secrets)
    assert names >= {*needed, "PATH", "PYTHONPATH"}


def test_no_child_reports_its_use_to_the_maker_of_onnx_runtime(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert child_environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_label_tells_two_cameras_of_one_host_apart():
    with open_source("rtsp://me:hush@cam/one", label="front\x1b door") as source:
        assert source.name == r"front\x1b door (rtsp://cam)"


def test_a_pipeline_may_have_several_lines():
    with open_source("v4l2src !\n\tvideoconvert ! appsink") as source:
        assert source.name == "pipeline"
