"""Lines of text as a camera sees them: phrases on strips of photographs, in several fonts; and how they are read."""

from collections.abc import Sequence
from itertools import groupby

import cv2
import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rws.edge.onnx.graph import read_model
from rws.errors import InputError

FONTS = ("DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "STIXGeneral")  # Matplotlib brings them
_FILLED = (0.8, 0.96)  # parts of the width that letters take, unless they would be higher than `_HIGHEST` of the height
_HIGHEST = 0.75
_TILT = 1.0  # degrees, at most
_CONTRAST = 100  # grey levels between the letters and the mean of what is behind them, at least
_ENLARGED = 4  # strips are parts of photographs so much smaller: a sign or a page is smoother than a scene


def make_lines(photographs: Tensor, phrases: Sequence[str], size: tuple[int, int], seed: int) -> Tensor:
    """Write each phrase on a strip of a photograph, in turn; letters are darker or brighter than the strip.

    Args:
        photographs: uint8 (N, 3, H, W), RGB, each side no smaller than a quarter of `size`: height and width, pixels.
    Returns uint8 (len(phrases), 3, *size).
    """
    height, width = size
    rng = np.random.default_rng(seed)
    lines = []
    for number, phrase in enumerate(phrases):
        photograph = photographs[number % len(photographs)]
        part = np.array(size) // _ENLARGED
        top, left = rng.integers(0, np.array(photograph.shape[1:]) - part + 1)
        strip = photograph[:, top : top + part[0], left : left + part[1]].permute(1, 2, 0).numpy()
        lines.append(_written(cv2.resize(strip, (width, height), interpolation=cv2.INTER_CUBIC), phrase, rng))
    return torch.from_numpy(np.stack(lines).transpose(0, 3, 1, 2).copy())


def _written(strip: NDArray[np.uint8], phrase: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = strip.shape[:2]
    file = font_manager.findfont(FONTS[rng.integers(len(FONTS))], fallback_to_default=False)
    letters = ImageFont.truetype(file, height)
    filled = width * rng.uniform(*_FILLED)
    letters = letters.font_variant(size=int(min(height * filled / letters.getlength(phrase), _HIGHEST * height)))
    mask = Image.new("L", (width, height))
    left = rng.uniform(0.01, 0.03) * width
    ImageDraw.Draw(mask).text((left, height / 2), phrase, fill=255, font=letters, anchor="lm")
    share = np.asarray(mask.rotate(rng.uniform(-_TILT, _TILT), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    behind = float(strip.mean())
    ranges = [(0, behind - _CONTRAST), (behind + _CONTRAST, 255)]
    low, high = ranges[rng.choice([number for number, (low, high) in enumerate(ranges) if low < high])]
    return np.round(strip * (1 - share) + rng.uniform(low, high, 3) * share).astype(np.uint8)


def read_lines(probabilities: NDArray[np.float32], characters: Sequence[str]) -> list[str]:
    """Return what is read of probabilities (N, T, K): the best of `characters` at each step, repeated ones once.

    The first one, "", stands between two that are equal. Spaces at both ends are left out.
    """
    steps = probabilities.argmax(2)
    return ["".join(characters[step] for step, _ in groupby(line.tolist())).strip() for line in steps]


def characters_of(model: bytes) -> list[str]:
    """Return the characters that a PaddleOCR network's metadata list, with "" before them and a space behind them.

    Raises InputError if there is no such list.
    """
    written = {entry.key: entry.value for entry in read_model(model).metadata_props}
    if "character" not in written:
        raise InputError("model: its metadata name no characters; take a recogniser of rapidocr-onnxruntime")
    return ["", *written["character"].split("\n"), " "]
