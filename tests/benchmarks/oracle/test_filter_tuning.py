import numpy as np
import pytest

from rws.benchmarks.oracle.filter_tuning import (
    LARGEST_CLEAN_LOSS,
    LARGEST_LOSS_ON_MIXED,
    SPACE,
    TUNED,
    beats,
    fitting_space,
    tune_filter,
)
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from rws.training.evaluation.evaluator import EvaluationOptions, silent


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("rws.benchmarks.oracle.filter_tuning.ROUNDS", 1)
    monkeypatch.setattr("rws.benchmarks.oracle.filter_tuning.SEVERITIES", (5.0,))


def run(image_folder, space, progress=silent):
    # A tenth of the images is the validation part, each shown once per type; the tests have few.
    return tune_filter(Bundle.load("cifar10"), str(image_folder), 5, EvaluationOptions(progress=progress), space)


def test_the_search_takes_the_best_that_costs_nothing_on_mixed(image_folder):
    lines = []
    space = {"filter.jump": (0.001, 0.9, 1.0), "policy.hold": (0.0, 0.9)}
    found = run(image_folder, space=space, progress=lines.append)
    best = next(
        row
        for row in found["tried"]
        if row["filter"] == found["best"]["filter"] and row["policy"] == found["best"]["policy"]
    )
    assert len(found["tried"]) == len(lines) >= 4
    assert all(set(row["regret"]) == set(row["ta_lost"]) == set(TUNED) for row in found["tried"])
    allowed = [
        row
        for row in found["tried"]
        if row["mixed_loss"] <= LARGEST_LOSS_ON_MIXED and row["clean_loss"] <= LARGEST_CLEAN_LOSS
    ]
    for row in found["tried"]:
        # Each protocol has the same number of streams.
        assert row["clean_loss"] == pytest.approx(np.mean(list(row["ta_lost"].values())), abs=0.01)
    assert best in allowed
    assert found["best"]["filter"]["jump"] != 0.001
    assert found["best"]["policy"]["hold"] < 0.9
    assert "prior" not in found["best"]["filter"]
    stubborn = [row for row in found["tried"] if row["filter"]["jump"] == 0.001 or row["policy"]["hold"] == 0.9]
    assert all(row["mixed_loss"] > 0.5 for row in stubborn)
    assert found["tried"][0] in allowed
    assert np.isfinite([row["score"] for row in found["tried"]]).all()
    assert run(image_folder, space=space) == found


def test_the_frame_by_frame_policy_on_mixed_does_not_move_with_the_candidate(image_folder):
    # A policy that never patches is as bad frame by frame as with the filter: against itself it would lose nothing.
    found = run(image_folder, space={"policy.threshold": (0.99,)})
    (row,) = (row for row in found["tried"] if row["policy"]["threshold"] == 0.99)
    assert row["mixed_loss"] > 0.5
    assert found["best"]["policy"]["threshold"] != 0.99


def test_a_loss_on_clean_frames_excludes_a_setting():
    good = {"score": 80.0, "mixed_loss": 0.0, "clean_loss": 0.1}
    better = {"score": 81.0, "mixed_loss": 0.0, "clean_loss": 0.3}
    assert not beats(better, good)
    assert beats(good, better)
    assert beats(better | {"clean_loss": 0.2}, good)


def test_only_settings_of_the_bundles_policy_are_tried(image_folder):
    bundle = Bundle.load("cifar10")
    own = fitting_space(bundle, None)
    assert "policy.hold" in own
    assert set(SPACE) - set(own) == {"policy.margin"}
    assert "policy.clean_weight" not in SPACE
    with pytest.raises(InputError, match=r"no setting 'policy\.margin'; known: .*policy\.hold"):
        run(image_folder, space={"policy.margin": (0.0,)})


def test_a_setting_that_the_filter_does_not_take_is_named(image_folder):
    with pytest.raises(InputError, match="jump"):
        run(image_folder, space={"filter.jump": (-1.0,)})
