"""Results as JSON lines."""

import json

from rws.edge.pipeline import Result
from rws.edge.sinks.file import LineSink
from rws.records import Frame


class JsonlSink(LineSink):
    """One JSON object per line and frame: `Result.to_dict`.

    Args:
        path: the file; an existing one is replaced when the sink closes, or appended to if `endless`.
        endless: write each line into the file at once. A half line that a crash has left there is ended first.

    Raises:
        InputError: on entry, if the file cannot be written there.
        RwsError: if writing fails, for example because the disk is full.
    """

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        self._append(json.dumps(result.to_dict(), ensure_ascii=False) + "\n")
