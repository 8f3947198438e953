import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rws.benchmarks.oracle.frame_policies import ComposingPolicy, ExpectedPolicy, HardPolicy
from rws.benchmarks.oracle.pairs import compare_pairs, draw_pairs, own_pair_mix, print_pairs
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from rws.oracle.belief import Belief, certain
from rws.oracle.policy import ReferencePolicy
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.evaluator import EvaluationOptions
from rws.training.evaluation.frames import load_splits

TABLE = Bundle.load("cifar10").table
NAMES, LEVELS = TABLE.corruptions, TABLE.levels
PERFECT = ReferencePolicy(TABLE, "perfect")

pairs = st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True)


def between(first: str, second: str, share: float, severity: float = 5) -> Belief:
    """A belief in two corruptions of one severity, `share` of it in the first."""
    joints = [certain(NAMES, LEVELS, name, severity).joint for name in (first, second)]
    return Belief(NAMES, LEVELS, (share * joints[0] + (1 - share) * joints[1]).astype(np.float32))


@given(pairs, st.sampled_from(LEVELS), st.sampled_from([0.5, 0.75, 1.0]), st.floats(0.35, 0.65))
def test_two_probable_corruptions_get_both_signatures(pair, severity, scale, share):
    policy = ComposingPolicy(TABLE, HardPolicy(TABLE), 0.3, scale)
    layers = tuple((name, severity) for name in pair)
    assert policy.choose(between(*pair, share, severity)) == pytest.approx(own_pair_mix(PERFECT, layers, scale))


@given(pairs, st.floats(0.71, 1))
def test_one_probable_corruption_goes_to_the_base_policy(pair, share):
    for base in (HardPolicy(TABLE), ExpectedPolicy(TABLE)):
        belief = between(*pair, share)
        assert ComposingPolicy(TABLE, base, 0.3).choose(belief) == base.choose(belief)


def test_clean_frames_stay_as_they_are():
    policy = ComposingPolicy(TABLE, ExpectedPolicy(TABLE), 0.05)
    assert policy.choose(certain(NAMES, LEVELS, "clean")) == {}


def test_numbers_out_of_range_are_refused():
    for threshold, scale in ((0.0, 1.0), (0.6, 1.0), (0.3, 0.0)):
        with pytest.raises(InputError, match=r"0 < threshold <= 0\.5"):
            ComposingPolicy(TABLE, HardPolicy(TABLE), threshold, scale)


def test_both_signatures_have_their_own_strength():
    fog, snow = (PERFECT.mix(name, 3) for name in ("fog", "snow"))
    mix = own_pair_mix(PERFECT, (("fog", 3.0), ("snow", 3.0)), 0.5)
    assert mix == {"fog": fog["fog"] / 2, "snow": snow["snow"] / 2}


def test_pairs_are_drawn_by_the_seed():
    drawn = draw_pairs(40, 0)
    assert len(set(drawn)) == 40
    assert all(CORRUPTIONS.index(a) < CORRUPTIONS.index(b) for a, b in drawn)
    assert drawn == draw_pairs(40, 0) != draw_pairs(40, 1)
    assert len(draw_pairs(1000, 0)) == 171


@pytest.fixture(scope="module")
def result(image_folder):
    bundle = Bundle.load("cifar10")
    splits = load_splits(bundle, str(image_folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rws.benchmarks.oracle.pairs.THRESHOLDS", (0.2, 0.4))
        patch.setattr("rws.benchmarks.oracle.pairs.SCALES", (0.5, 1.0))
        return compare_pairs(bundle, splits, 3, EvaluationOptions(limit=20, validation_limit=4, seed=1))


def test_composition_by_a_perfect_oracle_gains_accuracy_on_real_images(result):
    accuracy = {row["arm"]: row["accuracy"] for row in result["rows"]}
    assert list(accuracy) == ["std", "single", "both", "averaged", "scaled", "shipped", "expected", "composed"]
    assert accuracy["both"] > accuracy["std"] + 1
    assert accuracy["shipped"] > accuracy["std"] - 2  # one of sixty images


def test_the_averages_are_those_of_the_parts(result):
    assert len(result["per_pair"]) == 3
    for number, row in enumerate(result["rows"]):
        assert row["accuracy"] == pytest.approx((row["accuracy_3"] + row["accuracy_5"]) / 2, abs=0.02)
        assert row["accuracy"] == pytest.approx(np.mean([pair[2 + number] for pair in result["per_pair"]]), abs=0.06)
        assert row["perfect_oracle"] == (row["arm"] in ("single", "both", "averaged", "scaled"))
    rows = {row["arm"]: row for row in result["rows"]}
    assert rows["expected"]["composed"] == 0 < rows["shipped"]["composed"]
    assert result["oracle"]["both_named"] <= result["oracle"]["one_named"] <= 100
    assert 0 <= result["oracle"]["lesser_probability"] <= 0.5


def test_validation_says_what_each_policy_is_worth(result):
    validation = result["validation"]
    assert list(validation) == ["std", "shipped", "expected", "composed"]
    for arm in ("shipped", "expected", "composed"):
        assert validation[arm]["pairs"] >= validation["std"]["pairs"]
        assert validation[arm]["single"] > validation["std"]["single"]
    assert {row["arm"] for row in result["rows"] if "single" in row} == set(validation)


def test_the_result_is_plain_json_and_prints(result):
    assert json.loads(json.dumps(result)) == result
    with open("/dev/null", "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        print_pairs(result, console)
    text = console.export_text()
    assert "averaged" in text
    assert "validation: shipped" in text
