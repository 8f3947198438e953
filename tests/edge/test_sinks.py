import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.draw import annotate
from edge.errors import InputError, RwsError
from edge.sinks import JsonlSink, VideoSink, check_target
from edge.sources import open_source
from tests.edge.loop_fakes import make_frame, make_result


def test_jsonl_has_one_line_a_result(tmp_path):
    path = tmp_path / "results.jsonl"
    with JsonlSink(path) as sink:
        for index in range(3):
            sink.write(make_frame(index), make_result(index, mix={"fog": 0.5}, label="cät"))
        assert not path.exists()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[0]["label"] == "cät"
    assert lines[0] == make_result(0, mix={"fog": 0.5}, label="cät").to_json()
    assert os.listdir(tmp_path) == ["results.jsonl"]


def test_video_frames_read_back(tmp_path):
    path = tmp_path / "out.mp4"
    frames = [make_frame(index, value=20 * index) for index in range(12)]
    with VideoSink(path, fps=29.97) as sink:
        for frame in frames:
            sink.write(frame, make_result(frame.index))
        assert not path.exists()
    assert os.listdir(tmp_path) == ["out.mp4"]
    with open_source(path) as source:
        assert source.fps == pytest.approx(29.97, abs=0.01)
        back = list(source)
    assert len(back) == 12
    for frame, read in zip(frames, back, strict=True):
        expected = annotate(frame.image, make_result(frame.index))
        assert read.image.shape == expected.shape
        assert np.abs(read.image.astype(int) - expected).mean() < 6


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoSink(path) as sink:
        for index, (height, width) in enumerate([(32, 32), (400, 300), (50, 900), (32, 32)]):
            sink.write(make_frame(index, height, width), make_result(index))
    back = list(open_source(path))
    assert [frame.image.shape for frame in back] == [(320, 620, 3)] * 4


def write_and_raise(sink):
    sink.write(make_frame(), make_result())
    raise ZeroDivisionError


@pytest.mark.parametrize(("kind", "name"), [(JsonlSink, "out.jsonl"), (VideoSink, "out.mp4")])
@pytest.mark.parametrize("before", [None, b"earlier"])
def test_an_exception_leaves_what_was_there(tmp_path, kind, name, before):
    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(ZeroDivisionError), kind(path) as sink:
        write_and_raise(sink)
    assert (path.read_bytes() if path.exists() else None) == before
    assert os.listdir(tmp_path) == ([] if before is None else [name])


@pytest.mark.parametrize(("kind", "name"), [(JsonlSink, "out.jsonl"), (VideoSink, "out.mp4")])
def test_a_missing_folder_is_refused_at_once(tmp_path, kind, name):
    with pytest.raises(InputError, match="its folder does not exist"), kind(tmp_path / "no" / name):
        pass
    assert os.listdir(tmp_path) == []


def test_targets_that_cannot_be_files(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(InputError, match=r"out\.gif: annotated video is written as \.mp4"):
        VideoSink(tmp_path / "out.gif")
    assert check_target(tmp_path / "new.json") == tmp_path / "new.json"


def test_no_frame_no_video(tmp_path):
    with VideoSink(tmp_path / "out.mp4"):
        pass
    assert os.listdir(tmp_path) == []


def test_no_working_encoder_is_said_clearly(tmp_path, monkeypatch):
    class NoWriter:
        def __init__(self, *args):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoWriter", type("VideoWriter", (NoWriter,), {"fourcc": lambda *code: 0}))
    with pytest.raises(RwsError, match="none of mp4v, avc1"), VideoSink(tmp_path / "out.mp4") as sink:
        sink.write(make_frame(), make_result())
    assert os.listdir(tmp_path) == []


class ForgetfulWriter:
    """Takes every frame and writes all but the third, without a word."""

    def __init__(self, *arguments):
        self.writer, self.count = REAL_WRITER(*arguments), 0

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def write(self, picture):
        self.count += 1
        if self.count != 3:
            self.writer.write(picture)

    fourcc = cv2.VideoWriter.fourcc


REAL_WRITER = cv2.VideoWriter


def write_frames(kind, path, count):
    with kind(path) as sink:
        for index in range(count):
            sink.write(make_frame(index), make_result(index))


def test_frames_that_were_not_written_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoWriter", ForgetfulWriter)
    write_frames(VideoSink, tmp_path / "short.mp4", 2)
    with pytest.raises(RwsError, match="only 3 of 4 frames"):
        write_frames(VideoSink, tmp_path / "out.mp4", 4)
    assert os.listdir(tmp_path) == ["short.mp4"]


class FullDisk(JsonlSink):
    def _open(self):
        super()._open()
        self._file = self._stack.enter_context(Path("/dev/full").open("w"))  # noqa: SIM115


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("count", [1, 200])
def test_a_full_disk_is_one_line(tmp_path, count):
    with pytest.raises(RwsError, match=r"out\.jsonl: cannot be written \(No space left"):
        write_frames(FullDisk, tmp_path / "out.jsonl", count)
    assert os.listdir(tmp_path) == []
