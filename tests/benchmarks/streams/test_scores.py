import numpy as np
import pytest

from rws.benchmarks.streams.protocols import Stream
from rws.benchmarks.streams.scores import (
    NAMES,
    delays,
    mean_by_type,
    mix_accuracy,
    mix_change_rate,
    perfect_accuracy,
    reaction,
    right_mix,
    run_lengths,
    running_mean,
)
from rws.oracle.belief import CLEAN
from rws.oracle.policy import GainTable

FOG, SNOW = NAMES.index("fog") - 1, NAMES.index("snow") - 1


def make(types, severities=None, protocol="continual", cuts=(0,)) -> Stream:
    kinds = np.array(types, np.int64)
    severity = np.where(kinds < 0, 0, 5) if severities is None else np.array(severities)
    cut = np.zeros(len(kinds), bool)
    cut[list(cuts)] = True
    zeros = np.zeros(len(kinds), np.int64)
    return Stream(protocol, zeros, kinds, severity.astype(np.float32), zeros, cut)


# States clean, snow 1 and 5, fog 1 and 5; actions: no patch, snow at 1, fog at 0.5, fog at 1.
TABLE = GainTable(
    ("snow", "fog"),
    (1.0, 5.0),
    np.array([-1, 0, 1, 1]),
    np.array([0, 1, 0.5, 1], np.float32),
    np.array(
        [[90, 80, 89.5, 70], [80, 85, 70, 60], [50, 75, 60, 55], [85, 60, 86, 80], [40, 45, 69.5, 70]], np.float32
    ),
)
NONE, SNOW_1, FOG_HALF, FOG_1 = MIXES = [{}, {"snow": 1.0}, {"fog": 0.5}, {"fog": 1.0}]


def test_types_are_named_in_the_order_of_the_lists():
    assert NAMES[0] == CLEAN
    assert len(NAMES) == 20


def test_means_are_by_true_type():
    found = mean_by_type(make([-1, -1, FOG, FOG, FOG, SNOW]), np.array([True, False, True, True, False, True]))
    assert found[0] == 0.5
    assert found[1 + FOG] == pytest.approx(2 / 3)
    assert found[1 + SNOW] == 1
    assert np.isnan(found).sum() == 17


def test_the_table_is_interpolated_between_levels_and_towards_clean():
    stream = make([-1, FOG, FOG, FOG, FOG], [0, 5, 3, 1, 0.5])
    each = [mix_accuracy(stream, TABLE, MIXES, np.full(5, index)) for index in range(len(MIXES))]
    accuracy, perfect = np.stack(each, axis=1), perfect_accuracy(stream, TABLE)
    np.testing.assert_allclose(accuracy[0], TABLE.accuracy[0])
    np.testing.assert_allclose(accuracy[1], TABLE.accuracy[4])
    np.testing.assert_allclose(accuracy[2], (TABLE.accuracy[3] + TABLE.accuracy[4]) / 2)
    np.testing.assert_allclose(accuracy[4], (TABLE.accuracy[0] + TABLE.accuracy[3]) / 2)
    # No patch if clean; fog at 1 at level 5; the lower level wins a draw at 3; fog at 0.5 below.
    np.testing.assert_allclose(perfect, [90, 70, (86 + 69.5) / 2, 86, (89.5 + 86) / 2])


def test_right_is_within_a_point_of_perfect():
    stream = make([-1, -1, -1, FOG, FOG, FOG, SNOW])
    mix = np.array([0, 2, 3, 3, 2, 0, 2])
    right = right_mix(stream, TABLE, MIXES, mix)
    assert right.tolist() == [True, True, False, True, True, False, False]


def test_of_a_composition_the_table_gives_an_estimate():
    stream, mixes = make([-1, FOG, SNOW]), [{"fog": 0.5, "snow": 1.0}, {"fog": 0.25}]
    # Gains add up, at most to the best action's: clean -0.5 - 10, fog +29.5 + 5 > 30, snow +10 + 25 > 25.
    np.testing.assert_allclose(mix_accuracy(stream, TABLE, mixes, np.zeros(3, int)), [79.5, 70, 75])
    np.testing.assert_allclose(mix_accuracy(stream, TABLE, mixes, np.ones(3, int)), [89.75, 54.75, 55])
    assert right_mix(stream, TABLE, mixes, np.zeros(3, int)).tolist() == [False, True, True]


def test_switches_are_counted_between_frames_but_not_over_cuts():
    mix = np.array([0, 0, 1, 1, 2, 2])
    assert mix_change_rate(make([0] * 6), mix) == pytest.approx(40)
    assert mix_change_rate(make([0] * 6, cuts=(0, 2)), mix) == pytest.approx(25)
    assert mix_change_rate(make([0] * 3, cuts=(0, 1, 2)), mix[:3]) == 0


def test_the_reaction_is_the_first_right_frame_and_never_counts_in_full():
    right = np.array([1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1], bool)
    found = reaction(right, np.array([0, 1, 5, 10]), np.array([1, 5, 10, 12]))
    assert found == {"median": 1.5, "mean": 2.0, "p95": 4.55, "never_right": 25.0, "blocks": 4}
    assert reaction(right, np.zeros(0, np.int64), np.zeros(0, np.int64)) is None


def test_delays_of_types_and_of_severities_are_apart():
    stream = make([FOG] * 6 + [SNOW] * 4, [1, 1.2, 2, 2, 3, 3, 3, 3, 4, 4])
    right = np.array([0, 1, 0, 0, 1, 1, 0, 0, 0, 1], bool)
    of_type, of_severity = delays(stream, right, np.zeros(10, bool))
    assert of_type == {"median": 2.0, "mean": 2.0, "p95": 2.9, "never_right": 0.0, "blocks": 2}
    # Fog at 2 is never right in its 2 frames, at 3 at once; snow at 4 after 1.
    assert of_severity == {"median": 1.0, "mean": 1.0, "p95": 1.9, "never_right": 33.33, "blocks": 3}
    both = np.array([True, True])
    assert delays(make([FOG, SNOW], protocol="mixed"), both, both)[0] is None


def test_a_block_that_sets_in_weakly_counts_from_where_no_patch_is_wrong():
    kinds = [FOG] * 6 + [-1] * 3 + [SNOW] * 3
    right = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    unpatched = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1], bool)
    # Fog: from its third frame, right after 2. Clean: from its first, right after 1. Snow never needs a patch.
    found = delays(make(kinds, protocol="gradual"), right, unpatched)[0]
    assert (found["blocks"], found["mean"]) == (2, 1.5)
    found = delays(make(kinds), right, unpatched)[0]
    assert (found["blocks"], found["mean"]) == (3, 0.33)


def test_a_cut_starts_a_new_block():
    stream = make([FOG] * 4, protocol="iid", cuts=(0, 2))
    assert delays(stream, np.array([True, True, False, True]), np.zeros(4, bool))[0]["mean"] == 0.5


def test_runs_and_running_means():
    assert run_lengths(np.array([3, 3, 0, 3])) == [[3, 2], [0, 1], [3, 1]]
    assert run_lengths(np.array([1])) == [[1, 1]]
    assert running_mean(np.array([1, 1, 0, 0, 1, 1, 0], bool), window=4, step=2) == [100, 50, 50]
