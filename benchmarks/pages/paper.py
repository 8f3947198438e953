"""The tables of docs/benchmarks/paper.md, next to the paper's numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rws.benchmarks.common.tables import Column, columns, label, markdown, plain, spoken
from rws.benchmarks.pages.results import find, made_by
from rws.benchmarks.paper.columns import SCALES
from rws.benchmarks.paper.entries import ENTRIES, TABLE_COLUMNS
from rws.benchmarks.paper.jobs import Task
from rws.benchmarks.paper.run import RESULTS, status, tasks

TITLES = {
    "cifar10-vgg16": "CIFAR-10, VGG-16",
    "cifar100-vgg16": "CIFAR-100, VGG-16",
    "tiny-imagenet-vgg16": "Tiny-ImageNet, VGG-16",
    "tiny-imagenet-resnet50": "Tiny-ImageNet, ResNet-50",
    "imagenet-resnet50": "ImageNet, ResNet-50",
}
# Cai, Zhang, Wang, ICML 2023, Table 1: TA, RA at severity 5, mean of 19 corruptions, perfect oracle; storage.
PAPER_TABLE1: dict[str, tuple[tuple[tuple[float, float], ...], str]] = {
    "standard": (((92.59, 65.44), (71.44, 36.76), (61.28, 23.58), (65.72, 29.65)), "1"),
    "augmentation, one model": (((89.58, 84.34), (67.34, 56.95), (52.11, 43.64), (59.17, 47.96)), "1"),
    "20 models": (((92.59, 88.97), (71.44, 64.72), (61.28, 51.55), (65.72, 55.97)), "20"),
    "RWS, 5 layers, 16 bit": (((92.59, 84.76), (71.44, 58.62), (61.28, 44.25), (65.72, 52.81)), ""),
    "RWS, 5 layers, 8 bit": (((92.59, 82.99), (71.44, 53.52), (61.28, 39.40), (65.72, 52.79)), "1.2 (1.1)"),
}
METHODS = {
    "std": "standard",
    "augmented": "augmentation, one model",
    "robust": "20 models",
    "residual": "RWS, residual of the recipe ¹",
    "projected": "RWS, projection residual",
    "plain": "RWS, plain difference",
    "restart": "RWS, θ_init as the standard model",
    "tuned-labels": "tuned on labels",
    "tuned-output": "tuned on the clean model's output",
    "tuned-shallow": "tuned on the clean shallow part's output",
}
STARTS = {
    "pretrained": "(a) ImageNet's convolutions",
    "continued": "(b) a standard model",
    "restart": "(c) as (b), θ_std = init",
}
GOALS = {
    "TA": "≥ 92.6 at full scale",
    "RA, 8 bit, perfect oracle": "≥ 86 at full scale (the paper: 82.99)",
    "RA, 20 models − ours at 8 bit": "≤ 2",
    "RA, ours at 8 bit − the better of the paper's two options at 32 bit ²": "> 0",
    "storage, 8 bit": "≤ 1.2",
    "storage, 4 bit": "≤ 1.1",
    "RA lost at 4 bit against 32": "≤ 0.5",
    "RA, ours under the trained oracle − the same ² under the perfect one": "> 0",
    "RA, ours under the trained oracle − one model with augmentation": "> 0",
}

Results = Mapping[str, dict[str, Any]]


def _found(name: str, scale: str) -> Results:
    paths = {column: Task(name, column, (), scale).path(RESULTS) for column, _ in ENTRIES[name].results()}
    return {column: json.loads(path.read_text()) for column, path in paths.items() if path.is_file()}


def _everywhere(found: Results, template: str, title: str = "") -> list[Column]:
    def cell(index: int) -> Callable[[Any], str]:
        return lambda cells: template.format(**cells[index])

    return [Column(TITLES[column] + title, cell(index)) for index, column in enumerate(found)]


def _rows(found: Results) -> list[tuple[Any, ...]]:
    return list(zip(*(result["rows"] for result in found.values()), strict=True))


def images(name: str) -> str:
    """Return how many test and validation images the results of a table were measured on."""
    results = [result for scale in SCALES for result in _found(name, scale).values()]
    counts = sorted({(result["test_images"], result["validation_images"]) for result in results}, reverse=True)
    return ", ".join(f"{test:,} and {validation:,}" for test, validation in counts)


def paper_table1() -> str:
    """Return the paper's own Table 1."""
    cells = PAPER_TABLE1.items()
    rows = [[name, *(f"{ta:.2f} / {ra:.2f}" for ta, ra in scores), storage] for name, (scores, storage) in cells]
    return markdown(plain("the paper: TA / RA", *(TITLES[column] for column in TABLE_COLUMNS), "storage"), rows)


def table1(scale: str, found: Results) -> str:
    """Return TA / RA of every column that is done, and storage."""

    def name(cells: Any) -> str:
        row = cells[0]
        layers = "" if row["layers"] is None else f", {row['layers'] or 'all'} layers, {row['bits']} bit"
        return METHODS[row["method"]] + layers + (f": **{row['oracle']}**" if "oracle" in row else "")

    def storage(cells: Any) -> str:
        values = sorted({f"{cell['storage']:.2f}" for cell in cells}, key=float)
        return "–".join(dict.fromkeys((values[0], values[-1])))

    scores = _everywhere(found, "{ta:.2f} / {ra:.2f}")
    return markdown([label(f"{scale} scale: TA / RA", name), *scores, Column("storage", storage)], _rows(found))


def residuals(scale: str, found: Results) -> str:
    """Return the residual of each recipe, and the scores of its oracle."""
    rows = [
        {"name": TITLES[column], "made": METHODS[find(result["rows"], method="residual")["made"]], **result["oracle"]}
        for column, result in found.items()
    ]
    knows = {"oracle, one frame: type at severity 5, %": "type_accuracy", "clean recall, %": "clean_recall"}
    heads = [label(f"{scale} scale", "name"), label("residual of the recipe ¹", "made")]
    return markdown([*heads, *columns(knows, ".1f")], rows)


def table3(scale: str, found: Results) -> str:
    """Return RA on the target's test images by source."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in sorted(found["vgg16"]["rows"], key=lambda row: row["method"] != ""):
        own = "**" if row["source"] == row["target"] else ""
        method, source = METHODS.get(row["method"], "no patch"), row["source"] and f"signatures from {row['source']}"
        known = rows.setdefault((method, source), {"method": method, "source": source})
        known[row["target"]] = f"{own}{row['ra']:.2f}{own}"
    targets = dict.fromkeys(row["target"] for row in found["vgg16"]["rows"])
    heads = [label(f"{scale} scale: RA on", "method"), label("", "source")]
    return markdown([*heads, *(Column(target, target) for target in targets)], rows.values())


def table4(scale: str, found: Results) -> str:
    """Return the accuracy on every corruption, a table for each column."""
    parts = []
    for column, result in found.items():
        first = label(f"{TITLES[column]}, {scale} scale", lambda row: spoken(row["corruption"]))
        others = [Column(key, key, ".1f") for key in result["rows"][0] if key != "corruption"]
        parts.append(markdown([first, *others], result["rows"]))
    return "\n\n".join(parts)


def table5(scale: str, found: Results) -> str:
    """Return TA / RA / storage of whole models at few bits, and of signatures at few bits."""

    def name(cells: Any) -> str:
        return f"{'' if cells[0]['method'] == 'robust' else 'signatures: '}{METHODS[cells[0]['method']]}"

    heads = [label(f"{scale} scale: TA / RA / storage", name), Column("bits", lambda cells: cells[0]["bits"])]
    return markdown([*heads, *_everywhere(found, "{ta:.1f} / {ra:.1f} / {storage:.2f}")], _rows(found))


def init(scale: str, found: Results) -> str:
    """Return the scores by what everything starts from."""
    scores = {"ta": "TA", "ra_std": "RA standard", "ra_robust": "RA whole robust models"}
    scores |= {"validation": "RA, 5 layers, validation images", "ra": "RA, 5 layers"}
    rows = [
        [STARTS[row["init"]], row["signature"], row["batch_norm"], row["epochs"]]
        + [f"{row[key]:.2f}" if key in row else "diverged" for key in scores]
        for row in found["cifar10-vgg16"]["rows"]
    ]
    heads = (f"start, {scale} scale", "signature", "BatchNorm", "epochs")
    return markdown(plain(*heads, *scores.values(), words=4), rows)


def tuned(scale: str, found: Results) -> str:
    """Return the scores of the methods to make a signature."""
    scores = {"RA, validation images": "validation", "RA": "ra", "8 bit": "ra_8bit", "4 bit": "ra_4bit"}
    rows = [
        {"column": TITLES[column]} | row | ({"minutes": row["train_seconds"] / 60} if row["method"] else {})
        for column, result in found.items()
        for row in ({"method": "", "ra_pairs": result["ra_pairs_no_patch"]}, *result["rows"])
    ]
    table = [
        label(f"{scale} scale", "column"),
        label("signatures", lambda row: METHODS.get(row["method"], "no patch")),
        *columns({**scores, "two corruptions at once": "ra_pairs"}, ".2f"),
        Column("epochs", "epochs"),
        Column("training of 19, minutes", "minutes", ".1f"),
    ]
    return markdown(table, rows)


def smaller(scale: str, found: Results) -> str:
    """Return RA against bytes."""
    method = METHODS[next(iter(found.values()))["method"]]
    sized = {
        column: {"rows": [row | {"share": row["bytes"] / result["model_bytes"]} for row in result["rows"]]}
        for column, result in found.items()
    }
    heads = [label(f"{scale} scale: {method}", lambda cells: cells[0]["what"])]
    heads += columns({"bits": lambda cells: cells[0]["bits"], "rank": lambda cells: cells[0]["rank"]})
    return markdown([*heads, *_everywhere(sized, "{share:.3f}, {ra:.2f}", ": bytes / model, RA")], _rows(sized))


def figures() -> str:
    """Return all figures that are committed, and the results they are drawn from."""
    shown = []
    for task in sorted(tasks(), key=lambda task: SCALES.index(task.scale)):
        picture = task.path(RESULTS, ".png")
        if picture.is_file():
            name, folder = task.path(RESULTS).relative_to(RESULTS), f"benchmarks/results/{RESULTS.name}"
            result = json.loads(task.path(RESULTS).read_text())
            source = made_by({**result, "file": f"{RESULTS.name}/{name.as_posix()}"})
            of = TITLES.get(task.column, "VGG-16, three data sets")
            shown.append(f"**{task.name}**, {task.entry.title}: {of}, {task.scale} scale; {source}")
            shown.append(f"![{task.entry.title}]({folder}/{task.scale}/{picture.name})")
    return "\n\n".join(shown)


def done() -> str:
    """Return how much of each scale is done."""
    lines = []
    for scale in SCALES:
        of_scale = [row for row in status(RESULTS) if row["scale"] == scale]
        missing = [row for row in of_scale if not row["done"]]
        names = ", ".join(dict.fromkeys(row["name"] for row in missing)) or "nothing"
        lines.append([scale, f"{len(of_scale) - len(missing)} of {len(of_scale)}", names])
    return markdown(plain("scale", "done", "missing"), lines)


def goals() -> str:
    """Return what CIFAR-10 with VGG-16 should reach, and does: our five-layer signatures, measured as the paper's."""
    results = [_found("table1", scale).get("cifar10-vgg16") for scale in SCALES]
    reached = [_reached(result["rows"]) if result else {} for result in results]
    rows = [[name, wanted, *(found.get(name, "") for found in reached)] for name, wanted in GOALS.items()]
    return markdown(plain("CIFAR-10, VGG-16", "wanted", *(f"{scale} scale" for scale in SCALES), words=2), rows)


def _reached(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    found = {(row["method"], row["layers"], row["bits"], row.get("oracle")): row for row in rows}
    shipped = next(row["method"] for row in rows if row.get("oracle"))
    exact, eight, four = (found[shipped, 5, bits, None] for bits in (32, 8, 4))
    paper = max(found["projected", 5, 32, None]["ra"], found["restart", 5, 32, None]["ra"])
    ours = found[shipped, 5, 8, "trained oracle"]["ra"]
    robust, augmented = (found[kind, None, 32, None]["ra"] for kind in ("robust", "augmented"))
    values = [f"{value:.2f}" for value in (eight["ta"], eight["ra"], robust - eight["ra"], eight["ra"] - paper)]
    values += [f"{row['storage']:.3f}" for row in (eight, four)]
    values += [f"{value:.2f}" for value in (exact["ra"] - four["ra"], ours - paper, ours - augmented)]
    return dict(zip(GOALS, values, strict=True))


def _at_all_scales(name: str, make: Callable[[str, Results], str]) -> str:
    found = {scale: _found(name, scale) for scale in SCALES}
    return "\n\n".join(make(scale, results) for scale, results in found.items() if results) or "Not run yet."


_BY_SCALE = {"table1": table1, "table2": table1, "table3": table3, "table4": table4, "table5": table5}
_BY_SCALE |= {"init": init, "tuned": tuned, "smaller": smaller}
TABLES: dict[str, Callable[[], str]] = {
    "status": done,
    "goals": goals,
    "paper table1": paper_table1,
    "residuals": partial(_at_all_scales, "table1", residuals),
    "figures": figures,
    **{name: partial(_at_all_scales, name, make) for name, make in _BY_SCALE.items()},
}
VALUES: dict[str, Callable[[], str]] = {f"images {name}": partial(images, name) for name in _BY_SCALE}
