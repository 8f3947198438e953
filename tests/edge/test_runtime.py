import gc
import json
import tracemalloc
from dataclasses import FrozenInstanceError, replace

import numpy as np
import onnxruntime
import pytest

from rws.edge.monitoring.summary import Summary
from rws.edge.pipeline import STAGES
from rws.edge.sources.arrays import ArraySource
from rws.edge.tasks.annotate import annotate
from rws.errors import FrameError, InputError, SignatureError, SourceError
from rws.oracle.belief import Belief
from rws.oracle.policy import PatchLimits
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Frame
from support.fakes import (
    CORRUPTIONS,
    LEVELS,
    FakeModel,
    FakeOracle,
    FakePolicy,
    HoldFilter,
    TickingClock,
    make_pipeline,
    make_runtime,
    write_images,
)

BRIGHT, DARK = np.full((8, 8, 3), 230, np.uint8), np.full((8, 8, 3), 20, np.uint8)


def array_source(*images, **options):
    return ArraySource(np.stack(images), **options)


class ListSink:
    def __init__(self, fail_at=None):
        self.taken, self.fail_at = [], fail_at

    def write(self, frame, result):
        if frame.index == self.fail_at:
            raise OSError("no space left")
        self.taken.append((frame.index, result.label))


def test_the_mix_follows_the_frames():
    model, sink = FakeModel(), ListSink()
    source = array_source(BRIGHT, DARK, DARK, BRIGHT, names=["a", "b", "c", "d"])
    results = list(make_runtime(model).stream(source, sinks=[sink]))
    assert [result.label for result in results] == ["cat", "dog", "dog", "cat"]
    assert [dict(result.mix) for result in results] == [{}, {"fog": 0.8}, {"fog": 0.8}, {}]
    assert [result.changed for result in results] == [False, True, False, True]
    assert [(result.index, result.name) for result in results] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert [result.belief.type for result in results] == ["clean", "fog", "fog", "clean"]
    assert sink.taken == [(0, "cat"), (1, "dog"), (2, "dog"), (3, "cat")]
    assert model.log == ["reset", {"fog": 0.8}, {}, "reset"]


def test_times_and_age_come_from_the_injected_clock():
    clock = TickingClock(step=0.5)
    (result,) = make_runtime(clock=clock).stream(array_source(DARK, clock=clock))
    assert tuple(result.times_ms) == STAGES
    # The source reads the clock once within `read`, every other stage is one step long.
    assert result.times_ms == {"read": 1000.0} | dict.fromkeys(STAGES[1:], 500.0)
    assert result.captured_at == 101.0
    assert result.age_ms == pytest.approx(4000.0)


def test_the_time_of_day_follows_a_jump_of_the_wall_clock_and_nothing_else_does():
    def played(*wall_times):
        clock, walls = TickingClock(step=0.5), iter(wall_times)
        runtime = make_runtime(clock=clock, wall_clock=lambda: next(walls))
        return [result.to_dict() for result in runtime.stream(array_source(DARK, BRIGHT, DARK, clock=clock))]

    steady, jumped = played(1e9, 1e9 + 1, 1e9 + 2), played(1e9, 1e9 - 3600, 1e12)
    # Each result is 4 s old when it is stamped.
    assert [record.pop("captured_at") for record in jumped] == [
        "2001-09-09T01:46:36.000Z",
        "2001-09-09T00:46:36.000Z",
        "9999-12-31T23:59:59.000Z",
    ]
    assert [record.pop("captured_at") for record in steady][1] == "2001-09-09T01:46:37.000Z"
    assert jumped == steady


def test_confidence_is_the_softmax_of_the_logits():
    (result,) = make_runtime().stream(array_source(BRIGHT))
    expected = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    assert result.confidence == pytest.approx(expected[0])
    np.testing.assert_array_equal(result.logits, np.float32([2, 1, 0]))


def test_frames_of_any_size_are_taken():
    frames = [Frame(0, np.full((30, 50, 3), 10, np.uint8), 0.0, "big"), Frame(1, BRIGHT[:3, :2], 0.0, "small")]
    assert [result.label for result in make_runtime().stream(frames)] == ["dog", "cat"]


def test_the_filter_sees_beliefs_in_order_and_is_reset_at_each_stream():
    runtime = make_runtime(filter=HoldFilter())
    assert [r.belief.type for r in runtime.stream(array_source(DARK, BRIGHT))] == ["fog", "fog"]
    assert [r.belief.type for r in runtime.stream(array_source(BRIGHT, DARK))] == ["clean", "clean"]


def test_without_a_filter_every_frame_starts_from_nothing():
    alone, chained = FakePolicy(), FakePolicy()
    list(make_runtime(policy=alone).stream(array_source(DARK, BRIGHT, DARK)))
    list(make_runtime(policy=chained, filter=HoldFilter()).stream(array_source(DARK, BRIGHT, DARK)))
    assert (alone.resets, chained.resets) == (5, 2)


def test_leaving_a_stream_early_leaves_the_weights_clean():
    model = FakeModel()
    results = make_runtime(model).stream(array_source(DARK, DARK))
    assert next(results).mix == {"fog": 0.8}
    assert model.mix == {"fog": 0.8}
    results.close()
    assert model.mix == {}


def broken_source():
    yield Frame(0, DARK, 0.0, "one")
    raise SourceError("camera 0: lost") from OSError("unplugged")


@pytest.mark.parametrize(
    ("source", "model", "sink", "expected"),
    [
        (broken_source(), FakeModel(), ListSink(), SourceError),
        (array_source(DARK, DARK), FakeModel(fail_at=1), ListSink(), ZeroDivisionError),
        (array_source(DARK, DARK), FakeModel(), ListSink(fail_at=1), OSError),
        ([Frame(0, DARK, 0.0, "a"), Frame(1, DARK[..., 0], 0.0, "b")], FakeModel(), ListSink(), InputError),
    ],
    ids=["source", "model", "sink", "frame"],
)
def test_an_exception_surfaces_and_leaves_the_weights_clean(source, model, sink, expected):
    results = make_runtime(model).stream(source, sinks=[sink])
    assert next(results).mix == {"fog": 0.8}
    with pytest.raises(expected) as caught:
        next(results)
    assert model.mix == {}
    assert model.log[-1] == "reset"
    if expected is SourceError:
        assert isinstance(caught.value.__cause__, OSError)
    assert list(results) == []


def test_classify_is_on_its_own_and_leaves_the_weights_clean():
    model = FakeModel()
    runtime = make_runtime(model, filter=HoldFilter())
    assert runtime.classify(DARK, "rgb").label == "dog"
    assert model.mix == {}
    assert runtime.classify(BRIGHT, "rgb").label == "cat"
    with pytest.raises(InputError):
        runtime.classify(DARK.astype(np.float32), "rgb")
    assert model.log[-1] == "reset"


def test_the_context_manager_leaves_the_weights_clean():
    model = FakeModel()
    with make_runtime(model) as runtime:
        model.apply({"fog": 1.0})
    assert model.mix == {}
    assert runtime.pipeline.model is model


def test_a_stream_opens_and_closes_a_source_given_by_name(tmp_path):
    write_images(tmp_path, 2)
    assert [result.index for result in make_runtime().stream(tmp_path)] == [0, 1]
    with pytest.raises(SourceError, match="no such file"):
        next(make_runtime().stream(str(tmp_path / "nowhere.mp4")))


def test_a_model_with_another_number_of_classes_is_refused_before_the_first_frame():
    with pytest.raises(InputError, match=r"shape \(1, 3\), expected \(1, 2\)"):
        next(make_runtime(classes=("cat", "dog")).stream(array_source(BRIGHT)))


def test_results_are_plain_json():
    (result,) = make_runtime().stream(array_source(DARK, names=["dark.png"]))
    line = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert line["name"] == "dark.png"
    assert line["label"] == "dog"
    assert line["mix"] == {"fog": 0.8}
    assert line["belief"]["type"] == "fog"
    assert line["belief"]["probability"] == {"clean": 0.0, "fog": 1.0, "snow": 0.0}
    assert set(line["times_ms"]) == set(STAGES)


def test_nothing_piles_up():
    def many(count):
        for index in range(count):
            yield Frame(index, DARK if index % 7 else BRIGHT, 0.0, "synthetic")

    model = FakeModel()
    runtime = make_runtime(model)
    tracemalloc.start()
    try:
        sizes = []
        for result in runtime.stream(many(1500)):
            model.log.clear()
            if result.index in (300, 1499):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 20_000


def test_the_oracle_can_look_at_every_nth_frame_only():
    looked = []

    class CountingOracle(FakeOracle):
        def observe(self, x):
            looked.append(float(x.mean()))
            return super().observe(x)

    runtime = make_runtime(oracle=CountingOracle(), oracle_every=3)
    results = list(runtime.stream(array_source(DARK, BRIGHT, BRIGHT, BRIGHT, DARK)))
    assert len(looked) == 1 + 2  # one is the warm-up
    assert [result.observed for result in results] == [True, False, False, True, False]
    assert [dict(result.mix) for result in results] == [{"fog": 0.8}] * 3 + [{}] * 2
    assert [result.belief.type for result in results] == ["fog"] * 3 + ["clean"] * 2
    with pytest.raises(InputError, match="at least 1"):
        make_runtime(oracle_every=0)


def test_the_clean_model_runs_on_the_same_frame_only_on_request():
    model, results = FakeModel(), []
    runtime = make_runtime(model)
    for result in runtime.stream(array_source(DARK, DARK, BRIGHT)):
        results.append(result)
        runtime.compare = True
    assert [result.label for result in results] == ["dog", "dog", "cat"]
    assert [result.unpatched and result.unpatched.label for result in results] == [None, "cat", "cat"]
    assert [result.changed for result in results] == [True, False, True]
    assert results[1].to_dict()["unpatched"] == {"label": "cat", "confidence": pytest.approx(0.6652)}
    assert results[0].to_dict()["unpatched"] is None
    assert model.mix == {}


def test_another_pipeline_takes_over_between_two_frames_and_the_old_one_is_left_clean():
    old, new = FakeModel(), FakeModel()
    runtime = make_runtime(old)
    results = runtime.stream(array_source(DARK, DARK, DARK, DARK))
    assert [next(results).label for _ in range(2)] == ["dog", "dog"]
    runtime.pipeline = make_pipeline(new, classes=("Katze", "Hund", "Schiff"))
    assert old.mix == {}
    assert next(results).label == "Hund"
    assert new.mix == {"fog": 0.8}
    assert next(results).label == "Hund"
    assert list(results) == []
    assert new.mix == {}


def test_a_pipeline_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        make_pipeline().model = FakeModel()


class LosingSource(ArraySource):
    """Loses its camera after the first frame, for a while."""

    def frames(self):
        frames = super().frames()
        yield next(frames)
        for self.state, self.idle_for in [("running", 5.0), ("reconnecting", 1.0), ("reconnecting", 2.0)]:
            yield None
        self.state, self.idle_for = "running", 0.0
        yield from frames


def test_a_source_that_stays_lost_removes_the_patch_and_resets_the_filter():
    model, seen = FakeModel(), []
    source = LosingSource(np.stack([DARK, BRIGHT]))
    for result in make_runtime(model, filter=HoldFilter()).results(source):
        seen.append((source.idle_for, dict(model.mix), result and result.belief.type))
    patch = {"fog": 0.8}
    assert seen == [(0, patch, "fog"), (5, patch, None), (1, patch, None), (2, {}, None), (0, {}, "clean")]


def test_a_frame_that_is_corrupted_on_purpose_is_compared_with_what_it_was():
    model = FakeModel()
    seen = []

    class Keep:
        def write(self, frame, result):
            seen.append((frame.image is DARK, frame.original is not None))

    clock = TickingClock()

    def darken(frame):
        clock()  # takes time that is not the camera's
        return replace(frame, image=DARK, original=frame.image)

    plain = list(make_runtime(FakeModel()).stream(array_source(BRIGHT)))
    results = list(make_runtime(model, clock=clock).results(array_source(BRIGHT, BRIGHT), [Keep()], [darken]))
    assert [result.label for result in results] == ["dog", "dog"]
    assert [(result.unpatched.label, result.on_original.label) for result in results] == [("cat", "cat")] * 2
    assert seen == [(True, True)] * 2
    assert [result.changed for result in results] == [True, False]
    assert results[0].times_ms["read"] == plain[0].times_ms["read"]
    assert results[0].to_dict()["on_original"]["label"] == "cat"
    summary = Summary()
    for result in results:
        summary.add(result)
    assert summary.agreement == {"frames": 2, "unpatched": 100.0, "patched": 0.0}


def test_images_can_be_pushed_and_belief_and_weights_are_kept_from_one_to_the_next():
    model = FakeModel()
    with make_runtime(model, filter=HoldFilter()) as runtime:
        first = runtime.step(DARK, "rgb")
        assert model.mix == {"fog": 0.8}
        second = runtime.step(BRIGHT, "rgb", name="camera", captured_at=7.0)
        assert [(r.index, r.name, r.belief.type, r.changed) for r in (first, second)] == [
            (0, "image", "fog", True),
            (1, "camera", "fog", False),
        ]
        assert second.captured_at == 7.0
        runtime.reset()
        assert model.mix == {}
        assert runtime.step(BRIGHT, "rgb").belief.type == "clean"
    assert model.mix == {}


def test_a_pushed_image_says_its_colour_order():
    seen = []

    class Looks(FakeOracle):
        def observe(self, x):
            seen.append(x[:, 0, 0].round(2).tolist())
            return super().observe(x)

    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    runtime = make_runtime(oracle=Looks())
    runtime.step(red, "rgb")
    runtime.step(red[:, :, ::-1], "bgr")
    runtime.step(np.full((20, 12, 3), (0, 0, 255), np.uint8), colour="bgr")
    assert seen[1:] == [[1, 0, 0]] * 3
    with pytest.raises(TypeError, match="colour"):
        runtime.step(red)
    with pytest.raises(InputError, match=r"colour is 'BGR', expected \"rgb\" or \"bgr\""):
        runtime.step(red, "BGR")


def test_a_pushed_image_that_the_model_cannot_read_is_refused_before_the_first_result():
    with pytest.raises(InputError, match=r"shape \(1, 3\), expected \(1, 2\)"):
        make_runtime(classes=("cat", "dog")).step(BRIGHT, "rgb")


def test_a_result_names_its_top_classes_and_fits_on_a_line():
    result = make_runtime().step(DARK, "rgb", name="dark.png")
    assert [(guess.label, guess.class_index) for guess in result.top] == [("dog", 1), ("cat", 0), ("ship", 2)]
    assert sum(guess.confidence for guess in result.top) == pytest.approx(1)
    assert (result.label, result.confidence) == ("dog", result.top[0].confidence)
    assert repr(result) == "Result(#0 dark.png: dog 71%, fog 100%, patch fog 0.80, 5.0 ms)"


def test_a_result_is_drawn_while_its_frame_is_the_newest():
    runtime = make_runtime()
    first = runtime.step(DARK, "bgr")
    plotted = first.plot()
    assert plotted.dtype == np.uint8
    np.testing.assert_array_equal(plotted, annotate(DARK, first))
    runtime.step(BRIGHT, "rgb")
    with pytest.raises(InputError, match="no longer in memory"):
        first.plot()
    for result in runtime.stream(array_source(BRIGHT, DARK)):
        assert result.plot().shape == plotted.shape


class Fails:
    """A part of the pipeline of which one call, counted from 0, gives or raises something else."""

    def __init__(self, part, method, at, failure):
        self._part, self._method, self._left, self._failure = part, method, at, failure

    def __getattr__(self, name):
        if name != self._method:
            return getattr(self._part, name)
        self._left -= 1
        return self._fail if self._left == -1 else getattr(self._part, name)

    def _fail(self, argument):
        if isinstance(self._failure, Exception):
            raise self._failure
        return self._failure if not callable(self._failure) else self._failure(argument)


def belief_of(*values, corruptions=CORRUPTIONS, levels=LEVELS):
    joint = np.zeros(1 + len(CORRUPTIONS) * len(LEVELS), np.float32)
    joint[: len(values)] = values
    return lambda x: Belief(corruptions, levels, joint)


def ort_error():
    try:
        onnxruntime.InferenceSession(b"no model")
    except Exception as error:
        return error


BAD_BELIEFS = {
    "NaN": belief_of(np.nan, 1),
    "infinite": belief_of(np.inf),
    "negative": belief_of(1.5, -0.5),
    "no probability at all": belief_of(),
    "subnormal sum": belief_of(1e-40, 1e-40),
    "other states": belief_of(1, corruptions=CORRUPTIONS[:1]),
    "severity of 100": belief_of(1, levels=(1.0, 2.0, 3.0, 4.0, 100.0)),
    "other corruptions": belief_of(1, corruptions=("rain", "snow")),
    "an error of ONNX Runtime": ort_error(),
    "an error of Torch": RuntimeError("CUDA error: an illegal memory access"),
}
BAD_MIXES = {
    "NaN": {"fog": float("nan")},
    "infinite": {"fog": float("-inf")},
    "too strong": {"fog": 1e6},
    "refused by the model": SignatureError("signature 'rain' is not there"),
}
BAD_OUTPUTS = {
    "NaN": (np.float32([[np.nan, 1, 2]]),),
    "infinite": (np.float32([[np.inf, 1, 2]]),),
    "all minus infinity": (np.full((1, 3), -np.inf, np.float32),),
    "another number of classes": (np.zeros((1, 2), np.float32),),
    "no row": (np.zeros((0, 3), np.float32),),
    "a scalar": (np.float32(1.0),),
    "an error of ONNX Runtime": ort_error(),
}
FAILURES = [
    *(("bad_belief", "oracle", "observe", what, failure) for what, failure in BAD_BELIEFS.items()),
    *(("bad_mix", "policy", "choose", what, failure) for what, failure in BAD_MIXES.items()),
    *(("bad_output", "model", "predict", what, failure) for what, failure in BAD_OUTPUTS.items()),
]


def failing_runtime(part, method, failure, at, **options):
    parts = {"oracle": FakeOracle(), "policy": FakePolicy(), "model": FakeModel()}
    parts[part] = Fails(parts[part], method, at, failure)
    runtime = make_runtime(filter=BeliefFilter(CORRUPTIONS, LEVELS), **parts, **options)
    runtime.pipeline = replace(runtime.pipeline, alpha_limit=1.0)
    return runtime


@pytest.mark.parametrize(
    ("reason", "part", "method", "failure"),
    [(reason, part, method, failure) for reason, part, method, _, failure in FAILURES],
    ids=[f"{reason}: {what}" for reason, _, _, what, _ in FAILURES],
)
def test_a_frame_on_which_a_part_fails_has_no_result_and_the_loop_goes_on(reason, part, method, failure, caplog):
    warm_up = 0 if part == "policy" else 1
    runtime = failing_runtime(part, method, failure, at=warm_up + 2)
    source, sink, found = array_source(*[DARK] * 5), ListSink(), []
    for result in runtime.results(source, [sink]):
        found.append(result)
        if isinstance(result, FrameError):
            assert (result.reason, dict(runtime.pipeline.model.mix)) == (reason, {})
            assert "\n" not in str(result)
    assert [isinstance(result, FrameError) for result in found] == [False, False, True, False, False]
    assert sink.taken == [(0, "dog"), (1, "dog"), (3, "dog"), (4, "dog")]
    assert runtime.rejections == {reason: 1}
    assert source.delivered == len(sink.taken) + runtime.rejections.total()
    # What comes after it is what a fresh start gives, and no number in it is anything but a number.
    alone = list(make_runtime(filter=BeliefFilter(CORRUPTIONS, LEVELS)).stream(array_source(DARK, DARK)))
    for result, expected in zip(found[3:], alone, strict=True):
        np.testing.assert_array_equal(result.belief.joint, expected.belief.joint)
        assert result.mix == expected.mix == {"fog": 0.8}
        json.dumps(result.to_dict(), allow_nan=False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"frame 2 has no result ({reason})" in caplog.text


def test_many_bad_frames_are_all_counted_and_the_first_is_logged(caplog):
    class Blind(FakeOracle):
        def observe(self, x):
            return belief_of(np.nan)(x)

    runtime = make_runtime(oracle=Blind())
    assert list(runtime.stream(array_source(*[DARK] * 4))) == []
    assert runtime.rejections == {"bad_belief": 4}
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    with pytest.raises(FrameError):
        runtime.classify(DARK, "rgb")
    list(runtime.stream(array_source(DARK)))
    assert runtime.rejections == {"bad_belief": 1}


def test_a_pushed_image_on_which_a_part_fails_raises_and_the_next_one_works():
    runtime = failing_runtime("model", "predict", (np.float32([[np.nan, 1, 2]]),), at=2)
    assert runtime.step(DARK, "rgb").label == "dog"
    with pytest.raises(FrameError, match="1 of 3 numbers are not finite") as caught:
        runtime.step(DARK, "rgb")
    assert caught.value.reason == "bad_output"
    assert runtime.pipeline.model.mix == {}
    assert runtime.step(BRIGHT, "rgb").belief.type == "clean"


def test_a_belief_is_not_held_over_a_failure():
    runtime = failing_runtime("model", "predict", (np.float32([[np.nan, 1, 2]]),), at=2, oracle_every=4)
    results = list(runtime.stream(array_source(DARK, DARK, BRIGHT, BRIGHT)))
    assert [(result.index, result.observed, result.belief.type) for result in results] == [
        (0, True, "fog"),
        (2, True, "clean"),
        (3, False, "clean"),
    ]


def test_a_clean_model_that_fails_next_to_the_patched_one_gives_no_result():
    runtime = failing_runtime("model", "predict", (np.float32([[np.nan, 1, 2]]),), at=2)
    runtime.compare = True
    assert [result.index for result in runtime.stream(array_source(DARK, DARK))] == [1]
    assert runtime.pipeline.model.mix == {}


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), -float("inf"), 1e308])
def test_a_frame_needs_a_time(moment):
    with pytest.raises(InputError, match="expected seconds of the clock"):
        make_runtime().step(DARK, "rgb", captured_at=moment)


@pytest.mark.parametrize("limits", [PatchLimits(leave_clean=True), PatchLimits(min_severity=4.5)])
def test_limits_hold_from_the_next_frame_on_even_if_the_oracle_does_not_look(limits):
    policy = FakePolicy()
    runtime = make_runtime(policy=policy, oracle_every=100)
    mixes = []
    for result in runtime.stream(array_source(*[DARK] * 9)):
        mixes.append(dict(result.mix))
        runtime.limits = {2: limits, 5: PatchLimits(min_severity=3.5)}.get(result.index, runtime.limits)
    assert mixes == [{"fog": 0.8}] * 3 + [{}] * 3 + [{"fog": 0.8}] * 3
    assert policy.resets > 0
    assert runtime.pipeline.model.mix == {}


def test_limits_survive_a_swap():
    runtime = make_runtime()
    runtime.limits = PatchLimits(leave_clean=True)
    runtime.pipeline = make_pipeline()
    assert [dict(result.mix) for result in runtime.stream(array_source(DARK, DARK))] == [{}, {}]
