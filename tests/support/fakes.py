"""Stand-ins with the shapes of the contracts, for tests of the loop and everything after it."""

import time
import weakref

import cv2
import numpy as np

from rws.edge.pipeline import Pipeline, Result
from rws.edge.preprocess import InputSpec
from rws.edge.runtime import Runtime
from rws.edge.tasks.classify import Classification, Classify
from rws.oracle.belief import Belief, certain
from rws.records import Frame, Prediction

CORRUPTIONS = ("fog", "snow")
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
CLASSES = ("cat", "dog", "ship")
SIZE = (8, 8)


class TickingClock:
    """Moves on by `step` seconds each time it is read."""

    def __init__(self, step=0.001):
        self.now, self.step = 100.0, step

    def __call__(self):
        self.now += self.step
        return self.now


class StillClock:
    """Stands still until its `now` is moved."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


class FakeModel:
    """Clean, it says cat; patched, dog. Fails at the n-th frame on request."""

    def __init__(self, fail_at=None):
        self.mix, self.log, self.fail_at, self.frames = {}, [], fail_at, -1

    def apply(self, mix):
        changed = dict(mix) != self.mix
        self.mix = dict(mix)
        if changed:
            self.log.append(self.mix)
        return changed

    def reset(self):
        self.mix = {}
        self.log.append("reset")

    def predict(self, x):
        assert x.shape == (3, *SIZE)
        assert x.dtype == np.float32
        if self.frames == self.fail_at:
            raise ZeroDivisionError("the model broke")
        self.frames += 1
        return (np.array([[2.0, 3.0 if self.mix else 1.0, 0.0]], np.float32),)


class FakeOracle:
    """Dark frames carry fog 4, bright ones are clean."""

    def observe(self, x):
        return certain(CORRUPTIONS, LEVELS, *(("fog", 4.0) if x.mean() < 0.5 else ("clean", 0.0)))


class FakePolicy:
    def __init__(self):
        self.resets = 0

    def choose(self, belief):
        return {} if belief.type == "clean" else {belief.type: 0.8}

    def reset(self):
        self.resets += 1


class HoldFilter:
    """Keeps the first belief until it is reset."""

    def __init__(self):
        self.first = None

    def update(self, belief, at=None):
        self.first = self.first or belief
        return self.first

    def reset(self):
        self.first = None


def make_runtime(model=None, filter=None, clock=None, **parts):
    return Runtime(
        make_pipeline(model, filter, **parts),
        clock=clock or TickingClock(),
        oracle_every=parts.get("oracle_every", 1),
        wall_clock=parts.get("wall_clock", time.time),
    )


def make_pipeline(model=None, filter=None, **parts):
    return Pipeline(
        model or FakeModel(),
        parts.get("oracle", FakeOracle()),
        parts.get("policy", FakePolicy()),
        filter,
        Classify(parts.get("classes", CLASSES)),
        InputSpec(*SIZE, "RGB"),
    )


def make_result(index=0, *, mix=None, label="cat", changed=False, belief=None, predict_ms=2.0, confidence=0.75):
    best = Prediction(label, CLASSES.index(label) if label in CLASSES else 0, confidence)
    return Result(
        index=index,
        name=f"frame {index}",
        captured_at=1.0,
        captured_time=1e9,
        age_ms=5.0,
        output=Classification((best,), np.zeros(3, np.float32)),
        belief=belief or certain(CORRUPTIONS, LEVELS, "fog", 3.0),
        mix=mix or {},
        changed=changed,
        times_ms={"read": 0.5, "preprocess": 0.25, "oracle": 1.0, "policy": 0.25, "patch": 0.5, "predict": predict_ms},
        task=Classify(CLASSES),
        frame_ref=weakref.ref(make_frame(index)),
    )


def make_frame(index=0, height=32, width=32, value=128):
    return Frame(index, np.full((height, width, 3), value, np.uint8), 1.0, f"frame {index}")


def spread_belief():
    joint = np.linspace(1, 2, 1 + len(CORRUPTIONS) * len(LEVELS)).astype(np.float32)
    return Belief(CORRUPTIONS, LEVELS, joint / joint.sum())


def write_video(path, values, fps=25.0, size=(64, 48)):
    """A video of plain grey frames of the given values."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    for value in values:
        writer.write(np.full((size[1], size[0], 3), value, np.uint8))
    writer.release()
    return path


def write_images(folder, count, value=200):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((10, 12, 3), value, np.uint8))
    return folder
