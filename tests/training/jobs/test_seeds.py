import ast
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rws.benchmarks
import rws.training
from rws.training.corruptions import CORRUPTIONS, seeds_for
from rws.training.jobs.seeds import derive_seed

PURPOSES = {
    "calibration",
    "cameras",
    "clips",
    "continued training",
    "frames",
    "oracle calibration",
    "oracle training",
    "oracle training, layer 0",
    "oracle training, layer 1",
    "parity",
    "signature training",
    "statistics of types",
    "streams",
    "test",
    "throughput",
    "training",
    "validation",
    "whole images",
}


def calls(name):
    for room in (rws.training, rws.benchmarks):
        for path in Path(room.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and name in (getattr(node.func, key, "") for key in ("id", "attr")):
                    yield path, node


def test_sets_of_draws_of_different_purpose_corruption_severity_or_number_never_share_a_seed():
    keys = [
        (seed, *key)
        for seed in (0, 1, 2, 1000)
        for key in product(sorted(PURPOSES), ("", *CORRUPTIONS), (0, 1, 3, 5), (0, 1, 2, 19))
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


@given(*(st.tuples(st.integers(0, 50), st.sampled_from(sorted(PURPOSES)), st.integers(0, 9)) for _ in "ab"))
def test_the_samples_of_two_sets_have_no_seed_in_common(one, other):
    found = [set(seeds_for(derive_seed(seed, what, draw=draw), 50).tolist()) for seed, what, draw in (one, other)]
    assert found[0] & found[1] == (found[0] if one == other else set())


def test_the_list_of_purposes_is_that_of_the_code():
    named = set()
    for _, call in calls("derive_seed"):
        if isinstance(call.args[1], ast.Constant):
            named.add(call.args[1].value)
    assert named <= PURPOSES
    assert PURPOSES - named == {"oracle training, layer 0", "oracle training, layer 1", "test"}


@pytest.mark.parametrize("name", ["seeds_for", "manual_seed", "default_rng"])
def test_no_seed_is_made_by_arithmetic(name):
    found = [(path.name, ast.unparse(call)) for path, call in calls(name) if isinstance(call.args[0], ast.BinOp)]
    assert found == []


def test_a_seed_is_the_same_on_every_machine_and_fits_all_generators():
    assert derive_seed(0, "test", "fog", 5) == derive_seed(0, "test", "fog", 5.0, 0)
    assert derive_seed(0, "test", "fog", 5) == 1306256989660292996
    assert all(0 <= derive_seed(seed, "test") < 2**62 for seed in (-1, 0, 2**63))
