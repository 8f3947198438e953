"""What every sink does."""

from typing import Protocol

from rws.edge.pipeline import Result
from rws.records import Frame


class Sink(Protocol):
    """Takes each frame with its result; may be a context manager."""

    def write(self, frame: Frame, result: Result) -> None:
        """Take one frame and its result."""
