"""Two detectors side by side on a clip, without a patch and with it, and what is true and believed over time."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rws.benchmarks.common.tables import Record, spoken
from rws.benchmarks.demo.video import BACKGROUND, MUTED, RIGHT, TEXT, TRACK, WRONG, font
from rws.benchmarks.streams.clips import Step, found_again
from rws.edge.tasks.detect import Detections
from rws.oracle.belief import CLEAN

PANEL, GAP, LEFT = (640, 272), 12, 132  # pixels: size of a frame, space between parts, where the tracks begin
SIZE = (2 * PANEL[0] + 3 * GAP, 564)
TITLES = {"std": "Without patch", "trained": "With patch"}
COLOURS = ("#CC79A7", "#009E73", "#0072B2", "#D55E00", "#F0E442")  # Okabe and Ito's, one per corruption
SURE = 0.4  # confidence of a box that is drawn


class Comparison:
    """Draws the steps of a stream whose `truth` is known, in order."""

    def __init__(self, truth: Sequence[tuple[str, float]], fps: float) -> None:
        self._truth, self._fps = truth, fps
        names = dict.fromkeys(name for name, _ in truth if name != CLEAN)
        self._colours = {CLEAN: TEXT, **dict(zip(names, COLOURS, strict=False))}
        self._believed: list[tuple[str, float]] = []

    def draw(self, step: Step) -> Image.Image:
        """Return the next image of the video, RGB, of `SIZE`."""
        belief, image = step.beliefs["trained"], Image.new("RGB", SIZE, BACKGROUND)
        self._believed.append((belief.type, belief.type_severity))
        canvas = ImageDraw.Draw(image)
        for column, (panel, caption) in enumerate(self.panels(step)):
            left = GAP + column * (PANEL[0] + GAP)
            image.paste(panel, (left, 44))
            canvas.text((left, 10), list(TITLES.values())[column], TEXT, font(20, bold=True))
            canvas.text((left, 322), caption, TEXT, font(16))
        canvas.text((SIZE[0] - GAP, 13), _patch(step), TEXT, font(16), anchor="ra")
        canvas.text((GAP, 540), _LEGEND, MUTED, font(13))
        canvas.text((SIZE[0] - GAP, 540), f"{step.number / self._fps:.1f} s", MUTED, font(13), anchor="ra")
        self._tracks(canvas, 362)
        return image

    def sheet(self, chosen: Sequence[tuple[Step, Record]]) -> Image.Image:
        """Return a row of each step and its stretch's row of `score`, and the tracks up to the last image drawn."""
        wide, high, room = 480, 204, 236
        image = Image.new("RGB", (SIZE[0], 46 + room * len(chosen) + 236), BACKGROUND)
        canvas = ImageDraw.Draw(image)
        lefts = [SIZE[0] - place * (wide + GAP) for place in (2, 1)]
        for left, title in zip(lefts, TITLES.values(), strict=True):
            canvas.text((left, 12), title, TEXT, font(20, bold=True))
        for row, (step, scores) in enumerate(chosen):
            top, belief = 46 + room * row, step.beliefs["trained"]
            for left, (panel, caption) in zip(lefts, self.panels(step), strict=True):
                image.paste(panel.resize((wide, high), Image.Resampling.LANCZOS), (left, top))
                canvas.text((left, top + high + 3), caption, TEXT, font(15))
            canvas.text((GAP, top - 4), _named(step.name, step.severity), self._colours[step.name], font(24, bold=True))
            f1 = " → ".join(f"{scores['f1'][arm]:.0f}" for arm in TITLES)
            said = f"Oracle: {_named(belief.type, belief.type_severity)}"
            patch = "Patch: " + _patch(step).replace(", ", ",\n   ")
            canvas.text((GAP, top + 38), f"{said}\n{patch}\nF1: {f1} %", TEXT, font(17), spacing=9)
        self._tracks(canvas, image.height - 228)
        canvas.text((GAP, image.height - 46), f"{_LEGEND}\n{_MEAN}", MUTED, font(13), spacing=5)
        return image

    def panels(self, step: Step) -> list[tuple[Image.Image, str]]:
        """Return the corrupted frame with the boxes of the clean and of the patched model, and a caption of each."""
        wanted, *both = (step.found[key].surer(SURE) for key in ("clear", *TITLES))
        drawn = [(found, found_again(found, wanted)) for found in both]
        return [(_boxed(step.image, *each), _caption(each[1], len(wanted.boxes))) for each in drawn]

    def _tracks(self, canvas: ImageDraw.ImageDraw, top: int, height: int = 56) -> None:
        wide = (SIZE[0] - GAP - LEFT) / len(self._truth)
        for row, (title, values) in enumerate((("Truth", self._truth), ("Oracle", self._believed))):
            base = top + 24 + (row + 1) * (height + 14) - 14
            canvas.text((GAP, base - height / 2), title, TEXT, font(16, bold=True), anchor="lm")
            canvas.rectangle((LEFT, base - height, SIZE[0] - GAP, base), TRACK)
            for number, (name, severity) in enumerate(values):
                left, colour = LEFT + number * wide, self._colours.get(name, MUTED)
                if name != CLEAN:
                    canvas.rectangle((left, base - height * severity / 5, left + wide, base), colour)
        for name, group in groupby(enumerate(self._truth), key=lambda item: item[1][0]):
            places = [number for number, _ in group]
            if name != CLEAN:
                middle = LEFT + wide * (places[0] + places[-1] + 1) / 2
                canvas.text((middle, top + 10), spoken(name), self._colours[name], font(15, bold=True), anchor="mm")
        if len(self._believed) < len(self._truth):
            now = LEFT + len(self._believed) * wide
            canvas.line((now, top + 22, now, top + 24 + 2 * height + 16), TEXT, 2)


_LEGEND = (
    "Blue boxes: as the clean model draws them in the clear frame. Orange: not. Height of a bar: severity, 0 to 5."
)
_MEAN = "F1: of all boxes with those of the clear frames, while the corruption lasts, without → with patch."


def _named(name: str, severity: float) -> str:
    return "clear" if name == CLEAN else f"{spoken(name)} {severity:.1f}"


def _caption(again: NDArray[np.bool_], wanted: int) -> str:
    return f"{again.sum()} of {wanted} boxes of the clear frame, {(~again).sum()} others"


def _patch(step: Step) -> str:
    mix = (f"{spoken(name)} α {alpha:.2f}" for name, alpha in step.mixes["trained"].items())
    return ", ".join(mix) or "none, clean weights"


def _boxed(image: NDArray[np.uint8], found: Detections, again: NDArray[np.bool_]) -> Image.Image:
    scale = PANEL[0] / image.shape[1]
    panel = Image.fromarray(image).resize(PANEL, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(panel)
    for row in np.argsort(again, kind="stable"):  # those that are right on top
        left, top, right, bottom = (found.boxes[row] * scale).round().astype(int).tolist()
        colour = (RIGHT if again[row] else WRONG)[1]
        canvas.rectangle((left, top, right, bottom), outline=colour, width=2)
        label, place = found.labels[row], (left + 3, max(top, 0) + 1)
        canvas.rectangle(canvas.textbbox(place, label, font(11)), colour)
        canvas.text(place, label, "black", font(11))
    return panel
