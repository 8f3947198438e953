import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.sources.capture.decoding.base import credible
from rws.edge.sources.capture.decoding.timeline import LONGEST_GAP, LONGEST_PAUSE, Timeline

WRAP = 2**33 / 90_000  # seconds after which the counter of TS starts again


def placed(stamps, longest_pause=LONGEST_GAP):
    timeline = Timeline(longest_pause, 0.04)
    return [timeline.place(stamp) for stamp in stamps], timeline


@pytest.mark.parametrize("start", [0.0, 1.4, -1.0, WRAP - 0.06])
def test_time_starts_at_0_wherever_the_stamps_start(start):
    times, timeline = placed([(start + n / 25) % WRAP if start > 2 else start + n / 25 for n in range(5)])
    assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert timeline.end == pytest.approx(0.2)
    assert timeline.jumps == (1 if start > 2 else 0)


@pytest.mark.parametrize("second", [0.0, 1.4, 5.0, 1000.0, 1e9])
def test_a_second_recording_follows_the_first(second):
    times, timeline = placed([3 + n / 25 for n in range(3)] + [second + n / 25 for n in range(3)])
    if second == 5.0:  # it may be a pause
        assert times[3:] == pytest.approx([2.0, 2.04, 2.08])
    else:
        assert times == pytest.approx([n / 25 for n in range(6)])
    assert timeline.jumps == (second != 5.0)


def test_a_pause_stays_and_says_nothing_of_the_next_frame():
    times, timeline = placed([0.0, 0.1, 60.1], LONGEST_PAUSE)
    assert times == [0.0, 0.1, 60.1]
    assert timeline.end == pytest.approx(60.2)


def test_frames_without_a_stamp_follow_the_last_one():
    assert placed([None, None, 5.0, None])[0] == pytest.approx([0, 0.04, 5.0, 5.04])


def test_the_end_is_what_the_last_frame_or_the_header_says():
    timeline = Timeline(LONGEST_PAUSE, 0.04)
    assert timeline.end is None
    timeline.declare_end(9.0)
    assert timeline.end is None
    timeline.place(3.0, lasts=0.001)  # FFmpeg's duration of one tick, of a file without a rate
    assert timeline.end == 0.04
    timeline.place(4.0, lasts=2.5)
    assert timeline.end == 3.5
    timeline.declare_end(5.0)
    assert timeline.end == 3.5
    timeline.declare_end(9.0)
    assert timeline.end == 6.0
    timeline.declare_end(1e30)
    assert timeline.end == 6.0 + LONGEST_PAUSE


@given(st.lists(st.one_of(st.none(), st.floats(-1e12, 1e12)), min_size=1), st.sampled_from([LONGEST_GAP, 1e5]))
def test_time_never_runs_backwards_or_far_ahead(stamps, longest_pause):
    times, timeline = placed(stamps, longest_pause)
    steps = [after - before for before, after in zip(times, [*times[1:], timeline.end], strict=True)]
    assert times[0] == 0
    assert min(steps) >= 0
    assert max(steps) <= longest_pause * (1 + 1e-6)


@pytest.mark.parametrize("rate", [None, 0, -1, 1e-6, 600, 1000, 90_000, 180_000, float("nan"), float("inf")])
def test_a_rate_that_stands_for_nothing_is_none(rate):
    assert credible(rate) is None


@pytest.mark.parametrize("rate", [0.01, 1, 23.976, 10_000_000 / 333_333, 120, 240])
def test_a_rate_is_a_rate(rate):
    assert credible(rate) == rate
