"""A tiny recipe, and the command line: in this process, or as it is installed in a separate one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from typer.testing import CliRunner

from rws.cli import app

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
    """Run the installed command line in a separate process."""
    command = [str(Path(sys.executable).with_name("rws")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def invoke(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, without the seconds that imports take; an unexpected exception passes."""
    words = ["rws", *map(str, arguments)]
    with patch.object(sys, "argv", words):
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert not check or result.exit_code == 0, result.stderr
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)
