"""The video of the demo: each frame, its truth, and what the model says without and with the patch."""

from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rws.benchmarks.common.plots import ARM_STYLES
from rws.benchmarks.common.tables import spoken
from rws.benchmarks.demo.stream import DemoStream
from rws.edge.pipeline import Result
from rws.edge.sinks.video import VideoSink
from rws.oracle.belief import CLEAN
from rws.records import Frame

SIZE, TILE, LEFT, MIDDLE = (960, 540), 384, 432, 700  # pixels: canvas, frame, and the two columns next to it
BACKGROUND, TEXT, MUTED, TRACK = "#11141b", "#eceff4", "#9aa5b8", "#262c38"
RIGHT, WRONG = ("✓", "#56B4E9"), ("✗", "#E69F00")  # Okabe and Ito's colours; the marks work without colour
WORDS = {
    "oracle": "a small network that names the corruption of a frame and its severity",
    "patch": "adds that corruption's signature, a stored weight change, to the model",
    "α": "strength of a signature: 0 adds nothing, 1 adds it as it was stored",
}
"""The demo's words, one line each."""


class DemoVideo(VideoSink):
    """The frames of a stream, in order; results must say what the model answers without a patch (`unpatched`)."""

    def __init__(self, path: Path, fps: float, stream: DemoStream) -> None:
        super().__init__(path, fps)
        self.stream, self.right = stream, {"std": 0, "trained": 0}

    def draw(self, frame: Frame, result: Result) -> NDArray[np.uint8]:
        """Return the next image, uint8, shape (540, 960, 3), RGB, and count who is right."""
        assert result.unpatched is not None
        index, said = frame.index, {"std": result.unpatched, "trained": result.output}
        image = Image.new("RGB", SIZE, BACKGROUND)
        image.paste(Image.fromarray(frame.image).resize((TILE, TILE), Image.Resampling.BICUBIC), (24, 24))
        self._canvas = ImageDraw.Draw(image)
        self._text(LEFT, 22, "TRUTH", 13, MUTED)
        self._text(LEFT, 40, self.stream.classes[self.stream.labels[index]], 30, TEXT, bold=True)
        layers = [f"{spoken(name)}, severity {level:g} of 5" for name, level in self.stream.corruptions[index].items()]
        self._text(LEFT, 80, "\n".join(layers) or CLEAN, 16, TEXT)
        for left, arm, title in ((LEFT, "std", "WITHOUT PATCH"), (MIDDLE, "trained", "WITH PATCH")):
            correct = said[arm].class_index == self.stream.labels[index]
            self.right[arm] += correct
            mark, colour = RIGHT if correct else WRONG
            self._text(left, 140, title, 13, MUTED)
            self._text(left, 156, f"{mark} {said[arm].label}", 30, colour, bold=True)
            self._text(left, 194, f"probability {said[arm].confidence:.0%}", 16, colour)
        self._belief_and_patch(result)
        self._footer(index)
        return np.asarray(image)

    def _belief_and_patch(self, result: Result) -> None:
        self._text(LEFT, 240, "ORACLE BELIEVES", 13, MUTED)
        probability = result.belief.probability
        for row, best in enumerate(probability.argsort()[::-1][:3]):
            top = 260 + 24 * row
            self._text(LEFT, top, spoken(result.belief.names[best]), 16, TEXT)
            self._canvas.rectangle((620, top + 4, 820, top + 16), TRACK)
            self._canvas.rectangle((620, top + 4, 620 + 200 * float(probability[best]), top + 16), TEXT)
            self._text(836, top, f"{probability[best]:.0%}", 16, TEXT)
        self._text(LEFT, 346, "PATCH", 13, MUTED)
        mix = [f"{spoken(name)} α {alpha:.2f}" for name, alpha in result.mix.items()]
        self._text(LEFT, 364, "\n".join(mix[::2]) or "none: clean weights", 16, TEXT)
        self._text(MIDDLE, 364, "\n".join(mix[1::2]), 16, TEXT)

    def _footer(self, index: int) -> None:
        shares = (f"{ARM_STYLES[arm][0]} {100 * count / (index + 1):.0f} %" for arm, count in self.right.items())
        self._text(24, 420, f"frame {index + 1} of {len(self.stream.labels)}", 16, TEXT)
        self._text(LEFT, 420, f"right so far:  {'   '.join(shares)}", 16, TEXT, bold=True)
        for line, (word, meaning) in enumerate(WORDS.items()):
            self._text(24, 456 + 24 * line, word, 15, TEXT, bold=True)
            self._text(100, 456 + 24 * line, meaning, 15, MUTED)

    def _text(self, left: float, top: float, text: str, size: float, colour: str, bold: bool = False) -> None:
        self._canvas.text((left, top), text, fill=colour, font=font(size, bold))


@cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of the demos: Matplotlib brings it, and it has α, ✓ and ✗."""
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' * bold}.ttf", size)
