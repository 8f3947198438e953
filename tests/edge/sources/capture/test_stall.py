import pytest

from rws.edge.sources.capture.stall import Backoff, StallDetector

TICK = 0.25


def wait(detector, seconds, alive=False):
    """Wait in ticks; the seconds after which it is stalled, None if it never is."""
    for tick in range(1, round(seconds / TICK) + 1):
        if detector.waited(TICK, alive):
            return tick * TICK
    return None


def test_a_source_is_stalled_after_its_patience():
    detector = StallDetector(5.0)
    detector.opened()
    assert detector.patience == 5.0
    assert wait(detector, 60) == 5.25
    assert detector.silent == 5.25


def test_a_sign_of_life_or_a_frame_ends_a_silence():
    detector = StallDetector(5.0)
    detector.opened()
    assert wait(detector, 4) is None
    assert not detector.waited(TICK, alive=True)
    assert detector.silent == 0
    assert wait(detector, 4) is None
    detector.frame_came(idle_for=8.25)
    assert wait(detector, 60) == 5.25


def test_three_times_the_longest_gap_is_the_patience_and_is_forgotten_slowly():
    detector = StallDetector(5.0)
    detector.opened()
    detector.frame_came(0.0)
    assert wait(detector, 4) is None
    detector.frame_came(4.0)
    assert detector.patience == pytest.approx(12.0)
    for _ in range(1386):
        detector.frame_came(0.0)
    assert detector.patience == pytest.approx(6.0, rel=0.01)


def test_an_opening_without_frames_doubles_the_patience_until_frames_flow():
    detector = StallDetector(5.0)
    patience = []
    for _ in range(3):
        detector.opened()
        detector.fell_silent(something_came=False)
        patience.append(detector.patience)
    assert patience == [10, 20, 40]
    detector.opened()
    detector.frame_came(0.0)
    assert detector.patience == 40
    detector.frame_came(0.0)
    assert detector.patience == 5


def test_a_silence_after_frames_does_not_double_it():
    detector = StallDetector(5.0)
    detector.opened()
    detector.fell_silent(something_came=True)
    assert detector.patience == 5


def test_the_patience_never_exceeds_five_minutes():
    detector = StallDetector(5.0)
    for _ in range(1500):
        detector.opened()
        detector.fell_silent(something_came=False)
    assert detector.patience == 300


@pytest.mark.parametrize(("gap", "patience"), [(2.0, 180.0), (0.5, 5.0)])
def test_a_source_that_is_as_silent_after_reopening_has_that_rhythm(gap, patience):
    detector = StallDetector(5.0)
    detector.opened()
    detector.frame_came(0.0)
    detector.fell_silent(something_came=True)
    detector.opened()
    wait(detector, gap)
    detector.frame_came(idle_for=60.0)
    assert detector.patience == patience


def test_a_source_flows_after_ten_frames_or_ten_seconds():
    detector = StallDetector(60.0)
    detector.opened()
    for _ in range(9):
        detector.frame_came(0.0)
    assert not detector.flowing
    detector.frame_came(0.0)
    assert detector.flowing
    detector.opened()
    assert not detector.flowing
    wait(detector, 10)
    assert detector.flowing


def test_pauses_double_up_to_a_second_and_start_again_when_the_source_works():
    backoff = Backoff(None, jitter=lambda: 1.0)
    assert [backoff.failed() for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert [backoff.failed() for _ in range(5000)][-1] == 1.0
    backoff.reset()
    assert backoff.failed() == pytest.approx(0.1)


def test_jitter_shortens_a_pause_to_half_at_most():
    assert Backoff(None, jitter=lambda: 0.0).failed() == pytest.approx(0.05)


def test_only_consecutive_retries_count():
    backoff = Backoff(2, jitter=lambda: 1.0)
    assert [backoff.failed() is None for _ in range(3)] == [False, False, True]
    backoff.reset()
    assert backoff.failed() is not None
