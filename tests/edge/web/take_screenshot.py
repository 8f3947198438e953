"""Take the screenshot of the page for the documentation: the frames of the demo, `rws run --serve`, and Chromium.

PYTHONPATH=tests python tests/edge/web/take_screenshot.py --out docs/page.webp
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import cv2
import typer

from rws.benchmarks.demo.stream import load_stream
from rws.edge.faults.frames import encode_jpeg
from rws.edge.faults.servers import MjpegServer
from support import browser

# Each frame is another photograph, so image and answer get the time to match.
SCALE, FPS, SETTLE = 15, 1.0, 0.4
CHANGED = "document.body.innerText.includes('the patch changes the answer')"
SHOWN = "document.querySelector('#label').textContent !== '–' && !document.querySelector('#image').hidden"


async def look(page: str, seconds: float, out: Path) -> None:
    """Watch the page for a while, and take the screenshot when the patch has changed the answer."""
    with tempfile.TemporaryDirectory() as folder:
        async with browser.tab(Path(folder, "profile")) as tab:
            await tab.open(page, width=1180, height=900)
            await tab.wait_for(SHOWN)
            await asyncio.sleep(seconds)
            await tab.wait_for(CHANGED)
            await asyncio.sleep(SETTLE)
            await tab.screenshot(Path(folder, "page.png"))
        cv2.imwrite(str(out), cv2.imread(str(Path(folder, "page.png"))), [cv2.IMWRITE_WEBP_QUALITY, 85])


def main(
    out: Annotated[Path, typer.Option(help="WebP file to write.")],
    seconds: Annotated[float, typer.Option(help="How long to watch before the screenshot is taken.")] = 150.0,
) -> None:
    """Run the loop on the demo's frames with the page open, and take the screenshot."""
    images = load_stream().images

    def camera(number: int) -> bytes:
        image = images[number % len(images)]
        return encode_jpeg(cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST), 97)

    server = MjpegServer(camera, FPS)
    command = ["run", server.url, "--bundle", "cifar10", "--serve", "127.0.0.1:0", "--threads", "1"]
    loop = subprocess.Popen(
        [sys.executable, "-c", "from rws.cli import main; main()", *command],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(line for line in loop.stdout if line.startswith("page: ")).removeprefix("page: ").strip()
        asyncio.run(look(address, seconds, out))
    finally:
        loop.kill()
        loop.wait()
        server.close()


if __name__ == "__main__":
    typer.run(main)
