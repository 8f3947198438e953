"""What all decoders have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """A frame as it was received."""

    image: NDArray[np.uint8]  # shape (H, W, 3), RGB; without pixels if there is a `loss`, unless it is only damaged
    captured_at: float  # when it arrived, before it was decoded, seconds of the monotonic clock
    loss: str = ""  # `damaged` or `undecodable`; `dropped` if it was skipped; "": the decoder has found no damage
    key: bool = True  # whether it was coded without reference to another
    media_time: float | None = None  # as in `rws.records.Frame`


def lost_frame(captured_at: float, loss: str) -> DecodedFrame:
    """Return a frame without an image."""
    return DecodedFrame(np.empty((0, 0, 3), np.uint8), captured_at, loss)


class Decoder(ABC):
    """An open camera, file or stream: `fps` and `length` (frames) as declared; `finite` if its end is not a failure.

    `tells_damage`: whether it knows of damage, so that nothing has to be guessed from the pixels.
    """

    fps: float | None = None
    length: int | None = None
    finite: bool = False
    tells_damage: bool = False
    bursts: bool = False  # a live stream whose frames arrive many at a time (HLS)

    @property
    def remark(self) -> str:
        """What people should know of its frames so far, or ""."""
        return ""

    @property
    def media_end(self) -> float | None:
        """When the last frame ends, as in `Frame.media_time`; None: unknown."""
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yield the frames until the end; a `SourceError` says why the source is lost."""

    @abstractmethod
    def close(self) -> None:
        """Release the device, file or connection."""


def credible(rate: Any) -> float | None:
    """Return a rate of 0.001 to 300 per second, else None: what is not known is declared as 0, 1000 or 90000."""
    value = float(rate) if rate else 0.0
    return value if 0.001 <= value <= 300 else None
