"""Object detection: boxes with a class each, from the head that the model has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.extras import require
from rws.edge.preprocess import Placement
from rws.edge.tasks.base import Outputs, TaskSpec, check_finite
from rws.edge.tasks.heads import check_head, decode
from rws.errors import InputError
from rws.text import printable

if TYPE_CHECKING:
    import supervision

NAMED = 4  # classes of a summary
SMALLEST_TEXT = 0.4  # scale of OpenCV's font that can still be read


@dataclass(frozen=True, eq=False)
class Detections:
    """What a model sees in a frame, the surest first; M is 0 if it sees nothing."""

    boxes: NDArray[np.float32]  # (M, 4): left, top, right, bottom, in pixels of the frame, within it
    confidence: NDArray[np.float32]  # (M,), 0…1
    class_id: NDArray[np.int64]  # (M,), indices of `names`
    names: tuple[str, ...]  # of all classes that the model knows

    @property
    def labels(self) -> list[str]:
        """The name of each box's class."""
        return [self.names[index] for index in self.class_id]

    def surer(self, least: float) -> Detections:
        """Return the boxes of this confidence or more."""
        kept = self.confidence >= least
        return Detections(self.boxes[kept], self.confidence[kept], self.class_id[kept], self.names)

    def to_supervision(self) -> supervision.Detections:
        """Return the same as `supervision.Detections`; MissingExtraError without the extra `detect`."""
        with require("detect"):
            import supervision
        names = np.array(self.labels, np.str_)
        return supervision.Detections(
            self.boxes.copy(), None, self.confidence, self.class_id, data={"class_name": names}
        )


class Detect:
    """The task that reads boxes, with the head and the limits of its spec, for the names of all classes."""

    name = "detect"

    def __init__(self, spec: TaskSpec, classes: Sequence[str]) -> None:
        self.spec, self.classes = spec, tuple(classes)

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise an `InputError` if the head does not read outputs of these shapes, of one image."""
        check_head(self.spec.head, shapes, len(self.classes))

    def read(self, outputs: Outputs, placement: Placement) -> Detections:
        """Read the outputs of one image, arrays (1, …); an `InputError` if they are not the head's, or not finite."""
        self.check([output.shape for output in outputs])
        check_finite(outputs)
        found = decode(self.spec, outputs, placement.input_size)
        if len(strange := found.class_id[(found.class_id < 0) | (found.class_id >= len(self.classes))]):
            raise InputError(
                f"model: gives class {strange[0]}, expected 0 to {len(self.classes) - 1}; give the names of all classes"
            )
        if len(found.xyxy) and found.xyxy.max() <= 1:
            raise InputError(
                "model: gives boxes within 0…1, expected pixels of its input; export it with boxes in pixels"
            )
        boxes = placement.to_frame(found.xyxy)
        seen = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))  # not in the padding, nor cut off
        found = found.take(seen)
        return Detections(boxes[seen], found.confidence, found.class_id, self.classes)

    def draw(self, image: NDArray[np.uint8], output: Detections) -> NDArray[np.uint8]:
        """Return a copy of the image, uint8, (H, W, 3), RGB, with each box, its class and confidence."""
        with require("detect"):
            import supervision
        # The surest is drawn last, on top.
        turned = Detections(output.boxes[::-1], output.confidence[::-1], output.class_id[::-1], output.names)
        size, found = (image.shape[1], image.shape[0]), turned.to_supervision()
        scale = max(supervision.calculate_optimal_text_scale(size), SMALLEST_TEXT)
        box = supervision.BoxAnnotator(thickness=supervision.calculate_optimal_line_thickness(size))
        text = supervision.LabelAnnotator(text_scale=scale, text_padding=3)
        # OpenCV crashes at text that is not Unicode, and has no letters but ASCII.
        names = [printable(label).encode("ascii", "replace").decode() for label in turned.labels]
        labels = [f"{name} {sure:.0%}" for name, sure in zip(names, turned.confidence, strict=True)]
        drawn = box.annotate(image.copy(), found)
        found.xyxy[:, 1] = found.xyxy[:, 1].clip(min=24 * scale + 6)  # a label stands on its box, and in the frame
        return np.asarray(text.annotate(drawn, found, labels=labels), np.uint8)

    def to_dict(self, output: Detections) -> Mapping[str, object]:
        """Return the boxes in plain types, ready for `json.dumps`: pixels to a tenth, the surest first."""
        boxes = output.boxes.astype(np.float64).round(1).tolist()
        rows = zip(output.labels, output.class_id.tolist(), output.confidence.tolist(), boxes, strict=True)
        keys = ("label", "class_index", "confidence", "box")
        return {"detections": [dict(zip(keys, (*one, round(sure, 4), box), strict=True)) for *one, sure, box in rows]}

    def summary(self, output: Detections) -> tuple[str, float | None]:
        """Return how many of each class there are, the most frequent first, and the confidence of the surest box."""
        counts = Counter(output.labels).most_common()
        rest = f" and {len(counts) - NAMED} more" if len(counts) > NAMED else ""
        text = ", ".join(f"{count} {label}" for label, count in counts[:NAMED]) + rest
        return text or "nothing", float(output.confidence[0]) if counts else None

    def seen(self, output: Detections) -> Sequence[str]:
        """Return the names of the classes that are in the image, each once."""
        return list(dict.fromkeys(output.labels))
