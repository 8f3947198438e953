import json
import socket
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import cv2
import numpy as np
import pytest

from rws.edge.monitoring import events
from rws.edge.monitoring.events import EventRecorder, EventWatch
from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from rws.errors import UsageError
from rws.oracle.belief import certain
from support.fakes import CORRUPTIONS, LEVELS, make_frame, make_result
from support.http import wait_until
from support.records import Reference


def play(watch, corruption, start, seconds=15, camera="door", value=120, media=None):
    for second in range(start, start + seconds):
        belief = certain(CORRUPTIONS, LEVELS, corruption, 0.0 if corruption == "clean" else 4.0)
        result = replace(make_result(second, belief=belief), camera=camera, captured_at=float(second))
        result = replace(result, captured_time=1e9 + second, media_time=media and media(second))
        watch.write(make_frame(second, value=value), result)


@pytest.fixture
def heard():
    return []


@pytest.fixture
def watch(heard):
    watch = EventWatch({})
    watch.listeners.append(heard.append)
    return watch


def test_a_problem_that_lasts_is_announced_once_with_what_was_seen_before(watch, heard):
    play(watch, "clean", 0, value=200)
    play(watch, "fog", 15, 8)
    assert heard == []
    play(watch, "fog", 23, 30, value=90)
    (event,) = heard
    assert (event.camera, event.event, event.alert.problem, event.alert.began) == ("door", "degraded", "fog", 15.0)
    assert (event.before[0].index, event.now[0].index) == (14, 25)
    assert watch.degraded("door")
    assert not watch.degraded("yard")
    play(watch, "clean", 53, 30)
    assert [one.event for one in heard] == ["degraded", "recovered"]
    assert not watch.degraded("door")
    assert Reference.read().complaints(event.to_dict()) == []


def test_cameras_are_watched_by_themselves_and_the_only_one_has_a_name(watch, heard):
    play(watch, "fog", 0, camera="")
    play(watch, "clean", 0, camera="yard")
    assert [event.camera for event in heard] == ["camera"]


def test_a_file_is_watched_on_its_time_line(heard):
    source = ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="clip.mp4")
    watch = EventWatch({"door": Monitor(source)})
    watch.listeners.append(heard.append)
    play(watch, "fog", 0, 15, media=lambda second: second / 25)
    assert heard == []
    source.live = True
    play(watch, "fog", 15, 15, media=lambda second: second / 25)
    assert len(heard) == 1


def test_another_camera_of_the_name_starts_again(heard):
    source = ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="a")
    monitors = {"door": Monitor(source)}
    watch = EventWatch(monitors)
    watch.listeners.append(heard.append)
    play(watch, "clean", 0)
    play(watch, "fog", 15)
    assert watch.degraded("door")
    monitors["door"] = Monitor(source)
    play(watch, "snow", 0)
    assert [(event.alert.problem, event.before is None) for event in heard] == [("fog", False), ("snow", True)]


@pytest.mark.parametrize("address", ["http://me:hush@host/", "https://host:port/", "http:///x", "http://host:99999/"])
def test_an_address_with_a_user_or_an_impossible_port_is_refused(address):
    with pytest.raises(UsageError, match="--on-event: an address needs a host") as refused:
        EventRecorder(None, address)
    assert "hush" not in str(refused.value)


def test_an_answer_that_is_no_http_is_named_and_the_next_event_is_kept(watch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            client.recv(4096)
            client.sendall(b"nonsense\r\n\r\n")
            client.close()

        threading.Thread(target=answer, daemon=True).start()
        with EventRecorder(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}/") as recorder:
            spread(watch, recorder)
            wait_until(lambda: recorder.status().failed == 1)
            play(watch, "clean", 40)
            wait_until(lambda: recorder.status().written == 1)


def test_events_that_wait_are_bounded_by_their_images(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MOST_BYTES", 10_000)  # an image has 3,072
    recorder = EventRecorder(None, "")
    watch.listeners.append(recorder)
    for start in range(0, 400, 40):
        play(watch, "fog", start, 20)
        play(watch, "clean", start + 20, 20)
    status = recorder.status()
    assert status.accepted == 20
    assert status.waiting == 20 - status.dropped <= 3


def spread(watch, recorder, camera="door", start=0):
    watch.listeners.append(recorder)
    play(watch, "clean", start, camera=camera, value=200)
    play(watch, "fog", start + 15, camera=camera, value=90)


def test_an_event_is_kept_with_its_images(watch, tmp_path):
    with EventRecorder(tmp_path / "events", "") as recorder:
        spread(watch, recorder)
    names = sorted(path.name for path in (tmp_path / "events").iterdir())
    base = "20010909T014705000Z-door-degraded"
    assert names == [f"{base}.before.jpg", f"{base}.json", f"{base}.now.jpg"]
    record = json.loads((tmp_path / "events" / f"{base}.json").read_text())
    assert Reference.read().complaints(record) == []
    greys = [cv2.imread(str(tmp_path / "events" / f"{base}.{what}.jpg"))[2:8, 2:8].mean() for what in ("before", "now")]
    assert greys == pytest.approx([200, 90], abs=8)
    assert (recorder.status().accepted, recorder.status().written) == (1, 1)


def test_a_folder_keeps_the_newest_and_nothing_else_is_touched(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MOST_KEPT", 2)
    (tmp_path / "mine.json").write_text("{}")
    with EventRecorder(tmp_path, "") as recorder:
        watch.listeners.append(recorder)
        for start in range(0, 160, 40):
            play(watch, "fog", start, 20)
            play(watch, "clean", start + 20, 20)
    kept = sorted(path.name for path in tmp_path.glob("*.json"))
    assert len(kept) == 3
    assert "mine.json" in kept
    assert recorder.status().written == 8


def script(tmp_path, text):
    path = tmp_path / "tell.py"
    path.write_text(text)
    return f"{sys.executable} {path}"


def test_a_program_reads_the_event(watch, tmp_path):
    text = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(os.environ['RWS_CAMERA'] + sys.stdin.read())"
    command = f"{script(tmp_path, text)} '{tmp_path}/with a blank'"
    with EventRecorder(tmp_path / "events", command) as recorder:
        spread(watch, recorder)
    heard = (tmp_path / "with a blank").read_text()
    assert heard.startswith('door{"schema": "camera-event/1"')
    record = json.loads(heard.removeprefix("door"))
    assert record["folder"] == str(tmp_path / "events")
    assert (tmp_path / "events" / f"{record['name']}.json").is_file()
    assert Reference.read().complaints(record) == []


def test_a_camera_is_announced_of_at_most_every_ten_seconds(watch, tmp_path):
    text = f"open('{tmp_path}/heard', 'a').write('x')"
    with EventRecorder(None, script(tmp_path, text)) as recorder:
        watch.listeners.append(recorder)
        for start in range(0, 160, 40):
            play(watch, "fog", start, 20)
            play(watch, "clean", start + 20, 20)
        spread(watch, lambda event: None, "yard")
    assert (tmp_path / "heard").read_text() == "xx"
    assert recorder.status().written == 9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise SystemExit(3)", "ended with 3"),
        ("import time; time.sleep(60)", "took longer than 0.5 s"),
    ],
)
def test_a_program_that_fails_or_hangs_is_named_and_counted(watch, tmp_path, monkeypatch, caplog, text, reason):
    monkeypatch.setattr(events, "LONGEST", 0.5)
    with EventRecorder(None, script(tmp_path, text)) as recorder:
        spread(watch, recorder)
        wait_until(lambda: recorder.status().failed == 1)
        status = recorder.status()
    assert status.state == "failing"
    assert reason in status.error
    assert reason in caplog.text


def test_a_program_that_is_not_there_or_cannot_be_read(watch, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        EventRecorder(None, "tell 'me")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no folder for events"):
        EventRecorder(tmp_path / "file" / "events", "")
    with EventRecorder(None, "/nowhere/tell") as recorder:
        spread(watch, recorder)
        wait_until(lambda: recorder.status().failed == 1)
    assert "No such file" in recorder.status().error


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("answer", [200, 500])
def test_an_address_gets_the_event(watch, answer):
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.heard, server.answer = [], answer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/hook?token=secret"
        with EventRecorder(None, url) as recorder:
            spread(watch, recorder)
            wait_until(lambda: recorder.status().written + recorder.status().failed == 1)
        assert [event["event"] for event in server.heard] == ["degraded"]
        assert recorder.status().failed == (answer == 500)
        assert "secret" not in recorder.status().error
        assert answer == 200 or "answered 500" in recorder.status().error
    finally:
        server.shutdown()
        server.server_close()


def test_the_loop_never_waits_and_too_many_events_are_counted(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MOST_WAITING", 3)
    monkeypatch.setattr(events, "RESTS", 0.0)
    recorder = EventRecorder(None, script(tmp_path, "import time; time.sleep(2)"))
    with recorder:
        watch.listeners.append(recorder)
        began = time.monotonic()
        for start in range(0, 400, 40):
            play(watch, "fog", start, 20)
            play(watch, "clean", start + 20, 20)
        assert time.monotonic() - began < 2
        status = recorder.status()
        assert (
            status.accepted == status.written + status.dropped + status.failed + status.waiting + status.writing == 20
        )
        assert status.dropped > 10
        monkeypatch.setattr(events, "LONGEST", 0.1)
