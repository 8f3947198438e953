"""The tables of docs/benchmarks/latency.md and storage.md."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from rws.benchmarks.common.committed import ROOT
from rws.benchmarks.common.tables import Column, columns, label, markdown, spoken, spread
from rws.benchmarks.pages.results import find, interval, link, lookup, read

SLOWER = {
    "reload": "a new session from a patched file",
    "reload_optimised": "the same, from a file optimised before",
    "load_state_dict": "load_state_dict of the whole model",
    "load_state_dict_shallow": "load_state_dict of the patched layers ²",
}
OTHERS = {
    "split": "fallback: split session",
    "inputs": "fallback: weights as graph inputs",
    "lora": "ONNX Runtime's LoRA adapters ³",
    "sessions": "20 sessions kept",
    "reload": "a new session from a patched file",
    "torch": "Torch, eager, patched in place",
    "torch_compile": "Torch, compiled, patched in place",
    "load_state_dict": "Torch, eager, load_state_dict",
}
# Title, model, size, the longer result that live weights and untouched sessions are from, that of all other engines.
LATENCIES = (
    ("VGG-16, 32 px", "vgg16", 32, "latency_live_small", "latency"),
    ("VGG-16, 224 px", "vgg16", 224, "latency_live", "latency_vgg224"),
    ("ResNet-50, 224 px", "resnet50", 224, "latency_live", "latency"),
    ("MobileNetV2, 224 px", "mobilenet_v2", 224, "latency_live_small", "latency"),
)
LIVE_ARMS = {
    "again": "a second, identical session",
    "live": "live, no patch",
    "patched": "live, a new patch on every frame",
}
LIVE_LIMITS = {"live": 1.01, "patched": 1.03}
RATES = {0: "no patch", 10: "patched on every tenth frame", 1: "patched on every frame"}
BUNDLE = ROOT / "edge/bundle/cifar10/bundle.json"
BUNDLE_FILES = ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors")


def _engines(result: str, model: str, size: int) -> dict[str, Any]:
    def own(rows: str) -> list[dict[str, Any]]:
        return [r for r in lookup(f"{result}.{rows}") if (r["model"], r["size"]) == (model, size)]

    rows = {f"{r['strategy']} {r['patch_every']}": r | {"interval": interval(r, "ratio_")} for r in own("rows")}
    change = find(own("changes"), strategy="live")
    for key in [key for key in change if f"alone_{key}" in change]:
        change[f"{key} alone"] = f"{change[key]:.0f} / {change[f'alone_{key}']:.0f}"
    frame = find(own("stages"), stage="whole", patch_every=1)
    loads = " / ".join(f"{rows[f'{engine} 0']['load_ms']:.0f}" for engine in ("untouched", "live"))
    return {**rows, "change": change, "frame": interval(frame, "ratio_"), "loads": loads, "source": link(read(result))}


def latency_table() -> str:
    """Return the time of a frame with live weights and with each other engine, relative to the untouched session."""
    cases = [
        {"live": _engines(live, model, size), "others": _engines(others, model, size)}
        for _, model, size, live, others in LATENCIES
    ]
    again = "a change of mix, live weights: between frames / in a tight loop, ms"
    lines = [
        Column("untouched ONNX Runtime session, ms", "live.untouched 0.p50_ms", ".2f"),
        Column("a second one, identical: the noise", "live.untouched_again 0.interval"),
        Column("**live weights, no patch**", "live.live 0.interval"),
        Column("live weights, a new patch on every tenth frame", "live.live 10.interval"),
        Column("**live weights, a new patch on every frame**", "live.live 1.interval"),
        Column(again, lambda case: "{p50_ms:.3f} / {alone_p50_ms:.3f}".format(**case["others"]["change"])),
        *columns({f"times faster than {title}": f"others.change.{e}_ratio alone" for e, title in SLOWER.items()}),
        Column("whole frame, a new patch on every frame ¹", "live.frame"),
        Column("load, untouched / live weights, ms", "live.loads"),
        *columns({f"{title}, every tenth frame": f"others.{e} 10.ratio" for e, title in OTHERS.items()}, ".2f"),
        Column("source: untouched, live weights, whole frame, load", "live.source"),
        Column("source: change of mix, other strategies", "others.source"),
    ]
    return markdown(*spread(lines, cases, ["one thread, batch 1", *(row[0] for row in LATENCIES)]))


def _models(result: str) -> dict[str, tuple[str, int]]:
    return {f"{row['model']}, {row['size']} px": (row["model"], row["size"]) for row in lookup(f"{result}.rows")}


def threads_table() -> str:
    """Return the same with two threads, in short."""
    models = _models("latency_2threads")
    lines = {
        "a second untouched session": "untouched_again 0.interval",
        "live weights, no patch": "live 0.interval",
        "live weights, a new patch on every frame": "live 1.interval",
        "weights as graph inputs": "inputs 0.interval",
    }
    cases = [_engines("latency_2threads", *model) for model in models.values()]
    return markdown(*spread(columns(lines), cases, ["two threads", *models]))


def default_latency_table() -> str:
    """Return the stages of a frame of the bundle `cifar10`."""
    name = json.loads(BUNDLE.read_text())["name"]
    rows = [row for row in lookup("latency_default.stages") if row["model"] == name]
    lines: dict[int, dict[str, str]] = {every: {"name": title} for every, title in RATES.items()}
    for row in rows:
        lines[row["patch_every"]][row["stage"]] = f"{row['p50_ms']:.2f} / {row['p99_ms']:.2f}"
    stages = {spoken(row["stage"]): row["stage"] for row in rows}
    return markdown([label("ms, p50 / p99", "name"), *columns(stages)], lines.values())


def storage_table() -> str:
    """Return bytes on disk and in memory."""
    result, models = read("storage"), _models("storage")
    cases = []
    for of in models.values():
        disk = [row for row in result["rows"] if (row["model"], row["size"]) == of]
        memory = {row["what"]: row for row in result["memory"] if (row["model"], row["size"]) == of}
        ratios = {f"{r['scope']} layers, {r['bits']} bit": r["ratio"] for r in disk if r["per"] in ("channel", "")}
        clean, session = find(disk, what="model")["bytes"] / 1e6, memory["session"]["private_bytes"] / 1e6
        whole = {"models": find(disk, what="20 models")["ratio"], "clean": clean, "session": session}
        cases.append({**ratios, **whole, "memory": memory})
    codes = [*(f"shallow layers, {bits} bit" for bits in (32, 16, 8, 4)), "full layers, 8 bit"]
    lines = [
        *columns({"clean model, MB": "clean", "20 models, times that": "models"}, ".2f"),
        *columns({f"model and 19 signatures, {code}": code for code in codes}, ".2f"),
        Column("in memory: one session, MB", "session", ".1f"),
        Column("20 sessions, times that", "memory.20 sessions.ratio", ".2f"),
        Column("live weights and 19 signatures, 8 bit", "memory.live, 19 signatures.ratio", ".2f"),
    ]
    return markdown(*spread(lines, cases, ["", *models]))


def _bundle_megabytes(files: tuple[str, ...]) -> str:
    sizes = json.loads(BUNDLE.read_text())["files"]
    return f"{sum(sizes[file]['bytes'] for file in files) / 1e6:.2f}"


def _live_rows(within: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows of the table of live weights, or those of one release of ONNX Runtime and one set of features."""
    rows = [row for row in lookup("live_table.rows") if "onnxruntime" in row]
    return [row for row in rows if within is None or all(row[key] == value for key, value in within.items())]


def _live_places() -> list[dict[str, str]]:
    found = {(row["onnxruntime"], row["features"]): None for row in _live_rows()}
    return [{"onnxruntime": release, "features": features} for release, features in found]


def _slow(row: Mapping[str, Any], arm: str, limit: float) -> bool:
    """Whether an arm is slower than its limit and than the interval of a second, identical session."""
    return bool(row["p50_ms"] > 2 and row[arm] > max(limit, row["again_high"]))


def live_summary() -> str:
    """Return the outcome for all models, per release of ONNX Runtime and features of the processor."""
    cases = []
    for place in _live_places():
        rows = _live_rows(place)
        live = [row for row in rows if row["strategy"] == "live"]
        ratios = {arm: median(row[arm] for row in live) for arm in ("again", "live", "patched", "second_open")}
        slow = {f"slow {arm}": sum(_slow(row, arm, limit) for row in live) for arm, limit in LIVE_LIMITS.items()}
        exact, others = sum(row["exact"] for row in live), len(rows) - len(live)
        cases.append(place | ratios | slow | {"models": len(rows), "exact": exact, "others": others})
    lines = [
        *columns({"models": "models", "live and bit-exact": "exact", "another strategy, or refused": "others"}),
        *columns({title: arm for arm, title in LIVE_ARMS.items()}, ".3f"),
        *columns({f"slower than {limit} × ¹, {arm}": f"slow {arm}" for arm, limit in LIVE_LIMITS.items()}),
        Column("second opening, times an ordinary session", "second_open", ".2f"),
    ]
    return markdown([label("ONNX Runtime", "onnxruntime"), label("processor", "features"), *lines], cases)


def live_models() -> str:
    """Return a row per model: what was patched, and strategy, exactness and ratios in each place."""

    def cell(place: Mapping[str, str], row: Mapping[str, Any]) -> str:
        found = find(_live_rows(place), model=row["model"])
        if not found.get("strategy"):
            return str(found.get("fault", ""))
        exact = "=" if found["exact"] else "≈"
        return f"{found['strategy']} {exact} {found['live']:.2f} / {found['patched']:.2f}"

    first = {row["model"]: row for row in reversed(_live_rows())}
    titles = [label(f"{place['onnxruntime']}, {place['features']}", partial(cell, place)) for place in _live_places()]
    known = [
        Column("MB", "megabytes", ".0f"),
        Column("opset", "opset"),
        Column("weights", "weights", ","),
        Column("ms", "p50_ms", ".1f"),
    ]
    return markdown([label("model", "model"), *known, *titles], reversed(list(first.values())))


TABLES: dict[str, Callable[[], str]] = {
    "latency": latency_table,
    "two threads": threads_table,
    "default latency": default_latency_table,
}
LIVE_TABLES = {"live summary": live_summary, "live models": live_models}
STORAGE_TABLES = {"storage": storage_table}
VALUES: dict[str, Callable[[], str]] = {
    "bundle MB": partial(_bundle_megabytes, BUNDLE_FILES),
    **{f"{file} MB": partial(_bundle_megabytes, (file,)) for file in BUNDLE_FILES},
}
