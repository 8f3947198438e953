"""Measure what each extra installs: packages and bytes, from the metadata of the environment that this runs in.

python tests/support/install_sizes.py --json benchmarks/results/install_sizes.json
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rws.edge.common.provenance import provenance, write_json

COMMAND = "python tests/support/install_sizes.py --json benchmarks/results/install_sizes.json"
EXTRAS = ("", "serve", "sign", "demo", "detect", "torch", "train", "bench")


def needed(name: str, extras: frozenset[str], found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Add (package, extra) of a package and of all that it needs to `found`."""
    for extra in extras | {""}:
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                try:
                    needed(canonicalize_name(requirement.name), frozenset(requirement.extras), found)
                except PackageNotFoundError as error:
                    raise SystemExit(f"{error.name} is not installed; install '.[bench]' first") from error
    return found


def size(name: str) -> int:
    """Bytes of a package's files, without what is compiled at the first import."""
    files = distribution(name).files or ()
    return sum(
        int(path.stat().st_size)
        for file in files
        if (path := Path(str(file.locate()))).suffix != ".pyc" and path.is_file()
    )


def main(report: Annotated[Path, typer.Option("--json", help="Write the result here.")]) -> None:
    """Write packages and megabytes of each extra; the project's own files do not count."""
    result = {}
    for extra in EXTRAS:
        names = {name for name, _ in needed("rws-edge", frozenset({extra} - {""}), set())} - {"rws-edge"}
        result[extra or "base"] = {"packages": len(names), "megabytes": round(sum(map(size, names)) / 1e6)}
        typer.echo(f"{extra or 'base':8s} {result[extra or 'base']}")
    write_json(report, "install-sizes/1", {**provenance(), "command": COMMAND, "extras": result})


if __name__ == "__main__":
    typer.run(main)
