import pytest

from rws.benchmarks.common.shares import interval


@pytest.mark.parametrize(("count", "of"), [(0, 250), (2, 250), (250, 250)])
def test_an_interval_holds_the_share_and_stays_within_0_and_100(count, of):
    low, high = interval(count, of)
    assert 0 <= low <= 100 * count / of <= high <= 100
    assert high - low < 5
