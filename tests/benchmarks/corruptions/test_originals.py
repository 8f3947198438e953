"""The original generators, run as their own file says; here a small file of the same form stands for them."""

import numpy as np
import pytest

from rws.benchmarks.corruptions import originals
from rws.training.evaluation.sets import list_sets

GENERATOR = """
import torch.utils.data as data
import numpy as np


def contrast(x, severity=1):
    return np.array(x) / severity


def impulse_noise(x, severity=1):
    return np.array(x) * (np.random.uniform(size=(32, 32, 1)) < 0.5)


# /////////////// End Distortions ///////////////

d['Contrast'] = contrast
d['Impulse Noise'] = impulse_noise
data = dset.CIFAR10('/share', train=False)
"""


@pytest.fixture
def folder(tmp_path, clear, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "create_c").mkdir()
    (tmp_path / "create_c" / originals.GENERATOR).write_text(GENERATOR)
    (tmp_path / "made").mkdir()
    np.save(tmp_path / "made" / "clean.npy", clear[0][:3])
    np.save(tmp_path / "made" / "labels.npy", clear[1][:3])
    originals.main(tmp_path / "create_c", tmp_path / "made")
    return tmp_path / "made"


def test_the_functions_of_the_file_make_a_data_set_that_is_replayed(folder, clear):
    made = np.load(folder / "contrast.npy")
    np.testing.assert_array_equal(made, np.concatenate([np.uint8(clear[0][:3] / s) for s in range(1, 6)]))
    sets = list_sets(str(folder), tuple("abcdefghij"), 32, (2, 5), None, 0)
    assert [(found.corruption, found.severity) for found in sets][:2] == [("clean", 0), ("impulse_noise", 2)]
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.tile(clear[1][:3], 5))


@pytest.mark.parametrize("text", [None, "print('another file')"])
def test_another_file_is_refused_in_one_line(text, tmp_path):
    if text is not None:
        (tmp_path / originals.GENERATOR).write_text(text)
    with pytest.raises(SystemExit, match=r"make_cifar_c\.py: not the generator of [^\n]*$"):
        originals.load_generators(tmp_path)


def test_a_file_that_is_there_is_kept_and_a_seed_gives_the_same_draws(folder, clear, tmp_path, monkeypatch):
    before = np.load(folder / "impulse_noise.npy")
    assert (before[:3] != before[3:6]).any()
    (folder / "contrast.npy").write_bytes(b"kept")
    (folder / "impulse_noise.npy").unlink()
    monkeypatch.chdir(tmp_path)
    originals.main(tmp_path / "create_c", folder)
    np.testing.assert_array_equal(np.load(folder / "impulse_noise.npy"), before)
    assert (folder / "contrast.npy").read_bytes() == b"kept"
    assert not (folder / "part.npy").exists()
