"""Gather the freely licensed photographs that the bundle `detector` was made from.

`python -m rws.benchmarks.zoo.free_photographs CODEC_CORPUS GB82 OUT`: checkouts of github imazen/codec-corpus and
gianni-rosato/gb82-image-set. The large ones give two squares, at their ends, or three, with the middle of it.
"""

import os
import shutil
from pathlib import Path

import cv2
import typer

from rws.errors import InputError

SIDE, LARGE = 512, 1000  # pixels


def main(codec_corpus: Path, gb82: Path, out: Path) -> None:
    """Write the photographs, 512 pixels square, into a folder."""
    small = sorted(codec_corpus.glob("CID22/CID22-512/*/*.png"))
    large = sorted([*codec_corpus.glob("clic2025/*/*.png"), *gb82.glob("png/*.png")], key=os.fspath)
    if not small or not large:
        raise InputError(f"{codec_corpus}, {gb82}: hold no photographs where they were; give checkouts of both")
    out.mkdir(parents=True, exist_ok=True)
    for file in small:
        shutil.copyfile(file, out / f"cid_{file.name}")
    for file in large:
        image = cv2.imread(str(file))
        if image is None:
            raise InputError(f"{file}: OpenCV cannot read it; check it out again")
        height, width = image.shape[:2]
        side = min(height, width)
        squares = [image[:side, :side], image[height - side :, width - side :]]
        if side > LARGE:
            top, left = height // 2 - side // 4, width // 2 - side // 4
            squares.append(image[top : top + side // 4 * 2, left : left + side // 4 * 2])
        for number, square in enumerate(squares):
            reduced = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(out / f"{file.name[:12]}_{number}.png"), reduced)


if __name__ == "__main__":
    typer.run(main)
