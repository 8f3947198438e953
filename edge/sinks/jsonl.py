"""Results as JSON lines."""

import json

from rws.edge.pipeline import Result
from rws.edge.sinks.file import LineSink
from rws.records import Frame


class JsonlSink(LineSink):
    """One JSON object per line and frame: `Result.to_dict`. Arguments and errors are those of `LineSink`."""

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        self._append(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False) + "\n")
