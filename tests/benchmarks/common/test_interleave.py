import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.benchmarks.common.interleave import (
    Block,
    Measured,
    frames_per_block,
    interleave,
    paired_ratio,
    settling_frames,
)

times = st.floats(0.01, 1e3)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 12))


def block(ms, changed=None, **parts) -> Block:
    return Block(
        np.array(ms, float), np.array(changed or [False] * len(ms)), {k: np.array(v) for k, v in parts.items()}
    )


def test_a_typical_frame_holds_its_share_of_the_patches_and_no_interruption():
    ms = [5, 1, 1, 1, 1, 1, 1, 1, 1, 900]
    assert block(ms, [True] + 9 * [False]).typical() == pytest.approx(0.1 * 5 + 0.9 * 1)
    assert block(ms).typical() == 1
    assert block([3, 4, 900], [True] * 3).typical() == 4
    assert block([1], part=[7.0]).typical("part") == 7


@given(shapes, times, st.integers(0, 2**32 - 1))
def test_a_common_factor_does_not_change_the_ratio(shape, factor, seed):
    drift = np.random.default_rng(seed).uniform(0.1, 10, shape)
    assert paired_ratio(factor * drift, drift) == pytest.approx((factor, factor, factor))


@given(shapes, times, st.integers(0, 2**32 - 1))
def test_the_interval_holds_the_ratio_and_scales_with_it(shape, factor, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(1, 2, shape), rng.uniform(1, 2, shape)
    ratio, low, high = paired_ratio(a, b)
    assert low <= ratio * (1 + 1e-9)
    assert high >= ratio * (1 - 1e-9)
    assert paired_ratio(factor * a, b) == pytest.approx((factor * ratio, factor * low, factor * high))


def test_repeats_that_differ_widen_the_interval_however_many_rounds_they_have():
    rounds = np.random.default_rng(0).normal(1, 0.001, (3, 200))
    offset = np.array([[0.95], [1.0], [1.05]])
    _, low, high = paired_ratio(rounds + offset, np.ones_like(rounds))
    assert low < 1.97
    assert high > 2.03
    _, low, high = paired_ratio(rounds, np.ones_like(rounds))
    assert high - low < 0.001


def test_the_baseline_runs_before_and_after_every_case():
    order = []
    ticks = iter(range(1, 1000))

    def run(name, ms):
        def call():
            order.append(name)
            return block([ms()])

        return call

    cases = {name: run(name, lambda: 10) for name in "abc"}
    measured: dict[str, Measured] = {}
    for _ in range(2):
        interleave(run("baseline", lambda: next(ticks)), cases, 4, random.Random(0), measured)
    assert order[0] == order[-1] == "baseline"
    half = order[: len(order) // 2]
    assert half[::2] == ["baseline"] * 13
    for start in range(1, 25, 6):
        assert sorted(half[start : start + 6 : 2]) == ["a", "b", "c"]
    assert len({tuple(half[start : start + 6]) for start in range(1, 25, 6)}) > 1
    for case in measured.values():
        assert np.array(case.baseline).shape == case.typical().shape == (2, 4)
    # The baseline counts 1, 2, 3, …; the first case ran between 1 and 2.
    assert measured[order[1]].baseline[0][0] == 1.5
    assert sorted(value for case in measured.values() for value in case.baseline[0]) == [n + 0.5 for n in range(1, 13)]


def test_a_measured_case_gives_single_frames_and_their_parts():
    case = Measured([[block([2, 1, 1], [True, False, False], change=[0.5, 0, 0])]], [[1.0]])
    assert case.values().tolist() == [2, 1, 1]
    assert case.values("change").tolist() == [0.5, 0, 0]
    assert case.ratio() == pytest.approx((4 / 3, 4 / 3, 4 / 3))


@given(st.floats(1e-3, 1e5), st.sampled_from([0, 1, 10]))
def test_blocks_are_short_and_hold_whole_periods(frame_ms, every):
    frames = frames_per_block(frame_ms, every)
    assert 3 <= frames <= 50
    assert every < 2 or frames % every == 0
    assert settling_frames(frame_ms) in (1, 2)
