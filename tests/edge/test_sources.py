import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from edge.errors import InputError, RwsError, SourceError
from edge.sources import ArraySource, ImageSource, VideoSource, open_source
from tests.edge.loop_fakes import TickingClock, write_images, write_video


def test_video_gives_every_frame_in_order_as_rgb(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(0, 240, 20), fps=29.97)
    with open_source(path, TickingClock()) as source:
        assert (source.live, source.sequential, source.length) == (False, True, 12)
        assert source.fps == pytest.approx(29.97)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert all(frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 for frame in frames)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], range(0, 240, 20), atol=5)
    stamps = [frame.captured_at for frame in frames]
    assert stamps == sorted(set(stamps))
    assert (source.dropped, source.rejected) == (0, 0)


def test_colours_are_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))
    (frame,) = open_source(tmp_path / "red.png")
    assert frame.image[0, 0].tolist() == [255, 0, 0]


def test_grey_and_transparent_images_become_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 5), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((4, 5, 4), 7, np.uint8))
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


def test_a_list_with_a_missing_file_goes_on(tmp_path, caplog):
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
    "float.npy": (lambda path: np.save(path, np.zeros((2, 8, 8, 3))), "float64"),
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


def test_a_camera_that_is_not_there_is_an_error():
    with pytest.raises(SourceError, match="camera 93: cannot be opened"):
        open_source("93")


def test_a_truncated_video_ends_early_and_says_so(tmp_path, caplog):
    path = write_video(tmp_path / "clip.mkv", range(0, 200, 4))
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


class ScriptedCapture:
    """A camera that gives three frames, the second undecodable, and then is gone."""

    def __init__(self, target):
        self.frames, self.released = [True, False, True], False

    def isOpened(self):
        return True

    def get(self, key):
        return -1.0

    def grab(self):
        return bool(self.frames)

    def retrieve(self):
        good = self.frames.pop(0)
        return good, np.zeros((4, 4, 3), np.uint8) if good else None

    def release(self):
        self.released = True


def test_a_live_source_that_ends_is_lost_and_nothing_is_invented(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", ScriptedCapture)
    indices = []
    with open_source(0) as source, pytest.raises(SourceError, match="camera 0: lost after 3 frames"):
        indices.extend(frame.index for frame in source)
    assert source.live
    assert (source.fps, source.length, source.rejected) == (None, None, 1)
    assert source._capture.released


def test_passwords_stay_out_of_names_and_errors(monkeypatch):
    monkeypatch.setattr(ScriptedCapture, "isOpened", lambda self: False)
    monkeypatch.setattr(cv2, "VideoCapture", ScriptedCapture)
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://me:hush@camera.local/one")
    assert "hush" not in str(caught.value)
    assert "rtsp://me:***@camera.local/one" in str(caught.value)


def test_http_video_is_a_file_that_ends(tmp_path):
    data = write_video(tmp_path / "clip.mp4", range(0, 200, 20)).read_bytes()

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
        with open_source(f"http://127.0.0.1:{server.server_port}/clip.mp4") as source:
            assert isinstance(source, VideoSource)
            assert (source.live, source.length) == (False, 10)
            assert len(list(source)) == 10
    finally:
        server.shutdown()
        server.server_close()


def test_image_sources_are_told_apart_from_video(tmp_path):
    write_images(tmp_path, 1)
    assert isinstance(open_source(tmp_path / "0.png"), ImageSource)
