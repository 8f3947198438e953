"""Small real data that the repo carries: the clear frames of the demo's stream (CIFAR-10 test images)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RWS_CACHE"] = "off"  # no test writes to the home folder
os.environ["PYTHONPATH"] = os.path.dirname(__file__)  # child processes import `support`, too

import re
import subprocess
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pluggy
import pytest
from hypothesis import settings

from support.command_line import CLASSES, TINY, rws

settings.register_profile("rws", deadline=None)  # no test depends on the speed of the machine
settings.load_profile("rws")

TORCH = find_spec("torch") is not None
_NEEDS_TORCH = re.compile(r"^(?:import torch|from torch|from rws\.(?:training|benchmarks))\b", re.MULTILINE)
_SLOW_FIXTURES = {"built", "command_built", "report", "reproduced", "result", "trained"}
"""They train or measure: a test that uses one is slow."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skip the tests of the other rooms if torch is absent, as on a device."""
    if TORCH or collection_path.suffix != ".py" or not _NEEDS_TORCH.search(collection_path.read_text()):
        return None
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not TORCH and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="needs torch"))
        if _SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """Escape what a test has printed or logged: pytest-xdist sends it to the main process as UTF-8."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]


@pytest.fixture(scope="session")
def demo_stream():
    from rws.benchmarks.demo.stream import load_stream  # the tests of the device run without torch, too

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


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def built(tiny_recipe, image_folder, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """A complete build on the clear frames: (bundle folder, work folder, the finished `rws train`)."""
    root = tmp_path_factory.mktemp("build")
    out, work = root / "bundle", root / "work"
    done = rws("train", image_folder, "--recipe", tiny_recipe, "--work", work, "--out", out, "--threads", 1)
    return out, work, done


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        if "RWS_REQUIRE_SYSTEM" in os.environ:
            pytest.fail("a tmpfs cannot be mounted here; run as root")
        pytest.skip("needs a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
