"""Take the screenshot of the page for the documentation: the street of the demo in rain, `rws run --serve`, Chromium.

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

from rws.benchmarks.demo.camera import CLIP
from support import browser

RAIN = "rain:3"
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
            await tab.screenshot(Path(folder, "page.png"))
        cv2.imwrite(str(out), cv2.imread(str(Path(folder, "page.png"))), [cv2.IMWRITE_WEBP_QUALITY, 85])


def main(
    out: Annotated[Path, typer.Option(help="WebP file to write.")],
    seconds: Annotated[float, typer.Option(help="How long to watch before the screenshot is taken.")] = 60.0,
) -> None:
    """Run the loop on the demo's street with the page open, and take the screenshot."""
    options = ["--loop", "--latest", "--corrupt", RAIN, "--serve", "127.0.0.1:0", "--threads", "1"]
    command = ["run", CLIP.name, *options]
    loop = subprocess.Popen(
        [sys.executable, "-c", "from rws.cli import main; main()", *command],
        cwd=CLIP.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(line for line in loop.stdout if line.startswith("page: ")).removeprefix("page: ").strip()
        asyncio.run(look(address, seconds, out))
    finally:
        loop.kill()
        loop.wait()


if __name__ == "__main__":
    typer.run(main)
