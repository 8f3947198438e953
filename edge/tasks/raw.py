"""Outputs as they are, such as embeddings, keypoints or the logits of text: nothing is read into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.preprocess import Placement
from rws.edge.tasks.base import Outputs, check_finite

FEW = 16  # numbers that a record holds of an output


@dataclass(frozen=True, eq=False)
class RawOutputs:
    """What a model gives for one image."""

    arrays: tuple[NDArray[Any], ...]  # one per output, with the batch axis


class Raw:
    """The task of a model whose outputs another program reads."""

    name = "raw"
    classes: tuple[str, ...] = ()

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Accept outputs of any shape."""

    def read(self, outputs: Outputs, placement: Placement) -> RawOutputs:
        """Keep the outputs for one image; an `InputError` if they are not finite."""
        check_finite(outputs)
        return RawOutputs(tuple(outputs))

    def draw(self, image: NDArray[np.uint8], output: RawOutputs) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, as it is."""
        return image

    def to_dict(self, output: RawOutputs) -> Mapping[str, object]:
        """Return shapes, and the numbers of small outputs, in plain types, ready for `json.dumps`."""
        return {"outputs": [{"shape": list(array.shape), "values": _values(array)} for array in output.arrays]}

    def summary(self, output: RawOutputs) -> tuple[str, None]:
        """Return how many outputs there are."""
        count = len(output.arrays)
        return f"{count} output{'s' * (count > 1)}", None

    def seen(self, output: RawOutputs) -> tuple[str, ...]:
        """Return nothing: the outputs have no classes."""
        return ()


def _values(array: NDArray[Any]) -> list[float] | None:
    return [float(f"{float(value):.6g}") for value in array.ravel()] if array.size <= FEW else None
