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

from rws.edge.tasks.base import Outputs, TaskSpec
from rws.errors import InputError, check_known

Arrays = Sequence[NDArray[Any]]
Size = tuple[int, int]  # height and width of the model's input, pixels
Form = tuple[int | None, ...]  # a shape without batch axis; None is any length

MAX_CANDIDATES = 2000  # boxes of an image, the surest first, that overlaps are sought among: bounds the time
MAX_BOXES = 300  # that are left of them
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32))  # of grids that heads have, the finest first
_FAR = 1e5  # pixels; a box that ends farther out is cut there


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image, the surest first: `xyxy` (M, 4) and `confidence` (M,) float32, `class_id` (M,) int64."""

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]

    def take(self, index: NDArray[Any]) -> "Boxes":
        """Return the boxes of an index or a mask."""
        return Boxes(self.xyxy[index], self.confidence[index], self.class_id[index])


@dataclass(frozen=True)
class Guess:
    """A detector's task, or None, the outputs that it reads, in its order, and the reason in one line."""

    task: TaskSpec | None
    outputs: tuple[str, ...]
    reason: str


def check_head(head: str, shapes: Sequence[tuple[int, ...]], classes: int) -> None:
    """Raise an `InputError` if a head of so many classes does not read outputs of these shapes, of one image (1, …)."""
    check_known("head", [head], HEADS)
    advice = f"for the head {head} of {classes} classes; name another with --head, or give the names of all classes"
    check_forms(shapes, HEADS[head].forms(classes), advice)


def check_forms(shapes: Sequence[tuple[int, ...]], forms: Sequence[Sequence[Form]], advice: str) -> None:
    """Raise an `InputError` if the shapes of a model's outputs, of one image (1, …), have none of the forms."""
    if any(_fits(shapes, [(1, *shape) for shape in form]) for form in forms):
        return
    found = " and ".join(map(str, shapes))
    wanted = " or ".join(" and ".join(_shown((1, *shape)) for shape in form) for form in forms)
    raise InputError(f"model: gives outputs of shape {found}, expected {wanted}, {advice}")


def decode(spec: TaskSpec, outputs: Outputs, size: Size) -> Boxes:
    """Read the boxes of one image from outputs, (1, …), that `check_head` has passed, in pixels of the model's input.

    All are surer than `spec.confidence`, and of one class none overlap by more than `spec.iou`. Raises an `InputError`
    if the outputs are not those of such a head: scores outside of 0…1, a grid of another size.
    """
    arrays = [np.asarray(output[0], np.float32) for output in outputs]
    boxes = HEADS[spec.head].decode(arrays, size, spec.confidence)
    return boxes if spec.head == "nms" else suppress(boxes, spec.iou)


def suppress(boxes: Boxes, iou: float) -> Boxes:
    """Drop each box that overlaps a surer one of its class by more than `iou`; at most `MAX_BOXES` stay."""
    if not len(boxes.xyxy):
        return boxes
    xyxy = boxes.xyxy.astype(np.float64)
    # OpenCV keeps classes apart by shifting them, which holds for boxes that begin at 0 or later.
    corner = xyxy[:, :2] - xyxy[:, :2].min(0)
    placed, ids = np.hstack([corner, xyxy[:, 2:] - xyxy[:, :2]]), boxes.class_id.astype(np.int32)
    kept = cv2.dnn.NMSBoxesBatched(placed, boxes.confidence, ids, 0.0, iou)
    return boxes.take(np.sort(np.asarray(kept, np.int64).ravel())[:MAX_BOXES])


def guess_head(shapes: Mapping[str, tuple[int, ...]], size: Size, classes: int | None) -> Guess:
    """Find the head of a detector from its outputs' names and shapes, of one image, without batch axis.

    It is found if only one is possible; a grid must have as many places as the input's size gives. `classes` is the
    number of names that are known. If no head is sure, the reason says what to do.
    """
    for names in (("det_boxes", "det_scores", "det_classes"), ("dets", "labels")):
        found = [shapes[name] for name in names if name in shapes]
        if any(_fits(found, form) for form in HEADS["nms"].forms(0)[1:]):
            return Guess(
                TaskSpec("detect", "nms"), names, f"outputs {', '.join(names)} are boxes after suppression (NMS)"
            )
    seen = [guess for name, shape in shapes.items() if (guess := _guess_one(name, shape, size, classes))]
    if len(seen) == 1:
        return seen[0]
    if seen:
        several = ", ".join(f"{guess.outputs[0]} ({guess.task.head})" for guess in seen)
        return Guess(None, (), f"outputs {several} could all be read; name one with --output and its head with --head")
    return Guess(None, (), f"no output is that of a known head ({', '.join(HEADS)}) for {classes or 'unknown'} classes")


def _guess_one(name: str, shape: tuple[int, ...], size: Size, classes: int | None) -> Guess | None:
    def fits(head: str) -> bool:
        return any(len(form) == 1 and _fits([shape], form) for form in HEADS[head].forms(classes or 1))

    found = f"output {name} of shape {shape}"
    single, triple = (len(shape) == 2 and _strides(size, shape[0], each) is not None for each in (1, 3))
    if fits("nms") and not (single or triple) and shape[0] <= MAX_CANDIDATES:
        return Guess(TaskSpec("detect", "nms"), (name,), f"{found} is a list of boxes after suppression (NMS)")
    if classes is None:
        return None
    if fits("fastestdet") and shape[1:] == (-(-size[0] // 16), -(-size[1] // 16)):
        return Guess(
            TaskSpec("detect", "fastestdet"), (name,), f"{found} is one map of objectness, box and {classes} classes"
        )
    if fits("yolov8") and _strides(size, shape[1], 1):
        return Guess(
            TaskSpec("detect", "yolov8"),
            (name,),
            f"{found} has a box and {classes} classes per place, without objectness",
        )
    if fits("yolov5") and triple:
        return Guess(
            TaskSpec("detect", "yolov5"),
            (name,),
            f"{found} has three boxes with objectness and {classes} classes per place",
        )
    if fits("yolox") and single:
        advice = "give --head yolox if boxes are offsets from the grid, --head yolov5 if they are pixels"
        return Guess(None, (name,), f"{found} has one box with objectness per place: {advice}")
    return None


def _fits(shapes: Sequence[tuple[int, ...]], form: Sequence[Form]) -> bool:
    return len(shapes) == len(form) and all(
        len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))
        for shape, wanted in zip(shapes, form, strict=True)
    )


def _shown(shape: Form) -> str:
    return f"({', '.join('*' if length is None else str(length) for length in shape)})"


@lru_cache(maxsize=64)
def _strides(size: Size, places: int, each: int) -> tuple[int, ...] | None:
    """Return the strides of the grids that have this number of places, `each` per cell."""
    for strides in _STRIDES:
        if each * sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides) == places:
            return strides
    return None


@lru_cache(maxsize=8)
def _grid(size: Size, places: int) -> NDArray[np.float32]:
    """Return column, row and stride of each place, (places, 3), float32."""
    strides = _strides(size, places, 1)
    if strides is None:
        advice = "name another head with --head, or the input's size"
        raise InputError(f"model: gives {places} boxes, expected one per grid cell of {size[1]}×{size[0]} px; {advice}")
    parts = []
    for stride in strides:
        rows, columns = np.indices((-(-size[0] // stride), -(-size[1] // stride)))
        parts.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    return np.concatenate(parts).astype(np.float32)


def _best(score: NDArray[np.float32], least: float) -> NDArray[np.int64]:
    """Return where scores, (N,), exceed `least`, the highest first; an `InputError` if they are not within 0…1."""
    if score.size and not -0.01 <= (low := float(score.min())) <= (high := float(score.max())) <= 1.01:
        advice = "name another head with --head"
        raise InputError(f"model: gives scores of {low:.3g} to {high:.3g}, expected 0 to 1; {advice}")
    above = np.flatnonzero(score > least)
    return above[np.argsort(-score[above], kind="stable")[:MAX_CANDIDATES]]


def _boxes(centre: NDArray[Any], sides: NDArray[Any], confidence: NDArray[Any], class_id: NDArray[Any]) -> Boxes:
    half = sides / 2
    xyxy = np.hstack([centre - half, centre + half]).clip(-_FAR, _FAR)
    return Boxes(xyxy.astype(np.float32), confidence.clip(0, 1), class_id.astype(np.int64))


def _fastestdet(arrays: Arrays, size: Size, least: float) -> Boxes:
    rows, columns = arrays[0].shape[1:]
    places = arrays[0].reshape(len(arrays[0]), -1)
    objectness, classes = places[0], places[5:]
    _best(objectness, least)  # for its check: a power hides what is negative
    score = objectness.clip(0, 1) ** 0.6 * classes.max(0).clip(0, 1) ** 0.4
    kept = _best(score, least)
    box, scale = places[1:5, kept].T, np.array(size[::-1], np.float32)
    cell = np.stack([kept % columns, kept // columns], axis=1)
    centre = (np.tanh(box[:, :2]) + cell) / (columns, rows) * scale
    sides = scale / (1 + np.exp(-box[:, 2:].clip(-50, 50)))
    return _boxes(centre, sides, score[kept], classes[:, kept].argmax(0))


def _with_objectness(places: NDArray[Any], least: float) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """Return the index, confidence and class of the surest places of an array (N, 5 + K)."""
    _best(places[:, 4], least)
    likely = np.flatnonzero(places[:, 4] > least)
    score = places[likely, 4] * places[likely, 5:].max(1)
    order = _best(score, least)
    kept = likely[order]
    return kept, score[order], places[kept, 5:].argmax(1)


def _yolov5(arrays: Arrays, size: Size, least: float) -> Boxes:
    kept, confidence, class_id = _with_objectness(arrays[0], least)
    return _boxes(arrays[0][kept, :2], arrays[0][kept, 2:4], confidence, class_id)


def _yolov8(arrays: Arrays, size: Size, least: float) -> Boxes:
    scores = arrays[0][4:].max(0)
    kept = _best(scores, least)
    box = arrays[0][:4, kept].T
    return _boxes(box[:, :2], box[:, 2:], scores[kept], arrays[0][4:, kept].argmax(0))


def _yolox(arrays: Arrays, size: Size, least: float) -> Boxes:
    grid = _grid(size, len(arrays[0]))
    kept, confidence, class_id = _with_objectness(arrays[0], least)
    cell, stride, box = grid[kept, :2], grid[kept, 2:], arrays[0][kept, :4]
    return _boxes((box[:, :2] + cell) * stride, np.exp(box[:, 2:].clip(-50, 50)) * stride, confidence, class_id)


def _suppressed(arrays: Arrays, size: Size, least: float) -> Boxes:
    first = arrays[0]
    score, class_id = {1: lambda: (first[:, 4], first[:, 5]), 2: lambda: (first[:, 4], arrays[1])}.get(
        len(arrays), lambda: (arrays[1], arrays[2])
    )()
    kept = _best(score, least)[:MAX_BOXES]
    return Boxes(first[kept, :4].clip(-_FAR, _FAR), score[kept].clip(0, 1), class_id[kept].astype(np.int64))


@dataclass(frozen=True)
class _Head:
    forms: Callable[[int], tuple[tuple[Form, ...], ...]]  # the outputs' shapes that it reads, for a number of classes
    decode: Callable[[Arrays, Size, float], Boxes]


HEADS: Mapping[str, _Head] = {
    "fastestdet": _Head(lambda classes: (((5 + classes, None, None),),), _fastestdet),
    "yolov5": _Head(lambda classes: (((None, 5 + classes),),), _yolov5),
    "yolov8": _Head(lambda classes: (((4 + classes, None),),), _yolov8),
    "yolox": _Head(lambda classes: (((None, 5 + classes),),), _yolox),
    "nms": _Head(lambda classes: (((None, 6),), ((None, 4), (None,), (None,)), ((None, 5), (None,))), _suppressed),
}
