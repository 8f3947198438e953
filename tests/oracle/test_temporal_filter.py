import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rws.errors import InputError
from rws.oracle.belief import Belief, certain
from rws.oracle.temporal_filter import BeliefFilter

NAMES = ("fog", "snow", "frost")
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
STATES = 1 + len(NAMES) * len(LEVELS)


def unsure(name: str, trust: float) -> Belief:
    joint = trust * certain(NAMES, LEVELS, name, 4).joint + (1 - trust) / STATES
    return Belief(NAMES, LEVELS, joint.astype(np.float32))


def test_the_first_frame_keeps_the_oracles_verdict():
    belief = unsure("fog", 0.6)
    assert BeliefFilter(NAMES, LEVELS).update(belief) is belief


def test_one_odd_frame_does_not_overturn_a_steady_belief():
    smooth = BeliefFilter(NAMES, LEVELS, jump=0.01)
    for _ in range(8):
        smooth.update(unsure("fog", 0.8))
    assert smooth.update(unsure("snow", 0.6)).type == "fog"


def test_a_lasting_change_is_followed():
    smooth = BeliefFilter(NAMES, LEVELS, jump=0.05)
    for _ in range(8):
        smooth.update(unsure("fog", 0.9))
    followed = [smooth.update(unsure("snow", 0.9)).type for _ in range(4)]
    assert followed[-1] == "snow"


def test_reset_forgets():
    smooth = BeliefFilter(NAMES, LEVELS)
    for _ in range(5):
        smooth.update(unsure("fog", 0.9))
    smooth.reset()
    assert smooth.update(unsure("snow", 0.5)).type == "snow"


def beliefs_at(times, **options):
    smooth = BeliefFilter(NAMES, LEVELS, **options)
    return [smooth.update(unsure("fog", 0.8), at).joint for at in times]


@pytest.mark.parametrize("step", [1e-3, 0.04, 1.0])
@pytest.mark.parametrize("jitter", [0.0, 0.9])
def test_at_a_constant_rate_time_changes_nothing(step, jitter):
    times = [step * (number + jitter * (number % 2)) for number in range(12)]
    np.testing.assert_array_equal(beliefs_at(times), beliefs_at([None] * 12))


def test_a_gap_forgets_as_the_missing_frames_would():
    def sure_of_fog_after(gap):
        smooth = BeliefFilter(NAMES, LEVELS, jump=0.02)
        for number in range(10):
            smooth.update(unsure("fog", 0.9), number / 25)
        return smooth.update(unsure("snow", 0.5), 9 / 25 + gap).probability[1]

    sure = [sure_of_fog_after(gap) for gap in (0.04, 0.08, 0.4, 2.0, 6.0, 1e9)]
    assert sure[0] == sure[1]
    assert sure[0] > sure[2] > sure[3] > sure[4]
    assert BeliefFilter(NAMES, LEVELS).update(unsure("snow", 0.5)).probability[1] == pytest.approx(sure[-1], abs=0.05)


@pytest.mark.parametrize("times", [[0.0, 0.04, 0.0, 0.04], [0.0, 0.0, 0.0], [5.0, None, 900.0], [np.nan, 1.0, 2.0]])
def test_times_that_make_no_sense_are_one_step(times):
    np.testing.assert_array_equal(beliefs_at(times), beliefs_at([None] * len(times)))


@given(joints=st.lists(npst.arrays(np.float32, STATES, elements=st.floats(0, 1, width=32)), min_size=1, max_size=6))
def test_the_belief_stays_a_distribution(joints):
    smooth = BeliefFilter(NAMES, LEVELS)
    for joint in joints:
        normalised = (joint + 1e-6) / (joint + 1e-6).sum()
        filtered = smooth.update(Belief(NAMES, LEVELS, normalised.astype(np.float32)))
        assert filtered.joint.sum() == pytest.approx(1, abs=1e-4)
        assert (filtered.joint >= 0).all()


def test_prediction_conserves_probability_and_drifts_to_neighbours_only():
    smooth = BeliefFilter(NAMES, LEVELS, jump=1e-9, drift=0.2)
    state = certain(NAMES, LEVELS, "snow", 3).joint.astype(np.float64)
    (moved,) = smooth._predict(state[None])
    assert moved.sum() == pytest.approx(1)
    start = 1 + NAMES.index("snow") * len(LEVELS)
    np.testing.assert_allclose(moved[start : start + 5], [0, 0.1, 0.8, 0.1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"jump": 0},
        {"jump": 1.1},
        {"jump": ()},
        {"jump": (0.1, 0)},
        {"drift": 1},
        {"evidence": 0},
        {"evidence": 1.5},
        {"share": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        BeliefFilter(NAMES, LEVELS, **settings)


def test_the_update_is_bayes_rule_with_the_trainings_prior():
    prior = np.linspace(1, 3, STATES)
    prior /= prior.sum()
    smooth = BeliefFilter(NAMES, LEVELS, jump=0.1, drift=0.0, evidence=1.0, prior=prior)
    first, second = unsure("fog", 0.5), unsure("snow", 0.5)
    smooth.update(first)
    predicted = 0.9 * first.joint + 0.1 * prior
    expected = predicted * second.joint / prior
    np.testing.assert_allclose(smooth.update(second).joint, expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("prior", [[1.0], [0.0] + [1 / 15] * 15, [0.5] * 16])
def test_a_prior_that_is_not_a_distribution_is_refused(prior):
    with pytest.raises(InputError, match="prior"):
        BeliefFilter(NAMES, LEVELS, prior=prior)


def test_frames_that_have_nothing_to_do_with_one_another_keep_the_oracles_verdict():
    names = tuple(f"type {index}" for index in range(19))
    smooth, generator = BeliefFilter(names, LEVELS, jump=(0.02, 1.0)), np.random.default_rng(0)
    beliefs = []
    for _ in range(60):
        joint = 0.7 * certain(names, LEVELS, str(generator.choice(names)), generator.integers(1, 6)).joint + 0.3 / 96
        beliefs.append(Belief(names, LEVELS, joint.astype(np.float32)))
    filtered = [smooth.update(belief) for belief in beliefs]
    for before, after in zip(beliefs[10:], filtered[10:], strict=True):
        np.testing.assert_allclose(after.joint, before.joint, atol=0.05)


def test_a_steady_stream_is_smoothed_although_one_rate_is_no_smoothing():
    smooth = BeliefFilter(NAMES, LEVELS, jump=(0.02, 1.0))
    for _ in range(12):
        smooth.update(unsure("fog", 0.7))
    assert smooth.update(unsure("snow", 0.6)).type == "fog"


def test_several_rates_agree_with_one_where_all_are_the_same():
    one, several = (BeliefFilter(NAMES, LEVELS, jump=jump) for jump in (0.1, (0.1, 0.1, 0.1)))
    for name in ("fog", "fog", "snow", "frost", "fog"):
        np.testing.assert_allclose(
            several.update(unsure(name, 0.6)).joint, one.update(unsure(name, 0.6)).joint, rtol=1e-5
        )


def by_matrices(beliefs: list[Belief], rates: tuple[float, ...], drift: float, share: float) -> list[np.ndarray]:
    """The same filter, written out: one transition matrix for each rate, weights by what each has foreseen."""
    prior = np.full(STATES, 1 / ((1 + len(NAMES)) * len(LEVELS)))
    prior[0] = 1 / (1 + len(NAMES))
    staying = np.zeros((STATES, STATES))  # from, to
    for kind in range(len(NAMES)):
        rungs = [0, *range(1 + kind * len(LEVELS), 1 + (kind + 1) * len(LEVELS))]
        for place, state in enumerate(rungs):
            part = 1 / len(NAMES) if state == 0 else 1
            staying[state, state] += part * (1 - drift)
            for step in (-1, 1):
                staying[state, rungs[min(max(place + step, 0), len(LEVELS))]] += part * drift / 2
    weights = np.full(len(rates), 1 / len(rates))
    states = [beliefs[0].joint.astype(float) / beliefs[0].joint.sum() for _ in rates]
    found = [beliefs[0].joint]
    for belief in beliefs[1:]:
        likelihood = belief.joint / prior
        foreseen = [(1 - rate) * state @ staying + rate * prior for rate, state in zip(rates, states, strict=True)]
        evidence = np.array([each @ likelihood for each in foreseen])
        states = [each * likelihood / mass for each, mass in zip(foreseen, evidence, strict=True)]
        weights = weights * evidence / (weights * evidence).sum()
        found.append(sum(weight * state for weight, state in zip(weights, states, strict=True)))
        weights = (1 - share) * weights + share / len(rates)
    return found


def test_several_rates_are_weighed_by_what_each_has_foreseen():
    generator = np.random.default_rng(1)
    names = ["fog"] * 8 + list(generator.choice(NAMES, 12)) + ["snow"] * 8
    beliefs = [unsure(name, float(generator.uniform(0.3, 0.9))) for name in names]
    settings = {"jump": (0.02, 0.3, 1.0), "drift": 0.2, "share": 0.05}
    smooth = BeliefFilter(NAMES, LEVELS, **settings)
    for belief, expected in zip(beliefs, by_matrices(beliefs, (0.02, 0.3, 1.0), 0.2, 0.05), strict=True):
        np.testing.assert_allclose(smooth.update(belief).joint, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "levels"), [(NAMES[::-1], LEVELS), (NAMES, tuple(level / 2 for level in LEVELS)), (NAMES[:1], LEVELS)]
)
def test_a_belief_about_other_corruptions_or_levels_is_refused(names, levels):
    with pytest.raises(InputError, match="belief: is about"):
        BeliefFilter(NAMES, LEVELS).update(certain(names, levels, names[0], 1))


def test_a_prior_that_makes_likelihoods_infinite_is_refused():
    prior = np.full(STATES, 1 / (STATES - 1))
    prior[3] = 5e-324
    with pytest.raises(InputError, match="prior"):
        BeliefFilter(NAMES, LEVELS, prior=prior)


def test_a_belief_of_zeros_and_subnormal_numbers_leaves_the_filter_finite():
    smooth = BeliefFilter(NAMES, LEVELS)
    for name in ("fog", "snow", "fog", "clean"):
        joint = np.maximum(certain(NAMES, LEVELS, name, 3).joint, np.float32(1e-42))
        found = smooth.update(Belief(NAMES, LEVELS, joint))
        assert found.joint.sum() == pytest.approx(1, abs=1e-5)
    assert found.type == "clean"
