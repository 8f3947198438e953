import json

import av
from PIL import Image

from rws.benchmarks.demo import camera
from rws.benchmarks.demo.comparison import SIZE
from rws.benchmarks.streams.clips import Change
from support.command_line import invoke
from support.records import Reference


def test_the_camera_demo_writes_a_video_a_figure_and_a_summary(tmp_path, monkeypatch):
    changes = (Change("fog", 4, 0.2, 0.3, 0.1, 0.2), Change("gaussian_noise", 2, 0.1, 0.2, 0.1, 0.2))
    monkeypatch.setattr(camera, "CHANGES", changes)
    monkeypatch.setattr(camera, "CLEAR", 0.2)
    assert "gaussian noise" in invoke("demo", "camera", "--out", tmp_path).stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert Reference.read().complaints(summary) == []
    assert [row["name"] for row in summary["stretches"]] == ["clean", "fog", "clean", "gaussian_noise", "clean"]
    with av.open(str(tmp_path / "camera.mp4")) as video:
        shown = [frame.to_image().size for frame in video.decode(video=0)]
    assert shown == [SIZE] * summary["frames"]
    with Image.open(tmp_path / "camera.png") as sheet, Image.open(tmp_path / "camera.webp") as small:
        assert sheet.width == SIZE[0]
        assert small.height == sheet.height * 2 // 3


def test_a_classifier_cannot_play_it(tmp_path):
    done = invoke("demo", "camera", "--out", tmp_path, "--bundle", "cifar10", check=False)
    assert done.returncode == 3
    assert "draws no boxes" in done.stderr


def test_the_clip_has_its_terms_with_it():
    assert "BSD 3-Clause" in camera.CLIP.with_suffix(".txt").read_text()
