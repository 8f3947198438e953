from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import DETECTOR_BUNDLE
from rws.edge.bundle.manifest import ORACLE
from rws.edge.preprocess import TileView
from rws.errors import InputError
from rws.oracle.classifier import Oracle
from rws.training.corruptions import KNOWN
from rws.training.data.photographs import Photographs
from rws.training.jobs.store import Store
from rws.training.oracle.camera import DARK, STATES, CameraRecipe, CameraTraining, darkness, frame_of, make_views
from rws.training.oracle.healthy import FULL_SIGMA, healthy, sensor_noise, stored, underexposed
from rws.training.oracle.sampling import LEVELS, OracleRecipe
from rws.training.oracle.tile_network import TileNetwork

RECIPE = CameraRecipe(sizes=(64,), frames=100, looks=2, epochs=2, batch_size=32)


def photographs(count: int = 6, height: int = 80, width: int = 96) -> Photographs:
    """Return smooth random images, in two sources."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 9, 12, 3), np.uint8)
    images = [cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in small]
    return Photographs({"one": images[:2], "two": images[2:]})


def test_views_are_of_frames_whose_states_are_drawn_and_repeat_with_their_seed():
    found = make_views(photographs(), RECIPE, 3, 40, 2)
    assert found["x"].shape == (80, 5, 3, 48, 48)
    assert found["x"].dtype == np.uint8
    types, severities = found["types"], found["severities"]
    np.testing.assert_array_equal(types[::2], types[1::2])
    assert ((severities == 0) == (types < 0)).all()
    assert types.max() < len(KNOWN)
    np.testing.assert_array_equal(found["x"][::2, 0], found["x"][1::2, 0])  # two looks at the same frame …
    assert (found["x"][::2, 1:] != found["x"][1::2, 1:]).any()  # … with the tiles in other places
    np.testing.assert_array_equal(make_views(photographs(), RECIPE, 3, 40, 2)["x"], found["x"])


def test_a_frame_is_a_part_of_its_photograph_and_never_enlarged():
    photograph = photographs().by_source["two"][0]
    rng = np.random.default_rng(1)
    assert {frame_of(photograph, 64, rng).shape for _ in range(20)} == {(64, 64, 3)}
    assert frame_of(photograph, 512, rng).shape == (80, 80, 3)


def test_a_clean_frame_that_lacks_light_is_drawn_as_low_light():
    dark = {name: [image // 6 for image in images] for name, images in photographs().by_source.items()}
    mixed = Photographs({"dark": dark["two"], **photographs().by_source})
    found = make_views(mixed, replace(RECIPE, draws=OracleRecipe(clean_share=0.999)), 0, 40, 1)
    types, means = found["types"], found["x"][:, 0].mean((1, 2, 3))
    assert set(types.tolist()) == {-1, KNOWN.index("low_light")}
    assert means[types < 0].min() >= DARK - 5
    assert means[types >= 0].max() <= DARK + 5
    assert found["severities"][types >= 0].min() >= 0.5


def test_the_darker_the_more_severe():
    severities = [darkness(np.full((8, 8, 3), level, np.uint8)) for level in (0, 20, 40, DARK, 200)]
    assert severities == sorted(severities, reverse=True)
    assert severities[0] == 5
    assert severities[-2:] == [0.5, 0.5]


def test_an_underexposed_image_is_as_dark_as_asked_for():
    image, rng = photographs().by_source["one"][0], np.random.default_rng(0)
    for mean in (5, 20, 50):
        assert underexposed(image, mean, rng).mean() == pytest.approx(mean, abs=2)


def test_held_out_photographs_are_of_each_source_and_not_trained_on():
    kept, held_out = photographs(12).split(0.25)
    for name, images in held_out.by_source.items():
        assert images
        assert not any(np.array_equal(one, other) for one in images for other in kept.by_source[name])


def test_a_source_without_large_photographs_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "small.png"), photographs(height=32, width=40).by_source["one"][0])
    with pytest.raises(InputError, match="no photograph of 64 pixels"):
        Photographs.load([str(tmp_path)])


def test_a_healthy_camera_changes_little_and_keeps_the_size():
    image, rng = photographs(height=81, width=95).by_source["one"][0], np.random.default_rng(0)
    for _ in range(30):
        for changed in (healthy(image, rng), stored(image, rng, 1.0)):
            assert changed.shape == image.shape
            assert changed.dtype == np.uint8
    saved = stored(image, np.random.default_rng(2), 1.0).astype(int)
    assert 0 < np.abs(saved - image).mean() < 6
    assert stored(image, rng, 0.0) is image


def test_sensor_noise_is_as_strong_as_its_severity():
    image, rng = np.full((128, 128, 3), 128, np.uint8), np.random.default_rng(0)
    for _ in range(10):
        noisy, severity = sensor_noise(image, rng)
        assert 0.3 <= severity <= 1.3
        assert noisy.std() < 1.3 * FULL_SIGMA * severity**2 + 1


def test_training_gives_an_oracle_of_tiles_and_goes_on_where_it_was_stopped(tmp_path):
    records: list[dict] = []

    def stop(record):
        records.append(record)
        if record.get("epoch") == 1:
            raise KeyboardInterrupt

    whole, scores = CameraTraining(photographs(), RECIPE, Store(None), lambda record: None).run()
    assert len(scores["prior"]) == STATES
    with pytest.raises(KeyboardInterrupt):
        CameraTraining(photographs(), RECIPE, Store(tmp_path), stop).run()
    resumed, _ = CameraTraining(photographs(), RECIPE, Store(tmp_path), stop).run()
    assert [record["epoch"] for record in records if "epoch" in record] == [1, 2]
    assert resumed == whole
    oracle = Oracle(whole, KNOWN, LEVELS, 1, RECIPE.view)
    belief = oracle.observe(RECIPE.view.take(photographs().by_source["one"][0]))
    assert belief.corruptions == KNOWN


def test_the_shipped_oracle_is_trained_further_from_its_own_weights():
    bundle, network = Bundle.load(DETECTOR_BUNDLE), TileNetwork(STATES)
    network.load_exported(bundle.read(ORACLE))
    assert isinstance(bundle.manifest.view, TileView)
    x = make_views(photographs(), replace(RECIPE, view=bundle.manifest.view), 0, 4, 1)["x"]
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(found, bundle.oracle(threads=1).observe_batch(x), atol=1e-3)


def test_what_is_drawn_can_be_changed():
    recipe = replace(RECIPE, draws=OracleRecipe(clean_share=0.999))
    assert (make_views(photographs(), recipe, 0, 30, 1)["types"] == -1).all()
