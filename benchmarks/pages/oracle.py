"""The tables of docs/oracle.md: what the oracle knows, what its errors cost, and how its rivals do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rws.benchmarks.common.committed import RESULTS
from rws.benchmarks.common.markdown import made_by, table

SHARES = {"policy": "policy", "severity": "severity", "type": "type", "clean": "taken for clean"}
RULES = {"std": "never patched", "perfect": "told type and severity", "best": "told, best of the gain table"}
POLICIES = {"hard": "most probable type", "weighted": "weighted composition", "expected": "expected accuracy"}
CHOSEN = {
    "plain": "",
    "clean weight": ", weight on clean",
    "threshold": ", threshold",
    "both": ", weight on clean and threshold",
}
PAIRS = {
    "std": "never patched",
    "single": "told: the best single signature",
    "both": "told: both signatures, each at its α",
    "averaged": "told: both, at half their α",
    "scaled": "told: both, at the best common scale of α",
    "shipped": "**the bundle's policy**",
    "expected": "expected accuracy: one signature",
    "composed": "expected accuracy, but both of the two most probable where both are probable",
}
METHODS = {
    "std": "never patched",
    "std_unfolded": "never patched, BatchNorm as layers",
    "always": "all signatures averaged, always",
    "augmented": "one model, all corruptions as augmentation",
    "bn_batch": "BatchNorm statistics of the batch",
    "bn_prior": "BatchNorm statistics, prior of 16 images",
    "tent": "Tent",
    "tent_scaled": "Tent, rate scaled to the batch",
    "frame": "**ours, frame by frame**",
    "trained": "**ours, with the temporal filter**",
    "perfect": "told type and severity",
    "best": "told, best of the gain table",
    "all_models": "told: 20 whole models, two epochs each",
}
ENGINES = {"torch": "Torch", "onnx": "ONNX Runtime"}


def read(name: str) -> Any:
    """A committed result, and its path within the folder of results as `file`."""
    return {**json.loads((RESULTS / f"{name}.json").read_text()), "file": f"{name}.json"}


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def types_table() -> str:
    """Type accuracy by severity, of one frame and after eight."""
    result, worst = read("replay_all"), read("replay_severity5")
    one = result["oracle"]
    rows = []
    for scores, frames in ((one, "one frame"), (one["after_8_frames"], "8 frames of one stream")):
        for key, kind in (("type_accuracy", "raw"), ("type_accuracy_merged", "merged")):
            cells = [scores["per_severity"][str(severity)][key] for severity in result["severities"]]
            values = [*cells, scores[key], scores["clean_recall"]]
            rows.append([f"{frames}, {kind}", *(_number(value, 1) for value in values)])
    head = ["type accuracy, %", *(f"severity {severity}" for severity in result["severities"]), "all", "clean"]
    pairs = ", ".join(f"{first} and {second} at severity {severity}" for first, second, severity in one["merged"])
    same = f"{_spoken(pairs)} are the same picture within half a grey level, and either name is right"
    return (
        f"{table(head, rows)}\n\n{result['images']:,} test images of each of 19 corruptions × 5 severities, and "
        f"clean; all counts clean and each type alike. Merged: {same if pairs else 'no two are the same picture'}. "
        f"Mean error of the severity {one['severity_mae']:.2f}. With {worst['images']:,} images, at severity 5: "
        f"{worst['oracle']['per_severity']['5']['type_accuracy_merged']:.2f}, clean "
        f"{worst['oracle']['clean_recall']:.2f}. {made_by(result, worst)}"
    )


def oracle_cost_table() -> str:
    """Time of the oracle beside the bundle's model and others."""
    result = read("oracle_cost")
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    found = {(row["model"], row["case"]): row for row in result["rows"]}
    cases = {
        "network": "the network",
        "observe": "**the oracle: network and belief**",
        "whole": "oracle, temporal filter and policy",
        "in_turn": "these, where they and the model come one after another",
    }
    rows = []
    for case, label in cases.items():
        parts = [found[model, case] for model in models]
        time = "" if case == "in_turn" else _number(parts[0]["ms"], 3)
        shares = [f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})" for row in parts]
        rows.append([label, time, *shares])
    return (
        f"{table(['one thread', 'ms', *(f'times {model}' for model in models)], rows)}\n\n"
        f"The network's file has {result['bytes']:,} bytes. {made_by(result)}"
    )


def regret_table() -> str:
    """What the oracle's errors cost in accuracy, and where it comes from."""
    results = {"severity 5": read("replay_severity5"), "severities 1–5": read("replay_all")}
    rows = []
    for name, result in results.items():
        split = result["regret_split"]
        rows.append([name, *(_number(split[key], 3) for key in (*SHARES, "total", "clean_frames_patched"))])
    head = ["points of accuracy", *SHARES.values(), "regret", "clean frames patched"]
    return f"{table(head, rows)}\n\n{made_by(*results.values())}"


def policy_table() -> str:
    """Ways from a belief to a mix."""
    result = read("policies")
    rows = []
    for row in result["rows"]:
        label = RULES.get(row["policy"], POLICIES.get(row["policy"], row["policy"]))
        if row["policy"] == "shipped":
            label = f"**the bundle's policy: {POLICIES[row.get('kind', 'expected')]}**"
        elif row["policy"] in POLICIES:
            label += CHOSEN[row["rule"]]
        validation = row.get("validation", {})
        rows.append(
            [
                label,
                _number(row.get("threshold")),
                _number(row.get("clean_weight"), 3),
                _number(validation.get("ta_loss")),
                _number(validation.get("ra")),
                _number(row["ta"]),
                _number(row["ra_5"]),
                _number(row["ra"]),
                _number(row["regret"]),
                _number(row.get("microseconds"), 0),
            ]
        )
    head = [
        "",
        "threshold",
        "weight",
        "validation: TA lost",
        "validation: RA",
        "TA",
        "RA, severity 5",
        "RA, all",
        "regret",
        "µs",
    ]
    winner = result["winner"]
    best = POLICIES[winner["policy"]] + CHOSEN[winner["rule"]] if winner else "none loses as little"
    return (
        f"{table(head, rows)}\n\nA rule with neither weight nor threshold (1 and 0) is what it is: nothing is chosen. "
        f"Where a weight or a threshold is named, it is the one with the best RA on validation images "
        f"({result['validation_images']:,} of each corruption and severity) among those that lose at most "
        f"{result['allowed_ta_loss']:g} points of TA there; where each loses more, the one that loses least. The "
        f"threshold is on the most probable type's probability, on each corruption's (weighted), or on the points to "
        f"be won (expected accuracy). TA and RA to the right are of {result['images']:,} test images each. The best of "
        f"them on validation images: {best}. {made_by(result)}"
    )


def pairs_table() -> str:
    """Two corruptions at once."""
    result = read("pairs")
    by_severity = [f"accuracy_{severity}" for severity in result["severities"]]
    keys = ("accuracy", *by_severity, "ta", "single")
    rows = [[PAIRS[row["way"]], *(_number(row.get(key)) for key in keys)] for row in result["rows"]]
    head = ["", "two at once", *(f"severity {severity}" for severity in result["severities"]), "TA", "one at once"]
    chosen_on = [
        [PAIRS[way], *(_number(score[key]) for key in ("pairs", "single", "ta"))]
        for way, score in result["validation"].items()
    ]
    return (
        f"{table(head, rows)}\n\nThe same on validation images:\n\n"
        f"{table(['', 'two at once', 'one at once', 'TA'], chosen_on)}\n\n"
        f"{len(result['per_pair'])} pairs, {result['images']:,} test and {result['validation_images']:,} validation "
        f"images of each. {made_by(result)}"
    )


def unseen_table() -> str:
    """Each corruption in turn unknown to oracle and signatures."""
    result = read("unseen")
    ways = ("std", "ours", "borrowed", "own")
    rows = []
    for row in result["rows"]:
        rows.append(
            [
                _spoken(row["corruption"]),
                *(_number(sum(row[way]) / len(row[way])) for way in ways),
                f"{row['gain']:+.2f}",
                f"{row['worst']:+.2f}",
                _spoken(row["neighbour"] or "none"),
            ]
        )
    mean, worst = result["mean"], result["worst_cell"]
    summary = [
        "**mean**",
        *(_number(mean[way]) for way in ways),
        f"{result['gain_of_borrowing']:+.2f}",
        f"{worst['gain']:+.2f}",
        "",
    ]
    head = [
        "left out",
        "never patched",
        "ours",
        "told: best neighbour's",
        "told: its own",
        "gain",
        "worst severity",
        "neighbour",
    ]
    missing = f" Not done: {_spoken(', '.join(result['missing']))}." if result["missing"] else ""
    return (
        f"{table(head, [*rows, summary])}\n\nMeans over the severities 1–5; gain is ours beyond never patched. Clean "
        f"images lose {result['ta_loss']:.2f} points at most.{missing} {made_by(result)}"
    )


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def streams_table() -> str:
    """Our ways on the five protocols."""
    result = read("streams")
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
    return f"{table(head, rows)}\n\n{made_by(result)}"


def rivals_table() -> str:
    """Every method on every protocol at each batch size, and what it costs."""
    result = read("rivals")
    protocols = list(dict.fromkeys(row["protocol"] for row in result["rows"]))
    found = {(row["batch"], row["method"], row["protocol"]): row for row in result["rows"]}
    kinds = sorted({key[:2] for key in found}, key=lambda key: (key[0], list(METHODS).index(key[1])))
    rows = []
    for batch, method in kinds:
        scores = [found.get((batch, method, protocol)) for protocol in protocols]
        cells = [f"{_number(row['ra'], 1)} / {_number(row['ta'], 1)}" if row else "" for row in scores]
        rows.append([METHODS[method], str(batch), *cells])
    accuracies = table(["RA / TA", "batch", *protocols], rows)
    return f"{accuracies}\n\n{_costs(result['cost']['rows'])}\n\n{made_by(result)}"


def _costs(costs: Sequence[Mapping[str, Any]]) -> str:
    """Time a frame, beside `std` on the same engine and batch, and memory."""
    order = list(METHODS)
    rows = [
        [
            METHODS[row["method"]],
            ENGINES[row["engine"]],
            str(row["batch"]),
            _number(row["ms"], 3),
            _ratio(row),
            _megabytes(row["carried"]),
            _megabytes(row.get("held")),
            _megabytes(row.get("peak")),
        ]
        for row in sorted(costs, key=lambda row: (row["batch"], row["engine"] != "torch", order.index(row["method"])))
    ]
    head = ["cost", "engine", "batch", "ms a frame", "ratio", "carried, MB", "held, MB", "peak on top, MB"]
    return (
        f"{table(head, rows)}\n\nOne thread. The ratio is to never patched on the same engine at the same batch, with "
        f"its 95 % interval. Carried: bytes of weights and states by their size. Held: private memory between frames "
        f"of a process of its own, without Python and packages; peak: what a batch takes on top."
    )


def _ratio(row: Mapping[str, Any]) -> str:
    if row["method"] == "std":
        return "1"
    return f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}"


TABLES = {
    "oracle cost": oracle_cost_table,
    "types": types_table,
    "regret": regret_table,
    "policies": policy_table,
    "pairs": pairs_table,
    "unseen": unseen_table,
    "streams": streams_table,
    "rivals": rivals_table,
}
