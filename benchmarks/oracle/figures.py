"""The figures of the page on the oracle, drawn from `benchmarks/results/` and the bundle: nothing is measured here.

From `replay_all.json`: `confusion`, `regret_split`; from the bundle's table: `gain_table`, what each signature wins on
each corruption at severity 5; from `streams.json`: `stream`, the beliefs, the patches and the accuracy."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from rws.benchmarks.common.plots import ARM_STYLES, GRID, INK, MUTED, STYLE, corruption_colours, small_png
from rws.benchmarks.common.tables import Record, spoken
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.common.files import atomic_write_bytes, os_errors, read_regular
from rws.edge.common.schema import parse_json
from rws.errors import InputError, check_known
from rws.oracle.belief import CLEAN, FAMILIES
from rws.oracle.policy import GainTable
from rws.training.evaluation.evaluator import Progress, silent

FIGURES = ("confusion", "gain_table", "regret_split", "stream")

# Blue to ink, light to dark: readable in grey, and to the colour-blind.
_SHADES = LinearSegmentedColormap.from_list(
    "shades", ["#ffffff", "#d6e4f5", "#8db8e2", "#3d7fc1", "#1d3f77", "#101b35"]
)
# Okabe and Ito's colours, which the colour-blind can distinguish.
_SHARES = {
    "type": ("wrong type", "#D55E00"),
    "severity": ("wrong severity", "#E69F00"),
    "clean": ("mistaken for clean", "#56B4E9"),
    "policy": ("the policy itself", "#9aa3b2"),
}


def draw_all(
    results: Path, out: Path, *, bundle: Bundle | None = None, only: Sequence[str] = (), progress: Progress = silent
) -> list[Path]:
    """Draw the figures as `<name>.png`, each below 45 kB, and return the files in the order of `FIGURES`.

    Args:
        results: folder of `replay_all.json` and `streams.json`; InputError if what is to be drawn is missing.
        bundle: whose gain table is drawn; None: the one of CIFAR-10 that ships.
        only: which of `FIGURES`; none: all; UsageError if one is unknown.
    """
    check_known("figure", only, FIGURES)

    draw: dict[str, Callable[[], Figure]] = {
        "confusion": lambda: draw_confusion(_read(results, "oracle")["confusion"]),
        "gain_table": lambda: draw_gain_table((bundle or Bundle.load(CIFAR10_BUNDLE)).table),
        "regret_split": lambda: draw_regret_split(_read(results, "regret_split")),
        "stream": lambda: draw_stream(_read(results, "timeline")),
    }
    paths = []
    for name in (name for name in FIGURES if not only or name in only):
        with plt.rc_context(STYLE | {"font.size": 9}):
            figure = draw[name]()
            content = small_png(figure)
            plt.close(figure)
        out.mkdir(parents=True, exist_ok=True)
        paths.append(out / f"{name}.png")
        atomic_write_bytes(paths[-1], content)
        progress(f"{paths[-1]}: {len(content) / 1000:.1f} kB")
    return paths


def _read(results: Path, key: str) -> Any:
    file, options = ("streams", "--protocol continual") if key == "timeline" else ("replay_all", "--severity all")
    path = results / f"{file}.json"
    command = f"rws replay {options} --json {path}"
    with os_errors(path, "read", f"make it with `{command}`"):
        data = read_regular(path, 2**28)
    try:
        return parse_json(data)[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no {key!r}; make it again with `{command}`") from error


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _bare(axis: Axes) -> None:
    axis.tick_params(length=0, colors=INK, labelsize=8.5)
    axis.spines[:].set_visible(False)


def _title(axis: Axes, title: str, note: str = "", pad: float = 8.0) -> None:
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=pad + (15 if note else 0))
    if note:
        offset: dict[str, Any] = {"xytext": (0, pad + 1), "xycoords": "axes fraction", "textcoords": "offset points"}
        axis.annotate(note, (0, 1), fontsize=9, color=MUTED, va="bottom", **offset)


def _matrix(
    values: NDArray[np.floating], names: Sequence[str], norm: PowerNorm, least: float, dark_from: float
) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(8.6, 7.7), layout="constrained", dpi=110)
    axis.imshow(values, cmap=_SHADES, norm=norm)
    axis.set_xticks(range(len(names)), map(spoken, names), rotation=45, ha="right")
    axis.set_yticks(range(len(names)), map(spoken, names))
    _bare(axis)
    family = {name: label for label, members in FAMILIES.items() for name in members}
    for index, (name, following) in enumerate(pairwise(names)):
        if family.get(name) != family.get(following):
            axis.axhline(index + 0.5, color="#b9c1cd", lw=0.9)
            axis.axvline(index + 0.5, color="#b9c1cd", lw=0.9)
    for row, column in np.argwhere(np.abs(values) >= least):
        value = values[row, column]
        colour = "white" if value >= dark_from else INK
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    return figure, axis


def _in_family_order(names: Sequence[str]) -> list[int]:
    order = [CLEAN, *(name for members in FAMILIES.values() for name in members), *names]
    return sorted(range(len(names)), key=lambda index: order.index(names[index]))


def draw_confusion(confusion: Mapping[str, Any]) -> Figure:
    """Draw the confusion matrix, in percent of each row, from `names` and `counts`; a row is a true type."""
    order = _in_family_order(confusion["names"])
    names = [confusion["names"][index] for index in order]
    counts = np.array(confusion["counts"], float)[np.ix_(order, order)]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axis = _matrix(share, names, PowerNorm(0.45, 0, 100), 0.95, 40)
    axis.set_xlabel("named by the oracle", color=MUTED)
    axis.set_ylabel("true", color=MUTED)
    present = counts.sum(1) > 0
    mean = share.diagonal()[present].mean()
    _title(axis, "Which corruption is it?", f"percent of the frames of each row; mean of the diagonal {mean:.1f} %")
    return figure


def draw_gain_table(table: GainTable) -> Figure:
    """Draw the gain of each signature, at its best alpha, over no patch at the strongest level, in points."""
    steps = len(table.levels)
    order = _in_family_order(table.corruptions)
    names = [table.corruptions[index] for index in order]
    strongest = table.accuracy[steps::steps]
    gain = np.full((len(names), len(names)), np.nan)
    for column, signature in enumerate(order):
        actions = np.flatnonzero(table.signature == signature)
        if len(actions):
            gain[:, column] = (strongest[:, actions].max(1) - strongest[:, 0])[order]
    shown = np.where(np.nan_to_num(gain) > 0, gain, 0.0)
    most = float(shown.max())
    figure, axis = _matrix(shown, names, PowerNorm(0.6, 0, max(1.0, most)), 0.5, 0.35 * most)
    for index in range(len(names)):
        axis.add_patch(Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor="#e4572e", lw=1.2))
    axis.set_xlabel("signature that is patched in, at its best α", color=MUTED)
    axis.set_ylabel(f"true corruption, severity {table.levels[-1]:g}", color=MUTED)
    note = "points of accuracy over no patch, validation images; empty: no gain, or not among the neighbours measured"
    _title(axis, "What does each signature gain?", note)
    return figure


def draw_regret_split(split: Mapping[str, Any]) -> Figure:
    """Draw a split of the regret, RA(perfect) − RA(ours), and its shares, in points: of all corruptions and of each."""
    rows = sorted(split["per_corruption"].items(), key=lambda item: -item[1]["total"])
    names = ["all together", *(spoken(name) for name, _ in rows)]
    parts = [split, *(part for _, part in rows)]
    place = np.array([0.0, *(np.arange(len(rows)) + 1.6)])
    figure, axis = plt.subplots(figsize=(8.6, 6.2), layout="constrained", dpi=110)
    for sign in (1, -1):
        start = np.zeros(len(parts))
        for key, (label, colour) in _SHARES.items():
            width = np.array([sign * max(0.0, sign * part[key]) for part in parts])
            shown = f"{label} {_signed(split[key])}" if sign > 0 else None
            axis.barh(place, width, left=start, height=0.74, color=colour, label=shown, lw=0)
            start += width
    totals, label = [part["total"] for part in parts], f"total {_signed(split['total'])}"
    axis.plot(totals, place, "D", ms=5, color=INK, mec="white", mew=0.8, ls="", label=label)
    reach = axis.get_xlim()
    for part, height in zip(parts, place, strict=True):
        right = sum(max(0.0, part[key]) for key in _SHARES)
        end = max(right, part["total"], 0.0) + 0.012 * (reach[1] - reach[0])
        axis.text(end, height, _signed(part["total"]), va="center", ha="left", fontsize=8.5, color=INK)
    axis.set_yticks(place, names)
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.invert_yaxis()
    axis.margins(x=0.09)
    axis.axvline(0, color=MUTED, lw=0.8)
    axis.grid(axis="x", color=GRID, lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, colors=INK, labelsize=8.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("regret, points of accuracy (below 0: better than the perfect oracle)", color=MUTED)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8.5, columnspacing=1.2, handlelength=1.2)
    _title(
        axis, "What costs accuracy against a perfect oracle?", "single frames, severities 1–5, mean of the severities"
    )
    return figure


def draw_stream(timeline: Record) -> Figure:
    """Draw a stream: true type, believed type, patched signature, and the running accuracy."""
    count, severity = timeline["frames"], timeline["severity"]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(10.4, 5.6), height_ratios=[1.35, 1], layout="constrained", dpi=110, sharex=True
    )
    starts = _bands(top, timeline)
    for (index, length), start in zip(timeline["true"], starts, strict=False):
        label = spoken(timeline["types"][index])
        top.text(start + length / 2, -0.12, label, rotation=40, ha="left", va="bottom", fontsize=8, color=INK)
        for axis in (top, bottom):
            axis.axvline(start, color=GRID, lw=0.7, zorder=0)
    strength = "all severities" if severity == "all" else f"severity {severity:g}"
    _title(top, f"A stream of {count} frames, {timeline['protocol']}, {strength}", pad=64)
    _running_accuracy(bottom, timeline)
    bottom.set_xlim(0, count)
    return figure


def _bands(axis: Axes, timeline: Record) -> list[int]:
    """Draw runs of types, a row for each method; return the starts of the true ones."""
    colours, names = corruption_colours(), timeline["types"]
    labels = {"frame": "frame by frame", "trained": "over frames", "perfect": "perfect oracle"}
    bands = {"true": timeline["true"]}
    bands |= {f"believed, {labels[key]}": runs for key, runs in timeline["believed"].items()}
    bands |= {f"patched, {labels[key]}": runs for key, runs in timeline["mix"].items()}
    starts = {label: [0, *accumulate(length for _, length in runs)] for label, runs in bands.items()}
    for row, (label, runs) in enumerate(bands.items()):
        for (index, length), start in zip(runs, starts[label], strict=False):
            axis.broken_barh([(start, length)], (row + 0.08, 0.84), facecolor=colours[names[index]], lw=0)
    axis.set_yticks(np.arange(len(bands)) + 0.5, list(bands))
    axis.set_ylim(len(bands), 0)
    _bare(axis)
    return starts["true"]


def _running_accuracy(axis: Axes, timeline: Record) -> None:
    styles = ARM_STYLES | {"frame": ("trained oracle, frame by frame", "#0072B2", 1.4, "-.")}
    styles["trained"] = ("trained oracle, over frames", *styles["trained"][1:])
    frames = timeline["step"] * (1 + np.arange(timeline["frames"] // timeline["step"]))
    for arm in ("std", "frame", "trained", "perfect"):
        if arm in timeline["correct"]:
            label, colour, width, style = styles[arm]
            values = np.array(timeline["correct"][arm], float)
            axis.plot(frames[: len(values)], values, color=colour, lw=width, ls=style, label=label)
    axis.set_ylim(0, 104)
    axis.set_ylabel(f"% correct of the last {timeline['window']}", color=MUTED)
    axis.set_xlabel("frame", color=MUTED)
    axis.grid(axis="y", color=GRID, lw=0.6)
    axis.tick_params(colors=MUTED, length=3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower left", ncols=4, frameon=False, fontsize=8.5)
