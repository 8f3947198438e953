"""From the command line to tables, figures and the page, on the clear frames of the demo."""

import json
import re
import shutil
import subprocess
import sys

import cv2
import pytest

from rws.benchmarks.cli.reproduce import NAMES
from rws.benchmarks.pages import paper as page
from rws.benchmarks.paper.entries import ENTRIES
from rws.benchmarks.paper.run import status, tasks
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS
from support.command_line import TINY, invoke, rws

CIFAR10 = ("table1", "table4", "table5", "fig7", "init", "tuned", "smaller")
VGG = 'name = "{name}"' + TINY.split('name = "tiny"')[1].replace("layers = 2", "layers = 5\nfold_first = true")
VGG = VGG.replace("[tuned]", '[tuned]\ntarget = "shallow"').replace("epochs = 2", "epochs = 1")
VGG += '[augmented]\nepochs = 1\nbatch_size = 16\nlearning_rate = 0.02\nprecision = "fp32"\n'
RESNET = VGG.replace("width = 0.1", 'architecture = "resnet50"\nwidth = 0.1\nsmall_input = false')
RESNET = RESNET.replace("batch_size", "learning_rate = 1e-4\nbatch_size").replace("learning_rate = 0.02\n", "")


@pytest.fixture(scope="session")
def recipes(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    for scale in ("small", "full"):
        (root / scale).mkdir()
    for name in ("cifar10-vgg16", "cifar100-vgg16"):
        (root / "small" / f"{name}.toml").write_text(VGG.format(name=name))
    (root / "full" / "imagenet-resnet50.toml").write_text(RESNET.format(name="imagenet-resnet50"))
    return root


@pytest.fixture(scope="session")
def reproduced(recipes, image_folder, tmp_path_factory):
    """Results of the CIFAR-10 column: (folder of results, arguments of the command, the finished command)."""
    root = tmp_path_factory.mktemp("reproduce")
    data = ("--data", f"cifar10={image_folder}", "--data", f"cifar100={image_folder}", "--recipes", recipes)
    fixed = (*data, "--work", root / "work", "--out", root / "out", "--limit", 10, "--threads", 1)
    weights = "vgg.safetensors"
    arguments = ("reproduce", *CIFAR10, "--column", "cifar10-vgg16", *fixed, "--pretrained", _weights(root / weights))
    return root / "out", arguments, rws(*arguments, "--workers", 2)


def _weights(path):
    import torch
    from safetensors.torch import save_file

    save_file({"features.0.weight": torch.randn(64, 3, 3, 3)}, path)
    return path


def test_the_command_writes_a_result_for_each_table_and_an_image_for_each_figure(reproduced):
    out, _, done = reproduced
    written = {path.name for path in (out / "small").iterdir()}
    assert written == {
        *(f"{name}-cifar10-vgg16.json" for name in CIFAR10),
        "fig7-cifar10-vgg16.png",
        "smaller-cifar10-vgg16.png",
    }
    assert done.stdout.count("wrote ") == len(written)
    image = cv2.imread(str(out / "small" / "fig7-cifar10-vgg16.png"))
    assert image.shape[0] > 200
    assert image.std() > 5


def test_a_result_says_where_it_comes_from(reproduced):
    result = json.loads((reproduced[0] / "small" / "table1-cifar10-vgg16.json").read_text())
    assert result["command"].startswith("rws reproduce")
    assert result["seed"] == 1
    assert result["data"]["cifar10-vgg16"]["classes"] == 10
    assert {"python", "torch", "numpy"} <= result["versions"].keys()
    assert result["test_images"] == 10


def test_table1_has_every_row_of_the_paper_and_storage_that_adds_up(reproduced):
    rows = json.loads((reproduced[0] / "small" / "table1-cifar10-vgg16.json").read_text())["rows"]
    found = {(row["method"], row["layers"], row["bits"]): row for row in rows if "oracle" not in row}
    assert found["std", None, 32]["storage"] == 1
    assert found["robust", None, 32]["storage"] == 20
    assert found["residual", 0, 32]["storage"] == 20
    shallow = [found["residual", 5, bits]["storage"] for bits in (32, 16, 8, 4)]
    assert shallow == sorted(shallow, reverse=True)
    assert shallow[2] - 1 == pytest.approx((shallow[0] - 1) / 4, rel=0.15)
    assert found["std", None, 32]["ta"] == found["residual", 5, 8]["ta"]  # the clean model is what clean images see
    assert all(0 <= row[key] <= 100 for row in rows for key in ("ta", "ra"))
    oracles = [row["oracle"] for row in rows if "oracle" in row]
    assert oracles == ["perfect oracle", "trained oracle", "all signatures averaged"]
    assert found["residual", 5, 8]["made"] == "projected"


def test_table4_is_table1_corruption_by_corruption(reproduced):
    one, four = (
        json.loads((reproduced[0] / "small" / f"{n}-cifar10-vgg16.json").read_text()) for n in ("table1", "table4")
    )
    assert [row["corruption"] for row in four["rows"]] == list(CORRUPTIONS)
    standard = next(row["ra"] for row in one["rows"] if row["method"] == "std")
    assert sum(row["standard"] for row in four["rows"]) / 19 == pytest.approx(standard, abs=0.02)


def test_finished_results_are_not_made_again(reproduced):
    out, arguments, _ = reproduced

    def contents():
        lines = {path.name: path.read_bytes().split(b"\n") for path in (out / "small").iterdir()}
        return {name: [line for line in found if b'"written_at"' not in line] for name, found in lines.items()}

    before = contents()
    again = invoke(*arguments)
    assert "epoch" not in again.stdout
    assert "measured" not in again.stdout
    # The recorded command is still the one that measured.
    assert contents() == before


def test_the_page_shows_finished_results_and_names_missing_ones(reproduced, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", reproduced[0])
    texts = {name: make() for name, make in page.TABLES.items()}
    ra = json.loads((reproduced[0] / "small" / "table1-cifar10-vgg16.json").read_text())["rows"][0]["ra"]
    assert f"/ {ra:.2f} |" in texts["table1"]
    for name in ("table4", "table5", "init", "tuned", "smaller"):
        assert texts[name].count("\n| ") >= 3
        assert "full scale" not in texts[name]
    assert texts["table2"] == "Not run yet."
    assert "fig7-cifar10-vgg16.png" in texts["figures"]
    assert "table3" in texts["status"]
    assert re.fullmatch(r"\d+ and \d+", page.VALUES["images table4"]())


def test_status_lists_every_result_with_its_column_and_scale(reproduced, tmp_path):
    out = reproduced[0]
    done = invoke("reproduce", "--status", "--out", out, "--json", tmp_path / "status.json")
    rows = json.loads((tmp_path / "status.json").read_text())["results"]
    assert rows == status(out)
    assert all(row.keys() == {"name", "column", "scale", "done"} for row in rows)
    assert {(row["name"], row["column"]) for row in rows if row["done"]} == {
        (name, "cifar10-vgg16") for name in CIFAR10
    }
    assert f"{len(CIFAR10)} of {len(rows)} done" in done.stdout
    names = {row["name"] for row in rows}
    assert {f"table{n}" for n in range(1, 6)} | {f"fig{n}" for n in range(2, 10)} < names
    assert [row["scale"] for row in rows if row["name"] == "table2"] == ["full"]


@pytest.mark.slow
def test_table2_runs_on_an_imagenet_folder(recipes, clear, tmp_path):
    images = [cv2.resize(image, (256, 240)) for image in clear[0][:12]]
    for split in ("train", "val"):
        for number, image in enumerate(images):
            folder = tmp_path / "imagenet" / split / f"n0{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number}.JPEG"), image)
    shutil.copytree(recipes, tmp_path / "recipes")
    path = tmp_path / "recipes/full/imagenet-resnet50.toml"
    path.write_text(path.read_text().replace("batch_size = 16", "batch_size = 4").replace("images = 12", "images = 2"))
    arguments = ("--scale", "full", "--data", tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "out")
    invoke("reproduce", "table2", *arguments, "--recipes", tmp_path / "recipes", "--limit", 2, "--threads", 1)
    result = json.loads((tmp_path / "out/full/table2-imagenet-resnet50.json").read_text())
    assert result["data"]["imagenet-resnet50"]["classes"] == 2
    assert result["test_images"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name what to reproduce"),
        (("table9",), "unknown table or figure 'table9'"),
        (("table1", "--column", "mnist-vgg16"), "unknown column 'mnist-vgg16'"),
        (("table1", "--scale", "huge"), "unknown scale 'huge'"),
        (("table2",), "nothing to do at the small scale"),
        (("fig2", "--data", "/nowhere"), "no such folder"),
        (("fig2",), "needs the data set tiny-imagenet"),
        (("table3", "--column", "cifar10-vgg16"), "a joint result needs all of its columns"),
        (("table1", "--json", "x.json"), "--json is for --status"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments, message, tmp_path):
    refused = invoke("reproduce", *arguments, "--work", tmp_path, "--out", tmp_path, check=False)
    assert refused.returncode in (2, 3)
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_names_are_known_before_anything_heavy_is_imported():
    assert tuple(ENTRIES) == NAMES
    code = "import sys; from rws.cli import main; main()"
    for arguments in ((), ("table9",), ("table1", "--limit", "10")):
        command = [sys.executable, "-X", "importtime", "-c", code, "reproduce", *arguments]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "| torch\n" not in refused.stderr


def test_a_joint_result_is_made_if_all_its_columns_are_chosen():
    vgg = ("cifar10-vgg16", "cifar100-vgg16", "tiny-imagenet-vgg16")
    names = [{task.name for task in tasks(columns=columns, scales=("small",))} for columns in (vgg[:1], vgg, ())]
    assert names[0] == {"table1", "table4", "table5", "fig6", "fig7", "init", "tuned", "smaller"}
    assert names[1] == names[2] == {*names[0], "table3", "fig2", "fig3", "fig4", "fig5", "fig8", "fig9"}
    with pytest.raises(InputError, match="unknown scale"):
        list(tasks(scales=("tiny",)))


def test_a_trial_does_not_replace_a_result():
    refused = invoke("reproduce", "table1", "--limit", 10, check=False)
    assert refused.returncode == 2
    assert "give --out as well" in refused.stderr


def test_all_skips_columns_without_images(tmp_path):
    refused = invoke(
        "reproduce", "all", "--column", "imagenet-resnet50", "--scale", "full", "--work", tmp_path, check=False
    )
    assert "skipped, because --data names no images for them: imagenet-resnet50" in refused.stdout
    assert "nothing to do" in refused.stderr
