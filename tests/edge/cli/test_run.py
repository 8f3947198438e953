import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.pipeline import Pipeline
from rws.edge.preprocess import preprocess
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.open import open_source
from rws.errors import SourceError
from support.fakes import write_images
from support.tiny import bundle_parts

runner = CliRunner()


def noisy(count, height=10, width=12):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_a_video_from_end_to_end(rws, video, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    files = ["--save", out / "a.mp4", "--jsonl", out / "r.jsonl", "--json", out / "s.json"]
    result = rws("run", video, *files)
    assert result.exit_code == 0, result.output
    assert "frames 20" in result.output
    assert "p95" in result.output
    lines = [json.loads(line) for line in (out / "r.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(20))
    assert sum(line["changed"] for line in lines) == result.output.count("  ->  ")
    with open_source(out / "a.mp4") as source:
        assert len(list(source)) == source.length == 20
    summary = json.loads((out / "s.json").read_text())
    assert (summary["frames"], summary["dropped"], summary["rejected"], summary["stopped"]) == (20, 0, 0, False)
    assert (summary["bundle"], summary["backend"], summary["independent"]) == ("tiny", "onnx", False)
    assert sum(summary["classes"].values()) == 20
    assert summary["times_ms"]["predict"]["p50"] > 0
    assert sorted(os.listdir(out)) == ["a.mp4", "r.jsonl", "s.json"]


def test_the_mix_in_a_result_is_the_one_that_was_in_effect(tiny_bundle):
    images = noisy(6, 8, 8)
    with Runtime.from_bundle(tiny_bundle, ModelOptions(threads=1), independent=True) as runtime:
        results = list(runtime.stream(ArraySource(images)))
        clean = runtime.pipeline.model.predict(preprocess(images[0], 8, 8))
    reference = tiny_bundle.model(ModelOptions(threads=1))
    np.testing.assert_array_equal(clean, reference.predict(preprocess(images[0], 8, 8)))
    assert any(result.mix for result in results)
    for image, result in zip(images, results, strict=True):
        reference.apply(result.mix)
        np.testing.assert_array_equal(result.logits, reference.predict(preprocess(image, 8, 8))[0])


def test_independent_images_do_not_depend_on_their_order(tiny_bundle):
    images = noisy(8, 8, 8)
    with Runtime.from_bundle(tiny_bundle, ModelOptions(threads=1), independent=True) as runtime:
        forward = [result.logits for result in runtime.stream(ArraySource(images))]
        backward = [result.logits for result in runtime.stream(ArraySource(images[::-1]))]
        single = [runtime.classify(image, "rgb").logits for image in images]
    np.testing.assert_array_equal(forward, backward[::-1])
    np.testing.assert_array_equal(forward, single)


def test_images_get_a_line_each_and_a_broken_one_is_counted(rws, tmp_path, caplog):
    folder = write_images(tmp_path / "images", 4)
    (folder / "2.png").write_bytes(b"not an image")
    (folder / "notes.md").write_text("skipped")
    result = rws("run", folder, "--json", tmp_path / "s.json")
    assert result.exit_code == 0
    assert [re.search(rf"{n}\.png  \w+ \d+%", result.output) is not None for n in range(4)] == [True, True, False, True]
    assert "frames 3" in result.output
    assert "rejected 1" in result.output
    assert "2.png: is not an image" in caplog.text
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["frames"], summary["rejected"], summary["independent"]) == (3, 1, True)


@pytest.mark.parametrize(("option", "filtered"), [("--stream", True), ("--independent", False), (None, None)])
def test_the_filter_can_be_chosen(rws, tmp_path, monkeypatch, option, filtered):
    np.save(tmp_path / "images.npy", noisy(3))
    seen = []
    original = Pipeline.from_bundle.__func__

    def spy(cls, *arguments):
        pipeline = original(cls, *arguments)
        seen.append(pipeline.filter is not None)
        return pipeline

    monkeypatch.setattr(Pipeline, "from_bundle", classmethod(spy))
    assert rws("run", tmp_path / "images.npy", *([option] if option else [])).exit_code == 0
    assert seen == [bool(filtered)]


@pytest.mark.parametrize(
    ("shape", "data", "warns"),
    [
        ((10, 12), {}, True),
        ((10, 12), {"source": "cifar10"}, True),
        ((10, 12), {"pictures": 9}, False),  # calibrated on shrunk pictures: `rws adopt`
        ((8, 8), {}, False),
        ((8, 20), {}, False),  # cropped, not shrunk
    ],
)
@pytest.mark.parametrize(
    "options", [["run"], pytest.param(["run", "--corrupt", "fog:1"], marks=pytest.mark.torch), ["oracle"]]
)
def test_frames_larger_than_what_the_oracle_was_calibrated_on_are_warned_of_once(
    parts, rws, tmp_path, caplog, shape, data, warns, options
):
    bundle = write_bundle(tmp_path / "bundle", replace(parts, provenance={"data": data})).path
    for number, image in enumerate(noisy(3, *shape)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    command, *rest = options
    result = rws(command, f"{tmp_path}/*.png", *rest, bundle=bundle)
    assert result.exit_code == 0, result.output
    warned = [record.getMessage() for record in caplog.records if "larger than" in record.getMessage()]
    assert len(warned) == warns
    assert all("frames of 12x10 are larger than the 8x8 pixels" in line for line in warned)
    assert all("`rws adopt`" in line and "\n" not in line for line in warned)


def test_limit(rws, video, tmp_path):
    files = ["--jsonl", tmp_path / "r.jsonl", "--json", tmp_path / "s.json"]
    result = rws("run", video, "--limit", 3, *files)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3
    assert "dropped 0" in result.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["frames"], summary["dropped"], summary["rejected"]) == (3, 0, 0)
    assert summary["received"] == 3 + summary["buffered"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = {
    "missing source": (lambda t: ["nowhere.mp4"], "no such file"),
    "not a video": (lambda t: [make_text(t / "x.mp4")], "is not a video"),
    "empty folder": (lambda t: [make_folder(t / "empty")], "holds no image file"),
    "only broken images": (lambda t: [make_text(t / "x.png")], "is not an image"),
    "array of grey images": (lambda t: [make_array(t / "x.npy")], r"uint8 of shape \(2, 8, 8\)"),
    "save into a missing folder": (lambda t: [t / "ok", "--save", t / "no" / "a.mp4"], "its folder does not exist"),
    "jsonl into a missing folder": (lambda t: [t / "ok", "--jsonl", t / "no" / "a"], "its folder does not exist"),
    "json into a missing folder": (lambda t: [t / "ok", "--json", t / "no" / "a"], "its folder does not exist"),
    "save as gif": (lambda t: [t / "ok", "--jsonl", t / "a.jsonl", "--save", t / "a.gif"], r"written as \.mp4"),
    "missing bundle": (lambda t: [t / "ok", "--jsonl", t / "a.jsonl", "--bundle", t / "no"], "no such folder"),
    "not a bundle": (lambda t: [t / "ok", "--jsonl", t / "a.jsonl", "--bundle", t / "ok"], r"bundle\.json"),
}


def make_text(path):
    path.write_text("plain text " * 50)
    return path


def make_folder(path):
    path.mkdir()
    return path


def make_array(path):
    np.save(path, np.zeros((2, 8, 8), np.uint8))
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(tiny_bundle, tmp_path, case):
    write_images(tmp_path / "ok", 2)
    make, message = REFUSED[case]
    arguments = [str(argument) for argument in make(tmp_path)]
    before = sorted(tmp_path.rglob("*"))
    if "--bundle" not in arguments:
        arguments += ["--bundle", str(tiny_bundle.path)]
    result = runner.invoke(app, ["run", *arguments])
    assert result.exit_code in (3, 4), result.output
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_bundle_is_refused_before_anything_is_written(bundle_path, rws, video, tmp_path):
    truncate(bundle_path / "model.onnx")
    result = rws("run", video, "--save", tmp_path / "a.mp4", bundle=bundle_path)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "model.onnx" in result.stderr
    assert not (tmp_path / "a.mp4").exists()


class EventSource(ArraySource):
    """Eight frames; before the frame number `at` something happens."""

    sequential = True

    def __init__(self, event, at=3):
        super().__init__(noisy(8), name="event", sequential=True)
        self.event, self.at = event, at

    def frames(self):
        for frame in super().frames():
            if frame.index == self.at:
                self.event()
            yield frame


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_frame_and_closes_the_files(rws, tmp_path, monkeypatch, number):
    source = EventSource(lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr("rws.edge.cli.session.open_source", lambda spec, **options: source)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = rws("run", "0", "--jsonl", tmp_path / "r.jsonl", "--save", tmp_path / "a.mp4", "--json", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert "stopped by a signal" in result.output
    assert "frames 4" in result.output
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4
    assert len(list(open_source(tmp_path / "a.mp4"))) == 4
    assert json.loads((tmp_path / "s").read_text())["stopped"] is True
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_signal_interrupts_at_once(rws, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("rws.edge.cli.session.open_source", lambda spec, **options: EventSource(twice))
    result = rws("run", "0", "--jsonl", tmp_path / "r.jsonl")
    assert result.exit_code not in (0, 2)
    assert os.listdir(tmp_path) == []


def lose_camera():
    raise SourceError("camera 0: lost after 3 frames; check the connection and start again")


def test_what_came_before_a_lost_camera_is_kept(rws, tmp_path, monkeypatch):
    monkeypatch.setattr("rws.edge.cli.session.open_source", lambda spec, **options: EventSource(lose_camera))
    result = rws("run", "0", "--jsonl", tmp_path / "r.jsonl", "--save", tmp_path / "a.mp4")
    assert result.exit_code == 4
    assert "error: camera 0: lost after 3 frames" in result.stderr
    assert "frames 3" in result.stdout
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3
    assert len(list(open_source(tmp_path / "a.mp4"))) == 3


def test_a_broken_model_surfaces_and_leaves_no_file(rws, video, tmp_path, monkeypatch):
    calls = []

    def predict(self, x):
        calls.append(1)
        if len(calls) > 5:
            raise ZeroDivisionError("the model broke")
        return np.zeros((1, 4), np.float32)

    resets = []
    monkeypatch.setattr(OnnxModel, "predict", predict)
    monkeypatch.setattr(OnnxModel, "reset", lambda self: resets.append(1))
    before = sorted(os.listdir(tmp_path))
    result = rws("run", video, "--jsonl", tmp_path / "r.jsonl", "--save", tmp_path / "a.mp4")
    assert isinstance(result.exception, ZeroDivisionError)
    assert resets
    assert sorted(os.listdir(tmp_path)) == before


def test_severity_means_the_same_wherever_it_is_printed_and_written(rws, tiny_bundle, tmp_path):
    image = write_images(tmp_path / "images", 1) / "0.png"
    files = ["--jsonl", tmp_path / "r.jsonl", "--csv", tmp_path / "r.csv"]
    ran, told = rws("run", image, *files), rws("oracle", image, "--json", tmp_path / "b.json")
    (frame,) = open_source(image)
    belief = tiny_bundle.oracle().observe(preprocess(frame.image, 8, 8))
    severity = float(belief.severity[belief.names.index(belief.type)])
    assert abs(severity - belief.expected_severity) > 0.1
    assert f"{belief.type} {belief.probability.max():.0%}, severity {severity:.1f}" in ran.output
    assert f"{belief.type} {belief.probability.max():.0%}, severity {severity:.1f}" in told.output
    found = json.loads((tmp_path / "r.jsonl").read_text())["belief"]
    (row,) = csv.DictReader((tmp_path / "r.csv").open(newline=""))
    (told_row,) = json.loads((tmp_path / "b.json").read_text())
    assert float(row["severity"]) == found["severity"] == told_row["severity"] == round(severity, 3)
    assert found["expected_severity"] == round(belief.expected_severity, 3)


def test_a_live_source_writes_files_that_grow_and_a_table(rws, tmp_path):
    for _ in range(2):
        files = ["--csv", tmp_path / "r.csv", "--jsonl", tmp_path / "r.jsonl", "--json", tmp_path / "s.json"]
        result = rws("run", "pattern:64x64@200", "--limit", 15, "--oracle-every", 5, *files)
        assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    assert [line["observed"] for line in lines[:6]] == [True, False, False, False, False, True]
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert len(rows) == 31
    assert rows[0].startswith("index,name,")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["received"] == summary["frames"] + summary["dropped"] + summary["rejected"]
    assert summary["sinks"]["jsonl"]["written"] == summary["frames"] == 15


def test_a_camera_that_never_comes_is_an_error_for_those_who_do_not_wait(rws, tmp_path):
    result = rws("run", "97", "--retries", 1, "--json", tmp_path / "s.json")
    assert result.exit_code == 4
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "camera 97: cannot be opened" in error
    assert not (tmp_path / "s.json").exists()


@pytest.fixture
def running(bundle_path, tmp_path):
    """The real command in a process of its own, with its page; gives the page's address."""
    command = ["run", "pattern:64x64@50", "--bundle", bundle_path, "--watch", "--serve", "127.0.0.1:0"]
    command += ["--json", tmp_path / "s.json"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from rws.cli import main; main()", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if line.startswith("page: "):
                yield process, line.removeprefix("page: ").strip()
                break
        else:
            raise AssertionError(process.stderr.read())
    finally:
        process.kill()
        process.communicate()


def status_of(page):
    with urllib.request.urlopen(page + "api/status", timeout=5) as answer:
        return json.load(answer)


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def test_a_bundle_is_switched_while_the_loop_runs_and_a_broken_one_is_refused(running, bundle_path, tmp_path):
    process, page = running
    wait_for(lambda: status_of(page)["counts"]["results"] > 5)
    (bundle_path / "bundle.json").write_bytes(b"{}")
    wait_for(lambda: status_of(page)["events"].get("bundle_refused"))
    assert status_of(page)["bundle"] == "tiny"
    other = write_bundle(tmp_path / "other", bundle_parts(name="other"))
    switched = runner.invoke(app, ["bundle", "switch", str(bundle_path), str(other.path), "--other-classes"])
    assert switched.exit_code == 0, switched.output
    wait_for(lambda: status_of(page)["bundle"] == "other")
    with urllib.request.urlopen(page + "health", timeout=5) as answer:
        assert answer.status == 200
    process.terminate()
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 0
    assert "bundle refused, the old one stays" in output
    assert "bundle switched to other" in output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["bundle"] == "other"
    assert summary["events"] == {"bundle_refused": 1, "bundle_swapped": 1}
    assert summary["received"] == summary["frames"] + summary["dropped"] + summary["rejected"]


def test_the_source_can_come_from_the_environment_which_no_list_of_processes_shows(rws, video, monkeypatch):
    monkeypatch.setenv("RWS_SOURCE", str(video))
    assert "frames 20" in rws("run").output


@pytest.mark.torch
def test_a_video_is_corrupted_on_purpose_and_compared(rws, video, tmp_path):
    files = ["--jsonl", tmp_path / "r.jsonl", "--json", tmp_path / "s.json", "--save", tmp_path / "a.mp4"]
    result = rws("run", video, "--corrupt", "fog:3", *files)
    assert result.exit_code == 0, result.output
    assert "agreement with the clean model on the clean frame" in result.output
    assert json.loads((tmp_path / "s.json").read_text())["agreement"]["frames"] == 20
    line = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert line["on_original"]["label"]
    (frame, *_) = open_source(tmp_path / "a.mp4")
    assert frame.image.shape[1] > 2 * 320
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["corrupt"], report["seed"]) == ("fog:3", 0)
    refused = rws("run", video, "--corrupt", "rain:3")
    assert (refused.exit_code, "expected TYPE:SEVERITY" in refused.stderr) == (3, True)
