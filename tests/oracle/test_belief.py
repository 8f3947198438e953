import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.errors import InputError
from rws.oracle.belief import Belief, certain, check_probabilities

NAMES = ("fog", "snow")
LEVELS = (1.0, 3.0, 5.0)


def test_probability_and_severity_follow_from_the_joint():
    belief = Belief(NAMES, LEVELS, np.array([0.2, 0.1, 0.0, 0.3, 0.4, 0.0, 0.0], np.float32))
    np.testing.assert_allclose(belief.probability, [0.2, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(belief.severity, [0, (0.1 * 1 + 0.3 * 5) / 0.4, 1.0], atol=1e-5)
    assert belief.expected_severity == pytest.approx(0.1 * 1 + 0.3 * 5 + 0.4 * 1, abs=1e-5)
    assert (belief.type, belief.type_severity) == ("fog", pytest.approx(4.0))


def test_a_type_without_mass_has_the_mean_level_as_severity():
    assert certain(NAMES, LEVELS, "fog", 5).severity[2] == pytest.approx(3.0)


def test_wrong_joint_shape_is_refused():
    with pytest.raises(InputError, match=r"expected \(7,\)"):
        Belief(NAMES, LEVELS, np.zeros(6, np.float32))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    "values",
    [
        [np.nan, 0, 0, 0, 0, 0, 1],
        [np.inf, 0, 0, 0, 0, 0, 0],
        [np.inf, -np.inf, 0, 0, 0, 0, 1],
        [1.5, -0.5, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1e-40, 1e-40, 1e-40, 1e-40, 1e-40, 1e-40, 1e-40],
        [0.5, 0.5, 0.01, 0, 0, 0, 0],
    ],
    ids=["NaN", "infinite", "both infinities", "negative", "all zero", "subnormal sum", "sum of 1.01"],
)
def test_only_probabilities_make_a_belief(values):
    with pytest.raises(InputError, match="expected probabilities"):
        Belief(NAMES, LEVELS, np.float32(values))
    rows = np.float32([[1, 0, 0, 0, 0, 0, 0], values])
    with pytest.raises(InputError, match="expected probabilities"):
        check_probabilities(rows)
    check_probabilities(rows[:1])
    check_probabilities(rows[:0])


@pytest.mark.parametrize("levels", [(0.0, 3.0, 5.0), (1.0, 3.0, 100.0), (1.0, 3.0, np.inf)])
def test_severities_stay_within_their_range(levels):
    with pytest.raises(InputError, match="severity levels"):
        Belief(NAMES, levels, certain(NAMES, LEVELS, "fog", 3).joint)


def test_a_subnormal_probability_gives_a_severity_within_its_range():
    belief = Belief(NAMES, LEVELS, np.float32([1, 0, 0, 0, 1e-40, 0, 3e-40]))
    np.testing.assert_allclose(belief.severity, [0, 3, 3])
    assert (belief.type, belief.type_severity) == ("clean", 0)


@given(severity=st.floats(0, 5), name=st.sampled_from(NAMES))
def test_certain_has_the_given_severity(severity, name):
    belief = certain(NAMES, LEVELS, name, severity)
    assert belief.joint.sum() == pytest.approx(1, abs=1e-6)
    assert belief.expected_severity == pytest.approx(severity, abs=1e-5)
    assert belief.probability[list(belief.names).index(name)] + belief.joint[0] == pytest.approx(1, abs=1e-6)


def test_certain_refuses_an_unknown_corruption():
    with pytest.raises(InputError, match="rain"):
        certain(NAMES, LEVELS, "rain", 2)
