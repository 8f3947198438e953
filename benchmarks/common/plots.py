"""What all pictures share: colours, and a small PNG."""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from rws.errors import InputError
from rws.oracle.belief import CLEAN, FAMILIES

LARGEST = 45_000
PALETTES = (96, 64, 48, 32, 24, 16)

# One hue per family, shades within it.
COLOUR_MAPS = {"noise": "Reds", "blur": "Blues", "weather": "Greens", "digital": "Purples"}
CLEAN_COLOUR = "#e9ebef"
INK, MUTED, GRID = "#1d2433", "#6b7486", "#d9dde4"
ARM_STYLES = {
    "std": ("no patch", "#9aa3b2", 1.6),
    "trained": ("trained oracle", "#e4572e", 2.4),
    "perfect": ("perfect oracle", "#1d2433", 1.4),
}
"""Label, colour and line width of each arm, in the order of the demo's table."""


def corruption_colours() -> dict[str, str]:
    """Return one colour for each corruption, and a pale grey for clean."""
    colours = {CLEAN: CLEAN_COLOUR}
    for family, members in FAMILIES.items():
        shades = np.linspace(0.45, 0.9, len(members))
        drawn = map(to_hex, plt.get_cmap(COLOUR_MAPS[family])(shades))
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
    raise InputError(f"a picture takes {small.tell()} bytes, expected below {LARGEST}; draw less of it")
