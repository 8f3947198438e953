"""`rws bench damage`."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from rws.benchmarks.cli.options import save
from rws.edge.cli.parameters import JsonOption
from rws.edge.common.extras import require
from rws.terminal import say, show


def damage(
    images: Annotated[Path | None, typer.Option(help="Folder of images. Default: those of `rws demo`.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video. Default: made of the images of `rws demo`.")] = None,
    limit: Annotated[int, typer.Option(min=5, help="Damaged images.")] = 1000,
    streams: Annotated[int, typer.Option(min=6, help="Damaged streams.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the damage.")] = 0,
    report: JsonOption = None,
) -> None:
    """Damage JPEGs and H.264 streams, and count what passes to the oracle and what is rejected.

    \b
    Examples:
        rws bench damage --limit 100 --streams 12
        rws bench damage --images photos/ --video clip.mp4 --json damage.json
    """
    with require("bench"):
        from rws.benchmarks.damage.images import fuzz_images, read_images
        from rws.benchmarks.damage.streams import fuzz_streams, read_video
    logger = logging.getLogger("rws.edge.sources")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)  # or each rejected file is named
        result = fuzz_images(read_images(images), limit, seed, Path(folder))
        say("the images are done")
        found = fuzz_streams(read_video(video), streams, seed, Path(folder))
    for row in (*result["images"], *found["streams"], *found["stream_kinds"]):
        show(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items()))
    seams = result["seams"]
    share = f"{seams['caught']:.0%} of the visible, silent damage, and {seams['good_rejected']:.1%} of the good images"
    show(f"a check of seams would reject {share}")
    save(report, "damage/1", {**result, **found}, seed=seed)
