"""A small real detector, FastestDet, and a photograph for it; terms in `tests/data/detectors`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from rws.edge.preprocess import InputSpec, Placement, preprocess
from rws.edge.tasks.base import TaskSpec

FOLDER = Path(__file__).parents[1] / "data" / "detectors"
MODEL = FOLDER / "FastestDet.onnx"
CLASSES = tuple((FOLDER / "coco.txt").read_text().split("\n")[:80])
INPUT = InputSpec(352, 352, "BGR", fit="stretch")
TASK = TaskSpec("detect", "fastestdet", confidence=0.45)


def photo() -> np.ndarray:
    """A rider, a horse and a dog, uint8 (240, 320, 3), RGB."""
    return cv2.imread(str(FOLDER / "rider.jpg"))[:, :, ::-1].copy()


@cache
def outputs() -> tuple[tuple[np.ndarray, ...], Placement]:
    """What the detector gives for the photograph, (1, 85, 22, 22), and how it was fitted."""
    x, placement = preprocess(photo(), INPUT)
    session = onnxruntime.InferenceSession(MODEL)
    return tuple(session.run(None, {session.get_inputs()[0].name: x[None]})), placement
