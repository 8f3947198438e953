"""Take the screenshots of the page for the documentation: the street of the demo, `rws run --serve`, Chromium.

PYTHONPATH=tests python tests/edge/web/take_screenshot.py --out docs/page.webp
PYTHONPATH=tests python tests/edge/web/take_screenshot.py --cameras --out docs/cameras.webp --seconds 20
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


WEATHER = {
    "gate": "",
    "street": "fog:4",
    "harbour": "rain:4",
    "garage": "low_light:4",
    "roof": "snow:3",
    "tunnel": "gaussian_noise:4",
    "yard": "lens_dirt:4",
    "bridge": "motion_blur:4",
}
ALL_SHOWN = f"document.querySelectorAll('.tile img[src^=blob]').length === {len(WEATHER)}"


async def look(page: str, cameras: bool, seconds: float, out: Path, width: int) -> None:
    """Watch the page for a while, and take the screenshot; of one camera, when the patch has changed the answer."""
    with tempfile.TemporaryDirectory() as folder:
        async with browser.tab(Path(folder, "profile")) as tab:
            await tab.open(page, width=width, height=900)
            await tab.wait_for(ALL_SHOWN if cameras else SHOWN)
            await asyncio.sleep(seconds)
            await tab.wait_for(ALL_SHOWN if cameras else CHANGED)
            await tab.screenshot(Path(folder, "page.png"))
        cv2.imwrite(str(out), cv2.imread(str(Path(folder, "page.png"))), [cv2.IMWRITE_WEBP_QUALITY, 85])


def main(
    out: Annotated[Path, typer.Option(help="WebP file to write.")],
    seconds: Annotated[float, typer.Option(help="How long to watch before the screenshot is taken.")] = 60.0,
    cameras: Annotated[bool, typer.Option("--cameras", help="Of eight cameras in different weather.")] = False,
    width: Annotated[int, typer.Option(help="Of the browser's window, pixels.")] = 1180,
) -> None:
    """Run the loop on the demo's street with the page open, and take the screenshot."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "run.toml")
        tables = [f'[camera.{name}]\nsource = "{CLIP}"\ncorrupt = "{kind}"\n' for name, kind in WEATHER.items()]
        config.write_text("max_fps = 5\n" + "".join(tables).replace('corrupt = ""\n', ""))
        source = ["--config", str(config)] if cameras else [CLIP.name, "--corrupt", RAIN]
        command = ["run", *source, "--loop", "--latest", "--serve", "127.0.0.1:0", "--threads", "1"]
        loop = subprocess.Popen(
            [sys.executable, "-c", "from rws.cli import main; main()", *command],
            cwd=CLIP.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            address = next(line for line in loop.stdout if line.startswith("page: ")).removeprefix("page: ").strip()
            asyncio.run(look(address, cameras, seconds, out, width))
        finally:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    typer.run(main)
