"""The algebra of patches: W = W_std + Σ α_c·R_c, from the clean copy, all or nothing."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.live import layout
from rws.edge.live.arena import ALPHA_STEP, Arena
from rws.edge.live.kernel import NAME, multiply_add_numpy
from rws.edge.live.layout import plain_slots
from rws.errors import SignatureError
from support.tiny import CORRUPTIONS, make_signatures

SHAPES = {"a.weight": (6, 3, 3, 3), "a.bias": (6,), "b.weight": (4, 6, 1, 1), "b.bias": (4,)}
RNG = np.random.default_rng(5)
CLEAN = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
SIGNATURES = make_signatures(CLEAN)

alphas = st.integers(-4 * 256, 4 * 256).map(lambda steps: steps * ALPHA_STEP)
mixes = st.dictionaries(st.sampled_from(CORRUPTIONS), alphas)


def weights(arena):
    return {name: view.copy() for name, view in arena.views.items()}


def assert_bits_equal(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.fixture
def arena():
    return Arena(CLEAN, SIGNATURES)


@given(mix=mixes)
def test_weights_are_the_clean_ones_plus_the_weighted_signatures(mix):
    arena = Arena(CLEAN, SIGNATURES)
    arena.apply(mix)
    for name, found in arena.views.items():
        expected = CLEAN[name].astype(np.float64)
        for signature, alpha in mix.items():
            expected = expected + alpha * SIGNATURES.get(signature)[name].astype(np.float64)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@given(mix=mixes, order=st.randoms(use_true_random=False))
def test_order_of_the_mix_does_not_change_a_bit(mix, order):
    items = list(mix.items())
    order.shuffle(items)
    first, second = Arena(CLEAN, SIGNATURES), Arena(CLEAN, SIGNATURES)
    first.apply(mix)
    second.apply(dict(items))
    assert_bits_equal(weights(first), weights(second))
    assert first.mix == second.mix


@given(alpha=alphas, beta=alphas, name=st.sampled_from(CORRUPTIONS))
def test_the_change_is_linear_in_alpha(alpha, beta, name):
    def change(strength):
        arena = Arena(CLEAN, SIGNATURES)
        arena.apply({name: strength})
        return {tensor: view - CLEAN[tensor] for tensor, view in arena.views.items()}

    together, one, other = change(alpha + beta), change(alpha), change(beta)
    for tensor in SHAPES:
        np.testing.assert_allclose(together[tensor], one[tensor] + other[tensor], atol=5e-6)


@given(sequence=st.lists(mixes, max_size=8), last=mixes)
def test_what_was_applied_before_leaves_no_trace(sequence, last):
    arena, fresh = Arena(CLEAN, SIGNATURES), Arena(CLEAN, SIGNATURES)
    for mix in sequence:
        arena.apply(mix)
    arena.apply(last)
    fresh.apply(last)
    assert_bits_equal(weights(arena), weights(fresh))
    arena.reset()
    assert_bits_equal(weights(arena), CLEAN)
    assert arena.mix == {}


def test_apply_tells_whether_weights_changed(arena):
    assert arena.apply({}) is False
    assert arena.apply({"fog": 0.5}) is True
    assert arena.apply({"fog": 0.5, "contrast": 0}) is False
    assert arena.apply({"contrast": 0.0, "fog": np.float32(0.5)}) is False
    assert arena.mix == {"fog": 0.5}
    assert arena.apply({"fog": 0.0}) is True
    assert arena.mix == {}
    assert_bits_equal(weights(arena), CLEAN)


def test_an_equal_mix_writes_nothing(arena):
    arena.apply({"fog": 0.5})
    arena.views["a.bias"][:] = 7
    arena.apply({"fog": 0.5})
    assert (arena.views["a.bias"] == 7).all()


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"rain": 1.0}, "'rain' is not there; known: gaussian_noise, fog, contrast"),
        ({"rain": 0.0}, "'rain'"),
        ({"contrast": 1.0, "fog": float("nan")}, "'fog': strength is nan"),
        ({"fog": float("inf")}, "finite number"),
        ({"fog": None}, "finite number"),
        ({"fog": "1"}, "finite number"),
        ({"fog": 10**400}, "finite number"),
        ({"fog": 1e38, "contrast": 1e38, "gaussian_noise": 1e300}, "weights are not finite; choose smaller"),
    ],
)
def test_an_impossible_mix_changes_nothing(arena, mix, message):
    arena.apply({"fog": 0.5})
    before = weights(arena)
    with pytest.raises(SignatureError, match=message):
        arena.apply(mix)
    assert_bits_equal(weights(arena), before)
    assert arena.mix == {"fog": 0.5}
    assert arena.apply({"fog": 0.5}) is False


def test_after_an_interrupted_write_the_next_one_is_done_in_full():
    failing = []

    def publish():
        if failing:
            raise KeyboardInterrupt

    arena = Arena(CLEAN, SIGNATURES, publish=publish)
    failing.append(True)
    with pytest.raises(KeyboardInterrupt):
        arena.apply({"fog": 1.0})
    failing.clear()
    assert arena.apply({}) is True
    assert_bits_equal(weights(arena), CLEAN)


def test_a_prediction_after_an_interrupted_write_settles_on_clean_weights():
    interrupts = [KeyboardInterrupt]

    def interrupted():
        if interrupts:
            raise interrupts.pop()

    arena = Arena(CLEAN, SIGNATURES, publish=interrupted)
    with pytest.raises(KeyboardInterrupt):
        arena.apply({"fog": 1.0})
    arena.settle()
    assert arena.mix == {}
    assert_bits_equal(weights(arena), CLEAN)
    arena.apply({"fog": 1.0})
    arena.settle()
    assert arena.mix == {"fog": 1.0}


def test_strengths_lie_on_a_grid(arena):
    arena.apply({"fog": 0.5})
    assert arena.apply({"fog": 0.5 + 0.4 * ALPHA_STEP, "contrast": -0.4 * ALPHA_STEP}) is False
    assert arena.apply({"fog": 0.5 + 0.6 * ALPHA_STEP}) is True
    assert arena.mix == {"fog": 0.5 + ALPHA_STEP}


def test_views_stay_the_same_memory(arena):
    view = arena.views["a.bias"]
    arena.apply({"fog": 1.0})
    assert np.shares_memory(view, arena.views["a.bias"])
    assert (view != CLEAN["a.bias"]).any()


def test_without_signatures_only_the_clean_model_is_possible():
    arena = Arena(CLEAN, None)
    assert arena.apply({}) is False
    with pytest.raises(SignatureError, match="known: none"):
        arena.apply({"fog": 1.0})


def test_signatures_of_another_model_are_refused():
    other = {name: array + 1 for name, array in CLEAN.items()}
    with pytest.raises(SignatureError, match="made for clean weights"):
        Arena(other, SIGNATURES)


@pytest.fixture(params=["C", "NumPy"])
def kernel(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr("rws.edge.live.arena.multiply_add", multiply_add_numpy)
    elif NAME == "NumPy":
        pytest.skip("the package was installed without a C compiler")


@pytest.mark.usefixtures("kernel")
class TestLayouts:
    """Whatever the layout and the kernel, each weight gets the same bits."""

    @staticmethod
    def blocked(block, start):
        """b.weight (4, 6, 1, 1) or a.weight (6, 3, 3, 3) in blocks of output channels, the last one padded."""
        numbers = np.arange(start, start + 162).reshape(6, 3, 3, 3)
        padded = np.full((-(-6 // block) * block, 3, 3, 3), -1)
        padded[:6] = numbers
        return padded.reshape(-1, block, 3, 3, 3).transpose(0, 2, 3, 4, 1)

    @pytest.mark.parametrize(
        "layout",
        [
            lambda self: self.blocked(2, 0),
            lambda self: self.blocked(4, 0),
            lambda self: self.blocked(16, 0),
            lambda self: np.arange(162).reshape(6, 3, 3, 3).transpose(0, 2, 3, 1),
            lambda self: np.arange(162).reshape(6, 3, 3, 3).transpose(2, 3, 1, 0),
            lambda self: np.random.default_rng(0).permutation(162),
            lambda self: np.append(np.arange(162), [-1] * 5),
        ],
        ids=["blocks of 2", "blocks of 4, padded", "one padded block", "channels last", "HWIO", "random", "padded end"],
    )
    @pytest.mark.parametrize("code", [{}, {"bits": 4, "per": "tensor"}, {"bits": 16}], ids=str)
    def test_each_weight_has_the_same_bits(self, layout, code):
        order = np.ascontiguousarray(layout(self))
        plain = plain_slots(SHAPES)
        slots = {"other name": order}
        slots |= {name: plain[name] for name in reversed(SHAPES) if name != "a.weight"}
        signatures = make_signatures(CLEAN, **code)
        laid_out, expected = Arena(CLEAN, signatures, slots), Arena(CLEAN, signatures)
        for mix in ({"fog": 1.0}, {"gaussian_noise": 0.25, "contrast": -0.75}, {}):
            laid_out.apply(mix)
            with pytest.MonkeyPatch.context() as context:
                context.setattr("rws.edge.live.arena.multiply_add", multiply_add_numpy)
                expected.apply(mix)
            values = np.concatenate([view.ravel() for view in expected.views.values()])
            for name, slot in slots.items():
                found = laid_out.views[name]
                assert found.shape == slot.shape
                wanted = np.where(slot < 0, np.float32(0), values[slot])
                assert found.tobytes() == wanted.tobytes(), name

    def test_a_large_tensor_is_patched_in_pieces(self):
        clean = {"weight": RNG.normal(size=(64, 520, 3, 3)).astype(np.float32)}
        signatures = make_signatures(clean)
        arena = Arena(clean, signatures)
        arena.apply({"fog": 0.5})
        entry = signatures.entries["fog"]["weight"]
        factors = (entry.scale * np.float32(0.5)).reshape(-1, 1, 1, 1)
        expected = clean["weight"] + entry.values.astype(np.float32) * factors
        assert arena.views["weight"].tobytes() == expected.tobytes()

    def test_every_slot_starts_on_a_cache_line(self, arena):
        assert all(view.ctypes.data % 64 == 0 for view in arena.views.values())


def test_the_worked_example_of_a_layout():
    found = doctest.testmod(layout)
    assert found.attempted >= 3
    assert not found.failed
