"""An annotated frame: the image, and next to it what the pipeline found in it.

Small images grow by whole factors without interpolation, so that every pixel of a 32 px frame can be seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.oracle.belief import CLEAN
from rws.text import printable

if TYPE_CHECKING:
    from rws.edge.pipeline import Result

Colour = tuple[int, int, int]

JPEG_QUALITY = 80
MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH, PANEL_WIDTH = 320, 720, 1280, 300
BARS, MIX_LINES = 5, 2
LEAST_SHOWN = 0.005  # a probability that is not rounded to 0 %
DARK = 0.4  # brightness of what the model does not see
LONGEST = 120  # letters of a line; more have no room

BACKGROUND, TRACK, TEXT, MUTED = (17, 20, 27), (38, 44, 56), (236, 239, 244), (139, 149, 167)
GREEN, ORANGE, BLUE = (94, 201, 142), (255, 158, 87), (103, 169, 255)


def annotate(image: NDArray[np.uint8], result: Result, original: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Draw a result next to its frame, in which what the model does not see is dark.

    The panel shows the output's summary, the five most probable corruptions, the signatures in effect, and the frame.

    Args:
        image: uint8, shape (H, W, 3), RGB.
        original: what the frame was before it was corrupted on purpose, of the same shape; drawn on its left.

    Returns uint8, shape (h, w, 3), RGB, 320 ≤ h ≤ 720, h and w even; frames of one size give results of one size.
    """
    frame = draw(image, result)
    if original is not None:
        frame = np.hstack([_darken(fit(original), result, image), frame])
    height, width = max(len(frame), MIN_HEIGHT), frame.shape[1]
    unit = min(height / MIN_HEIGHT, 1.75)
    full_width = width + round(PANEL_WIDTH * unit)
    canvas = np.full((height + height % 2, full_width + full_width % 2, 3), BACKGROUND, np.uint8)
    top = (height - len(frame)) // 2
    canvas[top : top + len(frame), :width] = frame
    _Panel(canvas, width, unit).draw(result)
    return canvas


def draw(image: NDArray[np.uint8], result: Result, max_width: int = MAX_WIDTH) -> NDArray[np.uint8]:
    """Draw a result into its frame, uint8, (H, W, 3), RGB, resized as `fit` does; what the model does not see is dark.

    A thin line surrounds what it sees.
    """
    return _darken(fit(result.task.draw(image, result.output), max_width), result, image)


def _darken(fitted: NDArray[np.uint8], result: Result, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if result.seen is None:
        return fitted
    scale = fitted.shape[1] / image.shape[1], fitted.shape[0] / image.shape[0]
    left, top, right, bottom = (round(edge * one) for edge, one in zip(result.seen, scale * 2, strict=True))
    drawn = np.asarray(cv2.convertScaleAbs(fitted, alpha=DARK), np.uint8)
    cv2.rectangle(drawn, (left - 1, top - 1), (right, bottom), TEXT)
    drawn[top:bottom, left:right] = fitted[top:bottom, left:right]
    return drawn


def fit(image: NDArray[np.uint8], max_width: int = MAX_WIDTH) -> NDArray[np.uint8]:
    """Resize an image for display, uint8, (H, W, 3), RGB.

    It grows by a whole factor up to 320 high and `max_width` wide, or shrinks to 720 high and `max_width` wide.
    """
    height, width = image.shape[:2]
    factor = min(math.ceil(MIN_HEIGHT / height), max_width // width)
    if factor > 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    scale = min(MAX_HEIGHT / height, max_width / width)
    return image if scale >= 1 else resize(image, scale)


def resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Scale an image, uint8, (H, W, 3); at least one pixel is left of each side."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


@dataclass(frozen=True)
class _Style:
    size: float
    colour: Colour
    bold: bool = False


_HEAD, _SMALL, _TINY = _Style(0.72, TEXT), _Style(0.38, MUTED), _Style(0.36, MUTED)
_TOP_ROW, _ROW, _NONE, _MIX = (_Style(0.44, colour) for colour in (TEXT, MUTED, GREEN, BLUE))


class _Panel:
    """Draws onto the right part of a canvas, in design units of `unit` pixels: 300 wide, 320 high."""

    def __init__(self, canvas: NDArray[np.uint8], left: int, unit: float) -> None:
        self.canvas, self.left, self.unit = canvas, left, unit

    def draw(self, result: Result) -> None:
        text, confidence = result.summary
        if confidence is not None:
            self.text(f"{confidence:.0%}", 284, 36, _HEAD, right=True)
            self.bar(16, 48, 268, 4, confidence, TEXT)
        self.text(text, 16, 36, replace(_HEAD, bold=True), room=268 if confidence is None else 200)
        if result.unpatched is not None and result.on_original is not None:
            unpatched, before = (result.task.summary(one)[0] for one in (result.unpatched, result.on_original))
            both = f"unpatched: {unpatched}, on the clean frame: {before}"
            self.text(both, 16, 64, _TINY, room=268)

        self.text("ORACLE", 16, 82, _SMALL)
        self.text(f"severity {result.belief.type_severity:.1f}", 284, 82, _SMALL, right=True)
        probability = result.belief.probability
        shown = [index for index in probability.argsort()[::-1][:BARS] if probability[index] >= LEAST_SHOWN]
        for row, index in enumerate(shown):
            self.row(92 + 24 * row, result.belief.names[index], float(probability[index]), first=row == 0)

        self.text("PATCH", 16, 238, _SMALL)
        if not result.mix:
            self.text("none, clean weights", 16, 259, _NONE)
        ranked = sorted(result.mix.items(), key=lambda item: -abs(item[1]))
        for line, (name, alpha) in enumerate(ranked[:MIX_LINES]):
            self.text(name, 16, 259 + 20 * line, _MIX, room=160)
            self.text(f"alpha {alpha:.2f}", 284, 259 + 20 * line, _MIX, right=True)
        if len(ranked) > MIX_LINES:
            self.text(f"and {len(ranked) - MIX_LINES} more", 284, 238, _SMALL, right=True)

        self.text(f"{sum(result.times_ms.values()):.1f} ms", 284, 308, _SMALL, right=True)
        self.text(f"#{result.index}", 16, 308, _SMALL)
        self.text(result.name, 68, 308, _SMALL, room=150, tail=True)

    def row(self, top: float, name: str, probability: float, first: bool) -> None:
        colour = GREEN if name == CLEAN else ORANGE
        style = _TOP_ROW if first else _ROW
        self.text(name, 16, top + 14, style, room=122)
        self.bar(144, top + 5, 92, 10, probability, colour if first else _blend(colour, BACKGROUND, 0.55))
        self.text(f"{probability:.0%}", 284, top + 14, style, right=True)

    def bar(self, x: float, y: float, width: float, height: float, fraction: float, colour: Colour) -> None:
        for part, paint in ((1.0, TRACK), (min(max(fraction, 0.0), 1.0), colour)):
            x0, x1, y0, y1 = (round(v * self.unit) for v in (x, x + width * part, y, y + height))
            self.canvas[y0:y1, self.left + x0 : self.left + x1] = paint

    def text(
        self,
        text: str,
        x: float,
        y: float,
        style: _Style,
        *,
        right: bool = False,
        room: float = 300,
        tail: bool = False,
    ) -> None:
        """Draw a line on the baseline `y`, from `x` or (with `right`) up to `x`; a text that is cut ends in `..`."""
        scale, thickness = style.size * self.unit, max(1, round((2 if style.bold else 1) * min(self.unit, 1.5)))

        def width(text: str) -> int:
            return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0])

        # OpenCV crashes at text that is not Unicode, has no letters but ASCII, and measures long text slowly.
        text = printable(text).encode("ascii", "replace").decode()
        whole = text = text[-LONGEST:] if tail else text[:LONGEST]
        for cut in range(1, len(whole)):
            if width(text) <= room * self.unit:
                break
            text = ".." + whole[cut:] if tail else whole[:-cut].rstrip() + ".."
        place = (self.left + round(x * self.unit) - (width(text) if right else 0), round(y * self.unit))
        cv2.putText(self.canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, style.colour, thickness, cv2.LINE_AA)


def _blend(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x * share + y * (1 - share)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def to_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 (H, W, 3), RGB, as a JPEG."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes()
