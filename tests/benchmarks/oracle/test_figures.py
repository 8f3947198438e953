import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rws.benchmarks.common.plots import LARGEST
from rws.benchmarks.oracle.figures import (
    FIGURES,
    draw_all,
    draw_confusion,
    draw_gain_table,
    draw_regret_split,
    draw_stream,
)
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.training.corruptions import CORRUPTIONS

NAMES = [CLEAN, *CORRUPTIONS]
PARTS = ("policy", "severity", "type", "clean")


@pytest.fixture
def confusion() -> dict:
    counts = np.random.default_rng(0).integers(0, 4, (20, 20)) + 80 * np.eye(20, dtype=int)
    return {"names": NAMES, "counts": counts.tolist()}


@pytest.fixture
def split() -> dict:
    values = np.random.default_rng(1).normal(0.1, 0.3, (19, 4)).round(2)
    per = {
        name: dict(zip(PARTS, row.tolist(), strict=True)) | {"total": round(float(row.sum()), 2)}
        for name, row in zip(CORRUPTIONS, values, strict=True)
    }
    return {key: float(np.mean([part[key] for part in per.values()])) for key in (*PARTS, "total")} | {
        "per_corruption": per
    }


@pytest.fixture
def timeline() -> dict:
    runs = [[index, 20] for index in range(20)]
    return {
        "protocol": "continual",
        "seed": 0,
        "severity": 5.0,
        "frames": 400,
        "types": NAMES,
        "true": runs,
        "believed": {"frame": runs, "trained": [[3, 200], [4, 200]]},
        "mix": {"perfect": runs, "frame": runs, "trained": runs},
        "window": 40,
        "step": 20,
        "correct": {arm: [50.0] * 20 for arm in ("std", "perfect", "frame", "trained")},
    }


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.slow
def test_all_figures_are_drawn_and_small(confusion, split, timeline, tmp_path):
    results, out = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    (results / "replay_all.json").write_text(json.dumps({"oracle": {"confusion": confusion}, "regret_split": split}))
    (results / "streams.json").write_text(json.dumps({"timeline": timeline}))
    lines = []
    paths = draw_all(results, out, progress=lines.append)
    assert [path.stem for path in paths] == list(FIGURES)
    assert len(lines) == len(FIGURES)
    for path in paths:
        assert path.stat().st_size < LARGEST
        with Image.open(path) as image:
            assert image.mode == "P"
            assert 900 <= image.width <= 1300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    before = {path: path.read_bytes() for path in paths}
    assert draw_all(results, out, only=["confusion"]) == paths[:1]
    assert paths[0].read_bytes() == before[paths[0]]


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"replay_all.json: cannot be read .*; make it with `rws replay --severity all"
    ):
        draw_all(tmp_path, tmp_path, only=["confusion"])
    (tmp_path / "streams.json").write_text("{}")
    with pytest.raises(InputError, match="holds no 'timeline'"):
        draw_all(tmp_path, tmp_path, only=["stream"])
    with pytest.raises(InputError, match="unknown figure 'pie'"):
        draw_all(tmp_path, tmp_path, only=["pie"])


def test_the_confusion_is_in_percent_of_each_row_and_keeps_its_labels(confusion):
    axis = draw_confusion(confusion).axes[0]
    shown = np.asarray(axis.images[0].get_array())
    np.testing.assert_allclose(shown.sum(1), 100)
    rows = [label.get_text() for label in axis.get_yticklabels()]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    assert rows == columns
    assert set(rows) == {name.replace("_", " ") for name in NAMES}
    counts = np.array(confusion["counts"])
    true, named = NAMES.index("fog"), NAMES.index("shot_noise")
    expected = 100 * counts[true, named] / counts[true].sum()
    assert shown[rows.index("fog"), columns.index("shot noise")] == pytest.approx(expected)


def test_the_gain_table_shows_the_best_alpha_over_no_patch():
    table = Bundle.load("cifar10").table
    axis = draw_gain_table(table).axes[0]
    shown = np.asarray(axis.images[0].get_array())
    names = [label.get_text().replace(" ", "_") for label in axis.get_yticklabels()]
    steps = len(table.levels)
    for true, signature in (("contrast", "contrast"), ("shot_noise", "gaussian_noise"), ("fog", "snow")):
        row = table.accuracy[steps + table.corruptions.index(true) * steps]
        actions = [a for a in range(len(table.alpha)) if signature in table.mix(a)]
        expected = max(0.0, float(max(row[a] for a in actions) - row[0]))
        assert shown[names.index(true), names.index(signature)] == pytest.approx(expected, abs=1e-4)


def test_the_bars_of_the_regret_add_up(split):
    axis = draw_regret_split(split).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[0] == "all together"
    middle = {name: float(place) for name, place in zip(names, axis.get_yticks(), strict=True)}
    for name, part in split["per_corruption"].items():
        height = middle[name.replace("_", " ")]
        bars = [bar for bar in axis.patches if abs(bar.get_y() + bar.get_height() / 2 - height) < 1e-6]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(part["total"], abs=0.011)
    totals = [split["per_corruption"][name.replace(" ", "_")]["total"] for name in names[1:]]
    assert totals == sorted(totals, reverse=True)


def test_the_streams_runs_cover_its_frames(timeline):
    top, bottom = draw_stream(timeline).axes
    assert [label.get_text() for label in top.get_yticklabels()][:3] == [
        "true",
        "believed, frame by frame",
        "believed, over frames",
    ]
    assert bottom.get_xlim() == (0, 400)
    lines = {line.get_label(): line for line in bottom.get_lines() if not line.get_label().startswith("_")}
    assert len(lines) == 4
    assert lines["no patch"].get_xdata().tolist() == list(range(20, 401, 20))
