"""Heads of detectors: from the arrays that a model gives for one image to boxes in pixels of the model's input.

The arithmetic is that of the authors' own code: dog-qiuqiu/FastestDet (`utils/tool.py`), ultralytics/yolov5
(`utils/general.py`), ultralytics/ultralytics (`utils/nms.py`), Megvii-BaseDetection/YOLOX (`utils/demo_utils.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.tasks.base import Head, Outputs, TaskSpec
from rws.errors import InputError, check_known

Size = tuple[int, int]  # height and width of the model's input, pixels
Form = tuple[int | None, ...]  # a shape without batch axis; None is any length

MAX_CANDIDATES = 2000  # boxes of an image, the surest, that are compared for overlap: bounds the time
MAX_BOXES = 300  # that are left of them
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (16,))  # of grids that heads have, the finest first
SLACK = 0.01  # of scores
_FAR = 1e5  # pixels; boxes are no larger, and centred no farther out


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image, the surest first: `xyxy` (M, 4) and `confidence` (M,) float32, `class_id` (M,) int64."""

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> "Boxes":
        """Return the boxes of an index."""
        return Boxes(self.xyxy[index], self.confidence[index], self.class_id[index])


@dataclass(frozen=True)
class Guess:
    """A detector's task and the outputs that it reads, in its order; None and those in doubt; the reason in a line."""

    task: TaskSpec | None
    outputs: tuple[str, ...]
    reason: str


def check_head(head: Head, shapes: Sequence[tuple[int, ...]], classes: int) -> None:
    """Raise an `InputError` if a head for N classes does not read outputs of these shapes, of one image (1, …)."""
    check_known("head", [head], HEADS)
    advice = f"for the head {head} of {classes} classes; name another with --head, or give the names of all classes"
    check_forms(shapes, HEADS[head](classes), advice)


def check_forms(shapes: Sequence[tuple[int, ...]], forms: Sequence[Sequence[Form]], advice: str) -> None:
    """Raise an `InputError` if the shapes of a model's outputs, of one image (1, …), have none of the forms."""
    if any(_fits(shapes, [(1, *shape) for shape in form]) for form in forms):
        return
    found = " and ".join(map(str, shapes))
    wanted = " or ".join(" and ".join(str((1, *shape)) for shape in form) for form in forms).replace("None", "*")
    raise InputError(f"model: gives outputs of shape {found}, expected {wanted}, {advice}")


def decode(spec: TaskSpec, outputs: Outputs, size: Size) -> Boxes:
    """Read the boxes of one image from outputs, (1, …), that `check_head` has passed, in pixels of the model's input.

    All are surer than `spec.confidence`, and of one class none overlap by more than `spec.iou`. Raises an `InputError`
    if the outputs are not those of such a head: scores outside of 0…1, a grid of another size.
    """
    arrays = [np.asarray(output[0], np.float32) for output in outputs]
    if spec.head == "nms":
        return _read_suppressed(arrays, spec.confidence)
    objectness, box, classes = _split(spec.head, arrays[0])
    objectness, surest = _within_0_1(objectness), _within_0_1(classes.max(0))
    score = objectness**0.6 * surest**0.4 if spec.head == "fastestdet" else objectness * surest
    kept = _surest(score, spec.confidence)
    centre, sides = np.split(box[:, kept].T.clip(-_FAR, _FAR), 2, axis=1)
    if spec.head in ("fastestdet", "yolox"):
        cells, stride = np.split(_grid(size, box.shape[1])[kept], [2], axis=1)
        bounded = sides.clip(-50, 50)  # for the exponential
        sides = np.exp(bounded) * stride if spec.head == "yolox" else size[::-1] / (1 + np.exp(-bounded))
        centre = (cells + (centre if spec.head == "yolox" else np.tanh(centre))) * stride
    centre, half = centre.clip(-_FAR, _FAR), sides.clip(0, _FAR) / 2
    xyxy = np.hstack([centre - half, centre + half]).astype(np.float32)
    return suppress(Boxes(xyxy, score[kept], classes[:, kept].argmax(0)), spec.iou)


def _read_suppressed(arrays: Outputs, least: float) -> Boxes:
    boxes, *rest = arrays
    score, classes = rest if len(rest) == 2 else (boxes[:, 4], rest[0] if rest else boxes[:, 5])
    kept = _surest(score, least)[:MAX_BOXES]
    class_id = classes[kept].clip(-1, _FAR).astype(np.int64)
    if len(strange := classes[kept][class_id != classes[kept]]):
        raise InputError(f"model: gives class {strange[0]:g}, expected whole numbers; name another head with --head")
    return Boxes(boxes[kept, :4].clip(-_FAR, _FAR), _within_0_1(score[kept]), class_id)


def suppress(boxes: Boxes, iou: float) -> Boxes:
    """Drop each box that overlaps a surer one of its class by more than `iou`; at most `MAX_BOXES` stay."""
    if not len(boxes.xyxy):
        return boxes
    xyxy = boxes.xyxy.astype(np.float64)
    # OpenCV keeps classes apart by shifting them, which holds for boxes that begin at 0 or later.
    corner = xyxy[:, :2] - xyxy[:, :2].min(0)
    placed = np.hstack([corner, xyxy[:, 2:] - xyxy[:, :2]]).tolist()
    kept = cv2.dnn.NMSBoxesBatched(placed, boxes.confidence.tolist(), boxes.class_id.tolist(), 0.0, iou)
    return boxes.take(np.sort(np.asarray(kept, np.int64).ravel())[:MAX_BOXES])


def guess_head(shapes: Mapping[str, tuple[int, ...]], size: Size, classes: int | None) -> Guess:
    """Find the head of a detector from its outputs' names and shapes, of one image, without batch axis.

    It is found if only one is possible; a grid must have as many places as the input's size gives. `classes` is the
    number of names that are known. If no head is sure, the reason says what to do.
    """
    for names in (("det_boxes", "det_scores", "det_classes"), ("dets", "labels")):
        if any(_fits([shapes.get(name, ()) for name in names], form) for form in HEADS["nms"](0)):
            return Guess(TaskSpec("detect", "nms"), names, f"outputs {', '.join(names)}: boxes after suppression (NMS)")
    found = [(head, name) for name in shapes for head in HEADS if _is_possible(head, shapes[name], size, classes)]
    all_found = " or ".join(f"output {name} of shape {shapes[name]} as head {head}" for head, name in found)
    if len(found) == 1:
        head, name = found[0]
        return Guess(TaskSpec("detect", head), (name,), all_found)
    if not found:
        return Guess(None, (), f"no output fits a head ({', '.join(HEADS)}) of {classes or 'unknown'} classes")
    advice = "name one with --output and --head (yolov5 has boxes in pixels, yolox offsets from a grid)"
    return Guess(None, tuple(dict.fromkeys(name for _, name in found)), f"{all_found}: {advice}")


def _is_possible(head: Head, shape: tuple[int, ...], size: Size, classes: int | None) -> bool:
    if (classes is None and head != "nms") or not any(_fits([shape], form) for form in HEADS[head](classes or 0)):
        return False
    places = {"fastestdet": shape[1] * shape[-1], "yolov8": shape[1]}.get(head, shape[0])
    # Heads of one grid are FastestDet's alone; other models give the boxes, scores and landmarks of a grid apart.
    one, three = (len(_strides(size, places, each) or ()) > (head != "fastestdet") for each in (1, 3))
    return {"yolov5": one or three, "nms": not one and not three and places <= MAX_CANDIDATES}.get(head, one)


def _fits(shapes: Sequence[tuple[int, ...]], form: Sequence[Form]) -> bool:
    return len(shapes) == len(form) and all(
        len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))
        for shape, wanted in zip(shapes, form, strict=True)
    )


@lru_cache(maxsize=64)
def _strides(size: Size, places: int, each: int) -> tuple[int, ...] | None:
    """Return the strides of the grids that have this number of places, `each` per cell."""
    cells = {strides: sum(-(-size[0] // s) * -(-size[1] // s) for s in strides) for strides in _STRIDES}
    return next((strides for strides, count in cells.items() if each * count == places), None)


@lru_cache(maxsize=8)
def _grid(size: Size, places: int) -> NDArray[np.float32]:
    """Return column, row and stride of each place, (places, 3), float32."""
    if (strides := _strides(size, places, 1)) is None:
        found = f"model: gives {places} boxes, expected one per cell of the grids of {size[1]}×{size[0]} px"
        raise InputError(f"{found}; name another head with --head, or the input's size")
    cells = [(*np.indices((-(-size[0] // stride), -(-size[1] // stride)))[::-1], stride) for stride in strides]
    parts = [np.stack(np.broadcast_arrays(*one), axis=-1).reshape(-1, 3) for one in cells]
    return np.concatenate(parts).astype(np.float32)


def _split(head: str, values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return objectness (N,), boxes (4, N) and classes (K, N) of the values of one image."""
    if head == "fastestdet":
        rows = values.reshape(len(values), -1)
        return rows[0], rows[1:5], rows[5:]
    if head == "yolov8":  # has no objectness
        return np.ones(1, np.float32), values[:4], values[4:]
    return values.T[4], values.T[:4], values.T[5:]


def _within_0_1(score: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores, clipped to 0…1; an `InputError` if they are farther out than rounding explains."""
    low, high = float(score.min(initial=0)), float(score.max(initial=0))
    if low < -SLACK or high > 1 + SLACK:
        advice = "name another head with --head"
        raise InputError(f"model: gives scores of {low:.3g} to {high:.3g}, expected 0 to 1; {advice}")
    return score.clip(0, 1)


def _surest(score: NDArray[np.float32], least: float) -> NDArray[np.int64]:
    """Return where scores, (N,), exceed `least`, the highest first, at most `MAX_CANDIDATES`."""
    above = np.flatnonzero(score > least)
    return above[np.argsort(-score[above], kind="stable")[:MAX_CANDIDATES]]


# The shapes of outputs that each head reads, for a number of classes.
HEADS: Mapping[Head, Callable[[int], Sequence[Sequence[Form]]]] = {
    "fastestdet": lambda classes: [[(5 + classes, None, None)]],
    "yolov5": lambda classes: [[(None, 5 + classes)]],
    "yolov8": lambda classes: [[(4 + classes, None)]],
    "yolox": lambda classes: [[(None, 5 + classes)]],
    "nms": lambda classes: [[(None, 6)], [(None, 4), (None,), (None,)], [(None, 5), (None,)]],
}
