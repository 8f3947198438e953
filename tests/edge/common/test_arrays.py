import os

import numpy as np
import pytest

from rws.edge.common.arrays import map_array
from rws.errors import FormatError


def with_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def header(shape="(3,)", descr="'<f8'"):
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


def test_an_array_is_mapped_and_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    found = map_array(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"text",
        header(),  # no data
        header("(10**9,)"),
        header("(1000000000000000, 1000000000000)") + bytes(64),
        header("(-1,)") + bytes(64),
        header("(3.5,)") + bytes(64),
        header("'x'") + bytes(64),
        header(descr="'|O'") + bytes(64),
        header(descr="'nonsense'") + bytes(64),
        header(descr="[" * 200) + bytes(64),
        with_header("(" * 5000) + bytes(64),
        with_header("\n  x\n y") + bytes(64),
        with_header("__import__('os').system('true')") + bytes(64),
        with_header("{}"),
    ],
)
def test_what_is_no_whole_array_is_one_line(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.npy: is not a NumPy array file \(.*\); save it") as caught:
        map_array(path)
    assert "\n" not in str(caught.value)


def test_other_files_under_its_name_are_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros(3))
    os.rename(tmp_path / "a.npz", tmp_path / "archive.npy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    found = {
        "archive.npy": "is not a NumPy array file",
        "objects.npy": "is not a NumPy array file",
        "pipe.npy": "cannot be read .not a regular file",
        "folder.npy": "cannot be read .not a regular file",
        "none.npy": "cannot be read .No such file",
        "a\0.npy": "cannot be read .no file can have this name",
    }
    for name, message in found.items():
        with pytest.raises(FormatError, match=message):
            map_array(tmp_path / name)
