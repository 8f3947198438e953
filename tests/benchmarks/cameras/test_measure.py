"""Two cameras for a second: real servers, real runs."""

import numpy as np
import pytest

from rws.benchmarks.cameras import measure
from rws.benchmarks.cameras.films import SIZE, film, misbehaving
from rws.edge.faults.frames import encode_jpeg, scene

SHORT = measure.Load("cifar10", 10.0, 1.0)


@pytest.fixture(autouse=True)
def two_cameras(monkeypatch):
    def short(weather):
        return film(weather, 3)

    monkeypatch.setattr(measure, "WEATHER", ("", "fog:3"))
    monkeypatch.setattr(measure, "film", short)
    monkeypatch.setattr(measure, "WARM_UP", 1.5)
    monkeypatch.setattr(measure, "LOOK", 0.2)
    monkeypatch.setattr(measure, "BATCH_REPEATS", 2)


def test_a_film_shows_the_street_in_its_weather():
    clear, foggy = film("", 3), film("fog:3", 3)
    assert [image.shape for image in clear] == [(SIZE[1], SIZE[0], 3)] * 3
    assert np.std(foggy) < np.std(clear)
    assert not np.array_equal(clear[0], clear[1])


@pytest.mark.parametrize("fault", ["none", "hang", "resize", "corrupt"])
def test_a_camera_misbehaves_after_a_while(fault, monkeypatch):
    jpeg = encode_jpeg(scene(48, 64))
    camera = misbehaving([jpeg], fault)
    assert camera(0) == jpeg
    monkeypatch.setattr("rws.benchmarks.cameras.films.AFTER", 0.0)
    later = [camera(2), camera(3)]
    wanted = {"none": [True, True], "hang": [False, False], "resize": [True, False], "corrupt": [False, False]}
    assert [image == jpeg for image in later] == wanted[fault]


@pytest.mark.slow
def test_ways_and_faults_account_for_every_frame(monkeypatch):
    rows = {row["way"]: row for row in measure.measure_costs(SHORT, 1, lambda text: None)}
    assert list(rows) == ["together", "separate", "one"]
    for row in rows.values():
        assert row["accounted"]
        assert row["frames"] > 3
        assert row["cpu"] > 0
    assert rows["one"]["memory_mb"] < rows["together"]["memory_mb"] < rows["separate"]["memory_mb"]
    monkeypatch.setattr(measure, "FAULTS", ("none", "flood"))
    assert [row["accounted"] for row in measure.measure_faults(SHORT, lambda text: None)] == [True, True]


def test_grouping_never_costs_changes():
    found = measure.measure_grouping("cifar10", 1)
    assert found["frames"] == 6
    assert found["weight_changes"] <= found["weight_changes_in_order_of_arrival"]
    assert found["ratio"] > 0


def test_a_batch_is_compared_with_single_images():
    rows = measure.measure_batching(["cifar10"], [1], batch=2)
    assert [(row["bundle"], row["threads"], row["batch"]) for row in rows] == [("cifar10", 1, 2)]
    assert rows[0]["quartiles"][0] <= rows[0]["ratio"] <= rows[0]["quartiles"][1]
