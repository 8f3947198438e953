"""Object detection: boxes with a class each, from the head that the model has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
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
SMALLEST_TEXT, LONGEST = 0.4, 60  # scale of OpenCV's font that can still be read; letters of a label


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
        drawn, side = image.copy(), min(image.shape[:2])
        scale, thick, font = max(side / 1000, SMALLEST_TEXT), max(2, side // 360), cv2.FONT_HERSHEY_SIMPLEX
        rows = [*zip(output.boxes.round().astype(int).tolist(), output.labels, output.confidence, strict=True)]
        for place, ((left, top, right, bottom), label, sure) in reversed([*enumerate(rows)]):  # the surest on top
            hue = int(output.class_id[place]) * 111 % 180  # classes next to one another get hues far apart
            colour = cv2.cvtColor(np.array([[[hue, 190, 235]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
            cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick)
            # OpenCV crashes at text that is not Unicode, and has no letters but ASCII.
            text = f"{printable(label)[:LONGEST].encode('ascii', 'replace').decode()} {sure:.0%}"
            (width, height), below = cv2.getTextSize(text, font, scale, 1)
            top = max(top, height + below + 4)  # a label stands on its box, and in the frame
            left = max(0, min(left, image.shape[1] - width - 6))
            cv2.rectangle(drawn, (left, top - height - below - 4), (left + width + 6, top), colour, cv2.FILLED)
            cv2.putText(drawn, text, (left + 3, top - below), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
        return np.asarray(drawn, np.uint8)

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
