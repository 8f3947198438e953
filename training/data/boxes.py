"""Images whose objects are known: label files as YOLO trainers have them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import os_errors, read_regular
from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.sources.folders import find_images
from rws.edge.tasks.detect import Detections
from rws.errors import FormatError, InputError
from rws.training.data.photographs import Image

_LARGEST = 2**28  # bytes of an image


def load_boxes(folder: Path, spec: InputSpec, classes: Sequence[str]) -> tuple[list[Image], list[Detections]]:
    """Load images, uint8 (H, W, 3), RGB, and their boxes in pixels of images that are fitted as `spec` says.

    Of `…/images/x.jpg` they are in `…/labels/x.txt`: a line `class x y width height` per box, centre and sides in parts
    of the image; no file: no box. Raises InputError if no image is there, FormatError if a file says something else.
    """
    files = find_images([folder])[0]
    if not files:
        raise InputError(f"{folder}: holds no image")
    images, found = list[Image](), list[Detections]()
    for file in files:
        with os_errors(file, "read", "remove it"):
            image = cv2.imdecode(np.frombuffer(read_regular(file, _LARGEST), np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"cannot decode {file}; repair or remove it")
        images.append(np.ascontiguousarray(image[:, :, ::-1], np.uint8))
        placement = preprocess(images[-1], spec)[1]
        rows = _rows(
            Path(*("labels" if part == "images" else part for part in file.with_suffix(".txt").parts)), classes
        )
        centre, half = rows[:, 1:3] * image.shape[1::-1], rows[:, 3:] * image.shape[1::-1] / 2
        scale, shift = (placement.scale_x, placement.scale_y) * 2, (placement.left, placement.top) * 2
        corners = np.hstack([centre - half, centre + half]) * scale + shift
        boxes = corners.clip(0, (spec.width, spec.height) * 2).astype(np.float32)
        ids = rows[:, 0].astype(np.int64)
        found.append(Detections(boxes, np.ones(len(rows), np.float32), ids, tuple(classes)))
    return images, found


def _rows(file: Path, classes: Sequence[str]) -> NDArray[np.float64]:
    if not file.is_file():
        return np.empty((0, 5))
    expected = f"expected lines `class x y width height`, a class of 0…{len(classes) - 1}, all else of 0…1"
    try:
        with os_errors(file, "read", "remove it"):
            lines = read_regular(file, _LARGEST).decode().splitlines()
        rows = np.array([line.split() for line in lines if line.strip()], np.float64).reshape(-1, 5)
    except ValueError as error:
        raise FormatError(f"{file}: {expected}") from error
    if not np.isin(rows[:, 0], range(len(classes))).all() or not ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all():
        raise FormatError(f"{file}: {expected}")
    return rows
