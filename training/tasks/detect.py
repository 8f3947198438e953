"""Boxes: objectness, classes and box of every place of a detector's output, weighted by what the clean model sees."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.detect import Detections
from rws.edge.tasks.heads import decode
from rws.errors import InputError
from rws.training.tasks.average_precision import mean_average_precision
from rws.training.tasks.base import Arrays, Scores, Tensors, binary_divergence, divergence, overlap, to_tensors

LEAST = 0.001  # confidence of a box that counts for the mean average precision


@dataclass(frozen=True)
class _Places:
    # Of all places of N images: objectness (N, P), class probabilities (N, P, K), centre and sides (N, P, 4) in one
    # unit. `exclusive`: classes sum to 1; `own`: objectness is an output, not the largest class.
    objectness: Tensor
    classes: Tensor
    box: Tensor
    exclusive: bool = False
    own: bool = True


class DetectObjective:
    """What a detector's head gives, before any suppression of boxes (NMS), for an input of `size`: height, width."""

    metric = "mAP50"

    def __init__(self, spec: TaskSpec, classes: tuple[str, ...], size: tuple[int, int]) -> None:
        if spec.head == "nms":
            cure = "name the outputs before the suppression with --output, and their --head"
            raise InputError(f"model: its boxes went through NMS, which has no gradient; {cure}")
        self._spec, self._names, self._size = spec, classes, size

    def loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        """Return the divergences of objectness and classes, and L1 of the boxes by their size, per object seen."""
        found, aim = (_read(self._spec.head, outputs[0]) for outputs in (student, teacher))
        weight = aim.objectness
        if aim.exclusive:
            classes = weight * divergence(found.classes, aim.classes, 2)
        else:
            classes = (weight if aim.own else 1) * binary_divergence(found.classes, aim.classes).sum(2)
        sides = aim.box[..., 2:].clamp(min=1e-6).repeat(1, 1, 2)
        box = weight * ((found.box - aim.box).abs() / sides).sum(2)
        objectness = binary_divergence(found.objectness, weight) if aim.own else torch.zeros(())
        return (objectness.sum() + classes.sum() + box.sum()) / weight.sum().clamp(min=1)

    def scores(self, outputs: Arrays, reference: Arrays) -> Scores:
        """Return the overlap of confidences over all places and classes; a box that moved shares less."""
        scores = []
        for pair in zip(*(torch.split(to_tensors(arrays)[0], 1) for arrays in (outputs, reference)), strict=True):
            found, aim = (_read(self._spec.head, output) for output in pair)
            sure, wanted = (each.classes * (each.objectness[..., None] if each.own else 1) for each in (found, aim))
            scores.append(overlap(sure * _iou(found.box, aim.box)[..., None], wanted))
        return torch.cat(scores).numpy()

    def agreement(self, outputs: Arrays, reference: Arrays) -> float:
        """Return mAP50 against the reference's own boxes; 100 if it has none."""
        aim = self.boxes(reference, self._spec.confidence)
        return mean_average_precision(self.boxes(outputs, LEAST), aim) if any(len(one.boxes) for one in aim) else 100.0

    def boxes(self, outputs: Arrays, least: float) -> list[Detections]:
        """Return the boxes of each image down to a confidence, in pixels of the model's input."""
        spec, found = replace(self._spec, confidence=least), []
        for image in range(len(outputs[0])):
            boxes = decode(spec, [output[image : image + 1] for output in outputs], self._size)
            found.append(Detections(boxes.xyxy, boxes.confidence, boxes.class_id, self._names))
        return found


def _read(head: str, output: Tensor) -> _Places:
    if head == "fastestdet":
        rows, columns = output.shape[2:]
        places = output.flatten(2).transpose(1, 2)
        centre = places[..., 1:3].tanh() / torch.tensor([columns, rows])
        box = torch.cat([centre, places[..., 3:5].sigmoid()], 2)
        return _Places(places[..., 0], places[..., 5:], box, exclusive=True)
    if head == "yolov8":
        places = output.transpose(1, 2)
        return _Places(places[..., 4:].amax(2), places[..., 4:], places[..., :4], own=False)
    sides = output[..., 2:4].clamp(max=50).exp() if head == "yolox" else output[..., 2:4]
    return _Places(output[..., 4], output[..., 5:], torch.cat([output[..., :2], sides], 2))


def _iou(first: Tensor, second: Tensor) -> Tensor:
    low, high = (pick(*(box[..., :2] + sign * box[..., 2:] / 2 for box in (first, second))) for pick, sign in _ENDS)
    shared = (high - low).clamp(min=0).prod(2)
    areas = [box[..., 2:].clamp(min=0).prod(2) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)


_ENDS = ((torch.maximum, -1), (torch.minimum, 1))
