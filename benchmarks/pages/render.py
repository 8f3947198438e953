"""Write the tables and values of README.md and of the pages in docs/benchmarks/ out of `benchmarks/results/`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`, each on a separate line, a value between
`<!-- EXPRESSION -->` and `<!-- / -->` in a line that begins with a word: one that begins with a comment is HTML.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from rws.benchmarks.common.committed import RESULTS, ROOT, check_checkout
from rws.benchmarks.pages import accuracy, corruptions, drill, jobs, latency, oracle, paper, results, zoo
from rws.benchmarks.pages.results import sources
from rws.errors import InputError

# The pages of the site: their tables, and the results (or patterns) whose commands they list.
_SITE: dict[str, tuple[Mapping[str, Callable[[], str]], str]] = {
    "accuracy": (accuracy.TABLES, "replay_*"),
    "signatures": (accuracy.SIGNATURE_TABLES, "signatures"),
    "latency": (latency.TABLES, "latency*"),
    "live": (latency.LIVE_TABLES, "live_table"),
    "storage": (latency.STORAGE_TABLES, "storage"),
    "oracle": (oracle.TABLES, "replay_* oracle_cost policies pairs unseen cameras"),
    "streams": (oracle.STREAM_TABLES, "streams filter baselines clips"),
    "adopted_models": (zoo.TABLES, "zoo_* models"),
    "drill": (drill.TABLES, "drill drill_video_* soak* damage"),
    "paper": (paper.TABLES, "reproduce/**/*"),
    "corruptions": (corruptions.TABLES, "corruption_*"),
    "jobs": (jobs.TABLES, "jobs"),
    "cameras": (drill.CAMERA_TABLES, "several_cameras broker"),
}
PAGES: dict[str, Mapping[str, Callable[[], str]]] = {
    "README.md": accuracy.README_TABLES,
    **{page: {} for page in ("docs/get_started.md", "docs/guides/own_model.md", "docs/guides/camera.md")},
    "benchmarks/results/README.md": {"results": sources("**/*")},
    **{f"docs/benchmarks/{page}.md": {**made, "sources": sources(names)} for page, (made, names) in _SITE.items()},
}
VALUES: dict[str, Callable[[], str]] = {**latency.VALUES, **drill.VALUES, **oracle.VALUES, **paper.VALUES, **zoo.VALUES}
_VALUE = re.compile(r"<!-- ([^/>][^>]*) -->((?:(?!<!--).)*)<!-- / -->")


def evaluate(expression: str) -> str:
    """Return the value of one of `VALUES`, of `made RESULT…` or `versions RESULT`, or of what `results.value` reads."""
    kind, _, rest = expression.partition(" ")
    if expression in VALUES:
        return VALUES[expression]()
    if kind in ("made", "versions"):
        return results.made(rest) if kind == "made" else results.versions(rest)
    return results.value(expression)


def render(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a page (a path from the repository's root) rebuilt; InputError if it has no place for a table."""
    text = (ROOT / page).read_text()
    folder = os.path.relpath(RESULTS, (ROOT / page).parent)

    def linked(content: str) -> str:
        return content.replace("](benchmarks/results/", f"]({folder}/".replace("(./", "("))

    for name, make in tables.items():
        place = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
        if place is None:
            raise InputError(f"{page} has no place for the table {name!r}")
        text = f"{text[: place.start(1)]}{linked(make())}\n{text[place.end(1) :]}"
    return _VALUE.sub(lambda match: f"<!-- {match.group(1)} -->{linked(evaluate(match.group(1)))}<!-- / -->", text)


def main(check: Annotated[bool, typer.Option(help="Only compare.")] = False) -> None:
    """Rewrite or check the pages of a checkout."""
    check_checkout()
    for page, tables in PAGES.items():
        new = render(page, tables)
        if not check:
            (ROOT / page).write_text(new)
        elif new != (ROOT / page).read_text():
            raise SystemExit(f"{page} is out of date: run python -m rws.benchmarks.pages.render")


if __name__ == "__main__":
    typer.run(main)
