import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from rws.benchmarks.oracle.frame_policies import FAMILIES, ExpectedPolicy, HardPolicy, own_alphas
from rws.benchmarks.oracle.policies import (
    CLEAN_WEIGHTS,
    RULES,
    THRESHOLDS,
    Setting,
    choose_setting,
    compare_policies,
    print_policies,
)
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from rws.oracle.belief import CLEAN, Belief, certain
from rws.oracle.policy import STEP, ExpectedGainPolicy, GainTable, ReferencePolicy, WeightedPolicy
from rws.training.evaluation.evaluator import EvaluationOptions
from rws.training.evaluation.frames import load_splits

TABLE = Bundle.load("cifar10").table
NAMES, LEVELS = TABLE.corruptions, TABLE.levels

corruptions = st.sampled_from(NAMES)
weights = st.sampled_from([0.5, 1.0, 2.0, 16.0])


@st.composite
def beliefs(draw) -> Belief:
    """Beliefs of an oracle that hesitates between a few types."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    joint = rng.gamma(draw(st.sampled_from([0.02, 0.1, 1.0])), size=1 + len(NAMES) * len(LEVELS)) + 1e-9
    return Belief(NAMES, LEVELS, (joint / joint.sum()).astype(np.float32))


@given(corruptions, st.floats(1, 5))
def test_a_certain_belief_gives_the_mix_of_the_perfect_oracle(name, severity):
    assume(abs(severity % 1 - 0.5) > 1e-3)
    perfect = ReferencePolicy(TABLE, "perfect").mix(name, severity)
    belief = certain(NAMES, LEVELS, name, severity)
    assert HardPolicy(TABLE, threshold=0.9).choose(belief) == perfect
    assert WeightedPolicy(TABLE, threshold=0.9).choose(belief) == pytest.approx(perfect, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_belief_certain_of_clean_gives_no_patch(family):
    assert FAMILIES[family](TABLE, 0.0, 1.0).choose(certain(NAMES, LEVELS, CLEAN)) == {}


@given(beliefs(), st.tuples(st.floats(0, 1), st.floats(0, 1)), weights)
def test_a_higher_threshold_only_removes_signatures(belief, thresholds, weight):
    low, high = sorted(thresholds)
    for build, scale in ((HardPolicy, 1), (WeightedPolicy, 0.99), (ExpectedPolicy, 10)):
        less, more = (build(TABLE, scale * t, weight).choose(belief) for t in (high, low))
        assert less.items() <= more.items()


@given(beliefs(), st.tuples(weights, weights))
def test_more_weight_on_clean_never_patches_more(belief, pair):
    low, high = sorted(pair)
    less, more = (HardPolicy(TABLE, 0.0, w).choose(belief) for w in (high, low))
    assert less.items() <= more.items()
    less, more = (WeightedPolicy(TABLE, 0.0, w).choose(belief) for w in (high, low))
    assert less.keys() <= more.keys()
    assert all(less[name] <= more[name] + 1e-6 for name in less)


@given(beliefs())
def test_the_weighted_mix_is_the_mean_of_the_hard_ones(belief):
    mix = WeightedPolicy(TABLE, threshold=0.0).choose(belief)
    alphas, severity = own_alphas(TABLE), belief.severity
    for index, name in enumerate(NAMES):
        share = belief.probability[1 + index]
        level = int(np.abs(np.array(LEVELS) - severity[1 + index]).argmin())
        assert mix.get(name, 0.0) == pytest.approx(share * alphas[index, level], abs=STEP / 2 + 1e-5)


@given(beliefs(), weights)
def test_without_a_threshold_the_expected_gain_is_the_devices(belief, weight):
    device = ExpectedGainPolicy(TABLE, clean_weight=weight)
    policy = ExpectedPolicy(TABLE, clean_weight=weight)
    expected = TABLE.mix(int(device.choose_batch(belief.joint[None])[0]))
    assert policy.choose(belief) == expected
    assert policy.choose(belief) == expected  # it has no memory


def test_an_unavailable_signature_is_not_mixed():
    table = TABLE.limited_to([name for name in NAMES if name != "fog"])
    belief = certain(NAMES, LEVELS, "fog", 5)
    assert HardPolicy(table).choose(belief) == {}
    assert "fog" not in WeightedPolicy(table).choose(belief)


def test_numbers_out_of_range_are_refused():
    for build in (HardPolicy, WeightedPolicy):
        with pytest.raises(InputError, match="0 <= threshold <"):
            build(TABLE, 1.5)
    for build in FAMILIES.values():
        with pytest.raises(InputError, match="clean_weight"):
            build(TABLE, 0.0, 0.0)


def test_settings_are_chosen_among_the_harmless_ones():
    def setting(threshold, weight, loss, ra):
        return Setting("hard", threshold, weight, loss, ra)

    plain, weighted = setting(0, 1, 0.5, 90.0), setting(0, 4, 0.2, 89.0)
    cut, both = setting(0.5, 1, 0.3, 89.5), setting(0.5, 4, 0.0, 88.0)
    every = [both, cut, weighted, plain]
    assert choose_setting(every, "plain", 0.2) == plain
    assert choose_setting(every, "clean weight", 0.2) == weighted
    assert choose_setting(every, "threshold", 0.2) == cut  # none is harmless: the one that loses least
    assert choose_setting(every, "both", 0.2) == weighted
    assert choose_setting(every, "both", 0.6) == plain
    with pytest.raises(InputError, match="unknown rule"):
        choose_setting(every, "best", 0.2)


@pytest.fixture(scope="module")
def result(image_folder):
    # What is shipped is a row of the table too: the plain weighted policy.
    shipped = {"kind": "weighted", "threshold": 0.0, "clean_weight": 1.0, "hold": 0.3}
    bundle = Bundle.load("cifar10")
    bundle = replace(bundle, manifest=replace(bundle.manifest, policy=shipped))
    splits = load_splits(bundle, str(image_folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rws.benchmarks.oracle.policies.CLEAN_WEIGHTS", (1.0, 4.0))
        patch.setattr("rws.benchmarks.oracle.policies.THRESHOLDS", dict.fromkeys(FAMILIES, (0.0, 0.5)))
        return compare_policies(bundle, splits, EvaluationOptions(limit=4, validation_limit=2, seed=1))


def test_every_policy_has_a_row_and_the_sums_hold(result):
    rows = {(row["policy"], row["rule"]): row for row in result["rows"]}
    assert set(rows) == {(name, rule) for name in FAMILIES for rule in RULES} | {
        (name, "") for name in ("std", "perfect", "best", "shipped")
    }
    perfect, std = rows["perfect", ""], rows["std", ""]
    assert perfect["ra"] > std["ra"] + 1
    assert perfect["regret"] == std["patched"] == std["patched_clean"] == perfect["patched_clean"] == 0
    for row in result["rows"]:
        assert row["regret"] == pytest.approx(perfect["ra"] - row["ra"], abs=0.011)
        assert row["regret_best"] == pytest.approx(rows["best", ""]["ra"] - row["ra"], abs=0.011)
        assert row["ra_minus_shipped"] == pytest.approx(row["ra"] - rows["shipped", ""]["ra"], abs=0.011)
        assert row["ra_se"] > 0 or row["ra_minus_shipped"] == 0
    shipped, same = rows["shipped", ""], rows["weighted", "plain"]
    measured = shipped.keys() - {"policy", "rule", "kind", "microseconds"}
    assert {"threshold", "clean_weight", "ta", "ra", "validation"} < measured
    assert {key: shipped[key] for key in measured} == {key: same[key] for key in measured}
    assert shipped["ra_minus_shipped"] == 0
    assert [key for key in rows if "validation" in rows[key]] == [key for key in rows if "microseconds" in rows[key]]
    assert rows["hard", "plain"]["threshold"] == 0
    assert rows["weighted", "plain"]["clean_weight"] == 1


def test_the_result_is_plain_json_and_prints(result):
    assert json.loads(json.dumps(result)) == result
    with open("/dev/null", "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        print_policies(result, console)
    text = console.export_text()
    assert "perfect" in text
    assert result["winner"] is None or result["winner"]["policy"] in text


def test_the_grid_holds_the_plain_policies():
    assert 1 in CLEAN_WEIGHTS
    assert set(THRESHOLDS) == set(FAMILIES)
    assert all(0 in values for values in THRESHOLDS.values())


def test_alphas_are_zero_without_a_signature():
    table = GainTable(
        ("a", "b"),
        (1.0,),
        np.array([-1, 0, 0]),
        np.float32([0, 0.5, 1]),
        np.float32([[90, 80, 70], [50, 60, 55], [40, 45, 45]]),
    )
    np.testing.assert_array_equal(own_alphas(table), [[0.5], [0.0]])
