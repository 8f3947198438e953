import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest

from rws.edge.bundle.edit import write_bundle
from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.sources.open import open_source
from rws.oracle.belief import Belief
from rws.oracle.classifier import Oracle
from support.fakes import write_images
from support.tiny import CORRUPTIONS, LEVELS, bundle_parts, failing_oracle


def test_it_lists_each_image(rws, tiny_bundle, tmp_path):
    folder = write_images(tmp_path / "images", 3)
    shutil.copy(folder / "0.png", tmp_path / "single.png")
    result = rws("oracle", tmp_path / "single.png", folder, f"{folder}/[01].png", "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "b.json").read_text())["images"]
    expected = [tmp_path / "single.png", *(folder / f"{n}.png" for n in (0, 1, 2, 0, 1))]
    assert [row["file"] for row in rows] == [str(path) for path in expected]
    assert all(row.keys() == {"file", "corruption", "probability", "severity"} for row in rows)
    (frame,) = open_source(tmp_path / "single.png")
    belief = tiny_bundle.oracle().observe(preprocess(frame.image, InputSpec(8, 8, "RGB"))[0])
    assert rows[0]["corruption"] == belief.type
    assert rows[0]["probability"] == pytest.approx(belief.probability.max(), abs=1e-4)
    assert 0 <= rows[0]["severity"] <= 5
    assert "images 6, rejected 0" in result.output


def test_beliefs_go_to_stdout_and_lines_to_stderr(rws, tmp_path):
    folder = write_images(tmp_path / "images", 2)
    result = rws("oracle", folder, "--json", "-")
    assert [row["file"] for row in json.loads(result.stdout)["images"]] == [str(folder / f"{n}.png") for n in (0, 1)]
    assert "images 2, rejected 0" in result.stderr
    quiet = rws("oracle", folder, "-q")
    assert len(quiet.stdout.splitlines()) == 2
    assert "rejected" not in quiet.output


def test_it_counts_broken_images_and_refuses_other_files(rws, video, tmp_path):
    folder = write_images(tmp_path / "images", 2)
    (folder / "1.png").write_bytes(b"broken")
    assert "images 1, rejected 1" in rws("oracle", folder).output
    for bad, code in ((video, 2), (tmp_path / "nowhere.png", 4), (folder / "1.png", 4)):
        result = rws("oracle", bad, "--json", tmp_path / "b.json")
        assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
        assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("kind", ["nan", "error"])
def test_an_image_on_which_the_oracle_fails_is_named(rws, tmp_path, kind):
    bundle = write_bundle(tmp_path / "bundle", bundle_parts(oracle=failing_oracle(kind)))
    folder = write_images(tmp_path / "images", 1, value=255)
    result = rws("oracle", folder, bundle=bundle.path)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert f"{folder / '0.png'}: " in result.stderr


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(rws, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    result = rws("oracle", tmp_path / "pipe")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is not an image, folder, glob or list of images; use `rws run` for anything else" in result.stderr


class TestHealth:
    @pytest.fixture(autouse=True)
    def foggy(self, monkeypatch):
        """An oracle that sees fog of severity 3 in each image; NaN stays NaN."""
        joint = np.zeros(1 + len(CORRUPTIONS) * len(LEVELS), np.float32)
        joint[1 + CORRUPTIONS.index("fog") * len(LEVELS) + LEVELS.index(3.0)] = 1
        observe = Oracle.observe

        def fog(self, x):
            observe(self, x)
            return Belief(CORRUPTIONS, LEVELS, joint)

        monkeypatch.setattr(Oracle, "observe", fog)

    def test_a_line_per_image_and_a_code_for_scripts(self, rws, tmp_path):
        folder = write_images(tmp_path / "images", 3)
        result = rws("health", folder, "--json", tmp_path / "h.json")
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / "h.json").read_text())
        assert [row["file"] for row in record["images"]] == [str(folder / f"{n}.png") for n in range(3)]
        assert (record["frames"], record["alerts"], record["now"]) == (3, [], None)
        assert record["shares"] == {"fog": 100}
        assert f"{folder / '0.png'}  fog, severity 3.0 (fog)" in result.output
        for asked, code in (("bad", 1), ("fog", 1), ("lens dirty", 0)):
            assert rws("health", folder, "--fail-if", asked).exit_code == code
        none = rws("health", folder, "--min-severity", 4, "--only-bad", "--fail-if", "bad")
        assert (none.exit_code, none.output.count(str(folder))) == (0, 0)

    def test_the_plot_is_an_image(self, rws, tmp_path):
        pytest.importorskip("matplotlib")
        assert rws("health", write_images(tmp_path / "images", 3), "--plot", tmp_path / "h.png").exit_code == 0
        assert cv2.imread(str(tmp_path / "h.png")).shape[1] > 1000

    def test_a_video_is_watched_over_time(self, rws, video, tmp_path):
        result = rws("health", video, "--lasting", 0, "--json", tmp_path / "h.json", "--fail-if", "fog")
        assert result.exit_code == 1, result.output
        record = json.loads((tmp_path / "h.json").read_text())
        assert record["frames"] > 0
        assert record["images"] == []
        assert [alert["problem"] for alert in record["alerts"]] == ["fog"]
        assert "alert: fog since " in result.output
        assert "now: fog, severity 3.0, since " in result.output
        assert rws("health", video, "--limit", 2, "--json", "-").stdout.count('"frames": 2') == 1

    def test_a_camera_is_watched_for_a_while(self, rws):
        result = rws("health", "pattern:64x64@50", "--seconds", 0.3, "--lasting", 0)
        assert result.exit_code == 0, result.output
        assert re.search(r"alert: fog since \d\d:\d\d:\d\d, severity 3", result.output)

    def test_unknown_problems_are_refused(self, rws, tmp_path):
        result = rws("health", write_images(tmp_path / "images", 1), "--fail-if", "out of focsu")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "did you mean 'out of focus'" in result.stderr

    def test_a_frame_on_which_the_oracle_fails_is_named(self, rws, tmp_path):
        bundle = write_bundle(tmp_path / "bundle", bundle_parts(oracle=failing_oracle("nan")))
        folder = write_images(tmp_path / "images", 1, value=255)
        result = rws("health", folder, bundle=bundle.path)
        assert result.exit_code == 0
        assert f"{folder / '0.png'}: " in result.output
        assert "frames 0" in result.output
