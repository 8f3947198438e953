"""Models as `onnxruntime.quantization` makes them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

U8 = {"activation_type": QuantType.QUInt8}
STATIC = {
    "qdq": {},
    "qdq_channel": {"per_channel": True},
    "qdq_u8s8": {"per_channel": True, **U8},
    "qdq_u8u8": {"weight_type": QuantType.QUInt8, **U8},
    "qdq_symmetric": {"per_channel": True, "extra_options": {"ActivationSymmetric": True}},
    "qdq_reduced": {"per_channel": True, "reduce_range": True, **U8},
    "qoperator": {"quant_format": QuantFormat.QOperator, **U8},
    "qoperator_channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
}
DYNAMIC = {"dynamic": QuantType.QUInt8, "dynamic_s8": QuantType.QInt8}
INT8 = (*STATIC, *DYNAMIC)


class Calibration(CalibrationDataReader):
    """The images (N, 3, H, W), one after the other, for the input `image`."""

    def __init__(self, images: np.ndarray) -> None:
        self._left: Iterable[np.ndarray] = iter(np.split(images, len(images)))

    def get_next(self):
        return next(({"image": image} for image in self._left), None)


def quantised(model: onnx.ModelProto, form: str, images: np.ndarray, folder: Path) -> onnx.ModelProto:
    """A float32 model in one of the forms of `INT8`, calibrated on the images."""
    source, made = folder / "float32.onnx", folder / f"{form}.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)
    try:
        if form in DYNAMIC:
            quantize_dynamic(source, made, weight_type=DYNAMIC[form])
        else:
            quantize_static(source, made, Calibration(images), **STATIC[form])
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(made)
