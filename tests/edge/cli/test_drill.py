import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.bundle import Bundle
from rws.edge.faults.cases import all_cases
from rws.edge.faults.harness import Case, NotHereError
from rws.edge.faults.servers import RtspServer
from rws.edge.faults.stamp import BITS, encode_jpeg, read_stamp, scene, stamped
from rws.edge.runtime import Runtime
from rws.edge.sources.open import PatternSource, open_source

runner = CliRunner()


@pytest.fixture(scope="module")
def runtime():
    with Runtime.from_bundle(Bundle.load(), threads=1) as runtime:
        yield runtime


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_every_promise_is_kept(case, runtime, tmp_path):
    outcome = case.run(Bundle.load(), tmp_path, runtime)
    if outcome.skipped:
        assert not os.environ.get("RWS_REQUIRE_SYSTEM"), outcome.skipped
        pytest.skip(outcome.skipped)
    assert outcome.failures == []
    assert outcome.accounted
    assert outcome.happened
    assert outcome.promised.endswith(".")


def play(drill):
    """It is said."""
    drill.play(PatternSource(64, 64, 1000.0), lambda seen: len(seen) >= 5)


def leave_a_patch(drill):
    """It is said."""
    close, drill.runtime.close = drill.runtime.close, lambda: None
    try:
        drill.play(PatternSource(64, 64, 1000.0), lambda seen: len(seen) >= 5)
    finally:
        drill.runtime.close = close
        drill.runtime.close()


def lose_a_frame(drill):
    """It is said."""

    class Loses(PatternSource):
        def __iter__(self):
            for frame in super().__iter__():
                if frame.index != 2:
                    yield frame

    drill.play(Loses(64, 64, 100.0), lambda seen: len(seen) >= 5)


def raise_something(drill):
    """It is said."""
    raise ZeroDivisionError("oh")


def not_here(drill):
    """It is said."""
    raise NotHereError("no camera")


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        (play, None),
        (leave_a_patch, "no mix is in effect afterwards"),
        (lose_a_frame, "delivered frames has a result"),
        (raise_something, "no other exception: ZeroDivisionError: oh"),
    ],
)
def test_the_drill_sees_a_promise_that_is_broken(function, failure, runtime, tmp_path):
    outcome = Case("test", "It is said.", function).run(Bundle.load(), tmp_path, runtime)
    assert outcome.passed == (failure is None)
    if failure is not None:
        assert any(failure in found for found in outcome.failures)


def test_what_is_missing_here_is_no_pass_and_no_failure(runtime, tmp_path):
    outcome = Case("test", "It is said.", not_here).run(Bundle.load(), tmp_path, runtime)
    assert (outcome.passed, outcome.failures, outcome.skipped) == (False, [], "no camera")


def test_the_command_prints_promises_and_books_and_writes_them(tmp_path):
    result = runner.invoke(app, ["drill", "--only", "an empty frame", "--json", str(tmp_path / "d.json")])
    assert result.exit_code == 0, result.output
    assert "in 5 = out 4 + dropped 0 + rejected 1" in result.output
    assert "1 of 1 passed" in result.output
    (case,) = json.loads((tmp_path / "d.json").read_text())["cases"]
    assert (case["passed"], case["accounted"], case["rejected"]) == (True, True, {"empty": 1})


def test_the_command_fails_when_a_promise_is_broken(monkeypatch):
    monkeypatch.setattr("rws.edge.faults.cases.all_cases", lambda: [Case("bad one", "It is said.", raise_something)])
    result = runner.invoke(app, ["drill"])
    assert result.exit_code == 1
    assert "not kept: bad one: no other exception" in result.output


def test_an_unknown_fault_is_a_clear_error():
    result = runner.invoke(app, ["drill", "--only", "meteorite"])
    assert result.exit_code == 2
    assert "no fault's name holds 'meteorite'" in result.stderr


@given(st.integers(0, 2**BITS - 1), st.sampled_from([30, 90]))
def test_a_stamp_survives_jpeg(number, quality):
    import cv2

    picture = stamped(scene(48, 400), number)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(picture, quality), np.uint8), cv2.IMREAD_COLOR)
    assert read_stamp(decoded) == number


def test_a_picture_without_a_stamp_has_none():
    assert read_stamp(scene(480, 640)) is None
    assert read_stamp(scene(8, 8)) is None


def test_rtsp_gives_real_frames():
    if missing := RtspServer.missing():
        assert not os.environ.get("RWS_REQUIRE_SYSTEM"), missing
        pytest.skip(missing)
    server = RtspServer()
    try:
        with open_source(server.url) as source:
            frames = [frame for frame, _ in zip(source, range(5), strict=False)]
    finally:
        server.kill()
    assert all(frame.image.shape == (480, 640, 3) for frame in frames)
    assert frames[0].image.max() > 200


def test_quick_leaves_out_what_takes_long(monkeypatch):
    cases = [Case("fast one", "It is said.", play), Case("slow one", "It is said.", raise_something, slow=True)]
    monkeypatch.setattr("rws.edge.faults.cases.all_cases", lambda: cases)
    result = runner.invoke(app, ["drill", "--quick"])
    assert result.exit_code == 0, result.output
    assert "1 of 1 passed" in result.output
