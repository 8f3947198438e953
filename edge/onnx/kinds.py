"""What a file is that is not an ONNX model, told by its first bytes, and what to do with it."""

import io
import zipfile

_ONNX = "export it to ONNX with torch.onnx.export"
_FROM_KERAS = "convert it to ONNX with tf2onnx"
_BY_START = (
    (b"version https://git-lfs.github.com/spec", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 weights (Keras)", _FROM_KERAS),
    (b"\x80\x02", "a pickle of torch (.pth)", f"load it into its module, then {_ONNX}, or give package.module:factory"),
)
_BY_FIFTH = {b"TFL3": ("a TensorFlow Lite model", _FROM_KERAS), b"ORTM": ("a model in ORT's format", "give the .onnx")}
_BY_NAME = (
    ("/constants.pkl", "a TorchScript archive", f"load it with torch.jit.load and {_ONNX}, or give its module"),
    ("serialized_exported_program.json", "a torch.export archive (.pt2)", f"torch.export.load it, then {_ONNX}"),
    ("/models/", "a torch.export archive (.pt2)", f"torch.export.load it, then {_ONNX}"),
    ("/data.pkl", "a checkpoint of torch (.pth, .pt)", f"load it, then {_ONNX}, or give package.module:factory"),
    (".weights.h5", "a Keras model", _FROM_KERAS),
)


def other_kind(data: bytes) -> str:
    """Return what the bytes of a file are if they are of a known kind other than ONNX, and what to do; else ""."""
    text = data[:512].lstrip().lower()
    found = next((found for start, *found in _BY_START if data.startswith(start)), None) or _BY_FIFTH.get(data[4:8])
    if not data.strip(b"\0"):
        found = ("empty", "download or export it again")
    elif text.startswith((b"<!doctype html", b"<html")):
        found = ("an HTML page, not a model", "download the file itself (its raw link)")
    elif text.startswith(b"<?xml"):
        found = ("XML, perhaps of OpenVINO", "give the ONNX model that it was converted from")
    elif data[8:9] == b"{" and 1 < int.from_bytes(data[:8], "little") <= len(data):
        found = ("safetensors: weights without a graph", f"load them into their module, then {_ONNX}")
    elif data.startswith(b"PK\x03\x04"):
        found = _in_zip(data)
    return "; ".join(("is " + found[0], found[1])) if found else ""


def _in_zip(data: bytes) -> tuple[str, str]:
    try:
        names = [f"/{name}" for name in zipfile.ZipFile(io.BytesIO(data)).namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "a damaged ZIP archive", "download it again"
    for part, kind, advice in _BY_NAME:
        if any(part in name for name in names):
            return kind, advice
    return "a ZIP archive", "unpack it and give the .onnx file in it"
