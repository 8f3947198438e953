"""What every task does, whatever it reads from a model's outputs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rws.edge.tasks.classify import Classification, ClassificationRecord


class Task(Protocol):
    """What a model's outputs mean; `rws.edge.tasks.classify.Classify` is one."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise an `InputError` if the task cannot read the model's output for one image."""

    def read(self, outputs: NDArray[np.float32]) -> Classification:
        """Read the model's output for one image, float32, shape (1, …)."""
        ...

    def draw(self, image: NDArray[np.uint8], output: Classification) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, with the output drawn into a copy if it has a place in it."""
        ...

    def to_dict(self, output: Classification) -> ClassificationRecord:
        """Return the output in plain types, ready for `json.dumps`."""
        ...
