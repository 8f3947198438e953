import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest

import rws.edge.web.jpeg
import rws.edge.web.server
from rws.edge.pipeline import STAGES
from rws.edge.tasks.annotate import annotate, draw
from rws.edge.web import PageServer
from rws.errors import InputError, RwsError
from rws.oracle.belief import FAMILIES
from rws.oracle.policy import PatchLimits
from rws.records import Frame
from support.fakes import StillClock, make_frame, make_result
from support.http import Events, PartReader, get, read_until, stream, wait_until


@pytest.fixture
def server(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}) as server:
        yield server


def decode(jpeg):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def noisy(index, width=640, height=480):
    """Return an image that hardly compresses; its left half states its number."""
    image = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[:, : width // 2] = index
    return Frame(index, image, 1.0, "noisy")


def number(jpeg):
    return round(float(decode(jpeg)[:, :200].mean()))


@pytest.mark.parametrize(
    ("path", "kind", "part"),
    [
        ("/", "text/html", b'<script type="module" src="page.js">'),
        ("/page.css", "text/css", b"prefers-color-scheme"),
        ("/page.js", "text/javascript", b"new Connection"),
        ("/connection.js", "text/javascript", b"EventSource"),
        ("/timeline.js", "text/javascript", b"export class Timeline"),
    ],
)
def test_the_page_comes_whole_and_guarded(server, path, kind, part):
    status, headers, body = get(server, path)
    assert status == 200
    assert headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert part in body
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in body


@pytest.mark.parametrize("path", ["/", "/health", "/frame.jpg", "/nowhere"])
def test_every_answer_carries_the_security_headers(server, path):
    _, headers, _ = get(server, path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/..%2f..%2fetc/passwd", 404), ("/page.html", 404)])
def test_nothing_else_is_served(server, path, status):
    assert get(server, path)[0] == status


@pytest.mark.parametrize("path", ["/", "/health", "/events", "/stream.mjpg"])
def test_nothing_can_be_changed(server, path):
    assert get(server, path, method="POST")[0] == 405


def test_the_limits_of_the_patch_can_be_set(server, monitor):
    assert json.loads(get(server, "/api/status")[2])["limits"] == {"leave_clean": False, "min_severity": 0.0}
    status, _, body = get(server, "/limits?leave_clean=1&min_severity=2.5", method="POST")
    assert (status, json.loads(body)) == (200, {"leave_clean": True, "min_severity": 2.5})
    assert monitor.limits == PatchLimits(True, 2.5)
    assert get(server, "/limits?leave_clean=0", method="POST")[0] == 200
    assert monitor.limits == PatchLimits(False, 2.5)
    assert monitor.status().events == {"limits_set": 2}
    assert get(server, "/limits?leave_clean=1")[0] == 405  # no link may do it
    assert monitor.limits == PatchLimits(False, 2.5)


@pytest.mark.parametrize(
    "query",
    ["min_severity=6", "min_severity=nan", "min_severity=", "min_severity=-1", "leave_clean=yes", "leave_clean="],
)
def test_bad_limits_are_one_line_and_change_nothing(server, monitor, query):
    status, _, body = get(server, f"/limits?{query}", method="POST")
    assert (status, body) == (
        400,
        b"expected leave_clean=0 or 1, paused=0 or 1, min_severity=0 to 5, or several of them\n",
    )
    assert monitor.limits == PatchLimits()
    assert not monitor.status().events


def test_the_newest_frame(server):
    assert get(server, "/frame.jpg")[0] == 503
    server.write(make_frame(0, value=10), make_result())
    server.write(make_frame(1, value=200), make_result())
    status, headers, body = get(server, "/frame.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    decoded = decode(body)
    assert decoded.shape == (320, 320, 3)
    assert abs(float(decoded.mean()) - 200) < 2


def test_a_snapshot_is_the_frame_with_its_result(server):
    assert get(server, "/snapshot.jpg")[0] == 503
    frame, result = make_frame(1, value=200), make_result(mix={"fog": 0.5})
    server.write(frame, result)
    status, headers, body = get(server, "/snapshot.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert re.fullmatch(r'attachment; filename="rws-\d{8}-\d{6}\.jpg"', headers["Content-Disposition"])
    drawn = cv2.cvtColor(annotate(frame.image, result), cv2.COLOR_RGB2BGR)
    assert np.abs(decode(body).astype(int) - drawn).mean() < 3


def play(body, path):
    path.write_bytes(body)
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_a_clip_has_the_last_seconds_that_were_shown(monitor, monkeypatch, tmp_path):
    now = StillClock(5000.0)
    monkeypatch.setattr(rws.edge.web.jpeg.time, "monotonic", now)
    with PageServer("127.0.0.1:0", {"": monitor}, max_fps=1000) as server:
        assert get(server, "/clip.mp4")[0] == 503
        for second in range(30):
            now.now += 1
            server.write(make_frame(second, value=8 * second, height=33, width=481), make_result())
            get(server, "/frame.jpg")
        status, headers, body = get(server, "/clip.mp4")
        assert (status, headers["Content-Type"]) == (200, "video/mp4")
        assert headers["Content-Disposition"].endswith('.mp4"')
        frames = play(body, tmp_path / "clip.mp4")
        assert [time for time, _ in frames] == pytest.approx(range(11), abs=0.01)
        np.testing.assert_allclose([image.mean() for _, image in frames], range(8 * 19, 8 * 30, 8), atol=4)
        # Of another size, then nothing for long: only what is shown now.
        server.write(make_frame(30, value=250), make_result())
        assert len(play(get(server, "/clip.mp4")[2], tmp_path / "clip.mp4")) == 1
        now.now += 100
        server.write(make_frame(31, value=100), make_result())
        ((time, image),) = play(get(server, "/clip.mp4")[2], tmp_path / "clip.mp4")
        assert (time, image.mean()) == (0, pytest.approx(100, abs=4))


def test_the_memory_of_a_clip_is_limited_and_shown(monitor, monkeypatch):
    monkeypatch.setattr(rws.edge.web.jpeg, "CLIP_BYTES", 300_000)
    with PageServer("127.0.0.1:0", {"": monitor}, max_fps=1000) as server:
        sizes = []
        for index in range(6):
            server.write(noisy(index), make_result())
            sizes.append(len(get(server, "/frame.jpg")[2]))
        (kept,) = re.findall(rb"^rws_clip_bytes (\S+)", get(server, "/metrics")[2], re.MULTILINE)
        assert sum(sizes) > 400_000
        assert 300_000 - max(sizes) < float(kept) <= 300_000


def test_a_clip_that_cannot_be_encoded_is_one_line(monitor, monkeypatch, server):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    server.write(make_frame(), make_result())
    monkeypatch.setattr(rws.edge.web.jpeg.tempfile, "TemporaryDirectory", full)
    status, _, body = get(server, "/clip.mp4")
    assert (status, body) == (503, b"no clip can be encoded ([Errno 28] No space left on device)\n")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((480, 640), (480, 640)), ((1080, 1920), (540, 960)), ((1920, 1080), (720, 405)), ((32, 32), (320, 320)),
     ((1, 5000), (1, 960)), ((64, 400), (128, 800))],
)  # fmt: skip
def test_images_fit_a_page(shape, expected):
    image = np.full((*shape, 3), (200, 100, 0), np.uint8)
    decoded = decode(rws.edge.web.jpeg.to_jpeg(draw(image, make_result(), rws.edge.web.jpeg.MAX_WIDTH)))
    assert decoded.shape[:2] == expected
    np.testing.assert_allclose(decoded.mean(axis=(0, 1)), (0, 100, 200), atol=4)


def test_status_is_the_snapshot(server, monitor):
    monitor.add(make_result(3, mix={"fog": 0.5}))
    status, headers, body = get(server, "/api/status")
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    found = json.loads(body)
    assert found["families"] == {name: list(members) for name, members in FAMILIES.items()}
    assert found["stages"] == list(STAGES)
    expected = json.loads(json.dumps(monitor.status(since=0).to_dict()))
    assert found.pop("written_at") <= expected.pop("written_at")
    assert {key: value for key, value in found.items() if key not in ("families", "stages")} == expected


def test_nan_does_not_break_the_page(server, monitor):
    monitor.add(replace(make_result(confidence=float("nan")), age_ms=float("inf")))
    result = json.loads(get(server, "/api/status")[2], parse_constant=pytest.fail)["result"]
    assert result["confidence"] is None
    assert result["age_ms"] is None
    assert result["label"] == "cat"


def test_passwords_are_hidden(server, monitor, source):
    source.name, source.error = "rtsp://user:hunter22@camera/", "cannot open rtsp://user:hunter22@camera/"
    source.state = "lost"
    monitor.add(replace(make_result(), name=source.name))
    with stream(server, "/events") as client:
        said = json.dumps(Events(client).next())
    for path in ("/", "/api/status", "/health", "/metrics"):
        said += get(server, path)[2].decode()
    assert "hunter22" not in said
    assert "rtsp://camera" in said


def test_events_carry_the_whole_timeline_once(server, monitor, clock):
    monitor.classes = ("cat", "dog")
    for second in range(5):
        monitor.add(make_result(second))
        clock.now += 1
    with stream(server, "/events") as client:
        events = Events(client)
        first = events.next()
        assert [moment["at"] for moment in first["timeline"]] == [0, 1, 2, 3, 4]
        assert first["result"]["index"] == 4
        assert first["classes"] == ["cat", "dog"]
        assert first["version"]
        assert first["stages"] == list(STAGES)
        assert first["counts"] == {"results": 5, "mix_changes": 0, "rejected_by_reason": {}, "corruptions": {"fog": 5}}
        started = time.monotonic()
        second = events.next()
        assert [moment["at"] for moment in second["timeline"]] == [4]
        assert not {"stages", "classes", "version"} & set(second)
        monitor.classes = ("ship",)  # as after a swap
        wait_until(lambda: (event := events.next()).get("classes") == ["ship"] and "sign_out" in event)
        monitor.add(make_result(9, label="dog"))
        wait_until(lambda: (event := events.next())["result"]["label"] == "dog" and len(event["timeline"]) == 2)
        for _ in range(4):
            assert [moment["at"] for moment in events.next()["timeline"]] == [5]
        assert 0.7 < time.monotonic() - started < 3


def test_a_stream_of_images(server):
    server.write(make_frame(0, value=50), make_result())
    with stream(server, "/stream.mjpg") as client:
        parts = PartReader(client)
        assert b"multipart/x-mixed-replace; boundary=rws-frame" in parts.head
        # Each comes twice, because a browser shows an image when the next one begins.
        for value in (50, 50):
            assert abs(float(decode(parts.next()).mean()) - value) < 2
        server.write(make_frame(1, value=90), make_result())
        for value in (90, 90):
            assert abs(float(decode(parts.next()).mean()) - value) < 2
        client.settimeout(0.6)
        with pytest.raises(TimeoutError):
            parts.next()


def test_images_are_encoded_for_viewers_only_and_not_too_often(server, monkeypatch):
    made = []
    encode = rws.edge.web.jpeg.to_jpeg
    monkeypatch.setattr(rws.edge.web.jpeg, "to_jpeg", lambda image: made.append(time.monotonic()) or encode(image))
    stop = threading.Event()

    def write():
        index = 0
        while not stop.wait(0.004):
            index += 1
            server.write(make_frame(index), make_result())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.2)
        assert made == []
        with stream(server, "/stream.mjpg") as one, stream(server, "/stream.mjpg") as two:
            readers = PartReader(one), PartReader(two)
            started = time.monotonic()
            for _ in range(15):
                for reader in readers:
                    reader.next()
            # Fifteen a second for both together, and no stall.
            assert time.monotonic() - started < 4
            assert len(made) <= 15 * (time.monotonic() - made[0]) + 2
        wait_until(lambda: server.viewers == 0)
        count = len(made)
        time.sleep(0.2)
        assert len(made) == count
    finally:
        stop.set()
        writer.join()


def test_viewers_are_counted(server):
    assert server.viewers == 0
    with stream(server, "/stream.mjpg"):
        wait_until(lambda: server.viewers == 1)
        with stream(server, "/events"):
            wait_until(lambda: server.viewers == 2)
        wait_until(lambda: server.viewers == 1)
        get(server, "/frame.jpg")
        get(server, "/stream.mjpg", method="HEAD")
        assert server.viewers == 1
    wait_until(lambda: server.viewers == 0)


def test_a_slow_client_delays_nothing_and_gets_no_old_images(server):
    server.write(noisy(0), make_result())
    with stream(server, "/stream.mjpg", receive_buffer=4096) as slow, stream(server, "/stream.mjpg") as quick:
        stalled, reader = PartReader(slow), PartReader(quick)
        longest = 0.0
        for index in range(1, 41):
            frame = noisy(index)
            started = time.monotonic()
            server.write(frame, make_result())
            longest = max(longest, time.monotonic() - started)
            while number(reader.next()) < index:
                pass
        assert longest < 0.05
        seen = [number(stalled.next())]
        while seen[-1] < 40:
            seen.append(number(stalled.next()))
        assert len(seen) <= 6, seen
        assert seen == sorted(seen)


def test_a_client_that_reads_nothing_is_disconnected(server, monkeypatch):
    monkeypatch.setattr(rws.edge.web.server, "SLOW_AFTER", 0.3)
    with stream(server, "/stream.mjpg", receive_buffer=4096) as slow:
        PartReader(slow)
        wait_until(lambda: server.viewers == 1)
        index = 0
        end = time.monotonic() + 10
        while server.viewers:
            assert time.monotonic() < end
            server.write(noisy(index := index + 1), make_result())
            time.sleep(0.02)


def test_clients_may_disconnect_at_any_time(monitor, caplog):
    with PageServer("127.0.0.1:0", {"": monitor}, max_fps=500) as server:
        server.write(noisy(0), make_result())
        for index in range(40):
            with stream(server, "/stream.mjpg") as client:
                PartReader(client)
                server.write(noisy(index % 3), make_result())
                time.sleep(0.005 * (index % 4))
        wait_until(lambda: server.viewers == 0)
    assert not caplog.records


def test_it_stops_at_once_with_its_streams(monitor):
    with ExitStack() as stack:
        server = stack.enter_context(PageServer("127.0.0.1:0", {"": monitor}))
        server.write(make_frame(), make_result())
        with stream(server, "/stream.mjpg") as images, stream(server, "/events") as events:
            PartReader(images).next()
            Events(events).next()
            started = time.monotonic()
            stack.close()
            assert time.monotonic() - started < 1
            assert server.viewers == 0
            for client in (images, events):
                with pytest.raises((EOFError, ConnectionResetError)):
                    read_until(client, b"what never comes")
    with pytest.raises(ConnectionRefusedError):
        get(server, "/health")


@pytest.mark.parametrize(
    ("state", "stopped", "ended"), [("ended", False, "source"), ("ended", True, "stopped"), ("running", False, "run")]
)
def test_viewers_get_the_last_frame_and_the_last_state(monitor, source, state, stopped, ended):
    with ExitStack() as stack:
        server = stack.enter_context(PageServer("127.0.0.1:0", {"": monitor}, max_fps=0.1))
        server.write(make_frame(0, value=50), make_result(0))
        with stream(server, "/stream.mjpg") as images, stream(server, "/events") as events:
            parts, reports = PartReader(images), Events(events)
            assert abs(float(decode(parts.next()).mean()) - 50) < 2
            assert "ended" not in reports.next()
            source.state, source.stopped = state, stopped
            monitor.add(make_result(7))
            server.write(make_frame(7, value=200), make_result(7))
            stack.close()
            jpeg = parts.next()
            while abs(float(decode(jpeg).mean()) - 200) > 2:
                jpeg = parts.next()
            last = reports.next()
            while "ended" not in last:
                last = reports.next()
            assert (last["ended"], last["result"]["index"]) == (ended, 7)


def test_it_can_be_closed_twice_and_before_it_serves(monitor):
    server = PageServer("127.0.0.1:0", {"": monitor})
    server.close()
    with server:
        assert get(server, "/health")[0] == 200
        server.close()
    with pytest.raises(ConnectionRefusedError):
        get(server, "/health")


def test_the_port_is_free_afterwards(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}) as server:
        port = server.port
        assert port > 0
    with PageServer(f"127.0.0.1:{port}", {"": monitor}) as again:
        assert get(again, "/health")[0] == 200


def test_an_address_that_is_unavailable(monitor, server):
    with pytest.raises(RwsError, match="another program uses this port"), PageServer(f"{server.port}", {"": monitor}):
        pass
    with pytest.raises(InputError, match="expected HOST:PORT"), PageServer("nonsense", {"": monitor}):
        pass


def test_malformed_requests_do_no_harm(server, caplog):
    for junk in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 500, b"A" * 100_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
            client.recv(1000)
    assert get(server, "/health")[0] == 200
    assert not caplog.records


def test_without_its_packages_the_extra_is_named():
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from rws.errors import MissingExtraError\n"
        "try: import rws.edge.web\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'rws-edge[serve]'" in done.stdout


def test_an_image_that_cannot_be_encoded_costs_that_image_only(monkeypatch, monitor, caplog):
    working = rws.edge.web.jpeg.to_jpeg

    def encode(image):
        if image[0, 0, 0] == 66:
            raise MemoryError("no memory for an image")
        return working(image)

    monkeypatch.setattr(rws.edge.web.jpeg, "to_jpeg", encode)
    with PageServer("127.0.0.1:0", {"": monitor}, max_fps=1000) as server:
        server.write(make_frame(0, value=66), make_result(0))
        assert get(server, "/frame.jpg")[0] == 503
        assert server.sink_status.state == "failing"
        assert server.sink_status.error == "the image cannot be encoded (no memory for an image)"
        server.write(make_frame(1, value=77), make_result(1))
        assert get(server, "/frame.jpg")[0] == 200
        assert (server.sink_status.state, server.sink_status.failed, server.sink_status.written) == ("up", 1, 1)
    assert "Traceback" not in caplog.text


def test_a_server_that_dies_says_so_in_one_line(monkeypatch, monitor, caplog):
    with PageServer("127.0.0.1:0", {"": monitor}) as server:
        monkeypatch.setattr("aiohttp.web.AppRunner.cleanup", failing_cleanup)
        server.close()
        assert server.sink_status.state == "failed"
    assert "the page is no longer served (out of descriptors)" in caplog.text


async def failing_cleanup(self):
    raise OSError("out of descriptors")
