from pathlib import Path

import cv2
import numpy as np
import pytest

from rws.benchmarks.oracle.cameras import CameraSets, measure_cameras
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import DETECTOR_BUNDLE
from rws.errors import InputError

PHOTOGRAPHS = Path(__file__).parents[2] / "data" / "photos"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> CameraSets:
    folder = tmp_path_factory.mktemp("cameras")
    photograph = cv2.imread(str(PHOTOGRAPHS / "coffee.jpg"))
    noise = np.random.default_rng(0).normal(0, 30, photograph.shape)
    made = {
        "noise/one_real.png": np.clip(photograph + noise, 0, 255).astype(np.uint8),
        "noise/one_mean.png": photograph,
        "dark/night.png": photograph // 8,
        "dark/day.png": photograph,
        "rain/street.png": photograph,
    }
    for name, image in made.items():
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), image)
    with_folder = {name: str(folder / name) for name in ("noise", "dark")}
    return CameraSets([str(PHOTOGRAPHS)], **with_folder, rain=[str(folder / "rain")], sizes=(224,), cell=2)


def test_what_is_measured_is_of_the_images_given(sets):
    found = measure_cameras(Bundle.load(DETECTOR_BUNDLE), sets)
    assert [(row["source"], row["images"]) for row in found["clear"]] == [("photos", 2), ("all", 2)]
    assert all(row["clean"] == 100 and row["severe"] == 0 for row in found["clear"])
    assert found["types"][0]["type"] > 50
    assert set(found["types"][0]["by_corruption"]) == set(Bundle.load(DETECTOR_BUNDLE).manifest.corruptions)
    assert found["noise"] == {"images": 1, "auc": 1.0}
    assert found["dark"]["files"] == ["night.png"]
    assert found["rain"]["named"] == 0
    assert [(row["width"], row["height"]) for row in found["times"]] == [(640, 480), (1920, 1080)]
    assert all(row["oracle_ms"] > row["view_ms"] > 0 for row in found["times"])


def test_photographs_that_are_too_small_are_refused(sets):
    with pytest.raises(InputError, match="no photograph of 4000 pixels"):
        measure_cameras(Bundle.load(DETECTOR_BUNDLE), CameraSets(sets.clear, sizes=(4000,)))
