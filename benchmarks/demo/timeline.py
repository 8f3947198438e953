"""The figure of a stream: ground truth, the oracle's belief, the mix, and the running accuracy of each arm."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rws.benchmarks.common.plots import ARM_STYLES, FAMILY_HATCHES, GRID, INK, MUTED, STYLE, corruption_colours
from rws.benchmarks.demo.stream import DemoStream
from rws.edge.pipeline import Result
from rws.oracle.belief import CLEAN, FAMILIES

_HATCHES = {CLEAN: ""} | {name: FAMILY_HATCHES[family] for family, members in FAMILIES.items() for name in members}


def draw_timeline(
    stream: DemoStream, results: Sequence[Result], right: Mapping[str, NDArray[np.bool_]], path: Path, window: int = 31
) -> None:
    """Draw a stream to a PNG that can be read at a width of 800 pixels.

    Args:
        right: whether each frame is classified correctly, by arm of `ARM_STYLES`; bool, shape (N,).
        window: frames of the running accuracy.
    """
    with plt.rc_context(STYLE | {"font.size": 8.5, "hatch.linewidth": 0.4}):
        figure = _figure(stream, results, right, window)
        figure.savefig(path)
        plt.close(figure)


def _figure(
    stream: DemoStream, results: Sequence[Result], right: Mapping[str, NDArray[np.bool_]], window: int
) -> Figure:
    colours = corruption_colours()
    figure, axes = plt.subplots(5, 1, figsize=(9.2, 8.2), height_ratios=[0.62, 1.1, 1.4, 1.1, 1.7], dpi=170)
    figure.set_layout_engine("constrained", hspace=0.02, h_pad=0.05, rect=(0, 0, 0.99, 1))
    _film_strip(axes[0], stream)
    _truth(axes[1], stream, colours)
    _belief(axes[2], results, colours)
    _alpha(axes[3], results, colours)
    _accuracy(axes[4], right, window)
    for axis in axes[1:]:
        axis.set_xlim(0, len(results))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=MUTED, length=3)
        axis.set_axisbelow(True)
    for axis in axes[1:-1]:
        axis.set_xticklabels([])
    axes[-1].set_xlabel("frame", color=MUTED)
    figure.align_ylabels(axes[1:])
    return figure


def _caption(axis: Axes, title: str, top: float | None = None, label: str = "", pad: float = 5) -> None:
    axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=pad)
    if top is not None:
        axis.set_ylim(0, top)
        axis.set_ylabel(label, color=MUTED)


def _film_strip(axis: Axes, stream: DemoStream, shown: int = 18) -> None:
    count, size = len(stream.images), stream.images.shape[1]
    centres = ((np.arange(shown) + 0.5) * count / shown).astype(int)
    gap = np.full((size, 2, 3), 255, np.uint8)
    strip = np.concatenate([part for index in centres for part in (stream.images[index], gap)][:-1], axis=1)
    axis.imshow(strip, interpolation="nearest", aspect="equal")
    axis.axis("off")
    _caption(axis, f"The stream: {count} CIFAR-10 test images, one per frame ({shown} of them shown)")


def _truth(axis: Axes, stream: DemoStream, colours: Mapping[str, str]) -> None:
    _areas(axis, stream.corruptions, colours)
    for name, group in groupby(range(len(stream.images)), key=lambda index: stream.dominant(index)[0]):
        members = list(group)
        if name != CLEAN:
            centre = (members[0] + members[-1] + 1) / 2
            axis.text(centre, 5.25, name.replace("_", " "), rotation=42, ha="left", va="bottom", fontsize=8, color=INK)
    _caption(axis, "Truth: the corruption of each frame and its severity", 5, "severity", pad=64)
    axis.set_yticks(range(6))


def _areas(axis: Axes, layers: Sequence[Mapping[str, float]], colours: Mapping[str, str]) -> None:
    for name in [name for name in colours if name != CLEAN]:
        values = np.array([layer.get(name, 0.0) for layer in layers])
        if values.any():
            area = axis.fill_between(np.arange(len(values)) + 0.5, values, step="mid", facecolor=colours[name], lw=0)
            area.set(hatch=_HATCHES[name], edgecolor="white", alpha=0.9)


def _belief(axis: Axes, results: Sequence[Result], colours: Mapping[str, str]) -> None:
    names = results[0].belief.names
    probability = np.stack([result.belief.probability for result in results], axis=1)
    drawn = [name for name in colours if name in names]
    rows, filled = [names.index(name) for name in drawn], [colours[name] for name in drawn]
    areas = axis.stackplot(np.arange(len(results)) + 0.5, probability[rows], colors=filled, step="mid", lw=0)
    for name, area in zip(drawn, areas, strict=True):
        area.set(hatch=_HATCHES[name], edgecolor="white")
    _caption(axis, "Belief of the trained oracle (pale grey: clean)", 1, "probability")


def _alpha(axis: Axes, results: Sequence[Result], colours: Mapping[str, str]) -> None:
    _areas(axis, [result.mix for result in results], colours)
    changes = sum(result.changed for result in results)
    _caption(axis, f"Mix: the signatures patched in, and their strength α ({changes} mix changes)", 1.3, "α")
    axis.grid(axis="y", color=GRID, lw=0.6)


def _accuracy(axis: Axes, right: Mapping[str, NDArray[np.bool_]], window: int) -> None:
    kernel, lowest = np.ones(window), 100.0
    for arm, (label, colour, width, line) in ARM_STYLES.items():
        flags = right[arm].astype(float)
        running = 100 * np.convolve(flags, kernel, "same") / np.convolve(np.ones_like(flags), kernel, "same")
        centres, lowest = np.arange(len(flags)) + 0.5, min(lowest, running.min())
        axis.plot(centres, running, label=f"{label}: {100 * flags.mean():.1f} %", color=colour, lw=width, ls=line)
    axis.grid(axis="y", color=GRID, lw=0.6)
    axis.legend(loc="lower left", ncols=3, frameon=False, fontsize=9, handlelength=3)
    _caption(axis, f"Running accuracy over {window} frames (legend: over all frames)", 104, "% correct")
    axis.set_ylim(bottom=max(0, 10 * (lowest // 10) - 10))
