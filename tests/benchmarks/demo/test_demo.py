import json

import cv2
import numpy as np
import pytest

from rws.benchmarks.demo.stream import load_stream
from rws.training.corruptions import CORRUPTIONS
from support.command_line import rws
from support.demo_frames import scenario


def test_the_scenario_shows_every_corruption_clear_spells_and_mixtures():
    frames = scenario(0)
    assert {name for layers in frames for name in layers} == set(CORRUPTIONS)
    assert all(any(layers == {name: 5.0} for layers in frames) for name in CORRUPTIONS)
    assert sum(not layers for layers in frames) >= 40
    assert sum(len(layers) == 2 for layers in frames) >= 20
    assert all(0 < severity <= 5 for layers in frames for severity in layers.values())


def test_the_bundled_stream_is_the_scenario(demo_stream):
    assert [list(layers) for layers in demo_stream.corruptions] == [list(layers) for layers in scenario(0)]
    assert demo_stream.images.shape == (len(scenario(0)), 32, 32, 3)
    assert demo_stream.labels.max() <= 9
    assert load_stream().images.std() > 20


@pytest.mark.slow
def test_the_demo_writes_all_it_promises(tmp_path):
    out = tmp_path / "demo"
    done = rws("demo", "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    count = len(scenario(0))
    assert summary["frames"] == count
    accuracy = summary["accuracy"]
    assert accuracy["trained"] > accuracy["std"] + 10
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(count))
    assert sum(line["changed"] for line in lines) == summary["mix_changes"]
    assert done.stdout.count("→") >= 19
    video = cv2.VideoCapture(str(out / "frames.mp4"))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == count
    picture = cv2.imread(str(out / "timeline.png"))
    assert picture.shape[1] > 1500
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 1000
