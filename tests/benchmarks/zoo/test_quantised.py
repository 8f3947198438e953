import numpy as np
import pytest
import torch

from rws.benchmarks.zoo.quantised import FORMS, compare_int8, quantised
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.live.torch_model import TorchModel
from rws.edge.onnx.graph import read_model
from rws.edge.onnx.int8 import is_quantised
from rws.errors import BundleError
from rws.training.adopt.graph import Preprocessing
from rws.training.data.images import Images

PLAIN = Preprocessing()


@pytest.fixture(scope="module")
def images(clear) -> Images:
    pixels = torch.from_numpy(clear[0][:40].transpose(0, 3, 1, 2).copy())
    return Images(pixels, torch.tensor(clear[1][:40].astype(np.int64)), Bundle.load("cifar10").manifest.classes)


@pytest.fixture(scope="module", params=FORMS)
def int8(request, images) -> bytes:
    return quantised(Bundle.load("cifar10").read(MODEL), request.param, PLAIN, images.pixels)


def test_a_quantised_model_answers_as_before(int8, images):
    assert is_quantised(read_model(int8))
    found = compare_int8(int8, PLAIN, Bundle.load("cifar10"), images, rounds=2)
    assert found["accuracy"] > 80
    assert set(found["ratios"]) == {"again", "live", "patched"}
    assert all(0 < low <= ratio <= high for ratio, low, high in found["ratios"].values())


def test_torch_refuses_it(int8):
    with pytest.raises(BundleError, match="Torch rounds otherwise; run it with ONNX Runtime"):
        TorchModel.from_onnx(int8, None, ["head.weight"])
