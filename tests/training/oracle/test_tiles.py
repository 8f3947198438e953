import numpy as np
import pytest
import torch

from rws.edge.bundle.bundle import Bundle
from rws.training.oracle.sampling import OracleRecipe
from rws.training.oracle.tiles import ViewRecipe, bundled_network, corrupted_views, fit_view_oracle, views
from support.classifiers import images


def test_views_are_tiles_of_the_image_one_of_each_quarter():
    side, tile = 96, 16
    pixels = torch.arange(side * side).reshape(1, 1, side, side).expand(2, 3, -1, -1)
    for generator in (None, torch.Generator().manual_seed(0)):
        seen = views(pixels, tile, generator)
        assert seen.shape == (2, 3, 2 * tile, 2 * tile)
        for row in range(2):
            for column in range(2):
                part = seen[0, 0, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                top, left = divmod(int(part[0, 0]), side)
                assert torch.equal(part, pixels[0, 0, top : top + tile, left : left + tile])
                assert (top // (side // 2), left // (side // 2)) == (row, column)
    assert views(pixels, side // 2) is pixels


def test_every_look_at_a_frame_has_its_target_and_its_own_tiles():
    side, tile = 64, 16
    # Each pixel's value is the number of the image, and the corruption of all is none.
    pixels = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1) * 60 + torch.zeros(4, 3, side, side).byte()
    pixels[:, 0] = torch.arange(side, dtype=torch.uint8)
    recipe = ViewRecipe(tile=tile, frames=64, draws=OracleRecipe(clean_share=0.5))
    once = corrupted_views(pixels, 30, recipe, 3)
    twice = corrupted_views(pixels, 30, recipe, 3, looks=2)
    assert twice.x.shape == (60, 3, 2 * tile, 2 * tile)
    assert torch.equal(twice.types, torch.cat([once.types, once.types]))
    assert torch.equal(twice.target, torch.cat([once.target, once.target]))
    clean = once.types == -1
    first, second = twice.x[:30][clean], twice.x[30:][clean]
    assert torch.equal(first[:, 1:], second[:, 1:])  # the same images …
    assert not torch.equal(first[:, 0], second[:, 0])  # … seen in other places


def test_the_oracle_begins_as_the_bundled_one():
    x = images(4)
    with torch.no_grad():
        found = bundled_network()(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(found, Bundle.load().oracle(threads=1).observe_batch(x), atol=1e-4)


def test_an_oracle_that_was_stopped_goes_on_to_the_same_bytes(clear, tmp_path):
    images = torch.from_numpy(clear[0].transpose(0, 3, 1, 2).copy())[:40]
    recipe = ViewRecipe(frames=64, epochs=2, batch_size=32)
    records: list[dict] = []

    def stop(record):
        records.append(record)
        if record.get("epoch") == 1:
            raise KeyboardInterrupt

    whole = fit_view_oracle(images[8:], images[:8], recipe, report=lambda record: None)
    with pytest.raises(KeyboardInterrupt):
        fit_view_oracle(images[8:], images[:8], recipe, checkpoint=tmp_path / "c", report=stop)
    resumed = fit_view_oracle(images[8:], images[:8], recipe, checkpoint=tmp_path / "c", report=stop)
    assert [record["epoch"] for record in records if "epoch" in record] == [1, 2]
    assert resumed == whole
