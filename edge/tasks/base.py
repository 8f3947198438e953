"""What every task does, whatever it reads from a model's outputs."""

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Output = TypeVar("Output")  # what a task reads, e.g. `Classification`
Record = TypeVar("Record", covariant=True)  # the same in plain types, e.g. `ClassificationRecord`


class Task(Protocol[Output, Record]):
    """What a model's outputs mean; `rws.edge.tasks.classify.Classify` is one."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise an `InputError` if the task cannot read outputs of this shape, of one image."""

    def read(self, outputs: NDArray[np.float32]) -> Output:
        """Read the model's outputs for one image, float32, shape (1, …).

        Raises an `InputError` as `check` does, and if they are not finite.
        """

    def draw(self, image: NDArray[np.uint8], output: Output) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, with the output drawn into a copy if it has a place in it."""

    def to_dict(self, output: Output) -> Record:
        """Return the output in plain types, ready for `json.dumps`."""
