import pytest

from rws.benchmarks.common.models import load_model
from rws.benchmarks.oracle.cost import CASES, measure_oracle
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import ORACLE


@pytest.mark.slow
def test_every_model_has_a_row_for_each_part_and_the_ratios_are_of_the_times():
    bundle = Bundle.load("cifar10")
    other = load_model("squeezenet1_1", size=32)
    result = measure_oracle(bundle, [other], rounds=2, repeats=2)
    assert [(row["model"], row["case"]) for row in result["rows"]] == [
        (name, case) for name in (bundle.manifest.name, other.name) for case in CASES
    ]
    assert result["bytes"] == (bundle.path / ORACLE).stat().st_size
    for row in result["rows"]:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["ms"] > 0
