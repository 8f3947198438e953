"""The page of several cameras."""

import asyncio
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from rws.edge.web import PageServer
from support import browser
from support.fakes import make_frame, make_result
from support.http import Events, get, stream
from support.records import Reference

NAMES = ("door", "yard", "road")
FITS = "document.documentElement.scrollWidth <= innerWidth"


def watched(name, clock=None):
    options = {} if clock is None else {"clock": clock, "wall_clock": lambda: 1e9 + clock()}
    return Monitor(ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name=f"{name} (camera <0>)"), bundle="tiny", **options)


@pytest.fixture
def monitors(clock):
    return {name: watched(name, clock) for name in NAMES}


@pytest.fixture
def server(monitors):
    with PageServer("127.0.0.1:0", monitors) as server:
        yield server


def show(server, monitors, name, index=0, mix=None):
    result = replace(make_result(index, mix=mix or {}), camera=name)
    monitors[name].add(result)
    server.write(make_frame(index, value=60 * (1 + list(monitors).index(name) % 3)), result)


def grey(jpeg):
    return float(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:10, :10].mean())


def test_each_camera_has_its_own_page_below_that_of_all(server, monitors):
    assert b'src="cameras.js"' in get(server, "/")[2]
    show(server, monitors, "yard", mix={"fog": 0.5})
    show(server, monitors, "door")
    for name, value in (("door", 60), ("yard", 120)):
        assert b'src="page.js"' in get(server, f"/camera/{name}/")[2]
        for image in ("frame.jpg", "tile.jpg"):
            assert grey(get(server, f"/camera/{name}/{image}")[2]) == pytest.approx(value, abs=6)
        status = json.loads(get(server, f"/camera/{name}/api/status")[2])
        assert status["source"]["name"] == f"{name} (camera <0>)"
        assert status["result"]["camera"] == name
    assert get(server, "/camera/road/frame.jpg")[0] == 503
    with stream(server, "/camera/yard/events") as client:
        event = Events(client).next()
    assert event["camera"] == "yard"
    assert event["result"]["mix"] == {"fog": 0.5}


@pytest.mark.parametrize(
    "path", ["/camera/nobody/frame.jpg", "/camera/nobody/events", "/camera/nobody/api/status", "/camera/nobody/limits"]
)
def test_an_unknown_camera_is_not_found(server, path):
    method = "POST" if path.endswith("limits") else "GET"
    assert get(server, path, method=method)[0] == 404


def test_the_status_of_all_is_documented(server, monitors):
    show(server, monitors, "yard", mix={"fog": 0.5})
    status = json.loads(get(server, "/api/status")[2])
    assert Reference.read().complaints(status) == []
    assert [camera["camera"] for camera in status["cameras"]] == list(NAMES)
    assert [camera["label"] for camera in status["cameras"]] == [None, "cat", None]
    with stream(server, "/events") as client:
        event = Events(client).next()
    assert event.pop("written_at") >= status.pop("written_at")
    assert event == status


def test_limits_and_pause_are_those_of_one_camera(server, monitors):
    assert get(server, "/camera/door/limits?paused=1&min_severity=2", method="POST")[0] == 200
    assert (monitors["door"].paused, monitors["door"].limits.min_severity) == (True, 2)
    assert (monitors["yard"].paused, monitors["yard"].limits.min_severity) == (False, 0)
    assert get(server, "/camera/door/limits?paused=0&min_severity=9", method="POST")[0] == 400
    assert monitors["door"].paused
    states = [camera["state"] for camera in json.loads(get(server, "/api/status")[2])["cameras"]]
    assert states == ["paused", "running", "running"]


def test_a_camera_that_rests_is_not_silent(server, monitors, clock):
    clock.now += 60
    show(server, monitors, "yard")
    for name in ("door", "road"):
        monitors[name].paused = True
    assert json.loads(get(server, "/health")[2])["status"] == "ok"
    assert get(server, "/camera/door/health")[0] == 200
    monitors["yard"].paused = True
    clock.now += 60
    assert json.loads(get(server, "/health")[2])["reason"] == "paused by hand"


def test_the_only_camera_cannot_be_paused(clock):
    monitor = watched("door", clock)
    with PageServer("127.0.0.1:0", {"": monitor}) as server:
        assert get(server, "/limits?paused=1", method="POST")[0] == 400
        assert get(server, "/limits?paused=0&min_severity=1", method="POST")[0] == 200
    assert not monitor.paused


def test_metrics_name_the_camera(server, monitors):
    show(server, monitors, "yard", mix={"fog": 0.5})
    text = get(server, "/metrics")[2].decode()
    assert 'rws_results_total{camera="yard"} 1.0' in text
    assert 'rws_results_total{camera="door"} 0.0' in text
    assert 'rws_alpha{camera="yard",signature="fog"} 0.5' in text
    assert 'rws_severity{camera="door"}' not in text


def test_one_camera_without_frames_impairs_the_whole_and_does_not_end_it(server, monitors, clock):
    show(server, monitors, "yard")
    clock.now += 60
    monitors["door"].source.state = "lost"
    show(server, monitors, "road")
    status, _, body = get(server, "/health")
    health = json.loads(body)
    assert (status, health["status"]) == (200, "impaired")
    assert "door: door (camera <0>) is lost" in health["reason"]
    assert Reference.read().complaints(health) == []
    assert get(server, "/camera/door/health")[0] == 503
    assert get(server, "/camera/road/health")[0] == 200
    clock.now += 60
    assert get(server, "/health")[0] == 503


def test_cameras_may_come_and_go(server, monitors):
    monitors["new"] = monitors.pop("door")
    assert get(server, "/camera/door/api/status")[0] == 404
    assert get(server, "/camera/new/api/status")[0] == 200


def test_the_page_in_a_browser_at_three_widths(tmp_path):
    monitors = {f"camera{number}": watched(f"camera{number}") for number in range(1, 9)}

    async def look(server, tab):
        await tab.open(server.url)
        await tab.wait_for("document.querySelectorAll('.tile img[src^=blob]').length === 8")
        for width in (360, 820, 1400):
            await tab.resize(width, 900)
            assert await tab.evaluate(FITS), width
            await tab.screenshot(tmp_path / f"cameras_{width}.png")
        assert "patch: fog 0.80" in await tab.text("#cameras")
        await tab.wait_for("document.querySelector('#state').innerText === '1 of 8 without frames'")
        await tab.evaluate("document.querySelector('.tile button').click()")
        await tab.wait_for("document.querySelector('.tile button').textContent === 'go on'")
        assert monitors["camera1"].paused
        await tab.evaluate("document.querySelector('.tile h2 a').click()")
        await tab.wait_for("document.querySelector('#all')?.hidden === false")
        assert await tab.text("#name") == "camera1 (camera <0>)"
        assert tab.complaints == []

    async def play(server):
        while True:
            for index, name in enumerate(monitors):
                show(server, monitors, name, index, {"fog": 0.8} if index == 2 else None)
            await asyncio.sleep(0.5)

    async def inside():
        with PageServer("127.0.0.1:0", monitors) as server:
            playing = asyncio.create_task(play(server))
            monitors["camera8"].source.state = "reconnecting"
            async with browser.tab(tmp_path / "profile") as tab:
                await look(server, tab)
            playing.cancel()

    asyncio.run(inside())
