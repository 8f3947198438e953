"""Results as CSV."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from rws.edge.pipeline import STAGES, Result
from rws.edge.sinks.file import LineSink
from rws.errors import InputError
from rws.records import Frame

COLUMNS = (
    *("index", "name", "captured_at", "age_ms", "label", "confidence"),
    *("corruption", "probability", "severity", "mix", "changed"),
    *(f"{stage}_ms" for stage in STAGES),
)


class CsvSink(LineSink):
    """One row a frame, under the names of `COLUMNS`.

    `mix` is written as `fog:0.80+snow:0.20`, and empty for the clean model; `changed` is `true` or `false`; times are
    milliseconds, but for `captured_at`, seconds. A line break in a name becomes a space: a row is a line.

    Args:
        path: the file; an existing one is replaced when the sink closes, or appended to if `endless`.
        endless: write each row into the file at once. A half row that a crash has left there is ended first.

    Raises:
        InputError: on entry, if the file cannot be written there or has other columns.
        RwsError: if writing fails, for example because the disk is full.
    """

    HEADER = ",".join(COLUMNS) + "\n"

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(_row(result))
        length = self._append(line.getvalue())
        if self._truncatable and self._file.tell() == length:
            # The row is all there is: logrotate has emptied the file, and the header went with the rest.
            with self._one_line_errors():
                self._file.truncate(0)
            self._append(self.HEADER + line.getvalue())

    def _open(self) -> None:
        header = self.HEADER.encode()
        found = _first_bytes(self.path, len(header)) if self.endless else b""
        if not header.startswith(found):
            first = found.decode(errors="replace").partition("\n")[0]
            raise InputError(
                f"{self.path}: begins with {first!r}, expected the columns {','.join(COLUMNS)!r}; move the file away "
                f"or choose another name"
            )
        if found and found != header:
            os.truncate(self.path, 0)
        super()._open()
        self._truncatable = self.endless and self.path.is_file()
        if found != header:
            self._file.write(header)

    def _end_of(self, half: bytes) -> bytes:
        # Inside a quoted name, a newline alone would not end the row.
        return b'"\n' if half.count(b'"') % 2 else b"\n"


def _row(result: Result) -> list[object]:
    belief = result.belief
    return [
        result.index,
        " ".join(result.name.splitlines()),
        f"{result.captured_at:.6f}",
        f"{result.age_ms:.3f}",
        result.label,
        f"{result.confidence:.4f}",
        belief.type,
        f"{belief.probability.max():.4f}",
        f"{belief.type_severity:.3f}",
        "+".join(f"{name}:{alpha:.2f}" for name, alpha in result.mix.items()),
        "true" if result.changed else "false",
        *(f"{result.times_ms[stage]:.4f}" for stage in STAGES),
    ]


def _first_bytes(path: Path, count: int) -> bytes:
    """What a file begins with; b"" where there is none or it is a pipe or device."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(count)
