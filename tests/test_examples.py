"""Each example runs as a user runs it: in a separate process, from another folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from support.tiny import network

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(script: str, *arguments: object, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def video(tmp_path, clear) -> Path:
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 64))
    for image in clear[0][:5]:
        writer.write(cv2.resize(image[:, :, ::-1], (64, 64)))
    writer.release()
    return path


def test_each_example_is_short_listed_and_tested():
    table = re.findall(r"^\| \[`(\w+\.py)`\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == [path.name for path in SCRIPTS]
    tests = Path(__file__).read_text()
    for path in SCRIPTS:
        text = path.read_text()
        docstring = ast.get_docstring(ast.parse(text))
        assert f"    python examples/{path.name}" in docstring
        assert text.count("\n") <= 60, path.name
        assert f'run("{path.name}"' in tests


def test_examples_use_public_names_only():
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("_")], path.name


def test_opencv_loop(video, tmp_path):
    done = run("opencv_loop.py", video, "--save", "annotated.mp4", folder=tmp_path)
    *lines, last = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [0, 1, 2, 3, 4]
    assert last == "wrote annotated.mp4"
    saved = cv2.VideoCapture(str(tmp_path / "annotated.mp4"))
    assert saved.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert saved.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_opencv_loop_says_what_it_cannot_open(tmp_path):
    done = run("opencv_loop.py", "absent.mp4", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "cannot open absent.mp4; give a video file or a camera index"


def test_plot_beliefs(tmp_path):
    done = run("plot_beliefs.py", folder=tmp_path)
    count = len(list((EXAMPLES / "photos").glob("*.jpg")))
    assert done.stdout == f"wrote beliefs.png: {count} images\n"
    picture = cv2.imread(str(tmp_path / "beliefs.png"))
    assert picture.shape[1] == 1200
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 100


def test_live_weights(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network(3, 4, seed=0).SerializeToString())
    for arguments in ((), (path, 2)):
        done = run("live_weights.py", *arguments, folder=tmp_path)
        assert "after reset the outputs are the same, bit for bit" in done.stdout


def test_merge_adapters(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network(3, 4, seed=0).SerializeToString())
    for arguments in ((), (path, 2)):
        lines = run("merge_adapters.py", *arguments, folder=tmp_path).stdout.splitlines()
        assert len(lines) == 4
        assert all(float(re.search(r"off by (\S+) from", line)[1]) < 1e-4 for line in lines[1:])


def test_write_or_reload(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network(3, 4, seed=0).SerializeToString())
    for arguments in ((), (path, 3)):
        done = run("write_or_reload.py", *arguments, folder=tmp_path)
        assert re.search(r"changes, the same outputs: a write takes [\d.]+ ms, a reload [\d.]+\n", done.stdout)


@pytest.mark.torch
@pytest.mark.slow
def test_adopt_model(tmp_path, clear):
    for number, image in enumerate(clear[0][:20]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image[:, :, ::-1])
    path = EXAMPLES.parent / "edge/bundle/cifar10/model.onnx"
    done = run("adopt_model.py", path, tmp_path, "--out", "mine", "--steps", 3, folder=tmp_path)
    assert done.stdout.splitlines()[-1].startswith("wrote mine: gaussian_noise, ")
    assert (tmp_path / "mine" / "bundle.json").is_file()


@pytest.mark.torch
def test_replay_test_set(tmp_path):
    done = run("replay_test_set.py", "--limit", 20, "--corruptions", "fog", "contrast", folder=tmp_path)
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["accuracy", "in", "%", "no", "patch", "trained", "oracle", "perfect", "oracle"]
    accuracies = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines}
    assert list(accuracies) == ["clean", "fog", "contrast"]
    unpatched, trained, perfect = (sum(accuracies[name][arm] for name in ("fog", "contrast")) for arm in range(3))
    assert unpatched < trained <= 200
    assert unpatched < perfect <= 200
