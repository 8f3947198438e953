"""Small real data that the repo carries: the clear frames of the demo's stream (CIFAR-10 test images)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rws.benchmarks.demo.demo import DemoStream, load_stream

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="session")
def demo_stream() -> DemoStream:
    return load_stream()


@pytest.fixture(scope="session")
def clear(demo_stream) -> tuple[np.ndarray, np.ndarray]:
    """Clear frames, uint8 (N, 32, 32, 3) RGB, and labels."""
    index = [i for i, layers in enumerate(demo_stream.corruptions) if not layers]
    return demo_stream.images[index], demo_stream.labels[index]


@pytest.fixture(scope="session")
def image_folder(clear, tmp_path_factory) -> Path:
    """The clear frames as <split>/<class>/<n>.png; every class is in both splits."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(*clear, strict=True)):
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number:03d}.png"), image[:, :, ::-1])
    return root


# A complete build of a few seconds.
TINY = """
name = "tiny"
seed = 1
[data]
validation = 24
[model]
width = 0.1
[init]
epochs = 2
batch_size = 16
precision = "fp32"
[continued]
epochs = 1
batch_size = 16
precision = "fp32"
[robust]
epochs = 1
batch_size = 16
precision = "fp32"
[signatures]
layers = 2
[tuned]
epochs = 1
batch_size = 16
precision = "fp32"
[oracle]
epochs = 1
batch_size = 16
widths = [8, 8]
precision = "fp32"
[calibration]
images = 12
coarse_images = 4
severities = [1, 5]
alphas = [0.5, 1.0]
neighbours = 1
neighbour_alphas = [1.0]
"""


def rws(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the installed command line in a process of its own."""
    command = [str(Path(sys.executable).with_name("rws")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def built(tiny_recipe, image_folder, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """A complete build on the clear frames: (bundle folder, work folder, the finished `rws build`)."""
    root = tmp_path_factory.mktemp("build")
    out, work = root / "bundle", root / "work"
    done = rws("build", "--recipe", tiny_recipe, "--data", image_folder, "--work", work, "--out", out, "--threads", 1)
    return out, work, done
