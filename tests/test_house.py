"""The rules of the house that no linter knows. They hold for all Python but tests and examples."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("rws", "edge", "oracle", "training", "benchmarks")
LONG = {
    # Commands: each option is a parameter with its help, and the docstring shows examples.
    "edge/cli/run.py: run",
    "edge/cli/oracle.py: health",
    "training/cli/adopt.py: adopt",
    "benchmarks/cli/reproduce.py: reproduce",
    "benchmarks/cli/streams.py: streams",
}
"""Functions that may have more than 60 lines; at most ten."""


@cache
def sources() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py")}


@cache
def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Each function and method with the path of its file."""

    def found() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for name, text in sources().items():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield name, node

    return list(found())


def test_no_folder_holds_more_than_ten_modules():
    counts = Counter(str(Path(name).parent) for name in sources() if not name.endswith("__init__.py"))
    assert {folder: count for folder, count in counts.items() if count > 10} == {}


def test_a_function_fits_on_a_screen():
    long = {f"{name}: {node.name}" for name, node in functions() if node.end_lineno - node.lineno >= 60}
    assert long == LONG
    assert len(LONG) <= 10


def test_the_whole_is_not_too_large():
    assert sum(text.count("\n") for text in sources().values()) <= 44_500


def test_results_are_records():
    loose = [
        f"{name}: {node.name}"
        for name, node in functions()
        if not node.name.startswith("_") and node.returns is not None and "dict[str, Any]" in ast.unparse(node.returns)
    ]
    assert len(loose) <= 10, loose
