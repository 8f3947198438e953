"""out = base + values · factors, compiled and in NumPy: the same bits."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.live import kernel
from rws.edge.live.kernel import NAME, multiply_add, multiply_add_numpy

lengths = st.tuples(st.integers(1, 4), st.integers(1, 40), st.sampled_from([1, 2, 3, 8, 16, 17]))


@given(
    parts=st.lists(lengths, min_size=1, max_size=4),
    dtype=st.sampled_from([np.int8, np.int16]),
    in_place=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_kernels_give_what_the_formula_gives(parts, dtype, in_place, seed):
    rng = np.random.default_rng(seed)
    pieces, start, first = [], 0, 0
    for outer, run, block in parts:
        pieces.append((start, first, outer, run, block))
        start += outer * run * block + 3  # a gap that no piece covers
        first += outer * block
    base = rng.normal(0, 10.0 ** rng.integers(-6, 6), start).astype(np.float32)
    values = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, start, dtype, endpoint=True)
    factors = rng.normal(0, 1e-2, first).astype(np.float32)
    before = base if in_place else rng.normal(size=start).astype(np.float32)
    expected = before.copy()
    for begin, factor, outer, run, block in pieces:
        part = slice(begin, begin + outer * run * block)
        scale = np.repeat(factors[factor : factor + outer * block].reshape(outer, 1, block), run, axis=1).ravel()
        expected[part] = base[part] + values[part].astype(np.float32) * scale
    for function in (multiply_add, multiply_add_numpy):
        block = before.copy()
        function(block if in_place else base, values, factors, block, np.array(pieces, np.int64))
        assert block.tobytes() == expected.tobytes()


@pytest.mark.skipif(NAME == "NumPy", reason="the package was installed without a C compiler")
@pytest.mark.parametrize(
    "piece", [(0, 0, 2, 2, 3), (-1, 0, 1, 1, 1), (0, 4, 1, 1, 1), (0, 0, 1, 9, 1), (0, 0, 1, 1, 0), (8, 0, 1, 1, 1)]
)
def test_the_compiled_kernel_stays_inside_its_memory(piece):
    block, factors, values = np.zeros(8, np.float32), np.ones(4, np.float32), np.ones(8, np.int8)
    with pytest.raises(ValueError, match="sizes do not fit"):
        multiply_add(block, values, factors, block, np.array([piece], np.int64))
    with pytest.raises(ValueError, match="sizes do not fit"):
        multiply_add(block[1:], values, factors, block, np.zeros((0, 5), np.int64))
    assert (block == 0).all()


HEADERS = Path(sysconfig.get_path("include"), "Python.h")


@pytest.mark.skipif(not (shutil.which("cc") and HEADERS.exists()), reason="no C compiler or no headers of Python")
def test_where_there_is_a_compiler_it_was_used():
    assert kernel.NAME == "C"
