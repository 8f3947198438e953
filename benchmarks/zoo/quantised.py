"""Classifiers as ONNX Runtime's quantiser makes them, and what live weights cost them."""

import logging
import random
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import Tensor

from rws.benchmarks.common.interleave import Measured, interleave, percentiles, timed_blocks
from rws.benchmarks.common.tables import Record
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.sessions import CPU, SessionMaker
from rws.edge.onnx.graph import data_input, read_model
from rws.training.adopt.graph import Preprocessing
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import as_input

FORMS: Mapping[str, Mapping[str, Any]] = {"s8s8": {}, "u8s8": {"activation_type": QuantType.QUInt8}}
"""Integers of activations and weights; the first one is what the quantiser does unless it is asked."""
CALIBRATED_ON = 100  # images


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the quantiser has no types
    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self._left: Iterator[dict[str, NDArray[np.float32]]] = ({name: image[None]} for image in images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._left, None)


def _unit(pixels: Tensor) -> NDArray[np.float32]:
    return pixels.float().div(255).numpy()


def quantised(model: bytes, form: str, preprocessing: Preprocessing, pixels: Tensor) -> bytes:
    """Quantise a float32 model, QDQ, by channel, calibrated on the first images: uint8 (N, 3, H, W), RGB."""
    proto = read_model(model)
    images = preprocessing.apply(_unit(pixels[:CALIBRATED_ON]))
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, made = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
            onnx.save(proto, source)
            quantize_static(source, made, _Reader(data_input(proto).name, images), per_channel=True, **FORMS[form])
            return made.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


def compare_int8(model: bytes, preprocessing: Preprocessing, bundle: Bundle, test: Images, rounds: int = 40) -> Record:
    """Compare a bundle of an int8 model, clean and patched each frame, with sessions of the model as it was received.

    Times are of one image and one thread, interleaved; the ratios, with 95 % intervals, to the first of two such
    sessions. `accuracy` is that of the session, percent.
    """
    maker, proto = SessionMaker((CPU,), 1), read_model(model)
    sessions = [maker.session_of(model, maker.options()) for _ in range(2)]
    name, x = data_input(proto).name, preprocessing.apply(_unit(test.pixels))
    plain = np.concatenate([sessions[0].run(None, {name: image[None]})[0] for image in x]).argmax(1)
    live, mixes = bundle.model(ModelOptions(threads=1)), cycle([{each: 1.0} for each in bundle.signatures.names])
    seen = as_input(test.pixels[:1], bundle.manifest.input)[0]

    def patched() -> None:
        live.apply(next(mixes))
        live.predict(seen)

    def clean() -> None:
        live.reset()
        live.predict(seen)

    untouched, again = (timed_blocks(partial(each.run, None, {name: x[:1]})) for each in sessions)
    measured: dict[str, Measured] = {}
    cases = {"again": again, "live": timed_blocks(clean), "patched": timed_blocks(patched)}
    found = interleave(untouched, cases, rounds, random.Random(0), measured)
    ratios = {case: [round(value, 4) for value in each.ratio()] for case, each in measured.items()}
    times = percentiles(np.concatenate([block.ms for block in found]))
    return {"accuracy": 100 * float((plain == test.labels.numpy()).mean()), **times, "ratios": ratios}
