"""Tables of a page, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns hold words, the others numbers."""
    lines = [head, [*["---"] * texts, *["---:"] * (len(head) - texts)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made_by(*results: Mapping[str, Any]) -> str:
    """The commands that made results, each once, on what machine, from which seed."""
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(result["command"] for result in results))
    seed = f", seed {results[0]['seed']}" if "seed" in results[0] else ""
    return f"Made by {commands} ({results[0]['machine']['processor']}{seed})."
