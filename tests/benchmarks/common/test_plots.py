import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rws.benchmarks.common.plots import small_png
from rws.errors import InputError


def test_a_figure_that_cannot_be_small_is_refused():
    figure = plt.figure(figsize=(12, 12), dpi=100)
    figure.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((1200, 1200)), interpolation="nearest")
    with pytest.raises(InputError, match="expected below 45000"):
        small_png(figure)
    assert Image.open(io.BytesIO(small_png(plt.figure(figsize=(2, 2))))).size == (200, 200)
