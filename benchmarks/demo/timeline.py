"""The picture of a stream: ground truth, the oracle's belief, the mix, and the running accuracy of each arm."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rws.benchmarks.common.plots import ARM_STYLES, GRID, INK, MUTED, corruption_colours
from rws.benchmarks.demo.stream import DemoStream
from rws.edge.pipeline import Result
from rws.oracle.belief import CLEAN


def draw_timeline(
    stream: DemoStream, results: Sequence[Result], right: Mapping[str, NDArray[np.bool_]], path: Path, window: int = 31
) -> None:
    """Draw a stream to a PNG; `right` holds bool (N,) for each arm, `window` are frames of the running accuracy."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": GRID, "font.size": 9})
    count = len(results)
    colours = corruption_colours()
    figure, axes = plt.subplots(5, 1, figsize=(16, 10), height_ratios=[1.0, 1.25, 1.5, 1.25, 1.7], dpi=120)
    figure.set_layout_engine("constrained", hspace=0.02, h_pad=0.05)
    _film_strip(axes[0], stream)
    _truth(axes[1], stream, colours)
    _belief(axes[2], results, colours)
    _alpha(axes[3], results, colours)
    _accuracy(axes[4], right, window)
    for axis in axes[1:]:
        axis.set_xlim(0, count)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=MUTED, length=3)
        axis.set_axisbelow(True)
    for axis in axes[1:-1]:
        axis.set_xticklabels([])
    axes[-1].set_xlabel("frame", color=MUTED)
    figure.savefig(path)
    plt.close(figure)


def _caption(axis: Axes, title: str, top: float | None = None, label: str = "", pad: float = 5) -> None:
    axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=pad)
    if top is not None:
        axis.set_ylim(0, top)
        axis.set_ylabel(label, color=MUTED)


def _film_strip(axis: Axes, stream: DemoStream, shown: int = 24) -> None:
    count, size = len(stream.images), stream.images.shape[1]
    centres = ((np.arange(shown) + 0.5) * count / shown).astype(int)
    gap = np.full((size, 2, 3), 255, np.uint8)
    strip = np.concatenate([part for index in centres for part in (stream.images[index], gap)][:-1], axis=1)
    axis.imshow(strip, interpolation="nearest", aspect="equal")
    axis.axis("off")
    _caption(axis, f"{count} test images, one per frame")


def _truth(axis: Axes, stream: DemoStream, colours: Mapping[str, str]) -> None:
    _areas(axis, stream.corruptions, colours)
    for name, group in groupby(range(len(stream.images)), key=lambda index: stream.dominant(index)[0]):
        members = list(group)
        if name != CLEAN:
            centre = (members[0] + members[-1] + 1) / 2
            axis.text(centre, 5.25, name.replace("_", " "), rotation=38, ha="left", va="bottom", fontsize=8, color=INK)
    _caption(axis, "ground truth", 5, "severity", pad=62)


def _areas(axis: Axes, layers: Sequence[Mapping[str, float]], colours: Mapping[str, str]) -> None:
    for name in [name for name in colours if name != CLEAN]:
        values = np.array([layer.get(name, 0.0) for layer in layers])
        if values.any():
            axis.fill_between(np.arange(len(values)) + 0.5, values, step="mid", color=colours[name], alpha=0.9, lw=0)


def _belief(axis: Axes, results: Sequence[Result], colours: Mapping[str, str]) -> None:
    names = results[0].belief.names
    probability = np.stack([result.belief.probability for result in results], axis=1)
    order = [names.index(name) for name in colours if name in names]
    edges = np.arange(len(results)) + 0.5
    axis.stackplot(edges, probability[order], colors=[colours[names[index]] for index in order], step="mid", lw=0)
    _caption(axis, "belief of the trained oracle (pale grey: clean)", 1, "P(corruption)")


def _alpha(axis: Axes, results: Sequence[Result], colours: Mapping[str, str]) -> None:
    _areas(axis, [result.mix for result in results], colours)
    changes = sum(result.changed for result in results)
    _caption(axis, f"mix: signatures patched in, and their strength α ({changes} mix changes)", 1.3)
    axis.set_ylabel("α", color=MUTED, rotation=0, labelpad=12)
    axis.grid(axis="y", color=GRID, lw=0.6)


def _accuracy(axis: Axes, right: Mapping[str, NDArray[np.bool_]], window: int) -> None:
    kernel = np.ones(window)
    for arm, (label, colour, width) in ARM_STYLES.items():
        flags = right[arm].astype(float)
        running = 100 * np.convolve(flags, kernel, "same") / np.convolve(np.ones_like(flags), kernel, "same")
        style: dict[str, Any] = {"color": colour, "lw": width, "ls": ":" if arm == "perfect" else "-"}
        axis.plot(np.arange(len(flags)) + 0.5, running, label=f"{label}: {100 * flags.mean():.1f} %", **style)
    axis.grid(axis="y", color=GRID, lw=0.6)
    axis.legend(loc="lower left", ncols=3, frameon=False, fontsize=10)
    _caption(axis, f"running accuracy over {window} frames", 104, "accuracy, %")
