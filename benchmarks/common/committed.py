"""The results that a checkout of the repository carries; an installed package has none."""

from __future__ import annotations

from pathlib import Path

from rws.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def check_checkout() -> None:
    """Refuse to write pages into an installed package.

    Raises:
        InputError: if this code does not run from a checkout.
    """
    if not (RESULTS.is_dir() and (ROOT / "pyproject.toml").is_file()):
        raise InputError(
            f"pages are written from the results of a checkout, and {ROOT} is none: clone the repository and "
            f"`pip install -e .` there"
        )
