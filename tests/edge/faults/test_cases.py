"""The drill itself: each fault, with its promise."""

import os

import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.faults.cases import CASES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_promise_is_kept(case, pipeline, tmp_path):
    outcome = case.run(Bundle.load("cifar10"), pipeline, tmp_path)
    if outcome.skipped:
        assert not os.environ.get("RWS_REQUIRE_SYSTEM"), outcome.skipped
        pytest.skip(outcome.skipped)
    assert outcome.failures == []
    assert outcome.accounted
    assert outcome.happened
    assert outcome.promised.endswith(".")
