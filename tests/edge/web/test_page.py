"""The page in a real browser: what a person reads on it, and what it asks the network for."""

import asyncio
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from rws.edge.web import PageServer
from rws.edge.web.jpeg import JpegEncoder
from rws.oracle.belief import certain
from rws.oracle.policy import PatchLimits
from rws.records import Prediction, SinkStatus
from support import browser
from support.fakes import CORRUPTIONS, LEVELS, make_frame, make_result
from support.http import wait_until

pytestmark = pytest.mark.skipif(
    browser.find() is None and not os.environ.get("RWS_REQUIRE_SYSTEM"), reason="no Chromium is installed here"
)

FOGGY = replace(
    make_result(7, label="<b>cat</b>", mix={"fog": 0.75}, changed=True), unpatched=Prediction("dog & ship", 1, 0.4)
)
SHOWN = "document.querySelector('#label').textContent !== '–' && !document.querySelector('#image').hidden"
BRIGHTNESS = (
    "(() => {{ const c = document.createElement('canvas').getContext('2d');"
    "c.drawImage(document.querySelector({}), 0, 0); return c.getImageData(50, 50, 1, 1).data[0]; }})()"
)
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture
def source():
    return ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="camera <0>")


@pytest.fixture
def run(source, tmp_path):
    """Run `look(tab, show, server, stop)` against a page; `show` takes a result as a loop would."""

    def start(look, **options):
        monitor = Monitor(source, bundle="tiny", strategy="live")
        monitor.classes = ("cat", "<i>dog</i>")

        async def inside():
            with ExitStack() as stack:
                server = stack.enter_context(PageServer("127.0.0.1:0", {"": monitor}, **options))
                server.monitor = monitor  # for the tests

                def show(result, value=120):
                    monitor.add(result)
                    server.write(make_frame(result.index, value=value), result)

                async with browser.tab(tmp_path / "profile") as tab:
                    await tab.open(server.url_with_token)
                    await look(tab, show, server, stack.close)
                return tab, server

        return asyncio.run(inside())

    return start


def test_the_text_of_the_page(run, source, tmp_path):
    async def look(tab, show, server, stop):
        assert "waiting for the first frame" in await tab.text("#stamp")
        source.received, source.dropped = 1234, 56
        source.rejections["damaged"] = 3
        show(FOGGY)
        await tab.wait_for(SHOWN)
        assert await tab.text("#label") == "<b>cat</b>"
        assert await tab.text("#confidence") == "75 %"
        assert await tab.text("#other-label") == "dog & ship"
        assert await tab.text("#other-confidence") == "40 %"
        assert await tab.text("#difference") == "the patch changes the answer"
        assert await tab.text("#severity") == "severity 3.0 of 5"
        assert (await tab.text("#belief")).split("\n") == ["fog", "100 %"]  # nothing that has 0 %
        assert (await tab.text("#mix")).split("\n") == ["fog", "α 0.75"]
        assert "4.00 ms, of which 1.75 for oracle and patch" in await tab.text("#total")
        assert await tab.text("#name") == "camera <0>"
        facts = (await tab.text("#facts")).split("\n")
        assert facts[facts.index("received") + 1] == "1,234"
        assert facts[facts.index("dropped") + 1] == "56"
        assert await tab.text("#notes") == "rejected: 3 damaged"
        assert await tab.text("#spoken") == "<b>cat</b>, 75 %; the oracle sees fog"
        assert await tab.evaluate("document.title") == "<b>cat</b> · rws"
        assert re.match(r"rws \d+\.\d+\.\d+", await tab.text("footer"))
        assert await tab.text("summary") == "Bundle tiny: 2 classes"
        await tab.evaluate("document.querySelector('summary').click()")
        assert await tab.text("#classes") == "cat, <i>dog</i>"
        for word in ("oracle", "patch", "signature", "alpha"):
            assert await tab.evaluate(f"document.querySelector('[href=\"#word-{word}\"]').title.length > 30")
            assert await tab.evaluate(f"document.querySelector('#word-{word} + dd').textContent.length > 30")
        assert await tab.evaluate("document.querySelector('#banner').hidden")
        assert await tab.evaluate("document.querySelectorAll('main b, main script').length") == await tab.evaluate(
            "document.querySelectorAll('.rows b').length"
        )
        for width, mobile, dark in ((375, True, False), (320, True, True), (900, False, True), (1440, False, False)):
            await tab.resize(width, 800, mobile=mobile, dark=dark)
            await asyncio.sleep(0.3)
            assert await tab.evaluate(FITS), width
            screenshot = tmp_path / f"page_{width}.png"
            await tab.screenshot(screenshot)
            ground = cv2.imread(str(screenshot))[5, 2]
            assert (ground.max() < 60) == dark

        show(make_result(8, belief=certain(CORRUPTIONS, LEVELS, "clean")))
        await tab.wait_for("document.querySelector('#label').textContent === 'cat'")
        assert await tab.text("#other-label") == "same, not patched"
        assert await tab.text("#mix-title + #mix + p") == "none, clean weights"
        assert await tab.text("#severity") == "severity 0.0 of 5"
        assert await tab.evaluate("document.querySelector('#belief li').className") == "clean"

    tab, server = run(look)
    assert tab.complaints == []
    assert {urlsplit(url).netloc for url in tab.requested if not url.startswith("data:")} == {
        f"127.0.0.1:{server.port}"
    }


def test_the_image_is_live(run):
    async def look(tab, show, server, stop):
        for index, value in enumerate((40, 120, 230)):
            show(make_result(index), value=value)
            brightness = BRIGHTNESS.format("'#image'")
            await tab.wait_for(f"document.querySelector('#image').naturalWidth && Math.abs({brightness} - {value}) < 4")

    run(look)


def cut_off(*_, **__):
    raise RuntimeError("cut off")


def test_stale_data_looks_stale(run, source, tmp_path, monkeypatch):
    opacity = "Number(getComputedStyle(document.querySelector('{}')).opacity)"

    async def look(tab, show, server, stop):
        show(FOGGY)
        await tab.wait_for(SHOWN)
        assert await tab.evaluate(opacity.format("#image")) == 1
        source.state, source.error = "reconnecting", "no <frame> for 5 s"
        await tab.wait_for("!document.querySelector('#banner').hidden")
        assert "source is lost and being opened again (no <frame> for 5 s)" in await tab.text("#banner")
        assert "stale frame" in await tab.text("#stamp")
        assert await tab.evaluate(opacity.format("#image")) < 0.5
        assert await tab.evaluate(opacity.format(".pair")) < 0.5
        assert await tab.evaluate(opacity.format("#facts")) == 1
        assert await tab.text("#state") == "source lost"
        await tab.screenshot(tmp_path / "lost.png")
        source.state = "running"
        show(FOGGY)
        await tab.wait_for("document.querySelector('#banner').hidden")
        assert await tab.evaluate(opacity.format(".pair")) == 1
        await tab.wait_for("document.querySelector('#banner').innerText.includes('No frame is coming in')")
        assert tab.complaints == []
        for kind, method in ((Monitor, "status"), (JpegEncoder, "newest")):
            monkeypatch.setattr(kind, method, cut_off)  # the connections are cut, without a last word
        await tab.wait_for("document.querySelector('#banner').innerText.includes('No connection to the device')")
        assert await tab.text("#state") == "no connection"
        assert await tab.evaluate(opacity.format("#facts")) < 0.5
        await tab.wait_for("document.querySelector('#held').checkVisibility()")
        assert await tab.evaluate(opacity.format("#held")) < 0.5
        assert await tab.evaluate("document.title") == "old: <b>cat</b>"
        await tab.screenshot(tmp_path / "no_connection.png")

    run(look)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"state": "ended"}, "The video has ended."),
        ({"stopped": True}, "The run was stopped."),
        ({}, "The run has ended."),
    ],
)
def test_the_end_of_a_run_is_no_lost_connection(run, source, change, text):
    async def look(tab, show, server, stop):
        show(FOGGY, value=40)
        await tab.wait_for(SHOWN)
        vars(source).update(change)
        show(replace(FOGGY, index=8, output=make_result(label="dog").output), value=230)  # no time to look at it
        stop()
        await tab.wait_for("document.querySelector('#state').textContent === 'ended'")
        await asyncio.sleep(2)  # meanwhile the page tries to connect
        assert await tab.text("#banner") == f"{text} This is its last frame and its last state."
        assert "last frame, " in await tab.text("#stamp")
        assert await tab.text("#label") == "dog"
        shown = "(document.querySelector('#image').hidden ? '#held' : '#image')"
        assert abs(await tab.evaluate(BRIGHTNESS.format(shown)) - 230) < 4
        assert await tab.evaluate(f"getComputedStyle(document.querySelector({shown})).opacity") == "1"

    run(look)


def test_an_output_that_fails_is_named(run):
    async def look(tab, show, server, stop):
        full = SinkStatus("failing", "<r>.csv: cannot be written (no space)", 3, accepted=1234, failed=1234)
        server.monitor.sinks = lambda: {"csv": full, "jsonl": SinkStatus(accepted=9, written=9)}
        show(FOGGY)
        await tab.wait_for("document.querySelector('#banner').innerText.includes('loses its frames: csv.')")
        assert await tab.text("#notes") == "csv: 1,234 lost, failing: <r>.csv: cannot be written (no space)"
        assert (await tab.text("#state")).startswith("running")
        assert await tab.evaluate("Number(getComputedStyle(document.querySelector('.pair')).opacity)") == 1
        server.monitor.sinks = lambda: {"csv": replace(full, state="up", error="")}
        show(FOGGY)
        await tab.wait_for("document.querySelector('#banner').hidden")
        assert await tab.text("#notes") == "csv: 1,234 lost"
        assert tab.complaints == []

    run(look)


def test_it_reconnects(run, source):
    async def look(tab, show, server, stop):
        show(FOGGY)
        await tab.wait_for(SHOWN)
        port = await tab.evaluate("location.port")
        stop()
        await tab.wait_for("document.querySelector('#state').textContent === 'ended'")
        monitor = Monitor(source, bundle="another")
        monitor.add(make_result(0, label="dog"))
        with PageServer(f"127.0.0.1:{port}", {"": monitor}) as server:
            server.write(make_frame(), make_result())
            await tab.wait_for(f"document.querySelector('#bundle').textContent === 'another' && {SHOWN}")
            assert await tab.text("#label") == "dog"
        with PageServer(f"127.0.0.1:{port}", {"": monitor}, token="another token".replace(" ", "-")):
            await tab.wait_for("document.querySelector('#banner').innerText.includes('asks for its token again')")

    run(look)


def test_a_hidden_page_costs_nothing(run):
    async def look(tab, show, server, stop):
        show(FOGGY)
        await tab.wait_for(SHOWN)
        hide = (
            "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await tab.evaluate(hide.format("true"))
        await asyncio.to_thread(wait_until, lambda: server.viewers == 0)
        await tab.evaluate(hide.format("false"))
        await asyncio.to_thread(wait_until, lambda: server.viewers == 2)

    run(look)


def test_the_token_leaves_the_address(run):
    async def look(tab, show, server, stop):
        show(FOGGY)
        await tab.wait_for(SHOWN)
        assert await tab.evaluate("location.search") == ""
        assert await tab.evaluate("document.cookie") == ""

    tab, _ = run(look, token="open-sesame")
    assert tab.complaints == []


@pytest.mark.parametrize("token", [None, "open-sesame"])
def test_the_limits_of_the_patch_are_set_by_hand(run, token):
    async def look(tab, show, server, stop):
        monitor = server.monitor
        monitor.limits = PatchLimits(min_severity=1.5)
        show(FOGGY)
        await tab.wait_for("document.querySelector('#least').value === '1.5'")
        await tab.evaluate("document.querySelector('#leave-clean').click()")
        await asyncio.to_thread(wait_until, lambda: monitor.limits == PatchLimits(True, 1.5))
        show(replace(FOGGY, index=8, mix={}))
        await tab.wait_for("document.querySelector('#no-mix').textContent === 'none: left clean by hand'")
        await tab.evaluate("document.querySelector('#leave-clean').click()")
        await tab.evaluate("document.querySelector('#min-severity').focus()")
        await asyncio.to_thread(wait_until, lambda: monitor.limits == PatchLimits(False, 1.5))
        for least in (2.0, 2.5, 3.0, 3.5):
            await tab.wait_for(f"document.querySelector('#least').value === '{least - 0.5}'")
            for kind in ("keyDown", "keyUp"):
                await tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", windowsVirtualKeyCode=39)
            await asyncio.to_thread(wait_until, lambda least=least: monitor.limits == PatchLimits(False, least))
        await tab.wait_for("document.querySelector('#no-mix').textContent === 'none: severity below 3.5'")
        monitor.limits = PatchLimits()  # by another viewer
        await tab.wait_for("document.querySelector('#least').value === '0.0'")
        assert await tab.evaluate("document.querySelector('#min-severity').value") == "0"
        assert tab.complaints == []

    run(look, token=token)


def test_a_frame_and_a_clip_can_be_saved(run, tmp_path):
    async def look(tab, show, server, stop):
        assert await tab.evaluate("document.querySelector('#save').hidden")
        show(FOGGY)
        await tab.wait_for(SHOWN)
        await tab.wait_for("document.querySelector('#save').checkVisibility()")
        await tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        for ending in ("jpg", "mp4"):
            await tab.evaluate(f"document.querySelector('#save [href$={ending}]').click()")
            await asyncio.to_thread(wait_until, lambda ending=ending: list(tmp_path.glob(f"rws-*.{ending}")))
        (frame,) = tmp_path.glob("rws-*.jpg")
        assert cv2.imread(str(frame)).shape == (320, 620, 3)
        (clip,) = tmp_path.glob("rws-*.mp4")
        assert cv2.VideoCapture(str(clip)).read()[1].shape == (320, 320, 3)
        stop()
        await tab.wait_for("document.querySelector('#save').hidden")
        assert await tab.evaluate("document.querySelector('#leave-clean').disabled")

    run(look)


def test_the_timeline_can_be_read(run):
    async def look(tab, show, server, stop):
        show(FOGGY)
        await tab.wait_for(SHOWN)
        await asyncio.sleep(1)
        show(FOGGY)
        await tab.evaluate("document.querySelector('#timeline').focus()")
        await tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
        await tab.wait_for(
            "document.querySelector('#moment').innerText.startsWith("
            "'1 s ago: fog, severity 3.0, fog α 0.75, the patch changed once')"
        )
        assert "Timeline of the last 1 min" in await tab.evaluate("document.querySelector('#timeline').ariaLabel")
        assert await tab.evaluate("getComputedStyle(document.querySelector('#timeline')).outlineStyle") == "solid"
        await tab.evaluate("document.querySelector('#range').click()")
        assert await tab.evaluate("document.querySelector('#range').ariaPressed") == "true"
        await tab.evaluate("document.querySelector('#timeline').blur()")
        assert await tab.text("#moment") == ""

    run(look)
