from dataclasses import replace

import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.faults.harness import Case, NotHereError
from rws.edge.sources.test_pattern import PatternSource


def play(drill):
    """It is said."""
    drill.play(PatternSource(64, 64, 1000.0), lambda seen: len(seen) >= 5)


class NeverClean:
    """A model whose weights stay patched."""

    def __init__(self, model):
        self.apply, self.predict = model.apply, model.predict

    def reset(self):
        self.apply({"fog": 1.0})


def leave_a_patch(drill):
    """It is said."""
    broken = replace(drill.pipeline, model=NeverClean(drill.pipeline.model))
    try:
        drill.play(PatternSource(64, 64, 1000.0), lambda seen: len(seen) >= 5, pipeline=broken)
    finally:
        drill.pipeline.model.reset()


def lose_a_frame(drill):
    """It is said."""

    class Loses(PatternSource):
        def frames(self):
            frames = (frame for frame in super().frames() if frame is not None)
            return (frame for number, frame in enumerate(frames) if number != 2)

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
        (lose_a_frame, "delivered frames has a result or is rejected"),
        (raise_something, "no other exception: ZeroDivisionError: oh"),
    ],
)
def test_the_drill_sees_a_promise_that_is_broken(function, failure, pipeline, tmp_path):
    outcome = Case("test", "It is said.", function).run(Bundle.load("cifar10"), pipeline, tmp_path)
    assert outcome.passed == (failure is None)
    if failure is not None:
        assert any(failure in found for found in outcome.failures)


def test_what_is_missing_here_is_no_pass_and_no_failure(pipeline, tmp_path):
    outcome = Case("test", "It is said.", not_here).run(Bundle.load("cifar10"), pipeline, tmp_path)
    assert (outcome.passed, outcome.failures, outcome.skipped) == (False, [], "no camera")
