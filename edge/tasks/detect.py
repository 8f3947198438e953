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

    def to_supervision(self) -> supervision.Detections:
        """Return the same as `supervision.Detections`; MissingExtraError without the extra `detect`."""
        with require("detect"):
            import supervision
        names = np.array(self.labels, np.str_)
        return supervision.Detections(self.boxes, None, self.confidence, self.class_id, data={"class_name": names})


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
        if len(found.class_id) and not 0 <= found.class_id.min() <= found.class_id.max() < len(self.classes):
            wrong = f"{found.class_id.min()} to {found.class_id.max()}"
            raise InputError(
                f"model: gives classes {wrong}, expected 0 to {len(self.classes) - 1}; give all their names"
            )
        boxes = placement.to_frame(found.xyxy)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # not in the padding, nor cut off
        found = found.take(seen)
        return Detections(boxes[seen], found.confidence, found.class_id, self.classes)

    def draw(self, image: NDArray[np.uint8], output: Detections) -> NDArray[np.uint8]:
        """Return a copy of the image, uint8, (H, W, 3), RGB, with each box, its class and confidence."""
        with require("detect"):
            import supervision
        size, found, drawn = (image.shape[1], image.shape[0]), output.to_supervision(), image.copy()
        thickness = supervision.calculate_optimal_line_thickness(size)
        # OpenCV crashes at text that is not Unicode, and has no letters but ASCII.
        names = [printable(label).encode("ascii", "replace").decode() for label in output.labels]
        labels = [f"{name} {sure:.0%}" for name, sure in zip(names, output.confidence, strict=True)]
        write = supervision.LabelAnnotator(
            text_scale=supervision.calculate_optimal_text_scale(size), text_padding=3, text_thickness=1
        )
        drawn = supervision.BoxAnnotator(thickness=thickness).annotate(drawn, found)
        return np.asarray(write.annotate(drawn, found, labels=labels), np.uint8)

    def to_dict(self, output: Detections) -> Mapping[str, object]:
        """Return the boxes in plain types, ready for `json.dumps`: pixels to a tenth, the surest first."""
        boxes = [[round(float(edge), 1) for edge in box] for box in output.boxes]
        rows = zip(output.labels, output.class_id.tolist(), output.confidence.tolist(), boxes, strict=True)
        return {
            "detections": [
                {"label": label, "class_index": index, "confidence": round(sure, 4), "box": box}
                for label, index, sure, box in rows
            ]
        }

    def summary(self, output: Detections) -> tuple[str, float | None]:
        """Return how many of each class there are, the most frequent first, and the confidence of the surest box."""
        if not output.labels:
            return "nothing", None
        counts = Counter(output.labels).most_common()
        return ", ".join(f"{count} {label}" for label, count in counts), float(output.confidence[0])

    def seen(self, output: Detections) -> Sequence[str]:
        """Return the names of the classes that are in the image, each once."""
        return list(dict.fromkeys(output.labels))
