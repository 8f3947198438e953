import csv
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import typer
from rich.progress import Progress
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.cli.running.results import describe_belief, image_block, image_line
from rws.edge.cli.running.session import TimeLeft
from rws.edge.faults.frames import encode_jpeg, scene
from rws.edge.faults.servers import MjpegServer
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.pipeline import Pipeline
from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.open import open_source
from rws.errors import SourceError
from rws.oracle.belief import certain
from support.bundle_files import make_costly
from support.command_line import rws as installed_rws
from support.fakes import CORRUPTIONS, LEVELS, StillClock, make_result, write_images
from support.tiny import bundle_parts, failing_oracle

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
    assert "p95" not in result.output
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
        clean = runtime.pipeline.model.predict(preprocess(images[0], SPEC)[0])[0]
    reference = tiny_bundle.model(ModelOptions(threads=1))
    np.testing.assert_array_equal(clean, reference.predict(preprocess(images[0], SPEC)[0])[0])
    assert any(result.mix for result in results)
    for image, result in zip(images, results, strict=True):
        reference.apply(result.mix)
        np.testing.assert_array_equal(result.logits, reference.predict(preprocess(image, SPEC)[0])[0][0])


def test_independent_images_do_not_depend_on_their_order(tiny_bundle):
    images = noisy(8, 8, 8)
    with Runtime.from_bundle(tiny_bundle, ModelOptions(threads=1), independent=True) as runtime:
        forward = [result.logits for result in runtime.stream(ArraySource(images))]
        backward = [result.logits for result in runtime.stream(ArraySource(images[::-1]))]
        single = [runtime.classify(image, "rgb").logits for image in images]
    np.testing.assert_array_equal(forward, backward[::-1])
    np.testing.assert_array_equal(forward, single)


def test_each_image_gets_a_line_and_a_broken_one_is_counted(rws, tmp_path, caplog):
    folder = write_images(tmp_path / "images", 4)
    (folder / "2.png").write_bytes(b"not an image")
    (folder / "notes.md").write_text("skipped")
    result = rws("run", folder, "--json", tmp_path / "s.json")
    assert result.exit_code == 0
    assert [re.search(rf"{n}\.png  \w+ \d+%", result.output) is not None for n in range(4)] == [True, True, False, True]
    assert "images 3 · rejected 1 (undecodable 1)" in result.output
    assert not re.search("frames [0-9]|p95", result.output)
    assert "2.png: is not an image" in caplog.text
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["frames"], summary["rejected"], summary["independent"]) == (3, 1, True)


@pytest.mark.parametrize(("option", "filtered"), [("--stream", True), ("--independent", False), (None, None)])
def test_the_filter_can_be_chosen(rws, tmp_path, monkeypatch, option, filtered):
    np.save(tmp_path / "images.npy", noisy(3))
    seen = []
    original = Pipeline.sharing

    def spy(*arguments):
        pipeline = original(*arguments)
        seen.append(pipeline.filter is not None)
        return pipeline

    monkeypatch.setattr(Pipeline, "sharing", spy)
    assert rws("run", tmp_path / "images.npy", *([option] if option else [])).exit_code == 0
    assert seen == [bool(filtered)]


@pytest.mark.parametrize(
    ("shape", "data", "warns"),
    [
        ((10, 12), {}, True),
        ((10, 12), {"source": "cifar10"}, True),
        ((10, 12), {"pictures": 9}, False),  # calibrated on shrunk images: `rws adopt`
        ((8, 8), {}, False),
        ((8, 20), {}, False),  # cropped, not shrunk
    ],
)
@pytest.mark.parametrize(
    "options", [["run"], pytest.param(["run", "--corrupt", "fog:1"], marks=pytest.mark.torch), ["oracle"]]
)
def test_one_warning_for_frames_larger_than_the_oracle_was_calibrated_on(
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
    assert all("`rws adopt --help`" in line and "\n" not in line for line in warned)


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


SPEC = InputSpec(8, 8, "RGB")
REFUSED = {
    "missing source": (4, lambda t: ["nowhere.mp4"], "no such file"),
    "not a video": (4, lambda t: [make_text(t / "x.mp4")], "is not a video"),
    "empty folder": (4, lambda t: [make_folder(t / "empty")], "holds no image file"),
    "only broken images": (4, lambda t: [make_text(t / "x.png")], "is not an image"),
    "array of grey images": (3, lambda t: [make_array(t / "x.npy")], r"uint8 of shape \(2, 8, 8\)"),
    "save into a missing folder": (3, lambda t: [t / "ok", "--save", t / "no" / "a.mp4"], "its folder does not exist"),
    "jsonl into a missing folder": (3, lambda t: [t / "ok", "--jsonl", t / "no" / "a"], "its folder does not exist"),
    "json into a missing folder": (3, lambda t: [t / "ok", "--json", t / "no" / "a"], "its folder does not exist"),
    "save as gif": (2, lambda t: [t / "ok", "--jsonl", t / "a.jsonl", "--save", t / "a.gif"], r"written as \.mp4"),
    "missing bundle": (3, lambda t: [t / "ok", "--jsonl", t / "a.jsonl", "--bundle", t / "no"], "no such folder"),
    "nothing": (2, lambda t: [""], "the source is empty"),
    "unknown strategy": (2, lambda t: [t / "ok", "--strategy", "fast"], "expected auto, live, split, inputs"),
    "no address": (2, lambda t: [t / "ok", "--serve", "here"], "is not an address"),
    "short token": (2, lambda t: [t / "ok", "--serve", "127.0.0.1:0", "--token", "abc"], "has 3 characters"),
    "a repeated camera": (2, lambda t: ["0", "--loop"], "^error: camera 0: cannot be repeated; --loop takes video"),
    "a repeated stream": (2, lambda t: ["rtsp://u:p@host/x", "--loop"], "^error: rtsp://host: cannot be repeated"),
    "a repeated pipe": (2, lambda t: [make_pipe(t / "p"), "--loop"], "p: cannot be repeated"),
    "a repeated test image": (2, lambda t: ["pattern", "--loop"], "pattern: cannot be repeated"),
    "a repeated file that is not there": (4, lambda t: ["nowhere.mp4", "--loop"], "no such file"),
    "not a bundle": (3, lambda t: [t / "ok", "--jsonl", t / "a.jsonl", "--bundle", t / "ok"], r"bundle\.json"),
}


def make_text(path):
    path.write_text("plain text " * 50)
    return path


def make_pipe(path):
    os.mkfifo(path)
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
    code, make, message = REFUSED[case]
    arguments = [str(argument) for argument in make(tmp_path)]
    before = sorted(tmp_path.rglob("*"))
    if "--bundle" not in arguments:
        arguments += ["--bundle", str(tiny_bundle.path)]
    result = runner.invoke(app, ["run", *arguments])
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "outputs"),
    [
        ("clip.mp4", "--save clip.mp4"),
        ("link.mp4", "--save clip.mp4"),
        ("file:clip.mp4", "--jsonl clip.mp4"),
        ("1.png", "--csv hard.png"),
        (".", "--json 1.png"),
        ("list.txt", "--jsonl 1.png"),
        ("list.txt", "--csv list.txt"),
        ("file:images.npy", "--json images.npy"),
        ("1.png", "--jsonl new --csv ./new"),
        ("1.png", "--csv new --json new"),
    ],
)
def test_no_output_replaces_what_is_read_or_another_output(rws, video, tmp_path, monkeypatch, source, outputs):
    monkeypatch.chdir(tmp_path)
    os.symlink(video, "link.mp4")
    write_images(tmp_path, 1)
    image = next(tmp_path.glob("*.png")).rename("1.png")
    os.link(image, "hard.png")
    Path("list.txt").write_text("1.png\n")
    np.save("images.npy", np.zeros((1, 32, 32, 3), np.uint8))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = rws("run", source, *outputs.split())
    assert result.exit_code == 2
    assert re.search("would be replaced|is given for two outputs", result.stderr)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_truncated_bundle_is_refused_before_anything_is_written(bundle_path, rws, video, tmp_path):
    truncate(bundle_path / "model.onnx")
    result = rws("run", video, "--save", tmp_path / "a.mp4", bundle=bundle_path)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "model.onnx" in result.stderr
    assert not (tmp_path / "a.mp4").exists()


def test_a_video_is_repeated_until_the_limit(rws, video, tmp_path):
    files = ["--jsonl", tmp_path / "r.jsonl", "--save", tmp_path / "a.mp4", "--json", tmp_path / "s.json"]
    rws("run", video, "--loop", "--limit", 50, *files)
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(50))
    times = [line["media_time_s"] for line in lines]
    np.testing.assert_allclose(np.diff(times), times[1] - times[0], atol=1e-3)
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["frames"] == 50
    assert summary["received"] == summary["frames"] + summary["dropped"] + summary["rejected"] + summary["buffered"]
    with open_source(tmp_path / "a.mp4") as source:
        assert len(list(source)) == 50


def mixes(path):
    return [json.loads(line)["mix"] for line in path.read_text().splitlines()]


def test_a_patch_can_be_held_back_by_hand(rws, tmp_path):
    np.save(tmp_path / "images.npy", noisy(12))
    lines, summary = tmp_path / "r.jsonl", tmp_path / "s.json"
    run = ("run", tmp_path / "images.npy", "--jsonl", lines, "--json", summary)
    rws(*run)
    before = mixes(lines)
    severities = [json.loads(line)["belief"]["severity"] for line in lines.read_text().splitlines()]
    assert any(before)
    assert json.loads(summary.read_text())["leave_clean"] is False
    rws(*run, "--leave-clean")
    assert mixes(lines) == [{}] * 12
    assert json.loads(summary.read_text())["leave_clean"] is True
    least = round(float(np.median(severities)), 1)
    rws(*run, "--min-severity", least)
    assert mixes(lines) == [mix if severity >= least else {} for mix, severity in zip(before, severities, strict=True)]
    assert json.loads(summary.read_text())["min_severity"] == least
    refused = runner.invoke(app, ["run", str(tmp_path / "images.npy"), "--min-severity", "5.1"])
    assert refused.exit_code == 2
    assert "--min-severity" in refused.output


def test_the_page_holds_the_patch_back_while_the_loop_runs(running):
    _, page = running

    def ask(query):
        request = urllib.request.Request(f"{page}limits?{query}", method="POST")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    wait_for(lambda: status_of(page)["result"])
    for leave_clean in (True, False):
        assert ask(f"leave_clean={int(leave_clean)}&min_severity=0")["leave_clean"] is leave_clean
        index = status_of(page)["result"]["index"]
        wait_for(lambda index=index: status_of(page)["result"]["index"] > index + 5)
        status = status_of(page)
        assert status["limits"] == {"leave_clean": leave_clean, "min_severity": 0}
        assert not (leave_clean and status["result"]["mix"])
    assert status["events"]["limits_set"] == 2


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
    monkeypatch.setattr("rws.edge.cli.running.options.open_source", lambda spec, **options: source)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = rws("run", "0", "--jsonl", tmp_path / "r.jsonl", "--save", tmp_path / "a.mp4", "--json", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert "stopped by a signal" in result.output
    assert "frames 4" in result.output
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4
    assert len(list(open_source(tmp_path / "a.mp4"))) == 4
    assert json.loads((tmp_path / "s").read_text())["stopped"] is True
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_bundle_loads_ends_the_run_as_a_later_one(rws, tmp_path, monkeypatch, number):
    def load(*arguments):
        os.kill(os.getpid(), number)
        return loaded(*arguments)

    loaded = Bundle.load
    monkeypatch.setattr(Bundle, "load", load)
    result = rws("run", "pattern:64x64", "--json", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    assert "stopped by a signal" in result.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["stopped"], summary["frames"]) == (True, 0)


def test_memory_is_given_back_while_a_run_goes_on(rws, monkeypatch):
    frozen = []
    monkeypatch.setattr("rws.edge.cli.running.session.RETURN_MEMORY_EVERY", 0.0)
    monkeypatch.setattr("rws.edge.cli.running.session.return_memory", lambda: frozen.append(gc.get_freeze_count()))
    assert rws("run", "pattern:64x64", "--limit", "4").exit_code == 0
    assert len(frozen) >= 3
    assert min(frozen) > 1000
    assert gc.get_freeze_count() == 0


def test_a_second_signal_interrupts_at_once(rws, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("rws.edge.cli.running.options.open_source", lambda spec, **options: EventSource(twice))
    result = rws("run", "0", "--jsonl", tmp_path / "r.jsonl")
    assert result.exit_code not in (0, 2)
    assert os.listdir(tmp_path) == []


def lose_camera():
    raise SourceError("camera 0: lost after 3 frames; check the connection and start again")


def test_what_came_before_a_lost_camera_is_kept(rws, tmp_path, monkeypatch):
    monkeypatch.setattr("rws.edge.cli.running.options.open_source", lambda spec, **options: EventSource(lose_camera))
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
        return (np.zeros((1, 4), np.float32),)

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
    ran, named = rws("run", image, *files), rws("oracle", image, "--json", tmp_path / "b.json")
    (frame,) = open_source(image)
    belief = tiny_bundle.oracle().observe(preprocess(frame.image, SPEC)[0])
    severity = float(belief.severity[belief.names.index(belief.type)])
    assert abs(severity - belief.expected_severity) > 0.1
    assert f"{describe_belief(belief)}  (" in ran.output
    assert f"{describe_belief(belief)}  (" in named.output
    found = json.loads((tmp_path / "r.jsonl").read_text())["belief"]
    (row,) = csv.DictReader((tmp_path / "r.csv").open(newline=""))
    (named_row,) = json.loads((tmp_path / "b.json").read_text())["images"]
    assert float(row["severity"]) == found["severity"] == named_row["severity"] == round(severity, 3)
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
    assert rows[0].startswith("schema,index,name,")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["received"] == summary["frames"] + summary["dropped"] + summary["rejected"]
    assert summary["sinks"]["jsonl"]["written"] == summary["frames"] == 15


def test_a_missing_camera_is_an_error_without_retries(rws, tmp_path):
    result = rws("run", "97", "--retries", 1, "--json", tmp_path / "s.json")
    assert result.exit_code == 4
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "camera 97: cannot be opened" in error
    assert not (tmp_path / "s.json").exists()


@pytest.fixture
def running(bundle_path, tmp_path, request):
    """The real command in a separate process, with its page; gives the page's address."""
    command = ["run", "pattern:64x64@50", "--bundle", bundle_path, "--watch", "--serve", "127.0.0.1:0"]
    command += ["--json", tmp_path / "s.json", *getattr(request, "param", [])]
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


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def test_a_bundle_is_swapped_while_the_loop_runs_and_a_broken_one_is_refused(running, bundle_path, tmp_path):
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
    assert "bundle swapped: now other" in output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["bundle"] == "other"
    assert summary["events"] == {"bundle_refused": 1, "bundle_swapped": 1}
    assert summary["received"] == summary["frames"] + summary["dropped"] + summary["rejected"]


def test_a_candidate_without_end_holds_up_nothing(running, bundle_path):
    process, page = running
    wait_for(lambda: status_of(page)["counts"]["results"] > 5)
    make_costly(bundle_path)
    wait_for(lambda: children(process.pid))  # the source has none
    before = status_of(page)["counts"]["results"]
    wait_for(lambda: status_of(page)["counts"]["results"] > before + 20)
    (child,) = children(process.pid)
    process.terminate()
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not Path(f"/proc/{child}").exists()
    assert "stopped by a signal" in output
    assert "Traceback" not in errors


@pytest.mark.parametrize("running", [[], ["--other-classes"]], indirect=True)
def test_a_watched_bundle_with_other_classes_must_be_asked_for(running, bundle_path, request):
    process, page = running
    accepted = bool(request.node.callspec.params["running"])
    wait_for(lambda: status_of(page)["counts"]["results"] > 5)
    write_bundle(bundle_path, bundle_parts(name="other", classes=("circle", "wave", "star", "square")))
    wait_for(lambda: status_of(page)["events"])
    assert status_of(page)["events"] == {"bundle_swapped" if accepted else "bundle_refused": 1}
    process.terminate()
    output = process.communicate(timeout=20)[0]
    expected = f"bundle refused, the old one stays: {bundle_path}: has other classes than the run"
    assert ("bundle swapped: now other" if accepted else expected) in output
    assert accepted or "(the same in another order); add --other-classes" in output


def test_the_source_can_come_from_the_environment(rws, video, monkeypatch):
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
    assert frame.image.shape[1] > 2 * 7 * 64  # both whole frames, enlarged, and the panel
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["corrupt"], report["seed"]) == ("fog:3", 0)
    refused = rws("run", video, "--corrupt", "hail:3")
    assert (refused.exit_code, "expected TYPE:SEVERITY" in refused.stderr) == (2, True)


def test_without_a_source_it_says_what_a_source_can_be():
    result = runner.invoke(app, ["run"])
    assert (result.exit_code, result.stdout) == (2, "")
    for example in (
        "run 0 ",
        "clip.mp4",
        "photo.jpg",
        "photos/",
        '"shots/*.png"',
        "list.txt",
        ".npy",
        "rtsp://",
        " ! ",
    ):
        assert example in result.stderr
    assert max(map(len, result.stderr.splitlines())) <= 80


def test_an_image_is_first_what_it_shows_then_how_good_it_is_then_what_was_patched(rws, tmp_path):
    image = write_images(tmp_path / "images", 1) / "0.png"
    name, *rows = rws("run", image).stdout.strip().splitlines()
    assert name == str(image)
    assert [row.split()[0] for row in rows] == ["class", "image", "patch"]
    assert re.search(r"class +\w+ \d+%  \(then \w+ \d+%, \w+ \d+%\)$", rows[0])
    for option in ("--timings", "-v"):
        more = rws("run", image, option).stdout
        assert "frames 1" in more
        assert "p95" in more
    assert rws("run", image, "-q").stdout.splitlines() == [name, *rows]


def test_the_lines_about_an_image():
    fog, clean = certain(CORRUPTIONS, LEVELS, "fog", 3.2), certain(CORRUPTIONS, LEVELS, "clean")
    patched, unpatched = make_result(mix={"fog": 0.8}, belief=fog), make_result(belief=clean)
    assert image_block(patched).plain.splitlines()[2:] == ["  image  fog 100%, severity 3.2 of 5", "  patch  fog 0.80"]
    assert image_block(unpatched).plain.splitlines()[2] == "  image  clean 100%"
    line = image_line(patched, None).plain
    assert line == "frame 0  cat 75% · fog 100%, severity 3.2 · patch fog 0.80"
    assert image_line(patched, len(line)).plain == line
    assert image_line(patched, 40).plain.splitlines() == [
        "frame 0",
        "    cat 75% · fog 100%, severity 3.2 ·",
        "    patch fog 0.80",
    ]
    assert image_line(unpatched, 80).plain == "frame 0  cat 75% · clean 100% · no patch"


def test_several_images_are_one_list_in_the_order_given(rws, tmp_path):
    folder = write_images(tmp_path / "images", 3)
    single = write_images(tmp_path / "other", 1) / "0.png"
    result = rws("run", folder / "2.png", single, f"{folder}/[01].png", "--csv", "-")
    assert result.exit_code == 0, result.output
    names = [row["name"] for row in csv.DictReader(result.stdout.splitlines())]
    assert names == [str(path) for path in (folder / "2.png", single, folder / "0.png", folder / "1.png")]


def write_config(path, text):
    path.write_text(text)
    return path


def test_a_file_holds_the_options_and_the_command_line_comes_first(rws, video, tmp_path):
    text = f'source = "{video}"\njsonl = "{tmp_path}/r.jsonl"\njson = "{tmp_path}/s.json"\noracle_every = 5\n'
    config = write_config(tmp_path / "run.toml", f"{text}limit = 4\nindependent = true\nstall = 3\ntimings = true\n")
    result = rws("run", "--config", config)
    assert result.exit_code == 0, result.output
    assert "p95" in result.output
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["frames"], report["independent"]) == (4, True)
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["observed"] for line in lines] == [True, False, False, False]
    rws("run", "pattern:64x64@100", "--config", config, "--stream", "--limit", 6)
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["source"], report["frames"], report["independent"]) == ("test pattern 64x64", 6, False)


def test_the_environment_comes_before_the_file(rws, video, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "with a space", 2)
    config = write_config(tmp_path / "run.toml", f"source = ['{video}']")
    assert "frames 20" in rws("run", "--config", config).output
    monkeypatch.setenv("RWS_SOURCE", str(folder))
    assert "images 2" in rws("run", "--config", config).output


def test_every_option_can_stand_in_the_file_under_its_long_name(tmp_path):
    command = typer.main.get_command(app).get_command(None, "run")
    options = [max(parameter.opts, key=len) for parameter in command.params if parameter.expose_value]
    keys = {option.removeprefix("--").replace("-", "_") for option in options} - {"config"}
    result = runner.invoke(app, ["run", "--config", str(write_config(tmp_path / "run.toml", "zzz = 1"))])
    known = result.stderr.rpartition("known: ")[2].partition(";")[0]
    assert set(known.split(", ")) == keys >= {"source", "json", "strategy", "token"}


BAD_CONFIGS = {
    "unknown key": ("limt = 3", "key 'limt' is unknown (did you mean limit?)"),
    "the spelling of the command line": ("oracle-every = 3", "(did you mean oracle_every?)"),
    "nothing like it": ("zzz = 3", "known: source, bundle"),
    "the file itself": ('config = "a.toml"', "key 'config' is unknown"),
    "an option of the run in a camera": (
        "[camera.front]\nsource = 0\nlimit = 3",
        "limit is an option of the whole run",
    ),
    "unknown key of a camera": ("[camera.front]\nsource = 0\nlable = 'a'", "camera 'front': key 'lable' is unknown"),
    "camera without a source": ("[camera.front]\nlabel = 'a'", "camera 'front': has no source"),
    "camera without a table": ("[camera]\nfront = 0", "[camera] holds no tables"),
    "name of a camera": ("[camera.'a/b']\nsource = 0", "a name has 1 to 40 letters, digits, - and _"),
    "too many cameras": ("".join(f"[camera.c{n}]\nsource = 0\n" for n in range(65)), "has 65 cameras, 64 are allowed"),
    "text for a number": ('limit = "3"', "limit is '3', expected a valid integer"),
    "truth for a number": ("limit = true", "limit is True, expected a valid integer"),
    "number for truth": ("watch = 1", "watch is 1, expected a valid boolean"),
    "number for a path": ("save = 1", "save is 1, expected a valid string"),
    "out of range": ("limit = 0", "limit is 0, expected greater than or equal to 1"),
    "unknown choice": ('backend = "tpu"', "backend is 'tpu', expected 'onnx' or 'torch'"),
    "number for a source": ("source = 3.5", "source is 3.5, expected text or a list of texts"),
    "list of numbers": ("source = [1]", "expected text or a list of texts"),
    "date": ("limit = 2020-01-01", "not plain JSON"),
    "no number": ("stall = nan", "not plain JSON"),
    "no TOML": ("limit = ", "is not valid TOML in UTF-8"),
    "key twice": ("limit = 1\nlimit = 2", "is not valid TOML in UTF-8"),
    "deep": ("a = " + "[" * 100_000, "is nested more than 32 deep"),
    "deep by dots": ("a" + ".a" * 3000 + " = 1", "is nested more than 32 deep"),
    "large": ("# " + "x" * 2**20, "expected at most 1048576"),
    "endless number": ("limit = " + "9" * 5000, "is not valid TOML in UTF-8"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_configuration_file_is_refused_in_one_line(tmp_path, case):
    text, message = BAD_CONFIGS[case]
    result = runner.invoke(app, ["run", "pattern", "--config", str(write_config(tmp_path / "run.toml", text))])
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1), result.output
    assert message in result.stderr


def test_a_configuration_that_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'source = "caf\xe9.png"')
    os.mkfifo(tmp_path / "fifo.toml")
    found = {
        "latin.toml": "is not valid TOML in UTF-8 ('utf-8' codec can't decode",
        "fifo.toml": "cannot be read (not a regular file)",
        "nowhere.toml": "No such file",
    }
    for name, message in found.items():
        result = runner.invoke(app, ["run", "--config", str(tmp_path / name)])
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
        assert message in result.stderr


def test_it_says_that_it_waits_for_a_camera(rws):
    result = rws("run", "97", "--retries", 0)
    assert result.exit_code == 4
    assert "waiting for camera 97; Ctrl-C ends" in result.stdout


@pytest.mark.parametrize(("option", "first"), [("--jsonl", '{"'), ("--csv", "schema,index,name,")])
def test_lines_stream_to_stdout_and_the_rest_goes_to_stderr(video, tiny_bundle, option, first):
    done = installed_rws("run", video, option, "-", "--bundle", tiny_bundle.path)
    lines = done.stdout.splitlines()
    assert len(lines) == 20 + (option == "--csv")
    assert lines[0].startswith(first)
    assert "frames 20" in done.stderr
    assert "frames" not in done.stdout


def test_a_reader_of_the_first_lines_only_gets_no_traceback(tiny_bundle):
    command = [
        str(Path(sys.executable).with_name("rws")),
        "run",
        "pattern:64x64@200",
        "--bundle",
        str(tiny_bundle.path),
    ]
    with subprocess.Popen([*command, "--jsonl", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert json.loads(run.stdout.readline())["index"] == 0
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=60) == 0
    assert "Traceback" not in said
    assert "Broken pipe" not in said


@pytest.mark.parametrize("files", [[], ["--jsonl", "r.jsonl"]])
def test_a_run_that_only_prints_ends_with_its_reader(tiny_bundle, tmp_path, files):
    command = [sys.executable, "-m", "rws", "run", "pattern:64x64@200", "--independent", "--limit", "1000", *files]
    command += ["--bundle", str(tiny_bundle.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as run:
        assert run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=60) == 0
    assert "Traceback" not in said
    assert [len((tmp_path / name).read_text().splitlines()) for name in files[1:]] == [1000 for _ in files[1:]]


def test_only_one_output_can_have_stdout(rws, video):
    for pair in (("--jsonl", "--csv"), ("--json", "--jsonl")):
        result = rws("run", video, *(word for option in pair for word in (option, "-")))
        assert (result.exit_code, result.stdout) == (2, "")
        assert "only one output can go to stdout" in result.stderr


def test_the_time_left_is_shown_only_when_it_is_known():
    clock = StillClock()
    progress = Progress(column := TimeLeft(), get_time=clock)
    progress.add_task("video", total=1000)
    (task,) = progress.tasks
    shown = []
    for _ in range(14):
        clock.now += 0.25
        progress.advance(task.id)
        shown.append(column.render(task).plain)
    assert shown[:9] == [""] * 9
    assert shown[10].startswith("0:04:0")


def test_names_that_are_not_utf8_reach_every_output_of_the_installed_command(tiny_bundle, tmp_path):
    folder = write_images(tmp_path / "images", 4)
    for index, name in enumerate(
        [b"caf\xe9.png", b"a\x1b]0;title\x07.png", "c\u202egnp.png".encode(), b"[red]\n:warning:.png"]
    ):
        (folder / f"{index}.png").rename(folder / os.fsdecode(name))
    out = tmp_path / os.fsdecode(b"out\xe9")
    out.mkdir()
    outputs = ["--save", out / "a.mp4", "--jsonl", out / "r.jsonl", "--csv", out / "r.csv", "--json", out / "s.json"]
    done = installed_rws("run", folder, *outputs, "--bundle", tiny_bundle.path)
    names = [r"[red]\n:warning:.png", r"a\x1b]0;title\x07.png", r"caf\xe9.png", r"c\u202egnp.png"]
    assert all(name in done.stdout for name in names)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.stdout + done.stderr)
    lines = [json.loads(line)["name"] for line in (out / "r.jsonl").read_text("utf-8").splitlines()]
    with (out / "r.csv").open(newline="", encoding="utf-8") as file:
        rows = [row["name"] for row in csv.DictReader(file)]
    assert lines == rows
    assert sorted(Path(name).name for name in lines) == sorted(names)
    assert json.loads((out / "s.json").read_text("utf-8"))["frames"] == 4
    with open_source(out / "a.mp4") as source:
        assert len(list(source)) == 4


def test_a_camera_whose_password_has_a_blank_stays_unnamed_in_every_output(tiny_bundle, tmp_path):
    with MjpegServer(lambda number: encode_jpeg(scene(48, 64, number))) as server:
        address = f"http://admin:se cret@1@127.0.0.1:{server.port}/video.mjpg?key=hush"
        outputs = ["--jsonl", tmp_path / "r.jsonl", "--csv", tmp_path / "r.csv", "--json", tmp_path / "s.json"]
        done = installed_rws(
            "run", address, "--token", "t0ken-of-mine", "--limit", 3, *outputs, "--bundle", tiny_bundle.path
        )
    said = done.stdout + done.stderr + "".join(path.read_text() for path in sorted(tmp_path.glob("*.*s*")))
    for secret in ("cret", "admin", "video.mjpg", "hush", "t0ken"):
        assert secret not in said
    assert json.loads((tmp_path / "s.json").read_text())["source"] == f"http://127.0.0.1:{server.port}"


def test_a_nul_or_a_token_of_another_type_in_the_configuration_is_one_line(rws, tmp_path):
    for text, expected in {
        'source = "pattern"\nsave = "a\\u0000.mp4"': "'save' contains a NUL character",
        'source = ["a\\u0000.png"]': "'source' contains a NUL character",
        'source = "pattern"\ntoken = 12345678': "token is ***, expected",
    }.items():
        (tmp_path / "run.toml").write_text(text)
        result = rws("run", "--config", tmp_path / "run.toml")
        assert result.exit_code == 3
        assert expected in result.stderr
        assert "12345678" not in result.stderr


@pytest.mark.parametrize("kind", ["nan", "inf", "shape", "error"])
def test_an_oracle_that_fails_on_some_frames_costs_these_frames_only(rws, tmp_path, kind):
    bundle = write_bundle(tmp_path / "bundle", bundle_parts(oracle=failing_oracle(kind)))
    frames = np.random.default_rng(0).integers(0, 200, (6, 8, 8, 3), dtype=np.uint8)
    frames[2] = 255
    np.save(tmp_path / "frames.npy", frames)
    lines, report = tmp_path / "r.jsonl", tmp_path / "s.json"
    source = ("run", tmp_path / "frames.npy", "--stream")
    result = rws(*source, "--jsonl", lines, "--json", report, bundle=bundle.path)
    assert result.exit_code == 0, result.output
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines.read_text().splitlines()]
    assert [record["index"] for record in records] == [0, 1, 3, 4, 5]
    summary = json.loads(report.read_text(), parse_constant=pytest.fail)
    assert (summary["received"], summary["frames"], summary["rejected"]) == (6, 5, 1)
    assert summary["rejected_by_reason"] == {"bad_belief": 1}
    assert "rejected 1 (bad_belief 1)" in result.output


def test_a_run_in_which_no_frame_has_a_result_fails(rws, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", bundle_parts(oracle=failing_oracle("nan")))
    cv2.imwrite(str(tmp_path / "white.png"), np.full((8, 8, 3), 255, np.uint8))
    result = rws("run", tmp_path / "white.png", bundle=bundle.path)
    assert result.exit_code == 3
    assert "white.png: no frame has a result; of the last one: belief: the least number is nan" in result.output


needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
NO_ROOM = "cannot be written (No space left on device)"


@needs_dev_full
def test_a_full_disk_under_one_output_of_a_live_run_costs_the_others_nothing(tiny_bundle, tmp_path):
    files = ["--jsonl", "/dev/full", "--csv", tmp_path / "ok.csv", "--save", tmp_path / "ok.mp4"]
    command = ["run", "pattern:64x48@30", "--limit", 60, *files, "--json", tmp_path / "s.json"]
    done = installed_rws(*command, "--bundle", tiny_bundle.path, check=False)
    assert done.returncode == 3
    assert "frames 60, " in done.stdout
    assert f"jsonl: written 0, dropped 0, failed 60 · failing: /dev/full: {NO_ROOM}" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: the run is complete, but not each output: jsonl: /dev/full")
    assert done.stderr.count("No space left") == 2  # one warning, one error
    assert "Traceback" not in done.stderr
    sinks = json.loads((tmp_path / "s.json").read_text())["sinks"]
    assert {name: (sink["state"], sink["failed"]) for name, sink in sinks.items()} == {
        "jsonl": ("failing", 60), "csv": ("up", 0), "save": ("up", 0), "console": ("up", 0),
    }  # fmt: skip
    with (tmp_path / "ok.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == sinks["csv"]["written"] == 60 - sinks["csv"]["dropped"]
    with av.open(str(tmp_path / "ok.mp4")) as container:
        frames = len(list(container.decode(video=0)))
    assert frames == sinks["save"]["written"] == 60 - sinks["save"]["dropped"]


@pytest.mark.parametrize("option", ["--save", "--jsonl", "--csv"])
def test_a_full_disk_under_one_output_of_a_video_costs_the_others_nothing(rws, video, tmp_path, small_disk, option):
    names = {"--save": "a.mp4", "--jsonl": "r.jsonl", "--csv": "r.csv"}
    full = small_disk / names[option]
    full.write_bytes(b"earlier")
    with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096):
            pass
    files = [part for name in names for part in (name, full if name == option else tmp_path / names[name])]
    result = rws("run", video, *files, "--json", tmp_path / "s.json")
    assert result.exit_code == 3
    assert f"error: the run is complete, but not each output: {option[2:]}: {full}: {NO_ROOM}" in result.stderr
    assert sorted(os.listdir(small_disk)) == sorted([full.name, "ballast"])  # no temporary file keeps its space
    assert full.read_bytes() == b"earlier"
    assert "frames 20" in result.output
    counts = {"a.mp4": lambda path: len(list(open_source(path))), "r.jsonl": count_lines, "r.csv": count_lines}
    found = {name: counts[name](tmp_path / name) for name in counts if (tmp_path / name).exists()}
    expected = {"a.mp4": 20, "r.jsonl": 20, "r.csv": 21}
    del expected[full.name]
    assert found == expected
    assert json.loads((tmp_path / "s.json").read_text())["frames"] == 20


def count_lines(path):
    return len(path.read_text().splitlines())


@needs_dev_full
def test_a_report_that_cannot_be_written_costs_nothing_else(rws, video, tmp_path):
    result = rws("run", video, "--jsonl", tmp_path / "r.jsonl", "--json", "/dev/full")
    assert result.exit_code == 3
    assert "/dev/full: the report cannot be written (No space left on device)" in result.stderr
    assert "frames 20" in result.output
    assert count_lines(tmp_path / "r.jsonl") == 20


@needs_dev_full
@pytest.mark.parametrize(
    ("options", "stream", "said"),
    [
        ([], "stdout", f"console: {NO_ROOM}"),
        (["--json", "-"], "stdout", "-: the report cannot be written"),
        (["--jsonl", "-"], "stdout", f"jsonl: -: {NO_ROOM}"),
        (["--jsonl", "-"], "stderr", ""),
    ],
)
def test_a_full_disk_under_stdout_or_stderr_ends_nothing_and_gives_no_traceback(
    tiny_bundle, tmp_path, options, stream, said
):
    program = str(Path(sys.executable).with_name("rws"))
    files = ["--csv", tmp_path / "ok.csv", "--bundle", tiny_bundle.path]
    command = [program, "run", "pattern:64x48@100", "--limit", 30, *options, *files]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with open("/dev/full", "w") as full:
        streams[stream] = full
        done = subprocess.run([*map(str, command)], **streams, text=True, check=False)
    assert done.returncode == 3
    assert count_lines(tmp_path / "ok.csv") == 31
    if stream == "stdout":
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
    else:
        assert len(done.stdout.splitlines()) == 30


def test_an_output_that_hangs_costs_the_others_nothing(tiny_bundle, tmp_path):
    fifos = [tmp_path / "a.fifo", tmp_path / "b.fifo"]
    readers = []
    for fifo in fifos:
        os.mkfifo(fifo)
        readers.append(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))  # and nobody ever reads
    files = ["--jsonl", fifos[0], "--csv", fifos[1], "--save", tmp_path / "ok.mp4", "--json", tmp_path / "s.json"]
    command = ["run", "pattern:64x48@200", "--limit", 400, *files, "--bundle", tiny_bundle.path]
    done = installed_rws(*command, check=False)
    for reader in readers:
        os.close(reader)
    assert done.returncode == 3
    assert "frames 400" in done.stdout
    assert "jsonl has not returned for 5 s and is abandoned" in done.stderr
    assert "csv has not returned for 5 s and is abandoned" in done.stderr
    assert "not each output: jsonl: abandoned; csv: abandoned" in done.stderr.splitlines()[-1]
    sinks = json.loads((tmp_path / "s.json").read_text())["sinks"]
    assert (sinks["jsonl"]["state"], sinks["save"]["state"]) == ("abandoned", "up")
    assert sinks["jsonl"]["dropped"] > 0
    with av.open(str(tmp_path / "ok.mp4")) as container:
        assert len(list(container.decode(video=0))) == sinks["save"]["written"]


@needs_dev_full
def test_a_lost_camera_and_a_full_disk_are_both_named(rws, tmp_path, monkeypatch):
    monkeypatch.setattr("rws.edge.cli.running.options.open_source", lambda spec, **options: EventSource(lose_camera))
    result = rws("run", "0", "--jsonl", "/dev/full", "--csv", tmp_path / "r.csv", "--json", "/dev/full")
    assert result.exit_code == 4
    last = result.stderr.splitlines()[-1]
    assert re.search("lost after 3 frames.*the report cannot be written.*jsonl: /dev/full", last)
    assert count_lines(tmp_path / "r.csv") == 4
    assert "frames 3" in result.output


@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Xvfb")
def test_a_display_that_dies_costs_the_window_only(tiny_bundle, tmp_path):
    read, write = os.pipe()
    display = subprocess.Popen(["Xvfb", "-displayfd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as pipe:
        environment = os.environ | {"DISPLAY": f":{int(pipe.readline())}"}
    rows = tmp_path / "r.jsonl"
    program = [str(Path(sys.executable).with_name("rws")), "run", "pattern:64x64@50", "--show", "--jsonl", str(rows)]
    command = [*program, "--bundle", str(tiny_bundle.path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        wait_for_lines(rows, 20)
        display.kill()
        display.wait()
        next(line for line in process.stderr if "the window is lost" in line)
        wait_for_lines(rows, count_lines(rows) + 20)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopped by a signal" in out
    assert "window: the window is lost; check the display" in err.splitlines()[-1]
    assert "Traceback" not in err


def wait_for_lines(path, count):
    end = time.monotonic() + 60
    while not path.exists() or count_lines(path) < count:
        assert time.monotonic() < end
        time.sleep(0.02)
