"""Semantic segmentation: a class for each pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.preprocess import Placement
from rws.edge.tasks.base import Outputs, check_finite
from rws.edge.tasks.heads import check_forms
from rws.errors import InputError

UNSEEN = -1  # the class of a pixel that the model does not see: the input's fit cuts it off
NAMED = 3  # classes of a summary
# Neighbours in a model's list of classes have different hues.
_PALETTE = cv2.applyColorMap((np.arange(256) * 97 % 256).astype(np.uint8).reshape(-1, 1), cv2.COLORMAP_HSV)[:, 0]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of each pixel of a frame."""

    class_map: NDArray[np.int32]  # (H, W) of the frame: indices of `names`, or `UNSEEN`
    names: tuple[str, ...]

    @cached_property
    def shares(self) -> list[tuple[int, float]]:
        """The index of each class that is seen and its share of the pixels seen, 0…1, the largest first."""
        counts = np.bincount(self.class_map[self.class_map != UNSEEN], minlength=len(self.names))
        order = (-counts).argsort(kind="stable")[: np.count_nonzero(counts)]
        return [(int(index), float(counts[index] / counts.sum())) for index in order]


class Segment:
    """The task that reads a map of K logits or of labels as the class of each pixel."""

    name = "segment"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise an `InputError` if the outputs are not one (1, K, h, w), or of labels (1, 1, h, w) or (1, h, w)."""
        count = len(self.classes)
        forms = ([(count, None, None)], [(1, None, None)], [(None, None)])
        check_forms(shapes, forms, f"a map of {count} classes or of labels; give the names of all classes")
        if 0 in shapes[0]:
            raise InputError(f"model: gives an empty map, {shapes[0]}, expected one place or more; check its export")

    def read(self, outputs: Outputs, placement: Placement) -> Segmentation:
        """Read the map of one image; an `InputError` if it has another shape, is not finite, or has unknown labels."""
        self.check([output.shape for output in outputs])
        check_finite(outputs)
        several = outputs[0].ndim == 4 and outputs[0].shape[1] > 1
        values = outputs[0][0].argmax(0) if several else outputs[0].reshape(outputs[0].shape[-2:])
        most = len(self.classes) - 1
        labels = values.clip(0, most).astype(np.int32)
        if (labels != values).any():
            advice = "give the names of all classes, or another --task"
            found = f"labels {values.min()} to {values.max()}"
            raise InputError(f"model: gives {found}, expected whole numbers 0 to {most}; {advice}")
        return Segmentation(_to_frame(labels, placement), self.classes)

    def draw(self, image: NDArray[np.uint8], output: Segmentation) -> NDArray[np.uint8]:
        """Return a copy of the image, uint8, (H, W, 3), RGB, tinted in the colour of each pixel's class."""
        drawn = cv2.addWeighted(image, 0.5, _PALETTE[output.class_map % len(_PALETTE)], 0.5, 0)
        unseen = output.class_map == UNSEEN
        drawn[unseen] = image[unseen]
        return np.asarray(drawn, np.uint8)

    def to_dict(self, output: Segmentation) -> Mapping[str, object]:
        """Return the share of the pixels that each class has, in plain types, ready for `json.dumps`."""
        rows = [(self.classes[index], index, round(share, 4)) for index, share in output.shares]
        return {"classes": [{"label": label, "class_index": index, "share": share} for label, index, share in rows]}

    def summary(self, output: Segmentation) -> tuple[str, float | None]:
        """Return the largest classes with their shares, and no confidence: the outputs may be labels."""
        return ", ".join(f"{share:.0%} {self.classes[index]}" for index, share in output.shares[:NAMED]), None

    def seen(self, output: Segmentation) -> Sequence[str]:
        """Return the names of the classes that are in the image, the largest first."""
        return list(dict.fromkeys(self.classes[index] for index, _ in output.shares))


def _to_frame(labels: NDArray[np.int32], placement: Placement) -> NDArray[np.int32]:
    """Return the label of each pixel of the frame: that of the place of the map where its centre lies."""

    def places(axis: int, scale: float, shift: float) -> NDArray[np.int64]:
        centres = (np.arange(placement.frame_size[axis]) + 0.5) * scale + shift
        return np.asarray(np.floor(centres * labels.shape[axis] / placement.input_size[axis]), np.int64)

    rows, columns = places(0, placement.scale_y, placement.top), places(1, placement.scale_x, placement.left)
    height, width = labels.shape
    placed: NDArray[np.int32] = labels[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))]
    placed[(rows < 0) | (rows >= height)] = UNSEEN
    placed[:, (columns < 0) | (columns >= width)] = UNSEEN
    return placed
