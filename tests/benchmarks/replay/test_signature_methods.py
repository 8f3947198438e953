import json
import shutil

import pytest

from rws.training.corruptions import CORRUPTIONS
from support.command_line import invoke


@pytest.fixture(scope="module")
def compared(built, tiny_recipe, image_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("methods")
    shutil.copytree(built[1], root / "work")
    given = ("--work", root / "work", "--data", image_folder, "--recipe", tiny_recipe)
    invoke("bench", "methods", *given, "--limit", 10, "--json", root / "methods.json")
    return json.loads((root / "methods.json").read_text())


def test_both_methods_are_measured_alone_quantised_and_in_pairs(compared):
    scores = ("ra_validation", "ra", "ra_8bit_channel", "ra_4bit_tensor", "ra_two_corruptions", "ra_pair_halves")
    for method in ("tuned", "residual"):
        assert all(0 <= compared[method][score] <= 100 for score in scores)
        assert set(compared[method]["alpha"]) == set(CORRUPTIONS)
        assert compared[method]["train_seconds"] > 0
    assert "ra_whole_robust_models" in compared["residual"]
    assert compared["test_images"] == 10
    assert len({tuple(pair) for pair in compared["pairs"]}) == 20
