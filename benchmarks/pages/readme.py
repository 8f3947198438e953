"""The tables of README.md and of benchmarks/results/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rws.benchmarks.common.committed import RESULTS, ROOT
from rws.benchmarks.common.tables import Column, columns, label, markdown, spread
from rws.benchmarks.pages.results import find, interval, link, lookup, matching, read, spoken, table

ARMS = {
    "std": "never patched",
    "trained": "**trained oracle**",
    "perfect": "told type and severity (perfect oracle)",
    "best": "told, best action of the gain table",
    "always": "all signatures averaged, always on",
}
SLOWER_CHANGES = {
    "reload": "a new session from a patched file",
    "reload_optimised": "the same, from a file optimised before",
    "load_state_dict": "load_state_dict of the whole model",
    "load_state_dict_shallow": "load_state_dict of the patched layers ²",
}
OTHER_ENGINES = {
    "split": "fallback: split session",
    "inputs": "fallback: weights as graph inputs",
    "lora": "ONNX Runtime's LoRA adapters ³",
    "sessions": "20 sessions kept",
    "reload": "a new session from a patched file",
    "torch": "Torch, eager, patched in place",
    "torch_compile": "Torch, compiled, patched in place",
    "load_state_dict": "Torch, eager, load_state_dict",
}
RATES = {0: "never patched", 10: "patched on every tenth frame", 1: "patched on every frame"}
BUNDLE = ROOT / "edge/bundle/default/bundle.json"
BUNDLE_FILES = ("model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors")


def _replay() -> Iterator[dict[str, Any]]:
    """Yield TA and RA of every arm, at severity 5 and over all severities."""
    worst, every = read("replay_severity5"), read("replay_all")
    for arm, name in ARMS.items():
        yield {"name": name, "ta": worst["ta"][arm], "worst": worst["ra"][arm], "every": every["ra"][arm]}


def _methods() -> list[dict[str, Any]]:
    result = read("ways")
    std = {key: result["std"][key] for key in ("ra", "ra_two_corruptions")}
    return [{"name": "never patched"} | std, *({"name": name} | result[name] for name in ("tuned", "residual"))]


def _minutes(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class Case:
    """A column of the table of latencies.

    Args:
        title, model, size: of the column.
        live: the result that its rows of live weights and untouched sessions come from, the longer one.
        others: the result with all other engines.
    """

    title: str
    model: str
    size: int
    live: str
    others: str

    def row(self, rows: str, others: bool = False, **wanted: Any) -> Any:
        """Return the first row of a list of one of its two results."""
        return find(
            lookup(f"{self.others if others else self.live}.{rows}"), model=self.model, size=self.size, **wanted
        )


CASES = (
    Case("VGG-16, 32 px", "vgg16", 32, live="latency_live_small", others="latency"),
    Case("VGG-16, 224 px", "vgg16", 224, live="latency_live", others="latency_vgg224"),
    Case("ResNet-50, 224 px", "resnet50", 224, live="latency_live", others="latency"),
    Case("MobileNetV2, 224 px", "mobilenet_v2", 224, live="latency_live_small", others="latency"),
)


def latency_table() -> str:
    """What a frame costs with live weights and with everything else, relative to the untouched session."""

    def live(engine: str, every: int) -> Callable[[Case], str]:
        return lambda case: interval(case.row("rows", way=engine, patch_every=every), "ratio_")

    def changes(first: str, second: str, digits: int) -> Callable[[Case], str]:
        def pair(case: Case) -> str:
            row = case.row("changes", others=True, way="live")
            return f"{row[first]:.{digits}f} / {row[second]:.{digits}f}"

        return pair

    def other(engine: str) -> Callable[[Case], Any]:
        return lambda case: case.row("rows", others=True, way=engine, patch_every=10).get("ratio")

    def load(case: Case) -> str:
        return " / ".join(f"{case.row('rows', way=engine)['load_ms']:.0f}" for engine in ("untouched", "live"))

    def frame(case: Case) -> str:
        return interval(case.row("stages", stage="whole", patch_every=1), "ratio_")

    lines = [
        Column("untouched ONNX Runtime session, ms", lambda case: case.row("rows", way="untouched")["p50_ms"], ".2f"),
        Column("a second one, identical: the noise", live("untouched_again", 0)),
        Column("**live weights, never patched**", live("live", 0)),
        Column("live weights, a new patch on every tenth frame", live("live", 10)),
        Column("**live weights, a new patch on every frame**", live("live", 1)),
        Column(
            "a change of mix, live weights: between frames / again and again, ms", changes("p50_ms", "alone_p50_ms", 3)
        ),
        *(
            Column(f"times faster than {title}", changes(f"{engine}_ratio", f"alone_{engine}_ratio", 0))
            for engine, title in SLOWER_CHANGES.items()
        ),
        Column("whole frame, a new patch on every frame ¹", frame),
        Column("load, untouched / live weights, ms", load),
        *(Column(f"{title}, every tenth frame", other(engine), ".2f") for engine, title in OTHER_ENGINES.items()),
        Column("source: untouched, live weights, whole frame, load", lambda case: link(read(case.live))),
        Column("source: change of mix, other ways", lambda case: link(read(case.others))),
    ]
    return markdown(*spread(lines, CASES, ["one thread, batch 1", *(case.title for case in CASES)]))


def _by_model(result: str, title: str, lines: list[Column]) -> str:
    """Return a table with a column for each model and size of a result."""
    cases = dict.fromkeys((row["model"], row["size"]) for row in lookup(f"{result}.rows"))
    found = [{"model": model, "size": size} for model, size in cases]
    return markdown(*spread(lines, found, [title, *(f"{model}, {size} px" for model, size in cases)]))


def threads_table() -> str:
    """The same with two threads, in short."""
    rows = lookup("latency_2threads.rows")

    def line(title: str, engine: str, every: int) -> Column:
        return Column(title, lambda case: interval(find(rows, **case, way=engine, patch_every=every), "ratio_"))

    lines = [
        line("a second untouched session", "untouched_again", 0),
        line("live weights, never patched", "live", 0),
        line("live weights, a new patch on every frame", "live", 1),
        line("weights as graph inputs", "inputs", 0),
    ]
    return _by_model("latency_2threads", "two threads", lines)


def default_latency_table() -> str:
    """The stages of a frame of the bundled default."""
    name = json.loads(BUNDLE.read_text())["name"]
    rows = [row for row in lookup("latency_default.stages") if row["model"] == name]
    lines = [
        {"name": title}
        | {r["stage"]: f"{r['p50_ms']:.2f} / {r['p99_ms']:.2f}" for r in rows if r["patch_every"] == every}
        for every, title in RATES.items()
    ]
    stages = {spoken(row["stage"]): row["stage"] for row in rows}
    return markdown([label("ms, p50 / p99", "name"), *columns(stages)], lines)


def storage_table() -> str:
    """Bytes on disk and in memory."""
    result = read("storage")

    def line(title: str, rows: str, key: str, format: str = ".2f", **wanted: Any) -> Column:
        scale = 1e6 if key.endswith("bytes") else 1
        return Column(title, lambda case: find(result[rows], **case, **wanted)[key] / scale, format)

    def signatures(scope: str, bits: int, per: str) -> Column:
        title = f"model and 19 signatures, {scope} layers, {bits} bit"
        return line(title, "rows", "ratio", what="19 signatures", scope=scope, bits=bits, per=per)

    lines = [
        line("clean model, MB", "rows", "bytes", what="model"),
        line("20 models, times that", "rows", "ratio", what="20 models"),
        *(signatures("shallow", bits, "channel" if bits < 32 else "") for bits in (32, 16, 8, 4)),
        signatures("full", 8, "channel"),
        line("in memory: one session, MB", "memory", "private_bytes", ".1f", what="session"),
        line("20 sessions, times that", "memory", "ratio", what="20 sessions"),
        line("live weights and 19 signatures, 8 bit", "memory", "ratio", what="live, 19 signatures"),
    ]
    return _by_model("storage", "", lines)


def _precision() -> list[dict[str, Any]]:
    result = read("signatures")
    never = {"bits": "never patched", "ra": result["ra_never_patched"], "ta_after_reset": result["ta"]}
    return [never, *result["rows"]]


def _machine(result: Any) -> str:
    device: str = result.get("device", "cpu")
    return result["machine"]["processor"] if device == "cpu" else device


def _bundle_megabytes(files: tuple[str, ...]) -> str:
    sizes = json.loads(BUNDLE.read_text())["files"]
    return f"{sum(sizes[file]['bytes'] for file in files) / 1e6:.2f}"


RESULTS_TABLE = table(
    lambda: sorted(matching("**/*"), key=lambda result: RESULTS / result["file"]),
    label("result", lambda result: f"[{result['file']}](benchmarks/results/{result['file']})"),
    label("command", lambda result: f"`{result['command']}`"),
    label("commit", "commit"),
    label("machine", _machine),
    Column("seed", "seed"),
)
TABLES: dict[str, Callable[[], str]] = {
    "replay": table(
        _replay,
        label("", "name"),
        columns({"TA, clean": "ta", "RA, severity 5": "worst", "RA, severities 1–5": "every"}, ".2f"),
    ),
    "corruptions": table(
        "replay_severity5.per_corruption",
        label("severity 5", "name"),
        columns({"never patched": "std", "trained oracle": "trained"}, ".1f"),
        columns({"told type and severity": "perfect", ARMS["always"]: "always"}, ".1f"),
    ),
    "methods": table(
        _methods,
        label("", "name"),
        columns({"RA on validation images": "ra_validation", "RA, float32": "ra"}, ".2f"),
        columns({"8 bit, per channel": "ra_8bit_channel", "8 bit, per tensor": "ra_8bit_tensor"}, ".2f"),
        Column("4 bit, per channel", "ra_4bit_channel", ".2f"),
        Column("two corruptions at once, both signatures", "ra_two_corruptions", ".2f"),
        Column("one corruption, two signatures at ½", "ra_pair_halves", ".2f"),
        Column("training, 19 signatures", lambda row: _minutes(row.get("train_seconds"))),
    ),
    "latency": latency_table,
    "two threads": threads_table,
    "default latency": default_latency_table,
    "storage": storage_table,
    "precision": table(
        _precision,
        label("bits", "bits"),
        label("one scale per", "per"),
        columns({"RA": "ra", "TA after 19 patches and resets": "ta_after_reset"}, ".2f"),
        Column("bytes of the file", "bytes", ","),
    ),
}


VALUES: dict[str, Callable[[], str]] = {
    "bundle MB": partial(_bundle_megabytes, BUNDLE_FILES),
    **{f"{file} MB": partial(_bundle_megabytes, (file,)) for file in BUNDLE_FILES},
}
