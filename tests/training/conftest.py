"""A complete build on a few real images: every job, minimal epochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=300)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def built(tiny_recipe, image_folder, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """(bundle folder, work folder, the finished `rws build`)."""
    root = tmp_path_factory.mktemp("build")
    out, work = root / "bundle", root / "work"
    done = rws("build", "--recipe", tiny_recipe, "--data", image_folder, "--work", work, "--out", out, "--threads", 1)
    return out, work, done
