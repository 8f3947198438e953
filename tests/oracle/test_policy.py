import numpy as np
import pytest

from oracle import Belief, ExpectedGainPolicy, FormatError, GainTable, InputError, ToldPolicy, certain

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


def test_told_uses_the_own_signature_or_the_best_one():
    assert ToldPolicy(table(), own=True).choose_told("snow", 5) == {"snow": 1.0}
    assert ToldPolicy(table(), own=True).choose_told("clean", 0) == {}
    helped = table().accuracy.copy()
    helped[4] = [45, 80, 40, 70]
    assert ToldPolicy(table(accuracy=helped), own=False).choose_told("snow", 5) == {"fog": 0.5}
    assert ToldPolicy(table(accuracy=helped), own=True).choose_told("snow", 5) == {"snow": 1.0}
    with pytest.raises(InputError, match="rain"):
        ToldPolicy(table(), own=True).choose_told("rain", 5)


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
    assert ToldPolicy(limited, own=True).choose_told("fog", 5) == {}


def torn(share: float = 0.5) -> Belief:
    joints = [certain(NAMES, LEVELS, name, 5).joint for name in NAMES]
    return Belief(NAMES, LEVELS, (share * joints[0] + (1 - share) * joints[1]).astype(np.float32))


def test_two_probable_corruptions_get_both_signatures_at_their_strengths():
    policy = ExpectedGainPolicy(table(), pair_threshold=0.3, pair_scale=0.5)
    assert policy.choose(torn()) == {"fog": 0.5, "snow": 0.5}
    assert policy.choose(torn(0.9)) == {"fog": 1.0}
    assert policy.mixes(np.stack([torn().joint, torn(0.9).joint])) == [{"fog": 0.5, "snow": 0.5}, {"fog": 1.0}]
    assert ExpectedGainPolicy(table()).choose(torn()) == {"fog": 1.0}


def test_after_a_pair_the_best_single_action_needs_no_more_than_the_margin_over_no_patch():
    policy = ExpectedGainPolicy(table(), margin=5, pair_threshold=0.3)
    assert set(policy.choose(torn())) == {"fog", "snow"}
    assert policy.choose(certain(NAMES, LEVELS, "fog", 5)) == {"fog": 1.0}
    assert policy.choose(certain(NAMES, LEVELS, "clean")) == {"fog": 1.0}
    policy.choose(torn())
    assert policy.choose(certain(NAMES, LEVELS, "clean")) == {}


def test_a_pair_without_signatures_of_its_own_gets_the_best_action():
    limited = table().limited_to(())
    assert ExpectedGainPolicy(limited, pair_threshold=0.3).choose(torn()) == {}


@pytest.mark.parametrize("settings", [{"pair_threshold": 0.6}, {"pair_threshold": -0.1}, {"pair_scale": 0}])
def test_settings_for_pairs_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        ExpectedGainPolicy(table(), **settings)
