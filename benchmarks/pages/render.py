"""Write the tables of README.md and the pages beside it out of `benchmarks/results/`: no number there is typed by hand.

    python -m rws.benchmarks.pages.render            # rewrite the tables
    python -m rws.benchmarks.pages.render --check    # exit with 1 if one is out of date

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rws.benchmarks.common.committed import ROOT, check_checkout
from rws.benchmarks.common.markdown import link, made_by, table
from rws.benchmarks.pages import corruptions as corruption_page
from rws.benchmarks.pages import drill as drill_page
from rws.benchmarks.pages import oracle as oracle_page
from rws.benchmarks.pages import paper as reproduce_page
from rws.benchmarks.pages import zoo as zoo_page
from rws.benchmarks.pages.oracle import RESULTS, read

WAYS = {
    "std": "never patched",
    "trained": "**trained oracle**",
    "perfect": "told type and severity (perfect oracle)",
    "best": "told, best action of the gain table",
    "always": "all signatures averaged, always on",
}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _bundle_sizes() -> str:
    files = json.loads((ROOT / "edge/bundle/default/bundle.json").read_text())["files"]
    size = {name: entry["bytes"] / 1e6 for name, entry in files.items()}
    return (
        f"The bundle is {sum(size.values()):.2f} MB: model {size['model.onnx']:.2f}, 19 signatures "
        f"{size['signatures.safetensors']:.2f}, oracle {size['oracle.onnx']:.2f}, policy "
        f"{size['policy.safetensors']:.2f}."
    )


def replay_table() -> str:
    """TA and RA of every way, at severity 5 and over all severities."""
    worst, every = read("replay_severity5"), read("replay_all")
    lines = [_row("", "TA, clean", "RA, severity 5", "RA, severities 1–5"), _row("---", "---:", "---:", "---:")]
    for way, label in WAYS.items():
        lines.append(_row(label, *(f"{value[way]:.2f}" for value in (worst["ta"], worst["ra"], every["ra"]))))
    scores = every["oracle"]
    lines += [
        "",
        f"CIFAR-10 test images, 19 corruptions, each frame on its own, no temporal filter, in %: {worst['images']:,} "
        f"images clean and at severity 5, {every['images']:,} at each of the severities 1–5. The oracle on one frame, "
        f"all severities: type {scores['type_accuracy']:.1f} %, clean recall {scores['clean_recall']:.1f} %, mean "
        f"severity error {scores['severity_mae']:.2f}; at severity 5: type {worst['oracle']['type_accuracy']:.1f} %. "
        f"{made_by(worst, every)}",
        "",
        f"{_bundle_sizes()} The paper's figure for CIFAR-10 with a VGG-16 of 58.8 MB, 8-bit signatures and a perfect "
        "oracle is TA 92.59, RA 82.99 (severity 5).",
    ]
    return "\n".join(lines)


def corruption_table() -> str:
    """Severity 5, corruption by corruption."""
    result = read("replay_severity5")
    ways = ("std", "trained", "perfect", "always")
    lines = [
        _row("severity 5", *(WAYS[way].strip("*").split(" (")[0] for way in ways)),
        _row("---", *["---:"] * len(ways)),
    ]
    for name, scores in result["per_corruption"].items():
        lines.append(_row(name.replace("_", " "), *(f"{scores[way]:.1f}" for way in ways)))
    return "\n".join([*lines, "", made_by(result)])


def ways_table() -> str:
    """Tuned signatures beside the paper's residual."""
    result = read("ways")
    columns = {
        "ra_validation": "RA on validation images",
        "ra": "RA, float32",
        "ra_8bit_channel": "8 bit, per channel",
        "ra_8bit_tensor": "8 bit, per tensor",
        "ra_4bit_channel": "4 bit, per channel",
        "ra_two_corruptions": "two corruptions at once, both signatures",
        "ra_pair_halves": "one corruption, two signatures at ½",
    }
    lines = [_row("", *columns.values(), "training, 19 signatures"), _row("---", *["---:"] * (len(columns) + 1))]
    std = result["std"]
    lines.append(_row("never patched", "", f"{std['ra']:.2f}", "", "", "", f"{std['ra_two_corruptions']:.2f}", "", ""))
    for way in ("tuned", "residual"):
        row = result[way]
        lines.append(_row(way, *(f"{row[key]:.2f}" for key in columns), f"{row['train_seconds'] / 60:.0f} min"))
    lines += [
        "",
        f"Severity 5 (two at once: {result['pair_severity']:.0f} each, {len(result['pairs'])} pairs), "
        f"{result['test_images']:,} test images; the 19 whole robust models behind `residual` reach "
        f"{result['residual']['ra_whole_robust_models']:.2f}. α from validation images. {made_by(result)}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Case:
    """A column of the table of latencies.

    Attributes:
        title, model, size: of the column.
        live: the result that its rows of live weights and untouched sessions come from, the longer one.
        others: the result with all ways to change weights.
    """

    title: str
    model: str
    size: int
    live: str
    others: str


_CASES = (
    _Case("VGG-16", "vgg16", 32, live="latency_live_small", others="latency"),
    _Case("VGG-16", "vgg16", 224, live="latency_live", others="latency_vgg224"),
    _Case("ResNet-50", "resnet50", 224, live="latency_live", others="latency"),
    _Case("MobileNetV2", "mobilenet_v2", 224, live="latency_live_small", others="latency"),
)

_SLOWER_CHANGES = {
    "reload": "a new session from a patched file",
    "reload_optimised": "the same, from a file optimised before",
    "load_state_dict": "load_state_dict of the whole model",
    "load_state_dict_shallow": "load_state_dict of the patched layers ²",
}
_OTHER_WAYS = {
    "split": "fallback: split session",
    "inputs": "fallback: weights as graph inputs",
    "lora": "ONNX Runtime's LoRA adapters ³",
    "sessions": "20 sessions kept",
    "reload": "a new session from a patched file",
    "torch": "Torch, eager, patched in place",
    "torch_compile": "Torch, compiled, patched in place",
    "load_state_dict": "Torch, eager, load_state_dict",
}


def _find(rows: Sequence[Any], model: str, size: int, **wanted: Any) -> Any:
    found = [row for row in rows if (row["model"], row["size"]) == (model, size)]
    return next((row for row in found if all(row[key] == value for key, value in wanted.items())), None)


def _interval(row: Any) -> str:
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f}–{row['ratio_high']:.3f})"


def latency_table() -> str:
    """What a frame costs with live weights and with everything else, relative to the untouched session."""
    results = {name: read(name) for name in dict.fromkeys(name for case in _CASES for name in (case.live, case.others))}

    def found(rows: str, source: str = "live", **wanted: Any) -> list[Any]:
        return [_find(results[getattr(c, source)][rows], c.model, c.size, **wanted) for c in _CASES]

    def ratios(label: str, way: str, rate: int, source: str = "live", write: Callable[[Any], str] = _interval) -> str:
        rows = found("rows", source, way=way, patch_every=rate)
        return _row(label, *("" if row is None else write(row) for row in rows))

    untouched = found("rows", way="untouched")
    loads = zip(untouched, found("rows", way="live"), strict=True)
    changes = found("changes", "others", way="live")
    frames = found("stages", stage="whole", patch_every=1)
    lines = [
        _row("one thread, batch 1", *(f"{case.title}, {case.size} px" for case in _CASES)),
        _row("---", *["---:"] * len(_CASES)),
        _row("untouched ONNX Runtime session, ms", *(f"{row['p50_ms']:.2f}" for row in untouched)),
        ratios("a second one, identical: the noise", "untouched_again", 0),
        ratios("**live weights, never patched**", "live", 0),
        ratios("live weights, a new patch on every tenth frame", "live", 10),
        ratios("**live weights, a new patch on every frame**", "live", 1),
        _row(
            "a change of mix, live weights: between frames / again and again, ms",
            *(f"{row['p50_ms']:.3f} / {row['alone_p50_ms']:.3f}" for row in changes),
        ),
        *(
            _row(
                f"times faster than {label}",
                *(f"{row[f'{rival}_ratio']:.0f} / {row[f'alone_{rival}_ratio']:.0f}" for row in changes),
            )
            for rival, label in _SLOWER_CHANGES.items()
        ),
        _row("whole frame, a new patch on every frame ¹", *(_interval(row) for row in frames)),
        _row("load, untouched / live weights, ms", *(f"{a['load_ms']:.0f} / {b['load_ms']:.0f}" for a, b in loads)),
    ]
    lines += [
        ratios(f"{label}, every tenth frame", way, 10, "others", lambda row: f"{row['ratio']:.2f}")
        for way, label in _OTHER_WAYS.items()
    ]
    lines += [
        _row("source: untouched, live weights, whole frame, load", *(link(results[case.live]) for case in _CASES)),
        _row("source: change of mix, other ways", *(link(results[case.others]) for case in _CASES)),
        "",
        made_by(*results.values()),
    ]
    return "\n".join(lines)


def threads_table() -> str:
    """The same with two threads, in short."""
    result = read("latency_2threads")
    cases = list(dict.fromkeys((row["model"], row["size"]) for row in result["rows"]))
    lines = [
        _row("two threads", *(f"{name}, {size} px" for name, size in cases)),
        _row("---", *["---:"] * len(cases)),
    ]
    for label, way, rate in (
        ("a second untouched session", "untouched_again", 0),
        ("live weights, never patched", "live", 0),
        ("live weights, a new patch on every frame", "live", 1),
        ("weights as graph inputs", "inputs", 0),
    ):
        rows = (_find(result["rows"], *case, way=way, patch_every=rate) for case in cases)
        lines.append(_row(label, *map(_interval, rows)))
    return "\n".join([*lines, "", made_by(result)])


def default_latency_table() -> str:
    """The stages of a frame of the bundled default."""
    name = json.loads((ROOT / "edge/bundle/default/bundle.json").read_text())["name"]
    result = read("latency_default")
    rows = [row for row in result["stages"] if row["model"] == name]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    lines = [
        _row("ms, p50 / p99", *(stage.replace("_", " ") for stage in stages)),
        _row("---", *["---:"] * len(stages)),
    ]
    for rate, label in ((0, "never patched"), (10, "patched on every tenth frame"), (1, "patched on every frame")):
        found = {row["stage"]: row for row in rows if row["patch_every"] == rate}
        lines.append(_row(label, *(f"{found[s]['p50_ms']:.2f} / {found[s]['p99_ms']:.2f}" for s in stages)))
    return "\n".join([*lines, "", made_by(result)])


def storage_table() -> str:
    """Bytes on disk and in memory."""
    result = read("storage")
    cases = list(dict.fromkeys((row["model"], row["size"]) for row in result["rows"]))

    def cell(rows: str, case: tuple[str, int], key: str, **wanted: Any) -> Any:
        found = [row for row in result[rows] if (row["model"], row["size"]) == case]
        return next(row[key] for row in found if all(row[name] == value for name, value in wanted.items()))

    signatures = [("shallow", bits, per) for bits, per in ((32, ""), (16, "channel"), (8, "channel"), (4, "channel"))]
    signatures.append(("full", 8, "channel"))
    lines = [
        _row("", *(f"{name}, {size} px" for name, size in cases)),
        _row("---", *["---:"] * len(cases)),
        _row("clean model, MB", *(f"{cell('rows', c, 'bytes', what='model') / 1e6:.2f}" for c in cases)),
        _row("20 models, times that", *(f"{cell('rows', c, 'ratio', what='20 models'):.2f}" for c in cases)),
    ]
    for scope, bits, per in signatures:
        label = f"model and 19 signatures, {scope} layers, {bits} bit"
        wanted = {"what": "19 signatures", "scope": scope, "bits": bits, "per": per}
        lines.append(_row(label, *(f"{cell('rows', c, 'ratio', **wanted):.2f}" for c in cases)))
    lines += [
        _row(
            "in memory: one session, MB",
            *(f"{cell('memory', c, 'private_bytes', what='session') / 1e6:.1f}" for c in cases),
        ),
        _row("20 sessions, times that", *(f"{cell('memory', c, 'ratio', what='20 sessions'):.2f}" for c in cases)),
        _row(
            "live weights and 19 signatures, 8 bit",
            *(f"{cell('memory', c, 'ratio', what='live, 19 signatures'):.2f}" for c in cases),
        ),
        "",
        f"{made_by(result)}",
    ]
    return "\n".join(lines)


def precision_table() -> str:
    """Accuracy of the default's signatures at every number of bits."""
    result = read("signatures")
    lines = [
        _row("bits", "one scale per", "RA", "TA after 19 patches and resets", "bytes of the file"),
        _row("---", "---", "---:", "---:", "---:"),
        _row("never patched", "", f"{result['ra_never_patched']:.2f}", f"{result['ta']:.2f}", ""),
    ]
    for row in result["rows"]:
        cells = (f"{row['ra']:.2f}", f"{row['ta_after_reset']:.2f}", f"{row['bytes']:,}")
        lines.append(_row(str(row["bits"]), row["per"], *cells))
    lines += [
        "",
        f"The bundled default, CIFAR-10, severity {result['severity']}, {result['images']:,} test images, each "
        f"corruption's own signature. {made_by(result)}",
    ]
    return "\n".join(lines)


def results_table() -> str:
    """Every committed result: the command that made it, at which commit, on what machine, from which seed."""
    rows = []
    for path in sorted(RESULTS.rglob("*.json")):
        result = read(path.relative_to(RESULTS).with_suffix("").as_posix())
        device = result.get("device", "cpu")
        machine = result["machine"]["processor"] if device == "cpu" else device
        made = (f"`{result['command']}`", result["commit"] or "", machine, str(result.get("seed", "")))
        rows.append([f"[{result['file']}](benchmarks/results/{result['file']})", *made])
    return table(["result", "command", "commit", "machine", "seed"], rows, texts=4)


TABLES = {
    **drill_page.README_TABLES,
    **zoo_page.README_TABLES,
    "replay": replay_table,
    "corruptions": corruption_table,
    "ways": ways_table,
    "latency": latency_table,
    "two threads": threads_table,
    "default latency": default_latency_table,
    "storage": storage_table,
    "precision": precision_table,
}


PAGES = {
    "README.md": TABLES,
    "docs/oracle.md": oracle_page.TABLES,
    "docs/drill.md": drill_page.TABLES,
    "docs/your_own_model.md": zoo_page.TABLES,
    "benchmarks/README.md": reproduce_page.TABLES,
    "benchmarks/results/README.md": {"results": results_table},
    "training/corruptions/README.md": corruption_page.TABLES,
}


def render(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text of a page with every table made anew.

    Args:
        page: its path from the root of the repository. Links to results are written from its folder.
        tables: what makes each table.
    """
    text = (ROOT / page).read_text()
    results = os.path.relpath(RESULTS, (ROOT / page).parent)
    for name, make in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no place for the table {name!r}")
        content = make().replace("](benchmarks/results/", f"]({results}/".replace("(./", "("))
        text = pattern.sub(lambda match, content=content: f"{match.group(1)}{content}\n{match.group(2)}", text)
    return text


def main(check: Annotated[bool, typer.Option(help="Only compare.")] = False) -> None:
    """Rewrite or check the tables of a checkout."""
    check_checkout()
    for page, tables in PAGES.items():
        new = render(page, tables)
        if check and new != (ROOT / page).read_text():
            raise SystemExit(f"{page} is out of date: run python -m rws.benchmarks.pages.render")
        (ROOT / page).write_text(new)


if __name__ == "__main__":
    typer.run(main)
