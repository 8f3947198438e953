"""Several cameras share a model, and nothing else."""

import threading
import time

import numpy as np
import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.cameras import Camera, Cameras, Ended
from rws.edge.pipeline import Pipeline, Result
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.base import Source
from rws.edge.sources.feed import Feed
from rws.errors import FrameError, InputError, SourceError
from rws.records import Frame
from support.fakes import FakeModel, StillClock, make_pipeline

BRIGHT, DARK = np.full((8, 8, 3), 230, np.uint8), np.full((8, 8, 3), 20, np.uint8)  # a fake oracle calls dark fog


def camera(loop, name, source, pipeline, **options):
    return Camera(name, Runtime(pipeline, camera=name), Feed(source, loop.arrived), **options)


def array(*images):
    return ArraySource(np.stack(images), sequential=True)


class Scripted(Source):
    """A camera that gives what `frames` yields."""

    live = sequential = True

    def __init__(self, script, name="scripted"):
        super().__init__()
        self.name, self._script = name, script

    def frames(self):
        for image in self._script(self):
            if image is not None:
                self.received += 1
                self.delivered += 1
                yield Frame(self.received - 1, image, time.monotonic(), self.name)
            else:
                yield None


def endless(image=BRIGHT):
    def script(source):
        while not source.stopped:
            time.sleep(0.002)
            yield image

    return script


def test_each_camera_gets_what_it_would_get_alone(demo_stream):
    """Real frames, weights, oracle, filter and policy: everything but times is bit-equal."""
    films = {name: demo_stream.images[start : start + 30] for name, start in (("a", 15), ("b", 300), ("c", 440))}
    bundle, options, alone = Bundle.load("cifar10"), ModelOptions(threads=1), {}
    for name, film in films.items():
        with Runtime.from_bundle(Bundle.load("cifar10"), options) as runtime:
            alone[name] = list(runtime.stream(ArraySource(film, sequential=True)))
    assert all(any(result.changed for result in results) for results in alone.values())
    shared = Pipeline.from_bundle(bundle, options)
    loop, found = Cameras(), {name: [] for name in films}
    for name, film in films.items():
        loop.add(camera(loop, name, ArraySource(film, sequential=True), shared.sharing(bundle)))
    for one, event in loop.results():
        if isinstance(event, Result):
            assert event.camera == one.name
            found[one.name].append(event)
    for name, results in found.items():
        assert len(results) == 30
        for mine, own in zip(results, alone[name], strict=True):
            np.testing.assert_array_equal(mine.logits, own.logits)
            np.testing.assert_array_equal(mine.belief.joint, own.belief.joint)
            assert (mine.index, mine.mix, mine.changed) == (own.index, own.mix, own.changed)
    assert shared.model.mix == {}


@pytest.mark.parametrize(("grouped", "changes"), [(True, 1), (False, 3)])
def test_frames_with_one_mix_run_one_after_the_other(grouped, changes):
    model, loop = FakeModel(), Cameras(grouped=grouped)
    for name, image in (("a", BRIGHT), ("b", DARK), ("c", BRIGHT), ("d", DARK)):
        loop.add(camera(loop, name, array(image), make_pipeline(model)))
    while not all(one.feed.waiting for one in loop.cameras):
        time.sleep(0.001)
    order = [one.name for one, event in loop.results() if isinstance(event, Result)]
    assert order == (["a", "c", "b", "d"] if grouped else ["a", "b", "c", "d"])
    assert loop.weight_changes == changes


def test_a_camera_that_floods_starves_no_other():
    loop = Cameras()
    for name in ("flood", "other"):
        source = Scripted(endless(), name) if name == "flood" else array(*[DARK] * 20)
        loop.add(camera(loop, name, source, make_pipeline(FakeModel())))
    order = []
    for one, event in loop.results():
        if isinstance(event, Result):
            order.append(one.name)
        elif isinstance(event, Ended):
            loop.stop()
    assert order.count("other") == 20
    assert "flood flood flood" not in " ".join(order[1 : order.index("other") + 30])


def test_a_budget_limits_a_camera(monkeypatch):
    clock = StillClock()
    loop = Cameras(clock=clock)
    loop.add(camera(loop, "a", array(*[DARK] * 3), make_pipeline(FakeModel()), period=0.5))
    results = loop.results()
    assert isinstance(next(results)[1], Result)
    for expected in (None, Result, None, Result):
        clock.now += 0.3
        assert isinstance(next(results)[1], expected or type(None))
    results.close()


@pytest.mark.parametrize("error", [SourceError("gone for good"), RuntimeError("a bug in a driver")])
def test_a_camera_that_dies_ends_alone(error):
    def dies(source):
        yield DARK
        raise error

    loop, model = Cameras(), FakeModel()
    loop.add(camera(loop, "dies", Scripted(dies), make_pipeline(model)))
    loop.add(camera(loop, "lives", array(*[DARK] * 30), make_pipeline(model)))
    events = [(one.name, event) for one, event in loop.results()]
    ends = {name: event.error for name, event in events if isinstance(event, Ended)}
    assert ends == {"dies": error, "lives": None}
    assert sum(name == "lives" and isinstance(event, Result) for name, event in events) == 30


def test_a_camera_that_hangs_is_idle_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr("rws.edge.sources.feed.PATIENCE", 0.1)
    released = threading.Event()

    def hangs(source):
        yield DARK
        released.wait()
        yield None

    loop, model = Cameras(), FakeModel()
    loop.add(camera(loop, "hangs", Scripted(hangs), make_pipeline(model)))
    loop.add(camera(loop, "lives", Scripted(endless()), make_pipeline(model)))
    idle = results = 0
    for one, event in loop.results():
        idle += one.name == "hangs" and event is None
        results += one.name == "lives" and isinstance(event, Result)
        if idle == 2:
            loop.stop()
    assert results > 20
    released.set()


def test_a_frame_that_fails_costs_its_camera_only_that_frame():
    class Failing(FakeModel):
        def predict(self, x):
            if self.frames == 1:
                self.frames += 1
                raise InputError("not this one")
            return super().predict(x)

    loop, model = Cameras(), FakeModel()
    loop.add(camera(loop, "fails", array(DARK, DARK, DARK), make_pipeline(Failing())))
    loop.add(camera(loop, "works", array(DARK, DARK, DARK), make_pipeline(model)))
    events = [(one.name, type(event)) for one, event in loop.results() if not isinstance(event, Ended | None)]
    assert events.count(("fails", FrameError)) == 1
    assert events.count(("fails", Result)) == 2
    assert events.count(("works", Result)) == 3


def test_cameras_come_and_go_between_two_rounds():
    model, came = FakeModel(), []
    loop = Cameras(lambda: came.pop()() if came else None)
    first, second = (camera(loop, name, Scripted(endless(), name), make_pipeline(model)) for name in ("one", "two"))
    loop.add(first)
    seen = []
    for one, event in loop.results():
        if isinstance(event, Result):
            seen.append(one.name)
        if len(seen) == 3:
            came.append(lambda: loop.add(second))
        elif seen.count("two") == 3 and not came:
            came.append(lambda: loop.remove("one"))
        if seen[-5:] == ["two"] * 5:
            break
    assert seen[:3] == ["one"] * 3
    loop.stop()


def test_a_camera_that_rests_drops_its_frames():
    loop = Cameras()
    source = Scripted(endless())
    loop.add(camera(loop, "a", source, make_pipeline(FakeModel())))
    results = 0
    for _, event in loop.results():
        results += isinstance(event, Result)
        if isinstance(event, Result) and results == 3:
            loop.pause("a", True)
        elif event is None:
            break
    assert results == 3
    assert source.dropped > 10
    loop.stop()
