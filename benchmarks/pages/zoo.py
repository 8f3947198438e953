"""The tables of docs/benchmarks/adopted_models.md, out of what `rws bench zoo` and `rws bench zoo-curve` wrote."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rws.benchmarks.common.tables import Column, columns, label, markdown, spoken, spread
from rws.benchmarks.pages.results import lookup, matching, read, table
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.frames import TWO_SEVERITIES

ENTRIES = ("zoo_efficientnet_lite0", "zoo_efficientnet_lite0_quick", "zoo_efficientnet_lite1_quick")
OTHERS = {
    "zoo_detector": ("FastestDet, the bundle `detector`", "mAP50"),
    "zoo_ppocr_rec": ("PP-OCRv4", "lines read right, %"),
}
QUICK = ("zoo_efficientnet_lite0_quick", "zoo_efficientnet_lite0_int8_quick")
LABELS = {"std": "clean model", "trained": "trained oracle", "perfect": "perfect oracle"}

Result = Mapping[str, Any]


def of_paper(result: Result) -> Sequence[Result]:
    """Return the rows of the 19 corruptions: an oracle of camera frames knows more."""
    return [row for row in result["rows"] if row["corruption"] in CORRUPTIONS]


def zoo_table(results: Sequence[Result]) -> str:
    """Return the summary of each entry of the zoo, a column each."""

    def mean(key: str, severity: int, arm: str) -> Callable[[Result], float]:
        return lambda result: fmean(row[key][arm] for row in of_paper(result) if row["severity"] == severity)

    lines = [
        Column("clean accuracy", "clean.accuracy", ".1f"),
        *(
            Column(f"{key}, severity {severity}, {title}", mean(key, severity, arm), ".1f")
            for key in ("accuracy", "agreement")
            for severity in TWO_SEVERITIES
            for arm, title in LABELS.items()
        ),
        Column("**accuracy won back, perfect oracle, %**", "summary.accuracy.won_back.perfect", ".1f"),
        Column("**accuracy won back, trained oracle, %**", "summary.accuracy.won_back.trained", ".1f"),
        Column("clean predictions changed, % (95 %)", _changed),
        Column("a signature, % of the model's bytes", "sizes.signature_percent", ".2f"),
        Column("bundle, MB", lambda r: r["sizes"]["bundle_bytes"] / 1e6, ".1f"),
        Column("build, minutes", "build_minutes.all", ".0f"),
        Column("model / oracle and policy, ms", "{0[frame][model_ms]:.1f} / {0[frame][oracle_ms]:.1f}".format),
        *columns({"images built from, without labels": "build_images", "test images": "test_images"}),
    ]
    return markdown(*spread(lines, results, ["", *map(_title, results)]))


def _title(result: Result) -> str:
    return f"{spoken(result['model'])}{', quick' if result['quick'] else ''}"


def _changed(result: Result) -> str:
    low, high = result["clean"]["changed_interval"]
    return f"{result['clean']['changed']:.1f} ({low:.1f}–{high:.1f})"


def _won_back(result: Result) -> str:
    won = result["summary"]["accuracy"]["won_back"]
    return f"**{won['trained']:.1f}** / {won['perfect']:.1f}"


def _exactness(row: Result) -> str:
    return "" if row.get("exact") is None else "bit-exact" if row["exact"] else f"{row['error']:.0e}"


def _outcome(row: Result) -> str:
    if row.get("outcome") != "taken":
        return str(row.get("fault") or row["refusals"][-1])
    return f"with `{row['options']}`" if row["options"] else "taken"


def _task(row: Result) -> str:
    return f"{row.get('task', '')} {row.get('head', '')}".strip()


def _by_corruption() -> Mapping[str, Result]:
    rows: dict[str, dict[str, str]] = {}
    for row in lookup(f"{ENTRIES[0]}.rows"):
        known = rows.setdefault(row["corruption"], {})
        known |= {arm: " / ".join(filter(None, (known.get(arm), f"{row['accuracy'][arm]:.1f}"))) for arm in LABELS}
    return rows


def _entries() -> list[Result]:
    return [read(name) for name in ENTRIES]


def _ratio(case: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        return "{:.3f} ({:.3f}–{:.3f})".format(*result["int8"]["ratios"][case]) if "int8" in result else ""

    return cell


TABLES: dict[str, Callable[[], str]] = {
    "zoo summary": table(
        _entries,
        label("", _title),
        Column("clean", "clean.accuracy", ".1f"),
        columns({f"corrupted, {title}": f"summary.accuracy.{arm}" for arm, title in LABELS.items()}, ".1f"),
        Column("won back, trained / perfect oracle, %", _won_back),
        Column("clean answers changed, % (95 %)", _changed),
        Column("a signature, % of the model", "sizes.signature_percent", ".2f"),
        Column("build, minutes", "build_minutes.all", ".0f"),
    ),
    "zoo others": table(
        lambda: [{**read(name), "title": title, "measure": measure} for name, (title, measure) in OTHERS.items()],
        label("", "title"),
        label("measure", "measure"),
        Column("clean", "clean.accuracy", ".1f"),
        columns({f"severity 3, {title}": f"summary.accuracy.{arm}" for arm, title in LABELS.items()}, ".1f"),
        Column("won back, trained / perfect oracle, %", _won_back),
        Column("clean, trained oracle", "clean.accuracy_trained", ".1f"),
        Column("a signature, KB", lambda result: result["sizes"]["signature_bytes"] / 1000, ".1f"),
        Column("build, minutes", "build_minutes.all", ".0f"),
    ),
    "zoo int8": table(
        lambda: map(read, QUICK),
        label("", lambda result: "int8" if "int8" in result else "float32"),
        Column("clean, as received", lambda r: r["int8"]["accuracy"] if "int8" in r else r["clean"]["accuracy"], ".1f"),
        Column("clean, of the bundle", "clean.accuracy", ".1f"),
        Column("corrupted, clean model", "summary.accuracy.std", ".1f"),
        Column("corrupted, perfect oracle", "summary.accuracy.perfect", ".1f"),
        Column("won back, perfect oracle, %", "summary.accuracy.won_back.perfect", ".1f"),
        columns({"time, again": _ratio("again"), "clean weights": _ratio("live"), "new patch": _ratio("patched")}),
    ),
    "zoo": lambda: zoo_table(_entries()),
    "zoo corruptions": table(
        _by_corruption,
        label("accuracy, severity 3 / 5", "name"),
        columns({title: arm for arm, title in LABELS.items()}),
    ),
    "zoo clips": table(
        lambda: matching("zoo_clip_*"),
        label("clip", lambda result: Path(result["source"]).name),
        label("corruption", lambda result: spoken(result["corrupt"])),
        Column("frames", "agreement.frames"),
        columns({"clean model": "agreement.unpatched", "patched": "agreement.patched"}, ".1f"),
    ),
    "models": table(
        "models.rows",
        label("model", "model"),
        label("what it is", "kind"),
        label("trained by", lambda row: row["source"] or "nobody"),
        label("exporter", "exporter"),
        Column("opset", "opset"),
        label("outcome", _outcome),
        label("task", _task),
        label("weights", "strategy"),
        label("patched", _exactness),
        label("trained on", "training"),
        Column("seconds", "seconds", ".0f"),
    ),
    "zoo curve": table(
        "zoo_curve.rows",
        Column("first n convolutions", "layers"),
        Column("parameters", "parameters", ","),
        Column("% of the model's bytes", "signature_percent", ".2f"),
        columns({"no patch": "std", "perfect oracle": "perfect"}, ".1f"),
    ),
}
VALUES = {
    "models taken": lambda: str(sum(row.get("outcome") == "taken" for row in lookup("models.rows"))),
    "models trained": lambda: str(sum(bool(row["source"]) for row in lookup("models.rows"))),
    "curve corruptions": lambda: ", ".join(map(spoken, lookup("zoo_curve.corruptions"))),
}
