"""The results that a checkout of the repository carries; an installed package has none."""

from pathlib import Path

from rws.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def check_checkout() -> None:
    """Raise InputError if this code does not run from a checkout; an installed package has no results."""
    if not (RESULTS.is_dir() and (ROOT / "pyproject.toml").is_file()):
        needed = f"pages are written from the results of a checkout, and {ROOT} is none"
        raise InputError(f"{needed}: clone the repository and `pip install -e .` there")
