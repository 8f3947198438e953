import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rws.edge.common.files import check_target
from rws.edge.pipeline import STAGES
from rws.edge.sinks import mp4 as video
from rws.edge.sinks.background import BackgroundSink
from rws.edge.sinks.csv import COLUMNS, CsvSink
from rws.edge.sinks.jsonl import JsonlSink
from rws.edge.sinks.video import VideoSink
from rws.edge.sources.arrays import ArraySource
from rws.edge.tasks.annotate import annotate
from rws.errors import InputError, RwsError
from support.fakes import StillClock, make_frame, make_result, spread_belief

KINDS = [(JsonlSink, "out.jsonl"), (CsvSink, "out.csv"), (VideoSink, "out.mp4")]


def read_video(path):
    """Return the images, RGB, and their times in seconds after the first (a fragmented file starts after 0)."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time - frames[0].time for frame in frames]


def write_frames(sink, count, first=0):
    with sink:
        for index in range(first, first + count):
            sink.write(make_frame(index), make_result(index))


def test_jsonl_has_one_line_per_result(tmp_path):
    path = tmp_path / "results.jsonl"
    with JsonlSink(path) as sink:
        for index in range(3):
            sink.write(make_frame(index), make_result(index, mix={"fog": 0.5}, label="cät"))
        assert not path.exists()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[0]["label"] == "cät"
    assert lines[0] == make_result(0, mix={"fog": 0.5}, label="cät").to_dict()
    assert os.listdir(tmp_path) == ["results.jsonl"]


def test_video_frames_read_back(tmp_path):
    path = tmp_path / "out.mp4"
    frames = [make_frame(index, value=20 * index) for index in range(12)]
    with VideoSink(path, fps=29.97) as sink:
        for frame in frames:
            sink.write(frame, make_result(frame.index))
        assert not path.exists()
    assert os.listdir(tmp_path) == ["out.mp4"]
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == Fraction(2997, 100)
    images, times = read_video(path)
    assert times == pytest.approx([index / 29.97 for index in range(12)], abs=1e-4)
    for frame, image in zip(frames, images, strict=True):
        expected = annotate(frame.image, make_result(frame.index))
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 3


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoSink(path) as sink:
        for index, (height, width) in enumerate([(32, 32), (400, 300), (50, 900), (32, 32)]):
            sink.write(make_frame(index, height, width), make_result(index))
    images, times = read_video(path)
    assert [image.shape for image in images] == [(320, 620, 3)] * 4
    assert times == pytest.approx([0, 0.04, 0.08, 0.12])


def write_and_raise(sink):
    sink.write(make_frame(), make_result())
    raise ZeroDivisionError


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize("before", [None, b"earlier"])
def test_an_exception_leaves_what_was_there(tmp_path, kind, name, before):
    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(ZeroDivisionError), kind(path) as sink:
        write_and_raise(sink)
    assert (path.read_bytes() if path.exists() else None) == before
    assert os.listdir(tmp_path) == ([] if before is None else [name])


@pytest.mark.parametrize(("kind", "name"), KINDS)
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
    for endless in (False, True):
        with pytest.raises(InputError, match="is a folder"), JsonlSink(tmp_path, endless=endless):
            pass


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e-9])
def test_impossible_frame_rates_are_refused(tmp_path, fps):
    with pytest.raises(InputError, match=r"expected 0\.001 to 1000"):
        VideoSink(tmp_path / "out.mp4", fps)


def test_no_frame_no_video(tmp_path):
    with VideoSink(tmp_path / "out.mp4"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("codec", "found"), [("libx264", "h264"), ("mpeg4", "mpeg4")])
@pytest.mark.parametrize("endless", [False, True])
def test_both_encoders_write_playable_files(tmp_path, monkeypatch, codec, found, endless):
    monkeypatch.setattr(video, "ENCODERS", {"no_such_encoder": {}, codec: video.ENCODERS[codec]})
    path = tmp_path / "out.mp4"
    with VideoSink(path, 10, endless=endless) as sink:
        for index in range(30):
            sink.write(replace(make_frame(index, value=8 * index), captured_at=7 + index / 10), make_result(index))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == found
    images, times = read_video(path)
    assert times == pytest.approx([index / 10 for index in range(30)], abs=1e-4)
    assert [int(image[160, 160].mean()) for image in images] == pytest.approx(range(0, 240, 8), abs=4)


def test_a_missing_encoder_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ENCODERS", {"no_such_encoder": {}, "nor_this": {}})
    with pytest.raises(RwsError, match="none of no_such_encoder, nor_this"), VideoSink(tmp_path / "out.mp4") as sink:
        sink.write(make_frame(), make_result())
    assert os.listdir(tmp_path) == []


def test_an_encoder_that_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ENCODERS", {"libx264": {"preset": "unheard of"}})
    with pytest.raises(RwsError, match=r"/out\.mp4: cannot be written \(Invalid argument\)") as caught:
        write_frames(VideoSink(tmp_path / "out.mp4"), 1)
    assert isinstance(caught.value.__cause__, av.FFmpegError)
    assert os.listdir(tmp_path) == []


def test_csv_has_one_row_per_result(tmp_path):
    path = tmp_path / "out.csv"
    result = make_result(1, mix={"fog": 0.8, "snow": 0.2}, label="c,at", changed=True, belief=spread_belief())
    with CsvSink(path) as sink:
        sink.write(make_frame(0), make_result(0))
        sink.write(make_frame(1), replace(result, name='a "b"\r\nc'))
        assert not path.exists()
    assert len(path.read_text().splitlines()) == 3
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["mix"], rows[0]["changed"], rows[0]["corruption"]) == ("", "false", "fog")
    assert (rows[1]["index"], rows[1]["name"], rows[1]["label"]) == ("1", r'a "b"\r\nc', "c,at")
    assert (rows[1]["mix"], rows[1]["changed"]) == ("fog:0.80+snow:0.20", "true")
    belief = result.belief
    assert rows[1]["corruption"] == belief.type
    assert float(rows[1]["probability"]) == pytest.approx(belief.probability.max(), abs=1e-4)
    assert float(rows[1]["severity"]) == pytest.approx(belief.type_severity, abs=1e-3)
    assert {stage: float(rows[1][f"{stage}_ms"]) for stage in STAGES} == dict(result.times_ms)
    numbers = {key: float(rows[1][key]) for key in ("captured_monotonic_s", "age_ms", "confidence")}
    assert numbers == {"captured_monotonic_s": 1.0, "age_ms": 5.0, "confidence": 0.75}
    assert (rows[1]["schema"], rows[1]["captured_at"]) == ("run-row/1", "2001-09-09T01:46:40.000Z")


@pytest.mark.parametrize(("at", "cell"), [(None, ""), (0.0, "0.000000"), (1 / 3, "0.333333")])
def test_the_time_of_the_source_and_the_camera_are_the_last_columns(tmp_path, at, cell):
    result = replace(make_result(), media_time=at, camera="door")
    with CsvSink(tmp_path / "out.csv") as rows, JsonlSink(tmp_path / "out.jsonl") as lines:
        rows.write(make_frame(), result)
        lines.write(make_frame(), result)
    assert COLUMNS[-2:] == ("media_time_s", "camera")
    assert (tmp_path / "out.csv").read_text().splitlines()[1].split(",")[-2:] == [cell, "door"]
    assert json.loads((tmp_path / "out.jsonl").read_text())["media_time_s"] == (None if at is None else round(at, 6))


class Live(ArraySource):
    """Frames that arrive in bursts."""

    live = bursts = True


def test_a_live_video_of_bursts_shows_them_one_after_the_other(tmp_path):
    arrived = [100.0] * 10 + [101.2] * 10 + [160.0] * 3 + [161.0] * 2
    shown = [n / 10 for n in range(20)] + [50.0, 50.1, 50.2] + [0.0, 0.1]  # reopened after the third
    with VideoSink(tmp_path / "out.mp4", source=Live(np.zeros((1, 4, 4, 3), np.uint8))) as sink:
        for index, (captured_at, media_time) in enumerate(zip(arrived, shown, strict=True)):
            sink.write(replace(make_frame(index), captured_at=captured_at, media_time=media_time), make_result(index))
    expected = [n / 10 for n in range(20)] + [50.0, 50.1, 50.2] + [61.0, 61.1]
    assert read_video(tmp_path / "out.mp4")[1] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("endless", [False, True])
def test_a_pause_of_a_night_can_be_played(tmp_path, endless):
    times = [n / 10 + (12 * 3600 if n >= 10 else 0) for n in range(30)]
    with VideoSink(tmp_path / "out.mp4", endless=endless) as sink:
        for index, at in enumerate(times):
            sink.write(replace(make_frame(index), captured_at=7 + at, media_time=at), make_result(index))
    found = read_video(tmp_path / "out.mp4")[1]
    assert found[:10] == pytest.approx(times[:10], abs=1e-3)
    assert found[-15:] == pytest.approx(times[-15:], abs=1e-3)


@pytest.mark.parametrize("kind", [JsonlSink, CsvSink])
@pytest.mark.parametrize("endless", [False, True])
def test_a_file_name_that_is_no_utf8_is_escaped(tmp_path, kind, endless):
    path = tmp_path / "out"
    name = os.fsdecode(b"caf\xe9.png")
    with kind(path, endless=endless) as sink:
        sink.write(make_frame(), replace(make_result(), name=name))
    line = path.read_text(encoding="utf-8").splitlines()[-1]
    assert (json.loads(line)["name"] == r"caf\xe9.png") if kind is JsonlSink else (r",caf\xe9.png," in line)


@pytest.mark.parametrize("first", "=+-@")
def test_a_csv_cell_that_a_spreadsheet_would_run_is_text(tmp_path, first):
    path = tmp_path / "out.csv"
    with CsvSink(path) as sink:
        sink.write(make_frame(), replace(make_result(label=f"{first}cmd|' /C calc'!A0"), name=f"{first}1+1.png"))
    _, row = csv.reader(path.read_text().splitlines())
    assert row[COLUMNS.index("name")] == f"'{first}1+1.png"
    assert row[COLUMNS.index("label")] == f"'{first}cmd|' /C calc'!A0"


def test_a_video_has_each_frame_whatever_its_name(tmp_path):
    names = [os.fsdecode(b"caf\xe9.png"), "nul\0", "\ud800", "\x1b[31m", "x" * 100_000, "写真.png", ""]
    with VideoSink(tmp_path / "out.mp4") as sink:
        for index, name in enumerate(names):
            sink.write(make_frame(index), replace(make_result(index, label=name or "x"), name=name))
    images, _ = read_video(tmp_path / "out.mp4")
    assert len(images) == len(names)


def whole_lines(path, kind):
    """The `index` of each frame that a file has whole."""
    with path.open(newline="") as file:
        if kind is CsvSink:
            return [int(row["index"]) for row in csv.DictReader(file) if row["predict_ms"] is not None]
        found = []
        for line in file:
            try:
                found.append(json.loads(line)["index"])
            except ValueError:
                continue
        return found


@pytest.mark.parametrize(("kind", "name"), KINDS[:2])
def test_an_endless_file_has_every_line_at_once_and_grows(tmp_path, kind, name):
    path = tmp_path / name
    for first in (0, 3):
        with kind(path, endless=True) as sink:
            for index in range(first, first + 3):
                sink.write(make_frame(index), make_result(index))
                assert whole_lines(path, kind) == list(range(index + 1))
    assert path.read_text().count("index,name") == (kind is CsvSink)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_an_exception_leaves_an_endless_file(tmp_path, kind, name):
    path = tmp_path / name
    with pytest.raises(ZeroDivisionError), kind(path, endless=True) as sink:
        write_and_raise(sink)
    assert len(read_video(path)[0] if kind is VideoSink else whole_lines(path, kind)) == 1


@pytest.mark.parametrize(("kind", "name"), KINDS[:2])
def test_wherever_a_crash_cuts_the_file_the_next_run_continues(tmp_path, kind, name):
    path = tmp_path / name
    with kind(path, endless=True) as sink:
        sink.write(make_frame(0), make_result(0))
        sink.write(make_frame(1), replace(make_result(1), name='a, "quoted" name'))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        before = whole_lines(path, kind)
        with kind(path, endless=True) as sink:
            sink.write(make_frame(7), make_result(7))
            sink.write(make_frame(8), make_result(8))
        # A line that was cut just before its newline was whole.
        assert whole_lines(path, kind) in ([*before, 7, 8], [*range(len(before) + 1), 7, 8]), cut
        assert path.read_bytes().startswith(whole[:cut]) or cut < len(CsvSink.HEADER)


@pytest.mark.parametrize(("kind", "name"), KINDS[:2])
def test_logrotate_may_empty_the_file_beneath_us(tmp_path, kind, name):
    path = tmp_path / name
    with kind(path, endless=True) as sink:
        for index in range(4):
            sink.write(make_frame(index), make_result(index))
            if index == 1:
                os.truncate(path, 0)
    assert whole_lines(path, kind) == [2, 3]
    with kind(path, endless=True) as sink:
        sink.write(make_frame(4), make_result(4))
    assert whole_lines(path, kind) == [2, 3, 4]


@pytest.mark.parametrize("content", [b"a,b,c\n1,2,3\n", b"index,name,age\n", b"index,name\n", b"\n", b"\xff\xfe"])
def test_a_csv_file_with_other_columns_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "out.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"out\.csv: begins with .* expected the columns 'schema,index,name"):
        write_frames(CsvSink(path, endless=True), 1)
    assert path.read_bytes() == content


def test_an_endless_file_may_be_a_pipe(tmp_path):
    for kind in (JsonlSink, CsvSink):
        code = (
            f"from {kind.__module__} import {kind.__name__}; from support.fakes import make_frame, make_result\n"
            f"with {kind.__name__}('/dev/stdout', endless=True) as sink: sink.write(make_frame(3), make_result(3))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        (tmp_path / "out").write_bytes(found.stdout)
        assert whole_lines(tmp_path / "out", kind) == [3]


def test_an_endless_video_keeps_the_time_of_each_frame(tmp_path):
    path = tmp_path / "out.mp4"
    times = [100.0, 100.04, 100.1, 100.1, 103.5, 103.4, 103.6, 190.0]
    with VideoSink(path, endless=True) as sink:
        for index, at in enumerate(times):
            sink.write(replace(make_frame(index), captured_at=at), make_result(index))
    expected = [0, 0.04, 0.1, 0.1, 3.5, 3.5, 3.6, 90.0]
    assert read_video(path)[1] == pytest.approx(expected, abs=1e-3)


def test_an_endless_video_does_not_overwrite_the_last_one(tmp_path):
    (tmp_path / "out.mp4").touch()
    for count in (1, 2, 3):
        write_frames(VideoSink(tmp_path / "out.mp4", endless=True), count)
    found = {path.name: len(read_video(path)[0]) for path in tmp_path.iterdir()}
    assert found == {"out.1.mp4": 1, "out.2.mp4": 2, "out.mp4": 3}


KILLED = """
import sys, time
from dataclasses import replace
from rws.edge.sinks.{module} import {kind}
from support.fakes import StillClock, make_frame, make_result

with {kind}(sys.argv[1], endless=True) as sink:
    for index in range(200):
        sink.write(replace(make_frame(index), captured_at=index / 10), make_result(index))
    print("written", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_what_was_written_before_kill_9_can_be_read(tmp_path, kind, name):
    path = tmp_path / name
    command = [
        sys.executable,
        "-c",
        KILLED.format(kind=kind.__name__, module=kind.__module__.rpartition(".")[2]),
        str(path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    if kind is VideoSink:
        times = read_video(path)[1]
        assert times == pytest.approx([index / 10 for index in range(len(times))], abs=1e-3)
        # 20 s at 10 frames per second: a fragment every 2 s, and the frames that the encoder holds back.
        assert len(times) >= 160
    else:
        assert whole_lines(path, kind) == list(range(200))


class FullDisk(JsonlSink):
    def _open(self):
        super()._open()
        self._file = self._stack.enter_context(Path("/dev/full").open("wb"))  # noqa: SIM115


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("count", [1, 200])
def test_a_full_disk_is_one_line(tmp_path, count):
    with pytest.raises(RwsError, match=r"out\.jsonl: cannot be written \(No space left"):
        write_frames(FullDisk(tmp_path / "out.jsonl"), count)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_full_disk_at_the_first_endless_write(tmp_path, kind, name, count):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(RwsError, match=rf"{re.escape(name)}: cannot be written \(No space left") as caught:
        write_frames(kind(tmp_path / name, endless=True), count)
    assert isinstance(caught.value.__cause__, OSError)


def fill(sink):
    rng = np.random.default_rng(0)
    with sink:
        for index in range(10_000):
            image = rng.integers(0, 256, (320, 320, 3), np.uint8)
            frame = replace(make_frame(index), image=image, captured_at=index / 10)
            sink.write(frame, replace(make_result(index), name="x" * 1000))


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize("endless", [False, True])
def test_a_disk_that_fills_up(small_disk, kind, name, endless):
    path = small_disk / name
    if not endless:
        path.write_bytes(b"earlier")
    with pytest.raises(RwsError, match=rf"{re.escape(name)}: cannot be written \(No space left") as caught:
        fill(kind(path, endless=endless))
    assert isinstance(caught.value.__cause__, OSError)
    if not endless:
        assert path.read_bytes() == b"earlier"
        assert os.listdir(small_disk) == [name]
        return
    if kind is VideoSink:
        assert 0 < path.stat().st_size <= 200 * 1024
        return
    found = whole_lines(path, kind)
    assert found == list(range(len(found)))
    assert len(found) > 100
    # There is room again: the half line gets its end, and the file goes on.
    path.write_bytes(path.read_bytes()[50_000 if kind is JsonlSink else 0 :][:100_000])
    write_frames(kind(path, endless=True), 1, first=9)
    assert whole_lines(path, kind)[-1] == 9


@pytest.mark.parametrize("endless", [False, True])
def test_a_video_that_failed_takes_no_more_frames_and_is_not_called_complete(small_disk, endless):
    rng = np.random.default_rng(0)
    (small_disk / "ballast").write_bytes(b"x" * 100_000)
    taken, reasons = [], set()

    def run():
        with VideoSink(small_disk / "out.mp4", endless=endless) as sink:
            for index in range(60):
                image = rng.integers(0, 256, (100, 100, 3), np.uint8)
                try:
                    sink.write(replace(make_frame(index), image=image, captured_at=index), make_result(index))
                except RwsError as error:
                    reasons.add(str(error).partition(": ")[2])
                    # Room again, but there is a hole in the file.
                    (small_disk / "ballast").unlink(missing_ok=True)
                    continue
                taken.append(index)

    with pytest.raises(RwsError, match=r"out\.mp4: cannot be written \(No space left"):
        run()
    assert 0 < len(taken) < 60
    assert taken == list(range(len(taken)))
    assert reasons == {"cannot be written (No space left on device)"}
    assert os.listdir(small_disk) == (["out.mp4"] if endless else [])


def test_a_full_disk_loses_no_frame_silently(small_disk):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 20, 20, 3), np.uint8)
    refused = 0
    for endless in (False, True):
        for spare in range(0, 200_000, 8_000):
            (small_disk / "ballast").write_bytes(b"x" * spare)
            path = small_disk / "out.mp4"
            try:
                with VideoSink(path, endless=endless) as sink:
                    for index, image in enumerate(images):
                        sink.write(replace(make_frame(index), image=image, captured_at=index), make_result(index))
            except RwsError:
                refused += 1
            else:
                assert len(read_video(path)[0]) == 12
            for file in small_disk.iterdir():
                file.unlink()
    assert 5 < refused < 45


def behind(sink, clock, **options):
    return BackgroundSink(sink, on_failure="reopen", clock=clock, when_full="wait", **options)


def put(sink, *indices, size=20):
    """Write frames, their pixels noise and their names long, and wait until each is done."""
    rng = np.random.default_rng(0)
    for index in indices:
        frame = replace(
            make_frame(index), image=rng.integers(0, 256, (size, size, 3), np.uint8), captured_at=index / 10
        )
        sink.write(frame, replace(make_result(index), name="x" * 1000))
        end = time.monotonic() + 30
        while (status := sink.status()).waiting or status.writing:
            assert time.monotonic() < end
            time.sleep(0.001)


def put_until_it_fails(sink, first, **options):
    index = first
    while sink.status().state == "up":
        put(sink, index, **options)
        index += 1
    return index


@pytest.mark.parametrize(("kind", "name"), KINDS[:2])
def test_lines_go_on_when_a_full_disk_has_room_again_and_none_is_half(small_disk, caplog, kind, name):
    clock = StillClock()
    path, ballast = small_disk / name, small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    with behind(kind(path, endless=True), clock) as sink:
        count = put_until_it_fails(sink, 0)
        put(sink, count)  # too early to be tried
        clock.now += 1
        put(sink, count + 1)  # still full
        ballast.unlink()
        clock.now += 1.9
        put(sink, count + 2)  # the pause has doubled
        clock.now += 0.1
        put(sink, *range(count + 3, count + 6))
        assert sink.status().state == "failing"  # for a few seconds more, because it may fail again
        clock.now += 5
        put(sink, count + 6)
        status = sink.status()
    assert (status.state, status.error, status.failures) == ("up", "", 2)
    assert (status.written, status.failed) == (count - 1 + 4, 4)
    assert whole_lines(path, kind) == [*range(count - 1), *range(count + 3, count + 7)]
    lines = path.read_text().splitlines()
    assert len(lines) == status.written + (kind is CsvSink)
    assert lines[0].startswith('{"schema' if kind is JsonlSink else "schema,")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "No space left on device); the run goes on" in said[0]
    assert said[1].endswith("works again; 4 frames were lost")


def test_a_video_goes_on_in_a_new_file_and_what_was_written_stays_playable(small_disk):
    clock = StillClock()
    path, ballast = small_disk / "out.mp4", small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    with behind(VideoSink(path, endless=True), clock) as sink:
        count = put_until_it_fails(sink, 0)
        for _ in range(5):  # there is no room for a fragment: nothing is left behind
            clock.now += 100
            put(sink, *range(count, count + 40))
            assert sink.status().state == "failing"
        assert sink.failures == 6
        ballast.unlink()
        clock.now += 100
        put(sink, *range(1000, 1015))
    assert sink.status().state == "up"
    found = {file.name: len(read_video(file)[0]) for file in small_disk.iterdir()}
    assert found.pop("out.mp4") == 15
    assert found.pop("out.1.mp4") >= 20
    assert not found


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_file_that_is_taken_away_costs_no_frame(tmp_path, kind, name, how):
    path, other = tmp_path / name, tmp_path / "other"
    with kind(path, endless=True) as sink:
        for index in range(6):
            sink.write(make_frame(index), make_result(index))
            if index == 2 and how == "removed":
                path.unlink()
            elif index == 2:
                path.rename(other)
                if how == "replaced":
                    path.touch()
    if kind is VideoSink:
        assert len(read_video(path)[0]) == 3
        assert how == "removed" or len(read_video(other)[0]) == 3
        return
    assert whole_lines(path, kind) == [3, 4, 5]
    assert how == "removed" or whole_lines(other, kind) == [0, 1, 2]


def test_a_folder_that_is_removed_and_comes_back(tmp_path):
    clock, folder = StillClock(), tmp_path / "folder"
    folder.mkdir()
    with behind(JsonlSink(folder / "out.jsonl", endless=True), clock) as sink:
        put(sink, 0)
        shutil.rmtree(folder)
        put(sink, 1)
        assert "its folder does not exist" in sink.status().error
        folder.mkdir()
        clock.now += 1
        put(sink, 2)
    assert whole_lines(folder / "out.jsonl", JsonlSink) == [2]
    assert sink.status().state == "up"


def test_a_disk_that_is_unmounted_is_waited_for_and_the_folder_below_stays_empty(small_disk):
    clock = StillClock()
    with behind(JsonlSink(small_disk / "out.jsonl", endless=True), clock) as sink:
        put(sink, 0)
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        for index in (1, 2):
            put(sink, index)
            clock.now += 10
        assert "is no longer mounted" in sink.status().error
        assert os.listdir(small_disk) == []
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small_disk)], check=True)
        put(sink, 3)
    assert whole_lines(small_disk / "out.jsonl", JsonlSink) == [3]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_limit_of_the_size_of_files_is_a_failure_like_a_full_disk(tmp_path, kind, name):
    path = tmp_path / name
    code = f"""
import resource, sys
from {kind.__module__} import {kind.__name__}
from rws.edge.sinks.background import BackgroundSink
from support.fakes import StillClock, make_frame, make_result
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
with BackgroundSink({kind.__name__}(sys.argv[1], endless=True), when_full="wait", on_failure="reopen") as sink:
    for index in range(200):
        sink.write(make_frame(index), make_result(index))
print(sink.status())
"""
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "state='failing'" in found.stdout
    assert "File too large" in found.stdout
    assert "accepted=200" in found.stdout
    if kind is not VideoSink:
        indices = whole_lines(path, kind)
        assert indices == list(range(len(indices)))
        assert len(path.read_text().splitlines()) == len(indices) + (kind is CsvSink)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_at_the_start_is_waited_for_but_a_mistake_is_refused(tmp_path):
    clock, path = StillClock(), tmp_path / "out.csv"
    path.symlink_to("/dev/full")
    with behind(CsvSink(path, endless=True), clock) as sink:
        put(sink, 0)
        path.unlink()
        clock.now += 1
        put(sink, 1)
    assert whole_lines(path, CsvSink) == [1]
    path.write_text("a,b\n")
    for wrong in (path, tmp_path / "no" / "out.csv", tmp_path):
        with pytest.raises(InputError), behind(CsvSink(wrong, endless=True), clock):
            pass


def test_stdout_on_a_full_disk_has_whole_lines_only(small_disk):
    code = """
import sys
from pathlib import Path
from rws.edge.sinks.background import BackgroundSink
from rws.edge.sinks.jsonl import JsonlSink
from support.fakes import StillClock, make_frame, make_result
clock, ballast = StillClock(), Path(sys.argv[1], "ballast")
ballast.write_bytes(b"x" * 150_000)
sink = BackgroundSink(JsonlSink("-", endless=True), when_full="wait", on_failure="reopen", clock=clock)
with sink:
    for index in range(400):
        sink.write(make_frame(index), make_result(index))
        while sink.status().writing or sink.status().waiting: pass
        if index == 300:
            ballast.unlink()
            clock.now += 100
print(sink.status().failed, file=sys.stderr)
"""
    with (small_disk / "out.jsonl").open("wb") as out:
        command = [sys.executable, "-c", code, str(small_disk)]
        found = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line)["index"] for line in (small_disk / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 400 - int(found.stderr.splitlines()[-1])
    assert lines[-99:] == list(range(301, 400))
