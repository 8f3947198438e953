"""The tables of docs/oracle.md: what the oracle knows, what its errors cost, and how its rivals do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARES = {"policy": "policy", "severity": "severity", "type": "type", "clean": "taken for clean"}
RULES = {"std": "never patched", "perfect": "told type and severity", "best": "told, best of the gain table"}
POLICIES = {"hard": "most probable type", "weighted": "weighted composition", "expected": "expected accuracy"}
PAIRS = {
    "std": "never patched",
    "single": "told: the best single signature",
    "both": "told: both signatures, each at its α",
    "averaged": "told: both, at half their α",
    "scaled": "told: both, at the best common scale of α",
    "shipped": "**the bundle's policy: weighted composition**",
    "expected": "expected accuracy: one signature",
    "composed": "the same, but both of the two most probable where both are probable",
}
METHODS = {
    "std": "never patched",
    "always": "always patched",
    "augmented": "one model, all corruptions as augmentation",
    "bn_adapt": "BatchNorm statistics of the batch",
    "bn_prior": "BatchNorm statistics, prior of 16 images",
    "tent": "Tent",
    "tent_scaled": "Tent, rate scaled to the batch",
    "frame": "**ours, frame by frame**",
    "trained": "**ours, with the temporal filter**",
    "perfect": "told type and severity",
    "best": "told, best of the gain table",
    "all_models": "told: 20 whole models",
}


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _made_by(*results: Mapping[str, Any]) -> str:
    commands = ", ".join(f"`{result['command']}`" for result in results)
    return f"Made by {commands} ({results[0]['machine']['processor']}, seed {results[0]['seed']})."


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def types_table() -> str:
    """Type accuracy by severity, of one frame and after eight."""
    result = _read("replay_all")
    one = result["oracle"]
    rows = []
    for scores, frames in ((one, "one frame"), (one["after_8_frames"], "8 frames of one stream")):
        for key, kind in (("type_accuracy", "raw"), ("type_accuracy_merged", "merged")):
            cells = [scores["per_severity"][str(severity)][key] for severity in result["severities"]]
            values = [*cells, scores[key], scores["clean_recall"]]
            rows.append([f"{frames}, {kind}", *(_number(value, 1) for value in values)])
    head = ["type accuracy, %", *(f"severity {severity}" for severity in result["severities"]), "all", "clean"]
    pairs = ", ".join(f"{first} and {second} at severity {severity}" for first, second, severity in one["merged"])
    return (
        f"{_table(head, rows)}\n\n{result['images']:,} test images of each of 19 corruptions × 5 severities, and "
        f"clean; all counts clean and each type alike. Merged: {pairs.replace('_', ' ')} are the same picture within "
        f"half a grey level, and either name is right. Mean error of the severity "
        f"{one['severity_mae']:.2f}. {_made_by(result)}"
    )


def regret_table() -> str:
    """What the oracle's errors cost in accuracy, and where it comes from."""
    results = {"severity 5": _read("replay_severity5"), "severities 1–5": _read("replay_all")}
    rows = []
    for name, result in results.items():
        split = result["regret_split"]
        rows.append([name, *(_number(split[key], 3) for key in (*SHARES, "total", "clean_frames_patched"))])
    head = ["points of accuracy", *SHARES.values(), "regret", "clean frames patched"]
    return f"{_table(head, rows)}\n\n{_made_by(*results.values())}"


def policy_table() -> str:
    """Ways from a belief to a mix."""
    result = _read("policies")
    rows = []
    for row in result["rows"]:
        label = RULES.get(row["policy"], POLICIES.get(row["policy"], row["policy"]))
        if row["policy"] == "shipped":
            label = "**the bundle's policy**"
        elif row["policy"] in POLICIES:
            label += {"plain": "", "both": ", weight on clean and threshold"}.get(row["rule"], f", {row['rule']}")
        rows.append(
            [
                label,
                _number(row.get("threshold")),
                _number(row.get("clean_weight")),
                _number(row["ta"]),
                _number(row["ra_5"]),
                _number(row["ra"]),
                _number(row.get("regret")),
                _number(row.get("microseconds"), 0),
            ]
        )
    head = ["", "threshold", "weight", "TA", "RA, severity 5", "RA, all", "regret", "µs"]
    return f"{_table(head, rows)}\n\n{_made_by(result)}"


def pairs_table() -> str:
    """Two corruptions at once."""
    result = _read("pairs")
    rows = [
        [
            PAIRS[row["way"]],
            *(_number(row.get(key)) for key in ("accuracy", "accuracy_3", "accuracy_5", "ta", "single")),
        ]
        for row in result["rows"]
    ]
    head = ["", "two at once", "severity 3", "severity 5", "TA", "one at once"]
    return f"{_table(head, rows)}\n\n{_made_by(result)}"


def unseen_table() -> str:
    """Each corruption in turn unknown to oracle and signatures."""
    result = _read("unseen")
    rows = []
    for row in result["rows"]:
        means = [sum(row[key]) / len(row[key]) for key in ("std", "ours", "borrowed", "own")]
        rows.append(
            [
                row["corruption"].replace("_", " "),
                *(_number(mean) for mean in means),
                f"{means[1] - means[0]:+.2f}",
                f"{row['worst']:+.2f}",
                row["neighbour"].replace("_", " "),
            ]
        )
    head = [
        "left out",
        "never patched",
        "ours",
        "told: best neighbour's",
        "told: its own",
        "gain",
        "worst",
        "neighbour",
    ]
    return f"{_table(head, rows)}\n\n{_made_by(result)}"


def streams_table() -> str:
    """Our ways on the five protocols."""
    result = _read("streams")
    rows = []
    for row in result["rows"]:
        if row["batch"] != 1 or row["method"] not in ("std", "perfect", "frame", "trained"):
            continue
        delay = row.get("delay") or {}
        rows.append(
            [
                f"{row['protocol']}, {METHODS[row['method']]}",
                _number(row["ra"]),
                _number(row["regret"]),
                _number(row["ta"]),
                _number(row.get("right"), 1),
                _number(row.get("switch_rate"), 1),
                "" if not delay else f"{delay['median']:g} / {delay['mean']:.2f} / {delay['p95']:g}",
            ]
        )
    head = ["", "RA", "regret", "TA", "right mix, %", "switches, %", "delay: median / mean / p95"]
    return f"{_table(head, rows)}\n\n{_made_by(result)}"


def rivals_table() -> str:
    """Every rival on every protocol, at batch 1 and 64, with what it costs."""
    result = _read("rivals")
    protocols = list(dict.fromkeys(row["protocol"] for row in result["rows"]))
    found = {(row["method"], row["batch"], row["protocol"]): row for row in result["rows"]}
    kinds = sorted({key[:2] for key in found}, key=lambda key: (key[1], list(METHODS).index(key[0])))
    rows = []
    for method, batch in kinds:
        scores = [found.get((method, batch, protocol)) for protocol in protocols]
        ta = next((row["ta"] for row in scores if row), None)
        cells = [_number(row["ra"] if row else None, 1) for row in scores]
        rows.append([METHODS[method], str(batch), *cells, _number(ta, 1)])
    return f"{_table(['RA', 'batch', *protocols, 'TA'], rows)}\n\n{_made_by(result)}"


TABLES = {
    "types": types_table,
    "regret": regret_table,
    "policies": policy_table,
    "pairs": pairs_table,
    "unseen": unseen_table,
    "streams": streams_table,
    "rivals": rivals_table,
}
