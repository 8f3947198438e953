import numpy as np
import pytest

from rws.edge.monitoring.health import MOST_ALERTS, MOST_BINS, PROBLEMS, Alert, Health, Timeline, problem_of
from rws.oracle.belief import FAMILIES, Belief

NAMES, LEVELS = ("fog", "defocus_blur", "hail"), (1.0, 3.0, 5.0)


def seen(name: str = "clean", severity: float = 0.0) -> Belief:
    joint = np.zeros(1 + len(NAMES) * len(LEVELS), np.float32)
    joint[0 if name == "clean" else 1 + NAMES.index(name) * len(LEVELS) + LEVELS.index(severity)] = 1
    return Belief(NAMES, LEVELS, joint)


def play(health: Health, *parts: tuple[int, Belief], start: float = 0.0) -> list[tuple[float, Alert]]:
    """A frame a second; returns the alerts that began or ended, with the moments at which they were announced."""
    announced, at = [], start
    for seconds, belief in parts:
        for _ in range(seconds):
            if (alert := health.add(belief, at)) is not None:
                announced.append((at, alert))
            at += 1
    return announced


def test_a_corruption_has_a_word():
    assert set().union(*FAMILIES.values()) <= set(PROBLEMS)
    assert [problem_of(seen(name, 3.0)) for name in NAMES] == ["fog", "out of focus", "hail"]
    assert problem_of(seen()) == ""


def test_a_problem_that_lasts_is_an_alert_until_it_is_over_as_long():
    health = Health(lasting=10)
    announced = play(health, (20, seen()), (15, seen("fog", 5.0)), (20, seen()))
    assert announced == [(30, Alert("fog", 5.0, 20)), (45, Alert("fog", 5.0, 20, 35))]
    assert list(health.alerts) == [Alert("fog", 5.0, 20, 35)]
    assert health.condition.problem == ""
    assert health.condition.since == 35


@pytest.mark.parametrize("fog", [seen("fog", 1.0), seen()])
def test_what_is_mild_is_no_alert(fog):
    assert play(Health(lasting=5), (60, fog)) == []


def test_a_short_problem_is_no_alert_and_a_short_pause_ends_none():
    fog, clear = (8, seen("fog", 3.0)), (8, seen())
    assert play(Health(lasting=10), fog, clear, fog, clear, fog) == []
    health = Health(lasting=10)
    announced = play(health, (30, seen("fog", 3.0)), clear, fog, clear, fog)
    assert [at for at, _ in announced] == [10]
    assert health.alerts[-1].ended is None


def test_another_problem_ends_an_alert_and_then_is_one():
    health = Health(lasting=10)
    play(health, (20, seen("fog", 3.0)), (40, seen("defocus_blur", 5.0)))
    assert [(alert.problem, alert.began, alert.ended) for alert in health.alerts] == [
        ("fog", 0, 20),
        ("out of focus", 31, None),
    ]


def test_the_worst_severity_is_kept():
    health = Health(lasting=2)
    play(health, (5, seen("fog", 3.0)), (5, seen("fog", 5.0)), (5, seen("fog", 3.0)))
    assert list(health.alerts) == [Alert("fog", 5.0, 0)]


def test_the_trend_is_a_change_in_a_minute():
    health = Health()
    play(health, (5, seen("fog", 1.0)))
    assert health.condition.trend is None
    play(health, (30, seen("fog", 1.0)), (30, seen("fog", 5.0)), start=5)
    assert 4 < health.condition.trend < 8
    play(health, (100, seen("fog", 5.0)), start=65)
    assert health.condition.trend == pytest.approx(0, abs=1e-6)
    assert health.condition.since == 0


def test_a_long_time_line_stays_small():
    timeline = Timeline()
    for second in range(3 * MOST_BINS):
        timeline.add(seen("fog", 5.0) if second % 2 else seen(), float(second))
    times, severities = timeline.curves()
    assert MOST_BINS / 2 <= len(times) <= MOST_BINS
    assert severities.shape == (len(times), 1 + len(NAMES))
    np.testing.assert_allclose(severities[:, 1], 2.5)
    assert (np.diff(times) == timeline.width).all()


def test_alerts_of_a_long_time_are_bounded_and_none_is_forgotten():
    health = Health(lasting=0)
    play(health, (1, seen("defocus_blur", 3.0)), (1, seen()))
    for cycle in range(MOST_ALERTS):
        play(health, (1, seen("fog", 3.0)), (1, seen()), start=2 + 2 * cycle)
    assert len(health.alerts) == MOST_ALERTS
    assert {alert.problem for alert in health.alerts} == {"fog"}
    assert health.problems == {"fog", "out of focus"}
