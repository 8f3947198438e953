"""Tables of `rws bench latency`: on the terminal, and as CSV."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console

from rws.benchmarks.common.tables import Column, Record, columns, label, terminal, write_csv
from rws.benchmarks.latency.run import LISTS

CSV_COLUMNS = (
    *("model", "size", "threads", "strategy", "patch_every", "p50_ms", "p95_ms", "p99_ms", "ratio", "ratio_low"),
    *("ratio_high", "runs", "load_ms", "warmup_ms", "provider"),
)
ENGINES = [
    label("strategy", "strategy"),
    Column("every", lambda row: row["patch_every"] or "never"),
    *columns({"p50": "p50_ms", "p95": "p95_ms", "p99": "p99_ms"}, ".2f"),
    Column("ratio", "ratio", ".3f"),
    Column("95 %", lambda row: f"{row['ratio_low']:.3f}–{row['ratio_high']:.3f}"),
    Column("first", "warmup_ms", ".1f"),
]
CHANGES = [
    label("strategy", "strategy"),
    *(
        Column(f"{title} {name}".strip(), f"{key}{suffix}", digits)
        for title, key in (("", ""), ("alone", "alone_"))
        for name, suffix, digits in (
            ("p50", "p50_ms", ".3f"),
            ("p95", "p95_ms", ".3f"),
            ("reload", "reload_ratio", ".1f"),
            ("load_state_dict", "load_state_dict_ratio", ".1f"),
        )
    ),
]
_SHOWN = ("seconds", "frames", "p50_ms", "p99_ms", "clock_mhz", "temperature_c", "power_w")
SUSTAINED = columns({key: key for key in _SHOWN})


def print_latency(result: Record, console: Console) -> None:
    """Print tables per model and thread count: the engines, the whole frame, and sustained load, in milliseconds."""
    console.print(f"untouched: {result['baseline']}")
    for name, weights in result["weights"].items():
        console.print(f"{name}: {weights}")
    for case in dict.fromkeys((row["model"], row["size"], row["threads"]) for row in result["rows"]):
        found = {
            name: [row for row in result[name] if (row["model"], row["size"], row["threads"]) == case] for name in LISTS
        }
        title = f"{case[0]}, {case[1]} px, threads {case[2]}"
        console.print(terminal(ENGINES, found["rows"], f"{title}: apply + predict, ms; ratio to untouched"))
        if found["changes"]:
            what = "a change of mix, ms, and how many times longer others take"
            console.print(terminal(CHANGES, found["changes"], f"{title}: {what}"))
        if found["stages"]:
            _print_stages(found["stages"], title, console)
        if found["sustained"]:
            strategy = found["sustained"][0]["strategy"]
            console.print(terminal(SUSTAINED, found["sustained"], f"{title}: sustained, {strategy}"))
        for row in found["left_out"]:
            console.print(f"not measured: {row['reason']}")
        for row in found["notes"]:
            console.print(f"{row['strategy']}: {row['note']}")


def _print_stages(rows: Sequence[Record], title: str, console: Console) -> None:
    lines: dict[Any, dict[str, Any]] = {}
    for row in rows:
        ratio = row["ratio"] and f" = {row['ratio']:.3f} ({row['ratio_low']:.3f}–{row['ratio_high']:.3f})"
        line = lines.setdefault(row["stage"], {"stage": str(row["stage"]).replace("_", " ")})
        line[f"patch every {row['patch_every'] or 'never'}"] = f"{row['p50_ms']:.3f}{ratio or ''}"
    rates = columns({title: title for title in next(iter(lines.values())) if title != "stage"})
    strategy = f"the whole frame, {rows[0]['strategy']}, p50 ms"
    console.print(terminal([label("stage", "stage"), *rates], lines.values(), f"{title}: {strategy}"))


def write_rows(path: Path, result: Record) -> None:
    """Write the rows of the engines as CSV, in `CSV_COLUMNS`; times in milliseconds."""
    write_csv(path, "latency-row/1", columns({name: name for name in CSV_COLUMNS}), result["rows"])


def csv_name(result: Record) -> str:
    """Return `latency-<device>-<provider>-ort<version>-torch<version>.csv`, of letters, digits, `.`, `_` and `-`."""
    made = (result["platform"]["device"], str(result["rows"][0]["provider"]))
    parts = ("latency", *made, f"ort{onnxruntime.__version__}", f"torch{torch.__version__}")
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part).strip("_") for part in parts) + ".csv"
