import numpy as np
import pytest

from rws.errors import FormatError, InputError
from rws.oracle.classifier import Oracle
from support.tiny import CORRUPTIONS, LEVELS, SIZE, failing_oracle

DARK, WHITE = np.full((3, SIZE, SIZE), 0.5, np.float32), np.ones((3, SIZE, SIZE), np.float32)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("nan", InputError, "their sum nan; expected probabilities"),
        ("inf", InputError, "their sum inf; expected probabilities"),
        ("shape", FormatError, r"gives float32 \(0, 10\), expected float32 \(1, 10\)"),
        ("error", FormatError, "ONNX Runtime cannot run it"),
    ],
)
def test_what_is_no_belief_is_refused_when_it_comes(kind, error, message):
    oracle = Oracle(failing_oracle(kind), CORRUPTIONS, LEVELS, threads=1)
    before = oracle.observe(DARK).joint
    assert before.sum() == pytest.approx(1, abs=1e-5)
    for observe in (oracle.observe, lambda x: oracle.observe_batch(x[None])):
        with pytest.raises(error, match=message) as caught:
            observe(WHITE)
        assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(oracle.observe(DARK).joint, before)
