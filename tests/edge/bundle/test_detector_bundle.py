"""The bundle `detector`, which ships: on photographs that neither its signatures nor its oracle were made with."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import DETECTOR_BUNDLE, BundleFiles
from rws.edge.bundle.examine import examine
from rws.edge.bundle.manifest import Manifest
from rws.edge.bundle.options import ModelOptions
from rws.edge.bundle.self_test import self_test
from rws.edge.preprocess import TileView
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.errors import BundleError
from rws.training.corruptions import KNOWN
from rws.training.corruptions.frames import corrupter

PHOTOGRAPHS = Path(__file__).parents[2] / "data" / "photos"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("detector")


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    return [np.ascontiguousarray(cv2.imread(str(file))[:, :, ::-1]) for file in files]


def test_it_is_the_default_whole_and_small(bundle):
    assert bundle.path == Bundle.load().path == DETECTOR_BUNDLE
    assert bundle.signatures.names == bundle.manifest.corruptions == KNOWN
    assert len(self_test(bundle)) == 4
    assert sum(path.stat().st_size for path in DETECTOR_BUNDLE.iterdir()) < 3e6


def test_it_runs_in_a_process_that_can_open_no_file():
    assert examine(BundleFiles.read("detector")).signatures == len(KNOWN)


def test_a_clear_photograph_is_not_patched_and_a_corrupted_one_is(bundle, photographs):
    with Runtime.from_bundle(bundle, ModelOptions(threads=1), independent=True) as runtime:
        for photograph in photographs:
            clear = next(iter(runtime.stream(ArraySource(photograph[None]))))
            assert (clear.belief.type, dict(clear.mix)) == ("clean", {})
            noisy = corrupter("gaussian_noise:4")(photograph, 0)
            found = next(iter(runtime.stream(ArraySource(noisy[None]))))
            assert found.mix
            assert 2 <= found.belief.type_severity <= 5


def test_the_oracle_looks_at_the_frame_not_at_the_models_input(bundle, photographs):
    oracle, view = bundle.oracle(threads=1), bundle.manifest.view
    assert isinstance(view, TileView)
    with Runtime.from_bundle(bundle, ModelOptions(threads=1), independent=True) as runtime:
        result = next(iter(runtime.stream(ArraySource(photographs[0][None]))))
    np.testing.assert_array_equal(result.belief.joint, oracle.observe(view.take(photographs[0])).joint)


def test_a_manifest_says_what_the_oracle_sees_only_if_that_is_not_the_models_input(bundle):
    document = json.loads(bundle.manifest.to_bytes())
    assert document["tiles"] == {"tile": 48, "grid": 2, "nominal": 480}
    plain = replace(bundle.manifest, tiles=None)
    assert "tiles" not in json.loads(plain.to_bytes())
    assert Manifest.parse(plain.to_bytes(), "bundle.json").view == plain.input.view


@pytest.mark.parametrize("tiles", [{"tile": 4}, {"tile": 48, "grid": 0}, {"rows": 2}, "48", {"tile": 48, "grid": 99}])
def test_tiles_that_cannot_be_are_refused(bundle, tiles):
    document = json.loads(bundle.manifest.to_bytes()) | {"tiles": tiles}
    with pytest.raises(BundleError, match="tiles"):
        Manifest.parse(json.dumps(document).encode(), "bundle.json")


@pytest.mark.parametrize(
    "tiles", [None, {"tile": 32, "grid": 2, "nominal": 480}, {"tile": 48, "grid": 3, "nominal": 480}]
)
def test_an_oracle_that_sees_something_else_is_refused(bundle, tmp_path, tiles):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in DETECTOR_BUNDLE.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    document = json.loads((folder / "bundle.json").read_text()) | {"tiles": tiles}
    (folder / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"oracle\.onnx: takes uint8"):
        Bundle.load(folder)
