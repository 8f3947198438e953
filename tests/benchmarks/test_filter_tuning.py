import numpy as np
import pytest

from benchmarks.filter_tuning import LARGEST_LOSS_ON_MIXED, tune_filter
from benchmarks.protocols import PROTOCOLS
from edge.bundle import Bundle
from oracle import InputError


def run(image_folder, **settings):
    # A tenth of the images is the validation part, each shown once a type: the tests have few.
    return tune_filter(Bundle.load(), str(image_folder), frames=5, rounds=1, **settings)


def test_the_search_takes_the_best_that_costs_nothing_on_mixed(image_folder):
    lines = []
    space = {"filter.jump": (0.001, 0.9), "policy.margin": (0.0, 30.0)}
    found = run(image_folder, severities=[5.0], space=space, progress=lines.append)
    best = next(
        row
        for row in found["tried"]
        if row["filter"] == found["best"]["filter"] and row["policy"] == found["best"]["policy"]
    )
    assert len(found["tried"]) == len(lines) >= 4
    assert all(set(row["regret"]) == set(row["ta_lost"]) == set(PROTOCOLS) for row in found["tried"])
    allowed = [row for row in found["tried"] if row["mixed_loss"] <= LARGEST_LOSS_ON_MIXED]
    assert best in allowed
    assert found["best"]["filter"]["jump"] != 0.001
    assert found["best"]["policy"]["margin"] < 30
    assert "prior" not in found["best"]["filter"]
    stubborn = [row for row in found["tried"] if row["filter"]["jump"] == 0.001 or row["policy"]["margin"] == 30.0]
    assert all(row["mixed_loss"] > 0.5 for row in stubborn)
    assert found["tried"][0] in allowed
    assert np.isfinite([row["score"] for row in found["tried"]]).all()
    assert run(image_folder, severities=[5.0], space=space) == found


def test_a_setting_that_the_filter_does_not_take_is_named(image_folder):
    with pytest.raises(InputError, match="jump"):
        run(image_folder, severities=[5.0], space={"filter.jump": (-1.0,)})
