from __future__ import annotations

import shutil
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
