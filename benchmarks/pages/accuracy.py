"""The tables of README.md, docs/benchmarks/accuracy.md and signatures.md."""

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

from rws.benchmarks.common.tables import Column, columns, label
from rws.benchmarks.pages.results import find, lookup, read, table

ARMS = {
    "std": "no patch",
    "trained": "**trained oracle**",
    "perfect": "perfect oracle (type and severity known)",
    "best": "perfect oracle, best action of the gain table",
    "always": "all signatures averaged, always on",
}


def _replay() -> Iterator[dict[str, Any]]:
    worst, every = read("replay_severity5"), read("replay_all")
    for arm, name in ARMS.items():
        fifteen = fmean([row[arm] for row in worst["per_corruption"].values()][:15])
        scores = {"worst": worst["ra"][arm], "fifteen": fifteen, "every": every["ra"][arm]}
        yield {"name": name, "clean": worst["ta"][arm], **scores}


def _generators() -> Iterator[dict[str, Any]]:
    for record, name in (("replay_all", "our port"), ("replay_originals", "the original generators")):
        yield {"name": name, **read(record)["per_severity"]["5"]}


def _precision() -> list[dict[str, Any]]:
    result = read("signatures")
    no_patch = {"bits": "no patch", "ra": result["ra_no_patch"], "ta_after_reset": result["ta"]}
    return [no_patch, *result["rows"]]


TABLES: dict[str, Callable[[], str]] = {
    "replay": table(
        _replay,
        label("accuracy", "name"),
        columns({"clean": "clean", "robust, severity 5": "worst", "of the 15, severity 5": "fifteen"}, ".2f"),
        Column("robust, severities 1–5", "every", ".2f"),
    ),
    "generators": table(
        _generators,
        label("robust accuracy, severity 5", "name"),
        columns({"no patch": "std", "trained oracle": "trained", "perfect oracle": "perfect"}, ".2f"),
    ),
    "corruptions": table(
        "replay_severity5.per_corruption",
        label("severity 5", "name"),
        columns({"no patch": "std", "trained oracle": "trained"}, ".1f"),
        columns({"perfect oracle": "perfect", ARMS["always"]: "always"}, ".1f"),
    ),
}
SIGNATURE_TABLES: dict[str, Callable[[], str]] = {
    "precision": table(
        _precision,
        label("bits", "bits"),
        label("one scale per", "per"),
        columns({"robust accuracy": "ra", "clean accuracy after 19 patches and resets": "ta_after_reset"}, ".2f"),
        Column("bytes of the file", "bytes", ","),
    ),
}

README_ARMS = {
    "std": "no patch",
    "frame": "**trained oracle**",
    "perfect": "perfect oracle (type and severity known)",
    "augmented": "baseline: one model, trained with all corruptions",
}
README_TABLES = {
    "results": table(
        lambda: (find(lookup("baselines.rows"), method=method, protocol="iid", batch=1) for method in README_ARMS),
        label("", lambda row: README_ARMS[row["method"]]),
        columns({"clean accuracy": "ta", "robust accuracy": "ra"}, ".1f"),
    )
}
