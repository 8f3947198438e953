from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import write_bundle
from support.tiny import bundle_parts


@pytest.fixture
def parts() -> dict:
    return bundle_parts()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Bundle:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", bundle_parts())


@pytest.fixture
def bundle_path(tiny_bundle, tmp_path) -> Path:
    """A copy of the bundle that the test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


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
