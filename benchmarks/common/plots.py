"""Shared by all figures: colours, and a small PNG."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from PIL import Image

from rws.errors import InputError
from rws.oracle.belief import CLEAN, FAMILIES

LARGEST = 45_000
PALETTES = (96, 64, 48, 32, 24, 16)

# Okabe and Ito's colours, which the colour-blind can distinguish: one per family, shades within it. Hatches show the
# family in grey.
FAMILY_COLOURS = {"noise": "#D55E00", "blur": "#0072B2", "weather": "#009E73", "digital": "#CC79A7"}
FAMILY_HATCHES = {"noise": "....", "blur": "", "weather": "////", "digital": "xxxx"}
CLEAN_COLOUR = "#e9ebef"
INK, MUTED, GRID = "#1d2433", "#6b7486", "#d9dde4"
STYLE: dict[Any, Any] = {"font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": GRID}
"""Settings of matplotlib for `rc_context`."""
ARM_STYLES = {
    "std": ("no patch", "#6b7486", 1.6, "--"),
    "trained": ("trained oracle", "#D55E00", 2.6, "-"),
    "perfect": ("perfect oracle", "#1d2433", 1.6, ":"),
}
"""Label, colour, line width and line style of each arm, in the order of the demo's table."""


def corruption_colours() -> dict[str, str]:
    """Return a colour for each corruption, and a pale grey for clean."""
    colours = {CLEAN: CLEAN_COLOUR}
    for family, members in FAMILIES.items():
        shades = LinearSegmentedColormap.from_list(family, ["white", FAMILY_COLOURS[family], "black"])
        drawn = map(to_hex, shades(np.linspace(0.25, 0.7, len(members))))
        colours |= dict(zip(members, drawn, strict=True))
    return colours


def small_png(figure: Figure) -> bytes:
    """Return a PNG with as many colours as fit below `LARGEST` bytes; raise InputError if the fewest do not."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    for count in PALETTES:
        small = io.BytesIO()
        palette = image.quantize(count, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        palette.save(small, "PNG", optimize=True)
        if small.tell() < LARGEST:
            return small.getvalue()
    raise InputError(f"a figure takes {small.tell()} bytes, expected below {LARGEST}; draw less of it")
