"""The keys of all records, as they are written and as docs/reference/ has them, in both directions."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from rws.benchmarks.common.committed import RESULTS
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import write_bundle
from rws.edge.monitoring.events import EventRecorder, EventWatch
from rws.edge.monitoring.monitor import Monitor
from rws.edge.mqtt.publisher import camera_state
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.edge.web import PageServer
from rws.edge.web.overview import overview
from rws.oracle.belief import certain
from rws.records import utc
from rws.training.jobs.progress import job_log
from support.command_line import invoke
from support.fakes import CORRUPTIONS, LEVELS, make_frame, make_result, write_images, write_video
from support.http import Events, get, stream
from support.records import Reference, leaves, read_records
from support.tiny import bundle_parts

# Trainings and other commands that take too long here; tests/test_commands.py compares what they write.
ELSEWHERE = {"demo-summary/1", "camera-demo/1", "signature-norms/1", "reproduce-table2/1"}


@pytest.fixture(scope="module")
def reference():
    return Reference.read()


@pytest.fixture(scope="module")
def committed():
    paths = [path for suffix in ("json", "csv") for path in sorted(RESULTS.glob(f"**/*.{suffix}"))]
    return [(path.suffix, record) for path in paths for record in read_records(path)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A record of each kind that a device writes, and of those of a workstation that are quick to make."""
    folder = tmp_path_factory.mktemp("records")
    bundle = write_bundle(folder / "bundle", bundle_parts())
    pictures, clip = write_images(folder / "pictures", 2), write_video(folder / "clip.mp4", range(20, 240, 11))
    out = folder / "out"
    out.mkdir()

    def rws(command, *arguments):
        invoke(command, *arguments, "--json", out / f"{len(list(out.iterdir()))}.json")

    given = ("--bundle", bundle.path)
    rws("run", pictures, *given, "--jsonl", out / "images.jsonl", "--csv", out / "images.csv")
    rws("run", clip, *given, "--jsonl", out / "clip.jsonl", "--corrupt", "fog:3")
    rws("run", clip, clip, *given)
    rws("oracle", pictures, *given)
    rws("health", pictures, *given)
    rws("health", clip, *given, "--min-severity", 0, "--lasting", 0)
    rws("inspect", bundle.path)
    rws("inspect")
    rws("bundle", "list")
    rws("drill", *given, "--only", "empty frame")
    rws("reproduce", "--status", "--out", out)
    _event(out)
    job_log(out, "init", None)({"epoch": 1, "loss": 1.5, "validation_accuracy": 41.0})
    paths = [path for suffix in ("json", "jsonl", "csv") for path in sorted(out.glob(f"**/*.{suffix}"))]
    return [*((path.suffix, record) for path in paths for record in read_records(path)), *_page(bundle)]


def _event(folder):
    result = make_result(belief=certain(CORRUPTIONS, LEVELS, "fog", 4.0))
    watch, frame = EventWatch({}), make_frame()
    with EventRecorder(folder, "") as recorder:
        watch.listeners.append(recorder)
        for second in range(12):
            watch.write(frame, replace(result, captured_at=float(second), captured_time=time.time()))


def _page(bundle: Bundle):
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8), name="camera")
    monitor = Monitor(source, bundle="tiny", strategy="live")
    with Runtime.from_bundle(bundle) as runtime, PageServer("127.0.0.1:0", {"": monitor}) as server:
        found = [get(server, path)[2] for path in ("/api/status", "/health")]
        for result in runtime.stream(source):
            monitor.add(result)
        monitor.count_event("bundle_swapped")
        found.append(get(server, "/api/status")[2])
        with stream(server, "/events") as client:
            events = Events(client)
            records = [*map(json.loads, found), events.next(), events.next()]
    records += [overview({"camera": monitor}, False), camera_state(monitor.status(), False, False)]
    return [("", record) for record in records]


@pytest.mark.parametrize("records", ["committed", "written"])
def test_every_key_is_documented(records, reference, request):
    found = request.getfixturevalue(records)
    assert sorted({text for suffix, record in found for text in reference.complaints(record, suffix == ".csv")}) == []


def test_every_documented_key_is_written(reference, committed, written):
    seen = {}
    for _, record in committed + written:
        for one in (record, *(value for _, value, inner in leaves(record) if inner)):
            seen.setdefault(one["schema"], set()).update(_with_parents(one))
    missing = []
    for schemas, keys in reference.sections.items():
        paths = set().union(*(seen.get(schema, set()) for schema in schemas))
        if not paths and not set(schemas) <= ELSEWHERE:
            missing.append(f"no record of {', '.join(schemas)}")
        required = [key for key in keys if paths and not key.optional]
        missing += [f"{schemas[0]}: {key.path}" for key in required if not any(map(key.fits, paths))]
    assert missing == []


def _with_parents(record):
    for path, _, _ in leaves(record):
        for end in range(1, len(path) + 1):
            yield path[:end]
            yield (*path[: end - 1], path[end - 1].removesuffix("[]"))


def test_records_carry_the_time_of_day(written):
    now = utc(time.time())
    for suffix, record in written:
        stamps = {key: value for key, value in record.items() if key.endswith("_at")}
        assert stamps or record["schema"] == "health/1", record
        for key, value in stamps.items():
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value), (key, suffix)
            assert "2026-01-01" < value <= now


def test_a_change_of_the_tables_or_of_a_record_is_noticed(reference):
    record = {"schema": "oracle/1", "images": [{"file": "a", "corruption": "fog", "probability": "1", "kind": "x"}]}
    assert reference.complaints(record) == [
        "oracle/1: images[].probability is '1', documented as number",
        "oracle/1: images[].kind is not documented",
    ]
    assert reference.complaints({"schema": "oracle/2", "images": []}) != []
    assert reference.complaints({"images": [], "schema": "oracle/1"}) == ["the first key is 'images'"]
