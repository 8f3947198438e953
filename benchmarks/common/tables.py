"""Tables as Markdown, CSV and on the terminal, from one specification of their columns."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rws.edge.common.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

Record = dict[str, Any]
"""A result or a part of it, as its JSON file holds it; docs/reference/results.md describes the keys."""


@dataclass(frozen=True)
class Column:
    """One column; `cell`: a key, dotted keys, a position, or a function of the row; a missing value stays empty."""

    title: str
    cell: str | int | Callable[[Any], object]
    format: str = ""
    words: bool = False  # aligned to the left

    def value(self, row: Any) -> object:
        """Return the unformatted value of the cell in a row."""
        if callable(self.cell):
            return self.cell(row)
        if isinstance(self.cell, int):
            return row[self.cell]
        for key in self.cell.split("."):
            row = row.get(key, {})
        return None if row == {} else row

    def text(self, row: Any) -> str:
        """Return the formatted cell of a row."""
        value = self.value(row)
        return "" if value is None else format(value, self.format)


def spoken(name: str) -> str:
    """Return a name with spaces instead of underscores."""
    return name.replace("_", " ")


def label(title: str, cell: str | int | Callable[[Any], object]) -> Column:
    """Return a column of words."""
    return Column(title, cell, words=True)


def columns(cells: Mapping[str, str | Callable[[Any], object]], spec: str = "") -> list[Column]:
    """Return columns of numbers in one format, from their titles and keys or functions."""
    return [Column(title, cell, spec) for title, cell in cells.items()]


def plain(*titles: str, words: int = 1) -> list[Column]:
    """Return columns for rows that are sequences of finished cells, of which the first `words` hold words."""
    return [Column(title, index, words=index < words) for index, title in enumerate(titles)]


def spread(lines: Sequence[Column], rows: Sequence[Any], titles: Sequence[str]) -> tuple[list[Column], list[list[str]]]:
    """Transpose a table: a row for each of `lines`, its title first; `titles`: the first heading, then one per row."""
    return plain(*titles), [[line.title, *map(line.text, rows)] for line in lines]


def markdown(columns: Iterable[Column], rows: Iterable[Any]) -> str:
    """Return a Markdown table."""
    columns = list(columns)
    lines = [[column.title for column in columns], ["---" if column.words else "---:" for column in columns]]
    lines += [[column.text(row) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def terminal(columns: Sequence[Column], rows: Iterable[Any], title: str | None = None) -> "Table":
    """Return a table for a rich console."""
    from rich.table import Table  # what measures in another Python has numpy, onnx and onnxruntime only

    table = Table(title=title, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="left" if column.words else "right", no_wrap=column.words)
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    return table


def write_csv(path: Path, schema: str, columns: Sequence[Column], rows: Iterable[Any]) -> None:
    """Write titles and unformatted values as CSV, `schema` first in each row; see `write_text`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["schema", *(column.title for column in columns)])
    writer.writerows([schema, *(column.value(row) for column in columns)] for row in rows)
    write_text(path, text.getvalue())
