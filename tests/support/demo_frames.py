"""Render the frames of the demo and the tests: real images whose corruptions appear, grow, cross-fade and disappear.

PYTHONPATH=tests python -m support.demo_frames --data ~/data/cifar10

Writes `frames.webp`, one sheet with all frames, row by row, and `frames.json`, what is true of each.
"""

import json
import random
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer

from rws.benchmarks.demo.stream import COLUMNS
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.data.images import load_images
from rws.training.jobs.seeds import derive_seed

CLEAR_START, CLEAR_GAP, RISE, HOLD, FALL = 24, 6, 5, 40, 4


def scenario(seed: int) -> list[dict[str, float]]:
    """What corrupts each frame: {corruption: severity}, in the order in which they are laid over the image.

    Every corruption rises to 5 and holds. Then it falls, to a clear gap or while the next one rises.
    """
    order = list(CORRUPTIONS)
    random.Random(seed).shuffle(order)
    frames: list[dict[str, float]] = [{} for _ in range(CLEAR_START)]
    falling: list[dict[str, float]] = []
    for place, name in enumerate(order):
        rising = ({name: float(step)} for step in range(1, RISE + 1))
        frames += [fall | rise for fall, rise in zip([*falling, *[{}] * RISE], rising, strict=False)]
        frames += [{name: 5.0} for _ in range(HOLD)]
        falling = [{name: 5.0 * (1 - step / (FALL + 1))} for step in range(1, FALL + 1)]
        if place % 3 == 2 or place == len(order) - 1:
            frames += [*falling, *({} for _ in range(CLEAR_GAP))]
            falling = []
    return frames


def main(
    data: Annotated[str, typer.Option(help="Clean images; the test split is used.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo_data"),
    seed: Annotated[int, typer.Option(help="Seed of images, order and corruptions.")] = 0,
) -> None:
    """Render the demo's frames."""
    truth = scenario(seed)
    images = load_images(data, "test")
    chosen = images.take(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: len(truth)])
    frames = []
    for index, layers in enumerate(truth):
        pixels = chosen.pixels[index : index + 1]
        for depth, (name, severity) in enumerate(layers.items()):
            drawn = derive_seed(seed, "demo", name, severity, depth)
            pixels = corrupt(pixels, name, severity, seeds_for(drawn, torch.tensor([index])))
        frames.append(pixels[0].permute(1, 2, 0).numpy())
    rows = -(-len(frames) // COLUMNS)
    frames += [np.zeros_like(frames[0])] * (rows * COLUMNS - len(frames))
    sheet = np.concatenate([np.concatenate(frames[row * COLUMNS : (row + 1) * COLUMNS], 1) for row in range(rows)])
    out.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out / "frames.webp"), sheet[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])  # above 100: lossless
    record = {
        "command": f"PYTHONPATH=tests python -m support.demo_frames --data cifar10 --seed {seed}",
        "size": images.size,
        "classes": images.classes,
        "frames": [
            {"label": int(chosen.labels[index]), "corruptions": {name: round(s, 2) for name, s in layers.items()}}
            for index, layers in enumerate(truth)
        ],
    }
    (out / "frames.json").write_text(json.dumps(record, indent=None) + "\n")
    typer.echo(f"{len(truth)} frames, {(out / 'frames.webp').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
