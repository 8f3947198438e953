"""The demo's stream: frames and their ground truth."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.oracle.belief import CLEAN

DEMO_DATA = Path(__file__).parent / "data"
COLUMNS = 20  # frames in a row of the sheet


@dataclass(frozen=True)
class DemoStream:
    """The demo's frames and their ground truth."""

    images: NDArray[np.uint8]  # (N, H, W, 3), RGB
    labels: NDArray[np.int64]  # (N,), indices into the classes of the bundle
    corruptions: tuple[dict[str, float], ...]  # {name: severity} in each frame; empty means clear
    classes: tuple[str, ...]

    def dominant(self, index: int) -> tuple[str, float]:
        """Return the strongest corruption of a frame and its severity; (`clean`, 0) if it is clear."""
        layers = self.corruptions[index]
        return max(layers.items(), key=lambda item: item[1]) if layers else (CLEAN, 0.0)


def load_stream(folder: Path = DEMO_DATA) -> DemoStream:
    """Read what `tests/support/demo_frames.py` wrote."""
    record = json.loads((folder / "frames.json").read_text())
    sheet = np.asarray(cv2.imread(str(folder / "frames.webp"), cv2.IMREAD_COLOR))[:, :, ::-1]
    size, count = record["size"], len(record["frames"])
    rows = sheet.shape[0] // size
    tiles = sheet.reshape(rows, size, COLUMNS, size, 3).swapaxes(1, 2).reshape(rows * COLUMNS, size, size, 3)
    labels = np.array([frame["label"] for frame in record["frames"]])
    corruptions = tuple(frame["corruptions"] for frame in record["frames"])
    return DemoStream(np.ascontiguousarray(tiles[:count]), labels, corruptions, tuple(record["classes"]))
