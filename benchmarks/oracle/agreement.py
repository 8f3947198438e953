"""How well a bundle's detector agrees with a larger one on photographs whose corruption is real, patched or not.

The larger one errs on such photographs, too: what both do not see counts for neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Record
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.detect import Detect, Detections
from rws.errors import InputError
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.adopt.graph import Preprocessing
from rws.training.adopt.model import ImportOptions, adopt_model
from rws.training.adopt.outputs import Wanted
from rws.training.data.photographs import Image
from rws.training.models.foreign import load_model
from rws.training.tasks.average_precision import mean_average_precision
from rws.training.tasks.detect import LEAST

SURE = 0.4  # confidence that a box of the larger detector needs
SEVERITY = 3.0  # what a perfect oracle would say of a photograph that a person calls dark or rainy

Detector = Callable[[Image], Detections]


def read_yolox(path: Path, classes: Sequence[str]) -> Detector:
    """Return a YOLOX network as its authors export it, BGR 0…255, letterboxed; InputError if it has other classes."""
    how = ImportOptions(None, Preprocessing(255, bgr=True), Wanted("detect", "yolox"), classes, "letterbox")
    found = adopt_model(load_model(str(path)), how)
    if found.class_count != len(classes):
        raise InputError(f"{path}: knows {found.class_count} classes, the bundle {len(classes)}; give one of the same")
    session = ort.InferenceSession(found.onnx, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(x: NDArray[Any]) -> Sequence[NDArray[Any]]:
        return [np.asarray(output) for output in session.run(list(found.outputs), {name: x[None]})]

    return _detector(predict, found.input, replace(found.task, confidence=SURE), classes)


def _detector(
    predict: Callable[[NDArray[Any]], Sequence[NDArray[Any]]], spec: InputSpec, task: TaskSpec, classes: Sequence[str]
) -> Detector:
    reader = Detect(task, classes)

    def detect(image: Image) -> Detections:
        x, placement = preprocess(image, spec)
        return reader.read(predict(x), placement)

    return detect


def agreement_row(bundle: Bundle, images: Sequence[Image], corruption: str, larger: Detector) -> Record:
    """Return mAP50 against the larger detector's boxes: no patch, the trained oracle, one that names the corruption."""
    model, oracle = bundle.model(ModelOptions(threads=1)), bundle.oracle(threads=1)
    if bundle.manifest.task.name != "detect" or oracle.view is None:
        raise InputError("--reference: compares detectors whose oracle sees frames; give such a bundle")
    truth = [larger(image) for image in images]
    named = ReferencePolicy(bundle.table, "perfect").mix(corruption, SEVERITY)
    joint = np.stack([oracle.observe(oracle.view.take(image)).joint for image in images])
    chosen: dict[str, list[Mix]] = {
        "std": [{} for _ in images],
        "trained": bundle.policy(independent=True).mixes(joint),
        "named": [named for _ in images],
    }
    manifest = bundle.manifest
    detect = _detector(model.predict, manifest.input, replace(manifest.task, confidence=LEAST), manifest.classes)
    found: Record = {
        "images": len(images),
        "boxes": sum(len(boxes.boxes) for boxes in truth),
        "patched": 100 * sum(bool(mix) for mix in chosen["trained"]) / len(images),
    }
    for arm, mixes in chosen.items():
        answers = []
        for image, mix in zip(images, mixes, strict=True):
            model.apply(mix)
            answers.append(detect(image))
        found[arm] = mean_average_precision(answers, truth)
    return found
