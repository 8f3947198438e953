import numpy as np
import pytest
import torch
from onnx import helper

from rws.benchmarks.zoo.text import characters_of, make_lines, read_lines
from rws.errors import InputError
from support.tiny import network

SIZE = (24, 160)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_phrase_is_seen_on_any_photograph(grey):
    lines = make_lines(torch.full((1, 3, 40, 40), grey, dtype=torch.uint8), ["a red fox"] * 8, SIZE, 0)
    assert (lines.shape, lines.dtype) == ((8, 3, *SIZE), torch.uint8)
    changed = (lines.float() - grey).abs()
    assert (changed.amax((1, 2, 3)) > 90).all()
    written = (changed > 10).any(1)
    assert (written.any(1).float().mean(1) > 0.3).all()  # across the strip
    assert written.float().mean((1, 2)).max() < 0.6  # most of the strip stays
    assert len({line.numpy().tobytes() for line in lines}) == 8


def test_the_same_seed_writes_the_same_lines():
    photographs = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    first, again, other = (make_lines(photographs, ["one", "two", "three"], SIZE, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("steps", "text"),
    [([1, 1, 2], "ab"), ([1, 0, 1], "aa"), ([3, 1, 3, 2, 3, 0], "a b"), ([0, 0, 0], "")],
)
def test_repeated_steps_are_one_character(steps, text):
    probabilities = np.eye(4, dtype=np.float32)[steps][None]
    assert read_lines(probabilities, ["", "a", "b", " "]) == [text]


def test_characters_are_those_of_the_metadata():
    model = network(1, 4, seed=0)
    with pytest.raises(InputError, match="name no characters"):
        characters_of(model.SerializeToString())
    helper.set_model_props(model, {"character": "x\ny"})
    assert characters_of(model.SerializeToString()) == ["", "x", "y", " "]
