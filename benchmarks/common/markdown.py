"""Tables of a page, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns hold words, the others numbers."""
    lines = [head, [*["---"] * texts, *["---:"] * (len(head) - texts)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made_by(*results: Mapping[str, Any]) -> str:
    """Cite the files of results, and say at what commit, on what machine and from which seed they were made."""
    by_commit: dict[str, list[str]] = {}
    for result in results:
        by_commit.setdefault(result.get("commit") or "an unknown commit", []).append(link(result))
    cited = "; ".join(f"{', '.join(dict.fromkeys(links))}, made at {at}" for at, links in by_commit.items())
    seed = f", seed {results[0]['seed']}" if "seed" in results[0] else ""
    return f"From {cited} ({results[0]['machine']['processor']}{seed})."


def link(result: Mapping[str, Any]) -> str:
    """A link to the file of a result, from the root of the repository.

    Args:
        result: as `oracle_page.read` gives it, with the path of its file within `benchmarks/results` as `file`.
    """
    return f"[{Path(result['file']).name}](benchmarks/results/{result['file']})"
