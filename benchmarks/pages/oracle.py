"""The tables of docs/benchmarks/oracle.md and streams.md: what the oracle knows and costs, and the baselines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rws.benchmarks.common.tables import Column, Record, columns, label, spoken
from rws.benchmarks.pages.results import find, interval, lookup, table
from rws.benchmarks.streams.clips import COLUMNS
from rws.benchmarks.streams.protocols import PROTOCOLS

RULES = {"std": "no patch", "perfect": "perfect oracle", "best": "perfect oracle, best of the gain table"}
POLICIES = {"hard": "most probable type", "weighted": "weighted composition", "expected": "expected accuracy"}
CHOSEN = {
    "plain": "",
    "clean weight": ", weight on clean",
    "threshold": ", threshold",
    "both": ", weight on clean and threshold",
}
PAIRS = {
    "std": "no patch",
    "single": "perfect oracle: the best single signature",
    "both": "perfect oracle: both signatures, each at its α",
    "averaged": "perfect oracle: both, at half their α",
    "scaled": "perfect oracle: both, at the best common scale of α",
    "shipped": "**the bundle's policy**",
    "expected": "expected accuracy: one signature",
    "composed": "expected accuracy, but both of the two most probable where both are probable",
}
METHODS = {
    "std": "no patch",
    "std_unfolded": "no patch, BatchNorm as layers",
    "always": "all signatures averaged, always",
    "augmented": "one model, all corruptions as augmentation",
    "augmix": "one model, AugMix",
    "bn_batch": "BatchNorm statistics of the batch",
    "bn_prior": "BatchNorm statistics, prior of 16 images",
    "bn_types": "BatchNorm statistics of the type that our oracle names",
    "bn_types_perfect": "perfect oracle: BatchNorm statistics of the type",
    "neo": "NEO",
    "lame": "LAME",
    "tent": "Tent",
    "tent_scaled": "Tent, rate scaled to the batch",
    "sar": "SAR",
    "frame": "**ours, frame by frame**",
    "trained": "**ours, with the temporal filter**",
    "perfect": "perfect oracle",
    "best": "perfect oracle, best of the gain table",
    "all_models": "perfect oracle: 20 whole models, two epochs each",
}
ENGINES = {"torch": "Torch", "onnx": "ONNX Runtime"}
CASES = {
    "network": "the network",
    "observe": "**the oracle: network and belief**",
    "whole": "oracle, temporal filter and policy",
    "in_turn": "these, where they and the model come one after another",
}


def _types() -> Iterator[Record]:
    for source, frames in (("", "one frame"), (".after_8_frames", "8 frames of one stream")):
        scores = lookup(f"replay_all.oracle{source}")
        for key, kind in (("type_accuracy", "raw"), ("type_accuracy_merged", "merged")):
            by_severity = {severity: row[key] for severity, row in scores["per_severity"].items()}
            yield {"name": f"{frames}, {kind}", "all": scores[key], "clean": scores["clean_recall"]} | by_severity


def _merged() -> str:
    pairs = lookup("replay_all.oracle.merged")
    return ", ".join(f"{spoken(a)} and {spoken(b)} at severity {severity}" for a, b, severity in pairs) or "none"


def _costs() -> Iterator[Record]:
    rows = lookup("oracle_cost.rows")
    for case, name in CASES.items():
        ms = {} if case == "in_turn" else {"ms": find(rows, case=case)["ms"]}
        yield {"name": name, **{row["model"]: interval(row) for row in rows if row["case"] == case}, **ms}


def _policy(row: Record) -> str:
    if row["policy"] == "shipped":
        return f"**the bundle's policy: {POLICIES[row.get('kind', 'expected')]}**"
    return RULES.get(row["policy"]) or POLICIES[row["policy"]] + CHOSEN[row["rule"]]


def _best_policy() -> str:
    winner = lookup("policies.winner")
    return _policy(winner) if winner else "none loses as little"


def _unseen() -> list[Record]:
    result = lookup("unseen")
    rows = [{**row, "neighbour": spoken(row["neighbour"] or "none")} for row in result["rows"]]
    for row in rows:
        row |= {arm: sum(row[arm]) / len(row[arm]) for arm in result["mean"]}
    rows += [{"corruption": f"{name}: not done"} for name in result["missing"]]
    gains = {"gain": result["gain_of_borrowing"], "worst": result["worst_cell"]["gain"]}
    return [*rows, {"corruption": "**mean**"} | result["mean"] | gains]


def _delay(row: Record) -> str:
    found = row.get("delay")
    return f"{found['median']:g} / {found['mean']:.2f} / {found['p95']:g}" if found else ""


def _between(key: str) -> Callable[[Record], str]:
    return lambda row: f"{row[key]:.1f} ({row[f'{key}_interval'][0]:.1f}–{row[f'{key}_interval'][1]:.1f})"


def _real() -> Iterator[Record]:
    what = {"dark": "low light, named `low_light`", "rain": "rain, named `rain` or `lens_dirt`"}
    for key, name in what.items():
        row = lookup(f"cameras.{key}")
        yield {"name": name, **row, "mostly": max(row["as"], key=row["as"].get)}


def _ours() -> list[Record]:
    arms = ("std", "perfect", "frame", "trained")
    return [row for row in lookup("streams.rows") if row["batch"] == 1 and row["method"] in arms]


def _by_method(row: Record) -> tuple[Any, ...]:
    return row["batch"], row.get("engine") != "torch", list(METHODS).index(row["method"])


def _baselines() -> list[Record]:
    rows: dict[Any, dict[str, Any]] = {}
    for row in sorted(lookup("baselines.rows"), key=_by_method):
        rows.setdefault(_by_method(row), dict(row))[row["protocol"]] = f"{row['ra']:.1f} / {row['ta']:.1f}"
    return list(rows.values())


def _megabytes(key: str) -> Callable[[Record], float | None]:
    return lambda row: row[key] / 1e6 if key in row else None


def _method(row: Record) -> str:
    return METHODS[row["method"]]


_REGRET = {name: name for name in ("policy", "severity", "type")}
_REGRET |= {"taken for clean": "clean", "regret": "total", "clean frames patched": "clean_frames_patched"}
_REPLAYS = {"severity 5": "replay_severity5", "severities 1–5": "replay_all"}
TABLES = {
    "oracle cost": table(
        _costs,
        label("one thread", "name"),
        Column("ms", "ms", ".3f"),
        Column("times cifar10", "cifar10"),
        Column("times vgg16", "vgg16"),
    ),
    "types": table(
        _types,
        label("type accuracy, %", "name"),
        columns({f"severity {n}": str(n) for n in range(1, 6)} | {"all": "all", "clean": "clean"}, ".1f"),
    ),
    "regret": table(
        lambda: {name: lookup(f"{at}.regret_split") for name, at in _REPLAYS.items()},
        label("points of accuracy", "name"),
        columns(_REGRET, ".3f"),
    ),
    "policies": table(
        "policies.rows",
        label("", _policy),
        Column("threshold", "threshold", ".2f"),
        Column("weight", "clean_weight", ".3f"),
        columns({"validation: clean lost": "validation.ta_loss", "validation: robust": "validation.ra"}, ".2f"),
        columns({"clean": "ta", "robust, severity 5": "ra_5", "robust, all": "ra", "regret": "regret"}, ".2f"),
        Column("µs", "microseconds", ".0f"),
    ),
    "pairs": table(
        "pairs.rows",
        label("", lambda row: PAIRS[row["arm"]]),
        columns({"two at once": "accuracy", "severity 3": "accuracy_3", "severity 5": "accuracy_5"}, ".2f"),
        columns({"clean": "ta", "one at once": "single"}, ".2f"),
    ),
    "pairs validation": table(
        "pairs.validation",
        label("", lambda row: PAIRS[row["name"]]),
        columns({"two at once": "pairs", "one at once": "single", "clean": "ta"}, ".2f"),
    ),
    "unseen": table(
        _unseen,
        label("removed corruption", lambda row: spoken(row["corruption"])),
        columns({"no patch": "std", "ours": "ours"}, ".2f"),
        columns({"perfect oracle: best neighbour's": "borrowed", "perfect oracle: its own": "own"}, ".2f"),
        columns({"gain": "gain", "worst severity": "worst"}, "+.2f"),
        Column("neighbour", "neighbour"),
    ),
    "cameras clear": table(
        "cameras.clear",
        label("clear photographs", "source"),
        Column("images", "images"),
        columns({"called clean, %": _between("clean"), "called severe, %": _between("severe")}),
    ),
    "cameras types": table(
        "cameras.types",
        label("pixels", "size"),
        columns({"type, %": "type", "at severity 5": "type_severity_5"}, ".1f"),
        columns({"two blurs as one, %": "type_merged", "at severity 5 ": "type_severity_5_merged"}, ".1f"),
        columns({"severities 3–5 called clean, %": "called_clean"}, ".1f"),
        Column("error of the severity", "severity_error", ".2f"),
    ),
    "cameras real": table(
        _real,
        label("real corruption", "name"),
        Column("images", "images"),
        Column("named, %", _between("named")),
        Column("clear ones named so, %", "false_alarms", ".1f"),
        label("most often", "mostly"),
    ),
    "cameras agreement": table(
        "cameras.agreement",
        label("photographs", lambda row: row["set"].replace("_", " ")),
        columns({"images": "images", "boxes": "boxes"}),
        columns({"no patch": "std", "trained oracle": "trained", "patched for it": "named"}, ".1f"),
        Column("patched by the trained oracle, %", "patched", ".0f"),
    ),
    "cameras time": table(
        "cameras.times",
        label("frame", lambda row: f"{row['width']} x {row['height']}"),
        columns({"tiles, ms": "view_ms", "oracle with tiles, ms": "oracle_ms", "detector, ms": "model_ms"}, ".2f"),
        columns({"of the detector": "of_model", "of the detector with preprocessing": "of_frame"}, ".1%"),
    ),
}
STREAM_TABLES = {
    "clips": table("clips.rows", *COLUMNS),
    "clips clear": table(
        lambda: ({**clip["stretches"][0], "name": Path(clip["clip"]).stem} for clip in lookup("clips.clips")),
        label("clear", "name"),
        columns({"named clear, %": "trained.named", "patched, %": "trained.patched", "F1": "f1.trained"}, ".1f"),
    ),
    "streams": table(
        _ours,
        label("", lambda row: f"{row['protocol']}, {_method(row)}"),
        columns({"robust": "ra", "regret": "regret", "clean": "ta"}, ".2f"),
        columns({"right mix, %": "right", "mix changes, %": "mix_change_rate"}, ".1f"),
        Column("delay: median / mean / p95", _delay),
    ),
    "baselines": table(
        _baselines,
        label("robust / clean", _method),
        Column("batch", "batch"),
        columns({protocol: protocol for protocol in PROTOCOLS}),
    ),
    "baselines cost": table(
        lambda: sorted(lookup("baselines.cost.rows"), key=_by_method),
        label("cost", _method),
        Column("engine", lambda row: ENGINES[row["engine"]]),
        Column("batch", "batch"),
        Column("ms per frame", "ms", ".3f"),
        Column("ratio", lambda row: "1" if row["method"] == "std" else interval(row)),
        columns({"carried, MB": _megabytes("carried"), "held, MB": _megabytes("held")}, ".2f"),
        Column("peak on top, MB", _megabytes("peak"), ".2f"),
    ),
}
VALUES = {"merged types": _merged, "best policy": _best_policy}
