"""`Sink`: the interface of all sinks."""

from typing import Protocol

from rws.edge.pipeline import Result
from rws.records import Frame


class Sink(Protocol):
    """Receives each frame with its result; may be a context manager."""

    def write(self, frame: Frame, result: Result) -> None:
        """Receive one frame and its result."""
