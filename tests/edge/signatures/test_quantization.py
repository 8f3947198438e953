import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rws.edge.signatures.quantization import dequantise, largest_value, quantise
from rws.errors import InputError

deltas = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
codes = {"bits": st.sampled_from([4, 8, 16]), "per": st.sampled_from(["channel", "tensor"])}


@given(delta=deltas, **codes)
def test_error_is_at_most_half_a_scale(delta, bits, per):
    quantised = quantise(delta, bits, per)
    error = np.abs(dequantise(quantised).astype(np.float64) - delta)
    # The product values · scale is itself rounded to float32: at most one part in 2^24 of 32767 scales.
    assert (error <= quantised.columns.astype(np.float64) * (0.5 + largest_value(bits) * 2.0**-23)).all()


@given(delta=deltas, **codes)
def test_code_is_symmetric_finite_and_positive(delta, bits, per):
    quantised = quantise(delta, bits, per)
    assert np.abs(quantised.values.astype(int)).max(initial=0) <= largest_value(bits)
    assert quantised.values.dtype == (np.int16 if bits == 16 else np.int8)
    assert quantised.scale.dtype == np.float32
    assert quantised.scale.shape == (delta.shape[:1] if per == "channel" else ())
    assert (quantised.scale > 0).all()
    assert np.isfinite(dequantise(quantised)).all()
    negative = quantise(-delta, bits, per)
    np.testing.assert_array_equal(negative.values, -quantised.values)


def test_scale_is_the_largest_value_over_the_largest_code():
    delta = np.array([[1.27, -0.5], [0, 0]], np.float32)
    quantised = quantise(delta)
    np.testing.assert_allclose(quantised.scale, [0.01, 1], rtol=1e-6)
    np.testing.assert_array_equal(quantised.values, [[127, -50], [0, 0]])
    assert quantise(delta, per="tensor").scale == np.float32(0.01)


def test_a_bias_is_kept_all_but_exactly_per_channel():
    bias = np.random.default_rng(0).normal(size=64).astype(np.float32)
    np.testing.assert_allclose(dequantise(quantise(bias)), bias, rtol=1e-6)


@pytest.mark.parametrize(
    ("delta", "settings", "message"),
    [
        (np.array([np.nan], np.float32), {}, "NaN"),
        (np.array([np.inf], np.float32), {}, "infinity"),
        (np.zeros(3), {}, "float64"),
        (np.float32(1).reshape(()), {}, "shape"),
        (np.zeros(3, np.float32), {"bits": 7}, "bits=7"),
        (np.zeros(3, np.float32), {"per": "row"}, "'row'"),
    ],
)
def test_what_cannot_be_quantised_is_refused(delta, settings, message):
    with pytest.raises(InputError, match=message):
        quantise(delta, **settings)
