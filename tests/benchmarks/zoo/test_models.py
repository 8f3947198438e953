import json

import onnx
import pytest

from rws.benchmarks.zoo.models import DEFAULT, ModelsOptions, examine, measure_models
from support.classifiers import ending_in, tiny


def test_a_model_is_patched_and_can_be_trained(tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny(), path)
    row = json.loads(json.dumps(examine(path, {}, 0)))
    assert (row["outcome"], row["task"], row["training"], row["refusals"]) == ("taken", "classify", "output", [])
    assert row["exact"]
    assert row["changed"]


def test_options_come_after_a_refusal(tmp_path):
    path = tmp_path / "two.onnx"
    onnx.save(ending_in(("Relu", "logits", "a"), ("Neg", "logits", "b"), outputs=["a", "b"]), path)
    asked = examine(path, {}, 0)
    assert asked["outcome"] == "refused"
    assert "--output" in asked["refusals"][0]
    answered = examine(path, {"task": "raw"}, 0)
    assert (answered["outcome"], answered["options"], answered["outputs"]) == ("taken", "--task raw", 2)
    assert answered["refusals"] == asked["refusals"]


def test_each_model_is_a_row_whatever_becomes_of_it(tmp_path):
    path = tmp_path / "none.onnx"
    path.write_text("no model")
    kept, said = [], []
    options = ModelsOptions("", tmp_path, workers=2)
    measure_models([str(path), "elsewhere/resnet"], options, said.append, lambda rows: kept.append(len(rows)))
    assert kept == [1, 2]
    assert "none refused" in said[0]
    assert "expected torchvision/NAME" in said[1]


@pytest.mark.parametrize("library", ["torchvision", "zoo"])
def test_models_are_known_by_default(library):
    assert any(spec.startswith(f"{library}/") for spec in DEFAULT)
