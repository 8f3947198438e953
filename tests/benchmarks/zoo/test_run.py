import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rws.benchmarks.pages.zoo import zoo_table
from rws.benchmarks.zoo import run as zoo
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError, UsageError
from rws.training.data.images import Images
from support.command_line import invoke


@pytest.fixture(scope="module")
def test_images(clear) -> Images:
    pixels = torch.from_numpy(clear[0][:20].transpose(0, 3, 1, 2).copy())
    return Images(pixels, torch.tensor(clear[1][:20].astype(np.int64)), Bundle.load("cifar10").manifest.classes)


@pytest.fixture(scope="module")
def result(test_images) -> dict:
    bundle = Bundle.load("cifar10")
    found = zoo.measure(bundle, test_images)
    return {
        "file": "zoo_tiny.json",
        "commit": "1234567",
        "machine": {"processor": "any"},
        "seed": 0,
        "model": "tiny",
        "quick": False,
        "build_images": 20,
        "test_images": 20,
        "build_minutes": {"all": 1.0},
        "sizes": zoo.sizes(bundle),
        "frame": zoo.frame_times(bundle, test_images),
        **found,
    }


def test_halves_share_no_image(test_images):
    build, test = zoo.halves(test_images)
    assert len(build) + len(test) == len(test_images)
    assert not {row.numpy().tobytes() for row in build.pixels} & {row.numpy().tobytes() for row in test.pixels}


def test_signatures_win_back_a_part_of_the_loss(result):
    assert len(result["rows"]) == 2 * 19
    won = result["summary"]["accuracy"]["won_back"]
    assert 0 < won["perfect"] <= 100
    assert won["trained"] > 0
    for row in result["rows"]:
        assert set(row["accuracy"]) == set(row["agreement"]) == set(zoo.ARMS)


def test_accuracy_won_back_is_a_share_of_the_loss():
    rows = [
        {
            "accuracy": {"std": 40.0, "trained": 50.0, "perfect": 60.0},
            "agreement": dict.fromkeys(zoo.ARMS, 100.0),
            "named": 1.0,
        }
    ]
    summary = zoo.summarise(80.0, rows)
    assert summary["accuracy"]["won_back"] == {"trained": 25.0, "perfect": 50.0}
    assert summary["agreement"]["won_back"] == {"trained": 0.0, "perfect": 0.0}


def test_both_backends_agree(test_images):
    same = zoo.compare_backends(Bundle.load("cifar10"), test_images, {"fog": 1.0}, count=8)
    assert same["same_predictions"] == 100
    assert same["difference"] <= 1e-4 * max(1, same["largest"])


def test_minutes_of_a_build_count_each_part_once(tmp_path):
    records = [
        {"job": "signature-fog", "done": True, "seconds": 60},
        {"job": "signature-fog", "done": True, "seconds": 30},
        {"job": "gain", "done": True, "seconds": 60},
    ]
    lines = [json.dumps(record) for record in (*records, {"job": "gain", "seconds": 9, "corruption": "fog"})]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert zoo.parts_of_build(tmp_path) == {"signature": 0.5, "gain": 1.0, "all": 1.5}


def test_the_page_holds_the_numbers(result):
    quick = {**result, "quick": True}
    text = zoo_table([result, quick])
    assert "|  | tiny | tiny, quick |" in text
    won = f"{result['summary']['accuracy']['won_back']['perfect']:.1f}"
    assert f"| **accuracy won back, perfect oracle, %** | {won} | {won} |" in text
    assert f"| test images | {result['test_images']} |" in text


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="efficientnet_lite0"):
        zoo.run_entry("alexnet", "nowhere", tmp_path, None, zoo.ZooOptions())


@pytest.mark.parametrize(
    ("model", "images", "options", "message"),
    [
        ("efficientnet_lite0", ["a", "b"], {}, "one folder of --images"),
        ("efficientnet_lite0", ["a"], {"int8": "s9"}, "unknown form of int8 's9'; known: s8s8, u8s8"),
        ("efficientnet_lite0", ["a"], {"file": Path("x.onnx")}, "neither --file nor --test"),
        ("fastestdet", ["a"], {}, "needs --file, --test and --names"),
        ("ppocr_rec", ["a"], {"int8": "s8s8"}, "needs --file, --test and --names"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(model, images, options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        zoo.run_entry(model, images, tmp_path, None, zoo.ZooOptions(**options))


@pytest.mark.parametrize("command", ["zoo", "zoo-curve"])
def test_a_report_that_cannot_be_written_is_refused_before_the_build(command, tmp_path):
    given = ("--images", tmp_path, "--json", tmp_path / "none" / "zoo.json")
    refused = invoke("bench", command, *given, check=False)
    assert refused.returncode == 3
    assert "its folder does not exist" in refused.stderr
