"""Corrupt images with the original generators of CIFAR-10-C, in the layout of that data set.

They need packages of their time, in a separate environment (see docs/guides/replay.md), so nothing of ours is imported:

    python benchmarks/corruptions/originals.py robustness/ImageNet-C/create_c small-c

The folder holds `clean.npy` (uint8 (N, 32, 32, 3), RGB) and `labels.npy` (N or 5 N integers). One file per corruption
is written into it, uint8 (5 N, 32, 32, 3), severities 1 to 5 one after another, and `labels.npy` for all of them.
"""

import argparse
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GENERATOR, END = "make_cifar_c.py", "# /////////////// End Distortions ///////////////"
_CHANGED = {
    "multichannel=True": "channel_axis=-1",  # its name since scikit-image 0.19
    "mode='s&p', amount=c": "mode='s&p', amount=c, seed=np.random.randint(2**31)",  # else no seed reaches it
}


def load_generators(folder: Path) -> dict[str, Any]:
    """Return the original functions by corruption, each (PIL image, severity 1…5) → image 0…255.

    Runs the file without the part that reads CIFAR-10 and writes the data set. Exits with a line if it is another file.
    """
    path = folder / GENERATOR
    text = path.read_text() if path.is_file() else ""
    if END not in text:
        sys.exit(f"{path}: not the generator of github hendrycks/robustness; give its folder ImageNet-C/create_c")
    for old, new in _CHANGED.items():
        text = text.replace(old, new)
    functions, rest = text.split(END)
    lines = [line for line in functions.splitlines() if not line.startswith(("import torch", "from torch"))]
    names: dict[str, Any] = {}
    exec(compile("\n".join(lines), GENERATOR, "exec"), names)
    found = [line.rpartition("= ")[2].strip() for line in rest.splitlines() if line.startswith("d['")]
    return {name: names[name] for name in found}


def corrupt(generator: Any, clean: Any, name: str, seed: int) -> Any:
    """Return uint8 (5 N, H, W, 3): clean images uint8 (N, H, W, 3) at severities 1 to 5, each with its own draws."""
    made = []
    for severity in range(1, 6):
        for index, image in enumerate(clean):
            np.random.seed(zlib.crc32(f"{seed}/{name}/{severity}/{index}".encode()))
            made.append(np.uint8(generator(Image.fromarray(image), severity)))
    return np.stack(made)


def main(generators: Path, folder: Path, seed: int = 0) -> None:
    """Write the files of all corruptions that are not there yet."""
    clean, labels = np.load(folder / "clean.npy"), np.load(folder / "labels.npy")
    np.save(folder / "labels.npy", np.tile(labels[: len(clean)], 5))
    functions = load_generators(generators)
    out = folder.resolve()
    os.chdir(generators)  # frost reads its photographs from there
    for name, function in functions.items():
        if (out / f"{name}.npy").exists():
            continue
        np.save(out / "part.npy", corrupt(function, clean, name, seed))
        (out / "part.npy").rename(out / f"{name}.npy")
        print(name, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", type=Path, help="ImageNet-C/create_c of a clone of hendrycks/robustness")
    parser.add_argument("folder", type=Path, help="with clean.npy and labels.npy")
    main(**vars(parser.parse_args()))
