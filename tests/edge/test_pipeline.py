"""Bundles of other tasks and inputs through the whole pipeline, and into every output."""

import csv
import json
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from rws.edge.bundle.edit import write_bundle
from rws.edge.cli.running.results import change_line, image_block, image_line
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.status_line import status_line
from rws.edge.monitoring.summary import Summary
from rws.edge.pipeline import Pipeline
from rws.edge.preprocess import InputSpec
from rws.edge.runtime import Runtime
from rws.edge.sinks.csv import CsvSink
from rws.edge.sinks.jsonl import JsonlSink
from rws.edge.sources.arrays import ArraySource
from rws.edge.tasks.annotate import annotate
from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.raw import RawOutputs
from rws.errors import InputError
from rws.records import Frame
from support.fakes import make_pipeline
from support.records import Reference
from support.tiny import CLASSES, SIZE, bundle_parts, network, taking, with_features

IMAGES = np.random.default_rng(5).integers(0, 256, (6, 12, 20, 3), np.uint8)
KINDS = {"multilabel": ("logits",), "raw": ("flat", "logits")}


@pytest.fixture(params=list(KINDS))
def bundle(request, tmp_path):
    model = with_features(network(3, len(CLASSES), seed=1)).SerializeToString()
    task = TaskSpec(request.param, confidence=0.5)
    return write_bundle(tmp_path / "bundle", bundle_parts(model=model, outputs=KINDS[request.param], task=task))


def frames():
    return ArraySource(IMAGES, sequential=True)


def test_every_output_takes_a_result_without_a_class(bundle, tmp_path):
    source, summary = frames(), Summary()
    monitor = Monitor(source, bundle="b", strategy="live")
    with (
        Runtime.from_bundle(bundle) as runtime,
        JsonlSink(tmp_path / "r.jsonl") as lines,
        CsvSink(tmp_path / "r.csv") as rows,
    ):
        runtime.compare = True
        results = []
        for result in runtime.stream(source, [lines, rows]):
            results.append(result)
            summary.add(result)
            monitor.add(result)
    name, status = bundle.manifest.task.name, monitor.status()
    for result in results:
        text, confidence = result.summary
        lines = [line.plain for line in (image_line(result, None), image_block(result), change_line(result))]
        assert all(text in line for line in (repr(result), *lines))
        assert (confidence is None) == (name == "raw" or text == "no label")
        assert "None" not in image_block(result).plain
    assert results[-1].summary[0] in status_line(status)
    assert status.totals.results == len(IMAGES)
    assert sum(status.totals.classes.values()) == sum(len(result.task.seen(result.output)) for result in results)
    reference = Reference.read()
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    cells = list(csv.DictReader((tmp_path / "r.csv").open()))
    for result, record, row in zip(results, records, cells, strict=True):
        assert reference.complaints(record) == []
        assert record["label"] == row["label"] == result.summary[0]
        assert row["confidence"] == ("" if record["confidence"] is None else f"{result.summary[1]:.4f}")
        assert record["unpatched"].keys() == {"label", "confidence"}
        assert ("labels" if name == "multilabel" else "outputs") in record
        assert "class_index" not in record
    assert json.dumps(status.to_dict(), allow_nan=False)
    assert summary.to_dict(status)["frames"] == len(IMAGES)


@pytest.mark.parametrize("name", ["label", "class_index", "confidence", "top", "logits"])
def test_what_only_a_classifier_has_says_what_to_read_instead(bundle, name):
    with Runtime.from_bundle(bundle) as runtime:
        result = runtime.classify(IMAGES[0], "rgb")
    with pytest.raises(InputError, match=f"task {result.task.name} has no single class; read `result.output`"):
        getattr(result, name)


def test_a_result_knows_what_the_model_has_seen():
    wide = Frame(0, np.zeros((20, 60, 3), np.uint8), 0.0, "wide")
    result = make_pipeline().step(wide)
    assert result.seen == (20, 0, 40, 20)
    assert result.to_dict()["seen"] == [20, 0, 40, 20]
    assert make_pipeline().step(replace(wide, image=wide.image[:, :20])).to_dict()["seen"] is None


def test_a_result_is_drawn_whatever_its_task(bundle):
    with Runtime.from_bundle(bundle) as runtime:
        result = next(runtime.stream(frames()))
        result = replace(result, unpatched=result.output, on_original=result.output)
        drawn = annotate(IMAGES[0], result, IMAGES[0])
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3


def test_raw_outputs_reach_the_caller_as_the_model_gives_them(bundle):
    with Runtime.from_bundle(bundle) as runtime:
        result = runtime.classify(IMAGES[0], "rgb")
        x = np.random.default_rng(0).random((3, SIZE, SIZE), np.float32)
        expected = runtime.pipeline.model.predict(x)
    if isinstance(result.output, RawOutputs):
        assert [array.shape for array in result.output.arrays] == [output.shape for output in expected]
    else:
        np.testing.assert_equal(result.output.logits.shape, expected[0][0].shape)


class Watching:
    """An oracle that keeps what it was shown."""

    def __init__(self, oracle):
        self.oracle, self.seen = oracle, []

    def observe(self, x):
        self.seen.append(x)
        return self.oracle.observe(x)


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
def test_the_oracle_sees_its_own_view_of_the_frame(tiny_bundle, tmp_path, fit):
    """The belief does not depend on what the model takes."""
    spec = InputSpec(SIZE, SIZE, "BGR", "NHWC", "uint8", 255, fit)
    model = taking(spec, network(3, len(CLASSES), seed=1), batch=1).SerializeToString()
    other = write_bundle(tmp_path / "b", bundle_parts(model=model, input=spec))
    seen, expected = [], None
    for bundle in (tiny_bundle, other):
        pipeline = Pipeline.from_bundle(bundle, independent=True)
        watching = Watching(pipeline.oracle)
        runtime = Runtime(replace(pipeline, oracle=watching), oracle_every=2)
        results = list(runtime.stream(frames()))
        assert [result.observed for result in results] == [True, False] * 3
        seen.append((watching.seen[1:], [result.belief.joint for result in results]))
        if fit == "crop" or bundle is tiny_bundle:
            logits = [result.logits for result in results]
            expected = expected or logits
            np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert all(x.dtype == np.float32 and x.shape == (3, SIZE, SIZE) for x in seen[1][0])
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


def test_a_corrupted_frame_is_compared_for_every_task(bundle):
    image = cv2.resize(IMAGES[0], (SIZE, SIZE))
    pipeline = Pipeline.from_bundle(bundle)
    frame = Frame(0, image // 2, time.monotonic(), "frame", original=image)
    result = pipeline.compare(frame, replace(pipeline.step(frame), mix={"fog": 1.0}))
    assert type(result.unpatched) is type(result.on_original) is type(result.output)
    record = result.to_dict()
    assert record["on_original"] == dict(
        zip(("label", "confidence"), _rounded(*result.task.summary(result.on_original)), strict=True)
    )
    summary = Summary()
    summary.add(result)
    assert summary.agreement["frames"] == 1


def _rounded(text, confidence):
    return text, None if confidence is None else round(confidence, 4)
