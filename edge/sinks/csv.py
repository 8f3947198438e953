"""Results as CSV."""

import csv
import io
import os
from collections.abc import Callable

from rws.edge.pipeline import STAGES, Result
from rws.edge.sinks.file import LineSink
from rws.errors import InputError
from rws.records import Frame, utc

_FORMULA = ("=", "+", "-", "@")


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


_CELLS: dict[str, Callable[[Result], object]] = {
    "schema": lambda result: "run-row/1",
    "index": lambda result: result.index,
    "name": lambda result: _cell(result.name),
    "captured_at": lambda result: utc(result.captured_time),
    "captured_monotonic_s": lambda result: f"{result.captured_at:.6f}",
    "age_ms": lambda result: f"{result.age_ms:.3f}",
    "label": lambda result: _cell(result.summary[0]),
    "confidence": lambda result: "" if result.summary[1] is None else f"{result.summary[1]:.4f}",
    "corruption": lambda result: result.belief.type,
    "probability": lambda result: f"{result.belief.probability.max():.4f}",
    "severity": lambda result: f"{result.belief.type_severity:.3f}",
    "mix": lambda result: "+".join(f"{name}:{alpha:.2f}" for name, alpha in result.mix.items()),
    "changed": lambda result: "true" if result.changed else "false",
}
COLUMNS = (*_CELLS, *(f"{stage}_ms" for stage in STAGES), "media_time_s", "camera")


class CsvSink(LineSink):
    """One row per frame, under the names of `COLUMNS`.

    `mix` is written as `fog:0.80+snow:0.20`, and empty for the clean model. A name or label that a spreadsheet would
    take for a formula (it begins with = + - or @) gets an apostrophe in front. Arguments and errors are those of
    `LineSink`; an `endless` file with other columns is refused with an `InputError`.
    """

    HEADER = ",".join(COLUMNS) + "\n"

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        line = io.StringIO()
        cells = [cell(result) for cell in _CELLS.values()] + [f"{result.times_ms[stage]:.4f}" for stage in STAGES]
        cells += ["" if result.media_time is None else f"{result.media_time:.6f}", result.camera]
        csv.writer(line, lineterminator="\n").writerow(cells)
        length = self._append(line.getvalue())
        if self._truncatable and self._file.tell() == length:
            # The row is the whole file: logrotate has emptied it, and the header is lost too.
            with self._one_line_errors():
                self._file.truncate(0)
            self._append(self.HEADER + line.getvalue())

    def _open(self) -> None:
        header = self.HEADER.encode()
        found = b""
        if self._grows:
            with self.path.open("rb") as file:
                found = file.read(len(header))
        if not header.startswith(found):
            first = found.decode(errors="replace").partition("\n")[0]
            raise InputError(
                f"{self.path}: begins with {first!r}, expected the columns {','.join(COLUMNS)!r}; move the file away "
                f"or choose another name"
            )
        if found and found != header:
            os.truncate(self.path, 0)
        super()._open()
        self._truncatable = self._grows
        if found != header:
            self._append(self.HEADER)

    def _end_of(self, half: bytes) -> bytes:
        # Inside a quoted name, a newline alone would not end the row.
        return b'"\n' if half.count(b'"') % 2 else b"\n"
