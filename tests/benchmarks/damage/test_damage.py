"""The fuzz of images and streams, with fewer of each than `rws bench damage` takes."""

import numpy as np
import pytest

from rws.benchmarks.damage.faults import damage
from rws.benchmarks.damage.images import fuzz_images, read_images
from rws.benchmarks.damage.streams import fuzz_streams, read_video


@pytest.mark.parametrize("kind", ["flip", "cut", "zero", "insert", "swap", "lose"])
def test_damage_is_the_same_for_the_same_seed_and_leaves_the_start_alone(kind):
    data = bytes(range(256)) * 40
    first, again = (damage(data, kind, 188, 1000, np.random.default_rng(3)) for _ in range(2))
    assert first == again != data
    assert first[:1000] == data[:1000]


def test_no_jpeg_passes_of_which_libjpeg_or_ffmpeg_reports_damage(tmp_path):
    result = fuzz_images(read_images(None), 100, 0, tmp_path)
    for row in result["images"]:
        assert row["reported"] > 50
        assert (row["reported_passed"], row["good_rejected"], row["errors"]) == (0, 0, 0)


def test_damaged_streams_end_without_an_untyped_error_and_few_wrong_frames_pass(tmp_path):
    pytest.importorskip("av")
    result = fuzz_streams(read_video(None)[:40], 12, 0, tmp_path)
    rows = result["streams"]
    assert sum(row["errors"] for row in rows) == 0
    wrong, passed = (sum(row[key] for row in rows) for key in ("wrong", "wrong_passed"))
    assert wrong > 20
    assert passed <= wrong / 4
    good, rejected = (sum(row[key] for row in rows) for key in ("good", "good_rejected"))
    assert rejected <= good / 20
    assert 0 < good <= sum(row["equal"] for row in rows)
    assert good == sum(row["good"] for row in result["stream_kinds"])
