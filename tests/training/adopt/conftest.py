from dataclasses import replace

import pytest
import torch

from rws.training.adopt.recipe import AdoptRecipe
from rws.training.data.clean_images import CleanImages
from rws.training.oracle.camera import CameraRecipe


@pytest.fixture
def recipe() -> AdoptRecipe:
    oracle = CameraRecipe(sizes=(64,), frames=100, looks=1, epochs=1, batch_size=32)
    calibration = replace(
        AdoptRecipe().calibration, images=8, coarse_images=4, severities=(5,), alphas=(1.0,), neighbours=1
    )
    return AdoptRecipe(layers=2, steps=3, batch_size=8, draws=1, oracle=oracle, calibration=calibration)


@pytest.fixture(scope="module")
def clean_images(clear) -> CleanImages:
    return CleanImages(torch.from_numpy(clear[0].transpose(0, 3, 1, 2).copy())[:40])
