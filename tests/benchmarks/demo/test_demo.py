import json

import cv2
import numpy as np
import pytest
from PIL import ImageColor

from rws.benchmarks.demo.stream import load_stream
from rws.benchmarks.demo.video import RIGHT, WRONG, DemoVideo
from rws.edge.bundle.bundle import Bundle
from rws.edge.runtime import Runtime
from rws.records import Frame
from rws.training.corruptions import CORRUPTIONS
from support.command_line import rws
from support.demo_frames import scenario


def test_the_scenario_shows_every_corruption_clear_frames_and_mixtures():
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


def test_the_video_shows_right_and_wrong(demo_stream, tmp_path):
    runtime, video = Runtime.from_bundle(Bundle.load("cifar10")), DemoVideo(tmp_path / "frames.mp4", 5.0, demo_stream)
    runtime.compare = True
    seen = set()
    for index in (0, 43, 52):
        result = runtime.classify(demo_stream.images[index], "rgb")
        image = video.draw(Frame(index, demo_stream.images[index], 0.0, "demo"), result)
        assert image.shape == (540, 960, 3)
        panel = image[130:230, 420:]
        for half, said in zip((panel[:, :260], panel[:, 260:]), (result.unpatched, result.top[0]), strict=True):
            correct = said.class_index == demo_stream.labels[index]
            seen.add(correct)
            for (_, colour), shown in ((RIGHT, correct), (WRONG, not correct)):
                assert (half == ImageColor.getrgb(colour)).all(axis=-1).any() == shown
    assert seen == {True, False}
    assert 0 <= video.right["std"] <= video.right["trained"] <= 3


@pytest.mark.slow
def test_the_demo_writes_all_it_promises(tmp_path):
    out = tmp_path / "demo"
    done = rws("demo", "--out", out, "-v")
    summary = json.loads((out / "summary.json").read_text())
    count = len(scenario(0))
    assert summary["frames"] == count
    accuracy = summary["accuracy"]
    assert accuracy["trained"] >= accuracy["std"]
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(count))
    assert sum(line["changed"] for line in lines) == summary["mix_changes"]
    assert done.stdout.count("→") >= 19
    video = cv2.VideoCapture(str(out / "frames.mp4"))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == count
    assert video.get(cv2.CAP_PROP_FRAME_HEIGHT) == 540
    figure = cv2.imread(str(out / "timeline.png"))
    assert figure.shape[1] > 1500
    assert np.unique(figure.reshape(-1, 3), axis=0).shape[0] > 1000
    border = np.concatenate([figure[:2].ravel(), figure[-2:].ravel(), figure[:, :2].ravel(), figure[:, -2:].ravel()])
    assert (border == 255).all(), "a label is cut off at the edge"
    brief = [line for line in done.stdout.splitlines() if "→" not in line]
    assert len(brief) <= 24
    for said in ("oracle  ", "patch  ", "α  ", "no patch", "trained oracle", "perfect oracle", "standard error"):
        assert any(said in line for line in brief)
