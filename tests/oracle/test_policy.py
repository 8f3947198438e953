import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.errors import FormatError, InputError
from rws.oracle.belief import Belief, certain
from rws.oracle.policy import (
    STEP,
    ExpectedGainPolicy,
    GainTable,
    PatchLimits,
    ReferencePolicy,
    WeightedPolicy,
    make_policy,
)

NAMES = ("fog", "snow")
LEVELS = (1.0, 5.0)


def table(**changes) -> GainTable:
    #                     none  fog.5 fog1  snow1
    accuracy = np.array(
        [
            [90, 88, 85, 80],  # clean
            [85, 86, 84, 70],  # fog 1
            [40, 60, 75, 30],  # fog 5
            [85, 84, 80, 86],  # snow 1
            [45, 50, 40, 70],  # snow 5
        ],
        np.float32,
    )
    parts = {
        "corruptions": NAMES,
        "levels": LEVELS,
        "signature": np.array([-1, 0, 0, 1]),
        "alpha": np.array([0, 0.5, 1, 1], np.float32),
        "accuracy": accuracy,
    }
    return GainTable(**(parts | changes))


@pytest.mark.parametrize(
    ("name", "severity", "mix"),
    [("clean", 0, {}), ("fog", 5, {"fog": 1.0}), ("fog", 1, {"fog": 0.5}), ("snow", 5, {"snow": 1.0})],
)
def test_a_certain_belief_gets_the_best_action_of_its_state(name, severity, mix):
    assert ExpectedGainPolicy(table()).choose(certain(NAMES, LEVELS, name, severity)) == mix


def test_a_torn_belief_gets_the_action_that_is_good_for_both():
    joint = 0.5 * certain(NAMES, LEVELS, "fog", 5).joint + 0.5 * certain(NAMES, LEVELS, "snow", 5).joint
    policy = ExpectedGainPolicy(table())
    assert policy.table.mix(int(policy.choose_batch(joint[None])[0])) == {"fog": 1.0}  # 57.5 against 55, 50, 42.5


def test_the_margin_keeps_the_action_in_force():
    policy = ExpectedGainPolicy(table(), margin=5)
    assert policy.choose(certain(NAMES, LEVELS, "fog", 5)) == {"fog": 1.0}
    assert policy.choose(certain(NAMES, LEVELS, "fog", 1)) == {"fog": 1.0}
    assert policy.choose(certain(NAMES, LEVELS, "clean")) == {"fog": 1.0}
    policy.reset()
    assert policy.choose(certain(NAMES, LEVELS, "fog", 1)) == {}


def test_the_weight_on_clean_makes_patching_rarer():
    joint = (0.3 * certain(NAMES, LEVELS, "clean").joint + 0.7 * certain(NAMES, LEVELS, "snow", 1).joint)[None]
    assert ExpectedGainPolicy(table()).choose_batch(joint)[0] == 0
    certain_snow = (0.05 * certain(NAMES, LEVELS, "clean").joint + 0.95 * certain(NAMES, LEVELS, "snow", 1).joint)[None]
    assert ExpectedGainPolicy(table()).choose_batch(certain_snow)[0] == 3
    assert ExpectedGainPolicy(table(), clean_weight=64).choose_batch(certain_snow)[0] == 0


def test_a_reference_uses_the_own_signature_or_the_best_one():
    assert ReferencePolicy(table(), "perfect").mix("snow", 5) == {"snow": 1.0}
    assert ReferencePolicy(table(), "perfect").mix("clean", 0) == {}
    helped = table().accuracy.copy()
    helped[4] = [45, 80, 40, 70]
    assert ReferencePolicy(table(accuracy=helped), "best").mix("snow", 5) == {"fog": 0.5}
    assert ReferencePolicy(table(accuracy=helped), "perfect").mix("snow", 5) == {"snow": 1.0}
    with pytest.raises(InputError, match="rain"):
        ReferencePolicy(table(), "perfect").mix("rain", 5)
    with pytest.raises(InputError, match="'always', expected perfect or best"):
        ReferencePolicy(table(), "always")


def test_the_arrays_round_trip():
    again = GainTable.from_arrays(table().to_arrays(), NAMES, LEVELS)
    for name in ("signature", "alpha", "accuracy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table(), name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": np.zeros((4, 4), np.float32)}, "expected"),
        ({"accuracy": np.full((5, 4), np.nan, np.float32)}, "not finite"),
        ({"signature": np.array([0, 0, 0, 1])}, "no patch"),
        ({"signature": np.array([-1, 0, 0, 2])}, "2 corruptions"),
    ],
)
def test_a_broken_table_is_refused(changes, message):
    with pytest.raises(FormatError, match=message):
        table(**changes)


def test_a_missing_tensor_is_named():
    arrays = table().to_arrays()
    del arrays["gain.alpha"]
    with pytest.raises(FormatError, match=r"gain\.alpha"):
        GainTable.from_arrays(arrays, NAMES, LEVELS)


@pytest.mark.parametrize("settings", [{"margin": -1}, {"clean_weight": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        ExpectedGainPolicy(table(), **settings)


def test_a_table_without_some_signatures_no_longer_chooses_them():
    limited = table().limited_to(("snow",))
    assert ExpectedGainPolicy(limited).choose(certain(NAMES, LEVELS, "fog", 5)) == {}
    assert ExpectedGainPolicy(limited).choose(certain(NAMES, LEVELS, "snow", 5)) == {"snow": 1.0}
    assert ReferencePolicy(limited, "perfect").mix("fog", 5) == {}


def torn(share: float = 0.5, clean: float = 0.0) -> Belief:
    joints = [certain(NAMES, LEVELS, name, 5).joint for name in (*NAMES, "clean")]
    weights = (share * (1 - clean), (1 - share) * (1 - clean), clean)
    return Belief(NAMES, LEVELS, sum(w * j for w, j in zip(weights, joints, strict=True)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "severity", "mix"),
    [("clean", 0, {}), ("fog", 5, {"fog": 1.0}), ("fog", 1, {"fog": 0.5}), ("snow", 5, {"snow": 1.0})],
)
def test_a_certain_belief_gets_the_types_own_signature(name, severity, mix):
    policy = WeightedPolicy(table())
    assert policy.choose(certain(NAMES, LEVELS, name, severity)) == mix
    assert policy.choose(certain(NAMES, LEVELS, name, severity)) == ReferencePolicy(table(), "perfect").mix(
        name, severity
    )


@given(share=st.floats(0, 1), clean=st.floats(0, 1))
def test_a_torn_belief_gets_both_signatures_by_their_probabilities(share, clean):
    belief = torn(share, clean)
    mix = WeightedPolicy(table(), threshold=0.1).choose(belief)
    for name, probability in zip(NAMES, belief.probability[1:], strict=True):
        if probability < 0.099:
            assert name not in mix
        elif probability > 0.101:
            assert mix[name] == pytest.approx(float(probability), abs=STEP / 2 + 1e-6)
            assert mix[name] / STEP == round(mix[name] / STEP)


def test_the_weight_on_clean_makes_every_signature_weaker():
    assert WeightedPolicy(table()).choose(torn(1.0, 0.5)) == {"fog": 0.5}
    assert WeightedPolicy(table(), clean_weight=3).choose(torn(1.0, 0.5)) == {"fog": 0.25}
    assert WeightedPolicy(table(), clean_weight=16).choose(torn(1.0, 0.5)) == {}


def test_a_mix_is_held_until_it_differs_enough_and_never_beyond_a_clean_frame():
    policy = WeightedPolicy(table(), hold=0.2)
    assert policy.choose(torn(0.5)) == {"fog": 0.5, "snow": 0.5}
    assert policy.choose(torn(0.625)) == {"fog": 0.5, "snow": 0.5}
    assert policy.choose(torn(0.75)) == {"fog": 0.75, "snow": 0.25}
    assert policy.choose(certain(NAMES, LEVELS, "clean")) == {}
    assert policy.choose(torn(1.0, 0.85)) == {}
    policy.choose(torn(0.5))
    policy.reset()
    assert policy.choose(torn(1.0, 0.85)) == {}


def test_frames_on_their_own_get_what_choose_gives():
    beliefs = [torn(share, clean) for share in (0, 0.3, 0.7, 1) for clean in (0, 0.4, 1)]
    for policy in (WeightedPolicy(table()), ExpectedGainPolicy(table())):
        found = policy.mixes(np.stack([belief.joint for belief in beliefs]))
        for belief, mix in zip(beliefs, found, strict=True):
            policy.reset()
            assert policy.choose(belief) == mix


def test_a_corruption_without_a_signature_gets_that_of_a_neighbour_if_one_helps():
    only_fog = WeightedPolicy(table().limited_to(("fog",)))
    assert only_fog.choose(certain(NAMES, LEVELS, "snow", 5)) == {"fog": 0.5}  # 50 against 45
    assert only_fog.choose(certain(NAMES, LEVELS, "snow", 1)) == {}  # 84 against 85
    assert only_fog.choose(torn()) == {"fog": 0.75}
    assert WeightedPolicy(table().limited_to(())).choose(torn()) == {}


def test_the_estimate_of_a_mix_is_what_was_measured_where_it_was_measured():
    found = table()
    for action in range(4):
        np.testing.assert_allclose(found.estimate(found.mix(action)), found.accuracy[:, action])
    np.testing.assert_allclose(found.estimate({"fog": 0.75})[2], 67.5)
    np.testing.assert_allclose(found.estimate({"fog": 0.25})[2], 50)
    # In fog 5: +20 by fog at 0.5, -5 by half of snow; in snow 5: +5 and +12.5.
    np.testing.assert_allclose(found.estimate({"fog": 0.5, "snow": 0.5})[[2, 4]], [55, 62.5])
    assert found.estimate({"fog": 1.0, "snow": 1.0})[1] <= found.accuracy[1].max()


@pytest.mark.parametrize("settings", [{"threshold": 1}, {"threshold": -0.1}, {"clean_weight": 0}, {"hold": -1}])
def test_settings_of_weights_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        WeightedPolicy(table(), **settings)


def test_a_bundles_settings_name_the_policy():
    assert isinstance(make_policy(table(), {"margin": 0.5, "clean_weight": 2}), ExpectedGainPolicy)
    weighted = make_policy(table(), {"kind": "weighted", "hold": 0.1, "threshold": 0.2})
    assert isinstance(weighted, WeightedPolicy)
    assert weighted.hold == 0.1
    assert make_policy(table(), {"kind": "weighted", "hold": 0.1}, independent=True).hold == 0
    assert make_policy(table(), {"margin": 0.5}, independent=True).margin == 0
    with pytest.raises(InputError, match="unknown kind 'magic'"):
        make_policy(table(), {"kind": "magic"})


@pytest.mark.parametrize(
    "ask",
    [
        lambda: table().own("rain"),
        lambda: table().estimate({"fog": 0.5, "rain": 0.5}),
        lambda: ReferencePolicy(table(), "perfect").action("rain", 3),
    ],
)
def test_an_unknown_corruption_is_refused_by_name(ask):
    with pytest.raises(InputError, match="unknown corruption 'rain'; known: fog, snow"):
        ask()


@pytest.mark.parametrize("kind", [WeightedPolicy, ExpectedGainPolicy])
def test_a_belief_about_other_corruptions_or_levels_is_refused(kind):
    policy = kind(table())
    for names, levels in ((("snow", "fog"), LEVELS), (NAMES, (1.0, 4.0)), (("fog",), LEVELS)):
        with pytest.raises(InputError, match="belief: is about"):
            policy.choose(certain(names, levels, "fog", 3))
    with pytest.raises(InputError, match=r"shape \(2, 4\), expected 5 states"):
        policy.mixes(np.full((2, 4), 0.25, np.float32))


@pytest.mark.parametrize(
    ("limits", "severity", "allowed"),
    [
        (PatchLimits(), 0.0, True),
        (PatchLimits(min_severity=2.0), 1.0, False),
        (PatchLimits(min_severity=2.0), 2.0, True),
        (PatchLimits(leave_clean=True), 5.0, False),
    ],
)
def test_limits_allow_a_patch_from_a_severity_on(limits, severity, allowed):
    belief = certain(("fog", "snow"), (1.0, 2.0, 5.0), "fog" if severity else "clean", severity)
    assert limits.allow(belief) is allowed


@pytest.mark.parametrize("severity", [-0.1, 5.1, float("nan"), float("inf")])
def test_a_least_severity_out_of_range_is_refused(severity):
    with pytest.raises(InputError, match="expected 0 to 5"):
        PatchLimits(min_severity=severity)
