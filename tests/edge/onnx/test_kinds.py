import io
import zipfile

import pytest

from rws.edge.onnx.graph import read_model
from rws.edge.onnx.kinds import other_kind
from rws.errors import BundleError
from support.tiny import network


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name in names:
            written.writestr(name, b"x")
    return file.getvalue()


KINDS = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "HTML": b"\n<!DOCTYPE html><html></html>",
    "safetensors": (12).to_bytes(8, "little") + b'{"w": [1, 2]}',
    "TensorFlow Lite": b"\x1c\0\0\0TFL3" + bytes(20),
    "TorchScript": archive("net/constants.pkl", "net/data.pkl", "net/code/a.py"),
    "torch.export": archive("m/models/model.json", "m/data.pkl"),
    "checkpoint": archive("archive/data.pkl", "archive/data/0"),
    "pickle": b"\x80\x02}q\0.",
    "Keras": b"\x89HDF\r\n\x1a\n" + bytes(8),
    "damaged ZIP": b"PK\x03\x04" + bytes(8),
    "empty": b"",
    "zeros": bytes(64),
    "OpenVINO": b"<?xml version='1.0'?><net/>",
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_kind_are_refused_by_it(kind, tmp_path):
    (tmp_path / "m.onnx").write_bytes(KINDS[kind])
    with pytest.raises(BundleError) as caught:
        read_model(tmp_path / "m.onnx")
    assert ("empty" if kind == "zeros" else kind) in str(caught.value)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_is_of_no_other_kind():
    assert other_kind(network(1, 2, seed=0).SerializeToString()) == ""
