from __future__ import annotations

import numpy as np
import pytest

from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from support.fakes import StillClock


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
def source():
    return ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="camera 0")


@pytest.fixture
def monitor(source, clock):
    return Monitor(source, bundle="tiny", strategy="live", clock=clock)
