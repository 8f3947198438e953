import cv2
import numpy as np
import pytest

from rws.benchmarks.zoo.free_photographs import main
from rws.errors import InputError


def test_large_photographs_become_squares_and_small_ones_stay(tmp_path):
    codec, gb82, out = (tmp_path / name for name in ("codec", "gb82", "out"))
    random = np.random.default_rng(0)
    sizes = {
        codec / "CID22/CID22-512/training/one.png": (512, 512),
        codec / "clic2025/validation/large.png": (1200, 1600),
        gb82 / "png/wide.png": (600, 900),
    }
    for file, size in sizes.items():
        file.parent.mkdir(parents=True)
        cv2.imwrite(str(file), random.integers(0, 256, (*size, 3), np.uint8))
    main(codec, gb82, out)
    made = {file.name: cv2.imread(str(file)).shape for file in out.iterdir()}
    named = ["cid_one.png", "large.png_0.png", "large.png_1.png", "large.png_2.png", "wide.png_0.png", "wide.png_1.png"]
    assert made == dict.fromkeys(named, (512, 512, 3))


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(InputError, match="hold no photographs"):
        main(tmp_path, tmp_path, tmp_path / "out")
