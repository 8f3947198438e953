"""The zoo's tables, out of what `rws bench zoo` and `rws bench zoo-curve` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rws.benchmarks.common.committed import RESULTS
from rws.benchmarks.common.markdown import made_by, table
from rws.benchmarks.pages.oracle import read
from rws.training.evaluation.frames import TWO_SEVERITIES

LABELS = {"std": "clean model", "trained": "trained oracle", "told": "told"}
_CURVE = {"signature_percent": 2, "std": 1, "told": 1}


def zoo_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The summary of each result as a Markdown table, and who made it."""
    rows: list[list[str]] = []

    def add(label: str, write: Callable[[Mapping[str, Any]], str]) -> None:
        rows.append([label, *(write(result) for result in results)])

    add("clean accuracy", lambda r: f"{r['clean']['accuracy']:.1f}")
    for key in ("accuracy", "agreement"):
        for severity in TWO_SEVERITIES:
            for way, label in LABELS.items():
                add(f"{key}, severity {severity}, {label}", lambda r, k=key, s=severity, w=way: _mean_of(r, k, s, w))
    for way in ("told", "trained"):
        add(
            f"**accuracy won back, {LABELS[way]}, %**",
            lambda r, w=way: f"{r['summary']['accuracy']['won_back'][w]:.1f}",
        )
    add("clean predictions changed, % (95 %)", lambda r: _changed(r["clean"]))
    add("a signature, % of the model's bytes", lambda r: f"{r['sizes']['signature_percent']:.2f}")
    add("bundle, MB", lambda r: f"{r['sizes']['bundle_bytes'] / 1e6:.1f}")
    add("build, minutes", lambda r: f"{r['build_minutes']['all']:.0f}")
    add("model / oracle and policy, ms", lambda r: f"{r['frame']['model_ms']:.1f} / {r['frame']['oracle_ms']:.1f}")
    heads = ["", *(_title(result) for result in results)]
    counts = ", ".join(f"{_title(r)}: {r['build_images']} and {r['test_images']}" for r in results)
    note = f"Means over 19 corruptions. Pictures built from without labels, and test pictures; {counts}."
    return f"{table(heads, rows)}\n\n{note} {made_by(*results)}"


def zoo_summary(results: Sequence[Mapping[str, Any]]) -> str:
    """What the README says of each result: won back, changed, bytes and minutes."""
    rows = []
    for result in results:
        won, scores = result["summary"]["accuracy"]["won_back"], result["summary"]["accuracy"]
        rows.append(
            [
                _title(result),
                f"{result['clean']['accuracy']:.1f}",
                *(f"{scores[way]:.1f}" for way in LABELS),
                f"**{won['trained']:.1f}** / {won['told']:.1f}",
                _changed(result["clean"]),
                f"{result['sizes']['signature_percent']:.2f}",
                f"{result['build_minutes']['all']:.0f}",
            ]
        )
    heads = ["", "clean", *(f"corrupted, {label}" for label in LABELS.values()), "won back, trained / told, %"]
    heads += ["clean answers changed, % (95 %)", "a signature, % of the model", "build, minutes"]
    note = "Accuracy, 19 corruptions, severities 3 and 5; half of the pictures built from, the other half measured on."
    return f"{table(heads, rows)}\n\n{note} {made_by(*results)}"


def clip_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Agreement over real clips with the clean model on the clean frame, of `rws run --corrupt`."""
    rows = []
    for result in results:
        found = result["agreement"]
        rows.append(
            [
                Path(result["source"]).name,
                result["corrupt"].replace("_", " "),
                f"{found['frames']}",
                f"{found['unpatched']:.1f}",
                f"{found['patched']:.1f}",
            ]
        )
    heads = ["clip", "corruption", "frames", "clean model", "patched"]
    return f"{table(heads, rows, texts=2)}\n\n{made_by(*results)}"


def corruption_table(result: Mapping[str, Any]) -> str:
    """Accuracy by corruption of one result, as a Markdown table."""
    rows = []
    for name in dict.fromkeys(row["corruption"] for row in result["rows"]):
        found = {row["severity"]: row["accuracy"] for row in result["rows"] if row["corruption"] == name}
        cells = [" / ".join(f"{found[severity][way]:.1f}" for severity in TWO_SEVERITIES) for way in LABELS]
        rows.append([name.replace("_", " "), *cells])
    return f"{table(['accuracy, severity 3 / 5', *LABELS.values()], rows)}\n\n{made_by(result)}"


def curve_table(result: Mapping[str, Any]) -> str:
    """The curve gain against bytes as a Markdown table."""
    rows = [
        [str(row["layers"]), f"{row['parameters']:,}", *(f"{row[key]:.{digits}f}" for key, digits in _CURVE.items())]
        for row in result["rows"]
    ]
    heads = ["first n convolutions", "parameters", "% of the model's bytes", "never patched", "told"]
    named = ", ".join(name.replace("_", " ") for name in result["corruptions"])
    note = f"{result['model']}: mean accuracy, {named}, severities 3 and 5, {result['test_images']} test pictures."
    return f"{table(heads, rows, texts=0)}\n\n{note} {made_by(result)}"


def _title(result: Mapping[str, Any]) -> str:
    return f"{result['model'].replace('_', ' ')}{', quick' if result['quick'] else ''}"


def _mean_of(result: Mapping[str, Any], key: str, severity: int, way: str) -> str:
    found = [row[key][way] for row in result["rows"] if row["severity"] == severity]
    return f"{sum(found) / len(found):.1f}"


def _changed(clean: Mapping[str, Any]) -> str:
    low, high = clean["changed_interval"]
    return f"{clean['changed']:.1f} ({low:.1f}–{high:.1f})"


def _results(kind: str = "zoo") -> list[Mapping[str, Any]]:
    """All committed results of a kind; EfficientNet-Lite0's whole build first, its quick one behind it."""
    names = sorted(path.stem for path in RESULTS.glob(f"{kind}_*.json"))
    chosen = [name for name in names if kind != "zoo" or not name.startswith(_OTHER)]
    return [read(name) for name in sorted(chosen, key=lambda name: "lite0" not in name)]


_OTHER = ("zoo_curve", "zoo_clip")

TABLES: dict[str, Callable[[], str]] = {
    "zoo": lambda: zoo_table(_results()),
    "zoo corruptions": lambda: corruption_table(read("zoo_efficientnet_lite0")),
    "zoo clips": lambda: clip_table(_results("zoo_clip")),
    "zoo curve": lambda: curve_table(read("zoo_curve")),
}
"""Those of `docs/your_own_model.md`."""

README_TABLES: dict[str, Callable[[], str]] = {"zoo summary": lambda: zoo_summary(_results())}
