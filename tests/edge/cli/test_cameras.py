"""`rws run` with several cameras, through the command line."""

import json
import os
import signal
import threading
import time

import pytest

from rws.edge.cameras import Cameras
from rws.edge.faults.frames import encode_jpeg, scene
from rws.edge.faults.servers import MjpegServer
from support.fakes import write_images, write_video
from support.records import Reference

TIMES = {"captured_at", "captured_monotonic_s", "age_ms", "times_ms", "written_at", "camera", "name"}


def write_config(folder, text):
    path = folder / "run.toml"
    path.write_text(text)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(records):
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


@pytest.fixture
def videos(tmp_path):
    for name, values in (("day", range(200, 20, -9)), ("dusk", range(20, 200, 9)), ("night", range(40, 70, 2))):
        write_video(tmp_path / f"{name}.mp4", values)
    return tmp_path


def test_cameras_of_a_file_give_what_each_gives_alone(rws, videos):
    config = write_config(
        videos,
        f"""
        jsonl = "{videos}/{{camera}}.jsonl"
        csv = "{videos}/all.csv"
        json = "{videos}/summary.json"
        [camera.door]
        source = "{videos}/day.mp4"
        save = "{videos}/door.mp4"
        [camera.yard]
        source = "{videos}/dusk.mp4"
        oracle_every = 2
        [camera.road]
        source = "{videos}/night.mp4"
        leave_clean = true
        """,
    )
    result = rws("run", "--config", config)
    assert result.exit_code == 0, result.output
    for camera, video, options in (
        ("door", "day", ()),
        ("yard", "dusk", ("--oracle-every", 2)),
        ("road", "night", ("--leave-clean",)),
    ):
        alone = rws("run", videos / f"{video}.mp4", "--jsonl", videos / "alone.jsonl", *options)
        assert alone.exit_code == 0
        shared, own = lines(videos / f"{camera}.jsonl"), lines(videos / "alone.jsonl")
        assert {record["camera"] for record in shared} == {camera}
        assert {record["camera"] for record in own} == {None}
        assert timeless(shared) == timeless(own)
    assert f"door ({videos}/day.mp4)" in result.output
    rows = (videos / "all.csv").read_text().splitlines()
    assert [sum(row.endswith(f",{name}") for row in rows) for name in ("door", "yard", "road")] == [20, 20, 15]
    assert (videos / "door.mp4").stat().st_size > 500
    summary = json.loads((videos / "summary.json").read_text())
    assert [(one["camera"], one["frames"], one["received"]) for one in summary["cameras"]] == [
        ("door", 20, 20),
        ("yard", 20, 20),
        ("road", 15, 15),
    ]
    assert summary["cameras"][2]["leave_clean"] is True
    assert Reference.read().complaints(summary) == []


def test_several_videos_are_cameras_and_several_images_are_a_list(rws, videos):
    result = rws("run", videos / "day.mp4", videos / "night.mp4", "--jsonl", videos / "r.jsonl", "--limit", 5)
    assert result.exit_code == 0, result.output
    found = [(record["camera"], record["index"]) for record in lines(videos / "r.jsonl")]
    assert sorted(found) == [(name, index) for name in ("camera1", "camera2") for index in range(5)]
    folder = write_images(videos / "images", 2)
    result = rws("run", folder / "0.png", folder / "1.png", "--jsonl", videos / "i.jsonl")
    assert result.exit_code == 0, result.output
    assert [record["camera"] for record in lines(videos / "i.jsonl")] == [None, None]
    assert "camera1" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save", "{folder}/a.mp4"), "is the video of two cameras; put {camera} into its name"),
        (("--show",), "--show shows one camera"),
    ],
)
def test_what_cameras_cannot_share_is_refused(rws, videos, options, message):
    options = [option.replace("{folder}", str(videos)) for option in options]
    result = rws("run", videos / "day.mp4", videos / "night.mp4", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_images_and_videos_are_not_mixed_and_cameras_are_limited(rws, videos):
    folder = write_images(videos / "images", 1)
    mixed = rws("run", folder / "0.png", videos / "day.mp4")
    assert (mixed.exit_code, mixed.stderr.count("\n")) == (2, 1)
    assert "images and cameras or videos are mixed" in mixed.stderr
    many = rws("run", *["pattern"] * 65)
    assert many.exit_code == 2
    assert "65 cameras or videos are given, 64 are allowed" in many.stderr


def test_stdout_is_for_all_cameras(rws, videos):
    config = write_config(videos, f'[camera.a]\nsource = "{videos}/day.mp4"\njsonl = "-"\n')
    result = rws("run", "--config", config)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "stdout is for all cameras" in result.stderr


def test_each_shared_file_has_its_counters(rws, videos):
    config = write_config(
        videos,
        f"""
        json = "{videos}/s.json"
        [camera.a]
        source = "{videos}/day.mp4"
        jsonl = "{videos}/one.jsonl"
        [camera.b]
        source = "{videos}/dusk.mp4"
        jsonl = "{videos}/one.jsonl"
        [camera.c]
        source = "{videos}/day.mp4"
        jsonl = "{videos}/two.jsonl"
        [camera.d]
        source = "{videos}/dusk.mp4"
        jsonl = "{videos}/two.jsonl"
        """,
    )
    result = rws("run", "--config", config)
    assert result.exit_code == 0, result.output
    sinks = json.loads((videos / "s.json").read_text())["sinks"]
    assert {name: sink["written"] for name, sink in sinks.items() if "jsonl" in name} == {"jsonl": 40, "jsonl 2": 40}


def test_a_source_next_to_a_file_with_cameras_is_refused(rws, videos):
    config = write_config(videos, f'[camera.a]\nsource = "{videos}/day.mp4"\n')
    result = rws("run", videos / "night.mp4", "--config", config)
    assert result.exit_code == 2
    assert "names cameras, and a source is given as well" in result.stderr


def test_a_lost_camera_is_named_and_the_others_are_played_to_their_end(rws, videos):
    config = write_config(
        videos,
        f"""
        jsonl = "{videos}/r.jsonl"
        [camera.good]
        source = "{videos}/day.mp4"
        [camera.bad]
        source = "http://127.0.0.1:9/nothing"
        retries = 0
        """,
    )
    result = rws("run", "--config", config)
    assert result.exit_code != 0
    assert "bad (http://127.0.0.1:9)" in result.stderr
    assert [record["camera"] for record in lines(videos / "r.jsonl")] == ["good"] * 20


def test_a_signal_ends_all_cameras_and_a_hangup_reads_their_tables_again(rws, videos):
    first = f"""
    json = "{videos}/s.json"
    jsonl = "{videos}/{{camera}}.jsonl"
    latest = true
    loop = true
    [camera.stays]
    source = "{videos}/day.mp4"
    [camera.goes]
    source = "{videos}/night.mp4"
    """
    config = write_config(videos, first)

    def wait_for(name, count):
        end = time.monotonic() + 30
        while not (videos / name).exists() or len((videos / name).read_bytes().splitlines()) < count:
            assert time.monotonic() < end, name
            time.sleep(0.02)

    def control():
        try:
            time.sleep(0.3)
            wait_until(lambda: len(running.cameras) == 2)
            second = first.replace("camera.goes", "camera.comes").replace("night", "dusk")
            config.write_text(f'{second}[camera.missing]\nsource = "{videos}/missing.mp4"\n')
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.7)
            assert {camera.name for camera in running.cameras} == {"stays", "goes"}
            config.write_text(second)
            os.kill(os.getpid(), signal.SIGHUP)
            wait_until(lambda: {camera.name for camera in running.cameras} == {"stays", "comes"})
            config.write_text("[camera.bad]\nsource = 3.5\n")
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.7)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def wait_until(condition):
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    running = None
    original = Cameras.results

    def results(self):
        nonlocal running
        running = self
        return original(self)

    before = signal.getsignal(signal.SIGHUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cameras, "results", results)
        thread = threading.Thread(target=lambda: (wait_until(lambda: running is not None), control()))
        thread.start()
        result = rws("run", "--config", config)
        thread.join()
    assert result.exit_code == 0, result.output
    assert f"goes ({videos}/night.mp4): taken out" in result.output
    assert f"comes ({videos}/dusk.mp4): taken in" in result.output
    assert result.output.count("the configuration is not used") == 2
    assert "missing.mp4: no such file" in result.output
    assert "the configuration is not used" in result.output
    assert signal.getsignal(signal.SIGHUP) == before
    summary = json.loads((videos / "s.json").read_text())
    assert [camera["camera"] for camera in summary["cameras"]] == ["goes", "stays", "comes"]
    assert all(camera["frames"] > 0 for camera in summary["cameras"])
    for camera in summary["cameras"]:
        total = camera["frames"] + camera["dropped"] + camera["rejected"] + camera["buffered"]
        assert camera["received"] == total


@pytest.mark.slow
def test_live_cameras_are_accounted_for_each_by_itself(rws, tmp_path):
    def moving(number):
        return encode_jpeg(scene(48, 64, number))

    with MjpegServer(moving) as first, MjpegServer(moving) as second:
        config = write_config(
            tmp_path,
            f"""
            json = "{tmp_path}/s.json"
            [camera.a]
            source = "{first.url}"
            [camera.b]
            source = "{second.url}"
            max_fps = 2
            """,
        )
        result = rws("run", "--config", config, "--limit", 6)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "s.json").read_text())
    for camera in summary["cameras"]:
        assert camera["frames"] == 6
        total = camera["frames"] + camera["dropped"] + camera["rejected"] + camera["buffered"]
        assert camera["received"] == total
    assert summary["cameras"][1]["fps"] <= 2.05
