"""A bundle's detector is compared with a larger one on photographs."""

from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from rws.benchmarks.oracle.agreement import agreement_row, read_yolox
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import DETECTOR_BUNDLE
from rws.edge.bundle.options import ModelOptions
from rws.edge.preprocess import preprocess
from rws.edge.tasks.detect import Detect
from rws.errors import InputError

PHOTOGRAPHS = Path(__file__).parents[2] / "data/photos"


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(DETECTOR_BUNDLE)


@pytest.fixture(scope="module")
def photograph():
    return cv2.imread(str(PHOTOGRAPHS / "coffee.jpg"))[:, :, ::-1].copy()


def test_a_detector_agrees_fully_with_itself_and_less_under_a_patch_that_does_not_fit(bundle, photograph):
    manifest, model = bundle.manifest, bundle.model(ModelOptions(threads=1))
    reader = Detect(replace(manifest.task, confidence=0.25), manifest.classes)

    def itself(image):
        x, placement = preprocess(image, manifest.input)
        return reader.read(model.predict(x), placement)

    boxes = len(itself(photograph).boxes)
    row = agreement_row(bundle, [photograph, photograph[:, ::-1].copy()], "low_light", itself)
    assert row["images"] == 2
    assert row["boxes"] >= 2 * boxes - 1 > 0
    assert row["patched"] == 0
    assert row["std"] == row["trained"] == pytest.approx(100)
    assert 0 < row["named"] < 100


def test_a_larger_detector_with_another_head_is_refused(bundle):
    with pytest.raises(InputError, match="yolox"):
        read_yolox(DETECTOR_BUNDLE / "model.onnx", bundle.manifest.classes)
