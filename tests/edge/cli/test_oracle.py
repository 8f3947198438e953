import json
import os
import shutil

import pytest

from rws.edge.bundle.edit import write_bundle
from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.sources.open import open_source
from support.fakes import write_images
from support.tiny import bundle_parts, failing_oracle


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
