"""Committed results, as a page quotes and cites them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rws.benchmarks.common.committed import RESULTS
from rws.benchmarks.common.tables import Column, label, markdown, spoken


def read(name: str) -> Any:
    """Return a committed result, named by its path below the folder of results without `.json`; `file` is with it."""
    return {**json.loads((RESULTS / f"{name}.json").read_text()), "file": f"{name}.json"}


def matching(pattern: str) -> list[Any]:
    """Return all committed results whose name fits a pattern, sorted by name."""
    return [read(p.relative_to(RESULTS).with_suffix("").as_posix()) for p in sorted(RESULTS.glob(f"{pattern}.json"))]


def lookup(path: str) -> Any:
    """Return `<result>.<key>.<key>…`; a key of a list of objects takes it of each, `len` and `sum` do what they say."""
    name, *keys = path.split(".")
    found = read(name)
    for key in keys:
        if key in ("len", "sum"):
            found = len(found) if key == "len" else sum(found)
        else:
            found = [part[key] for part in found] if isinstance(found, list) else found[key]
    return found


def value(expression: str) -> str:
    """Return a part of a result as text: `<path> <format>`, such as `replay_all.oracle.severity_mae .2f`."""
    path, _, specification = expression.partition(" ")
    return format(lookup(path), specification)


def table(rows: str | Callable[[], Iterable[Any]], *columns: Column | Iterable[Column]) -> Callable[[], str]:
    """Return what makes a Markdown table of rows that `lookup` finds or a function returns; keys become `name`."""

    def make() -> str:
        found = lookup(rows) if isinstance(rows, str) else rows()
        if isinstance(found, Mapping):
            found = [{"name": spoken(name), **row} for name, row in found.items()]
        flat = [column for part in columns for column in ([part] if isinstance(part, Column) else part)]
        return markdown(flat, found)

    return make


def made(names: str) -> str:
    """Return `made_by` of results, from their names or patterns of names with spaces between."""
    return made_by(*(result for name in names.split() for result in matching(name)))


def made_by(*results: Mapping[str, Any]) -> str:
    """Return links to the files of results, and at what commit, on what machine, from which seed they were made."""
    by_commit: dict[str, list[str]] = {}
    for result in results:
        by_commit.setdefault(result.get("commit") or "an unknown commit", []).append(link(result))
    cited = "; ".join(f"{', '.join(dict.fromkeys(links))}, made at {at}" for at, links in by_commit.items())
    machines = ", ".join(dict.fromkeys(map(machine, results)))
    seeds = ", ".join(dict.fromkeys(str(result["seed"]) for result in results if "seed" in result))
    return f"{cited} ({machines}{seeds and f', seed {seeds}'})"


def machine(result: Mapping[str, Any]) -> str:
    """Return the GPU that a result was made on, else the processor."""
    device: str = result.get("device", "cpu")
    return result["machine"]["processor"] if device == "cpu" else device


def versions(name: str) -> str:
    """Return the versions of all packages that a result was made with."""
    return ", ".join(f"{package} {number}" for package, number in read(name)["versions"].items())


def sources(names: str) -> Callable[[], str]:
    """Return what makes a table of how results were made, from names or patterns of names with spaces between."""
    return table(
        lambda: (result for name in names.split() for result in matching(name)),
        label("result", lambda result: f"[{result['file']}](benchmarks/results/{result['file']})"),
        label("command", lambda result: f"`{result['command']}`"),
        Column("commit", "commit"),
        Column("machine", machine),
        Column("seed", "seed"),
    )


def link(result: Mapping[str, Any]) -> str:
    """Return a link to the file of a result, from the root of the repository."""
    return f"[{Path(result['file']).name}](benchmarks/results/{result['file']})"


def find(rows: Iterable[Any], **wanted: Any) -> Any:
    """Return the first row with these values, or an empty one."""
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), {})


def interval(row: Mapping[str, Any], prefix: str = "") -> str:
    """Return the ratio of a row with its 95 % interval."""
    return f"{row['ratio']:.3f} ({row[f'{prefix}low']:.3f}–{row[f'{prefix}high']:.3f})"
