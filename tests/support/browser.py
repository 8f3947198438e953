"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import asynccontextmanager

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0 about:blank"
)


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. What its console says, what goes wrong in it and what it asks the network for is kept."""

    def __init__(self, socket):
        self._socket, self._ids, self._answers = socket, itertools.count(1), {}
        self.complaints: list[str] = []
        self.requested: list[str] = []

    async def listen(self):
        async for message in self._socket:
            data = json.loads(message.data)
            method, parameters = data.get("method"), data.get("params", {})
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            elif method == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled":
                self.complaints.append(str([item.get("value") for item in parameters["args"]]))
            elif method == "Log.entryAdded":
                self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            elif method == "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])

    async def call(self, method, **parameters):
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        data = await asyncio.wait_for(answer, 30)
        assert "error" not in data, data
        return data["result"]

    async def open(self, url, *, width=1280, height=900, dark=False, mobile=False):
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height, mobile=mobile, dark=dark)
        await self.call("Page.navigate", url=url)
        await self.wait_for("location.protocol !== 'about:' && document.readyState === 'complete'")

    async def resize(self, width, height, *, mobile=False, dark=False):
        scale = 2 if mobile else 1
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def evaluate(self, expression):
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text(self, selector):
        return await self.evaluate(f"document.querySelector({selector!r})?.innerText")

    async def wait_for(self, expression, seconds=20):
        end = time.monotonic() + seconds
        while not (value := await self.evaluate(expression)):
            assert time.monotonic() < end, f"never true: {expression}\n{await self.text('body')}\n{self.complaints}"
            await asyncio.sleep(0.05)
        return value

    async def screenshot(self, path, whole=True):
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@asynccontextmanager
async def tab(profile):
    """Open a new tab of a new browser with a separate profile folder."""
    program = find()
    assert program is not None, f"none of {', '.join(NAMES)} is installed"
    command = [program, *FLAGS.split(), f"--user-data-dir={profile}"]
    log = profile.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        port_file = profile / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            await asyncio.sleep(0.05)
        address = f"http://127.0.0.1:{port_file.read_text().splitlines()[0]}/json/new"
        async with aiohttp.ClientSession() as session, session.put(address) as answer:
            target = (await answer.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(target, max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                yield page
                listening.cancel()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
