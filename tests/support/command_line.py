"""A tiny recipe, and the installed command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

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
