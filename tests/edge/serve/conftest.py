from __future__ import annotations

import numpy as np
import pytest

from edge.monitor import Monitor
from edge.sources import ArraySource


class Clock:
    """Stands still until it is told to move."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def source():
    return ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="camera 0")


@pytest.fixture
def monitor(source, clock):
    return Monitor(source, bundle="tiny", way="live", clock=clock)
