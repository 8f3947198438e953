import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from rws.benchmarks.replay.replay import ARMS, Replayer, indistinguishable_pairs, replay
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import BundleParts, write_bundle
from rws.edge.bundle.manifest import MODEL, ORACLE
from rws.edge.onnx.graph import read_model
from rws.errors import BundleError, FormatError, InputError
from rws.training.adopt.graph import Preprocessing, prepend
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.data.images import load_images
from rws.training.evaluation.evaluator import EvaluationOptions
from rws.training.evaluation.frames import subset
from rws.training.evaluation.sets import evaluation_sets
from support.command_line import CLASSES, invoke


@pytest.fixture(scope="module")
def result(image_folder):
    return replay(Bundle.load("cifar10"), str(image_folder), options=EvaluationOptions(seed=3))


def test_the_bundled_default_wins_back_accuracy_on_real_images(result, clear):
    assert result["images"] == len(clear[0])
    assert result["ra"]["trained"] > result["ra"]["std"] + 1.5
    assert result["ra"]["perfect"] > result["ra"]["std"] + 1.5
    assert result["ra"]["always"] < result["ra"]["trained"]
    assert result["ta"]["perfect"] == result["ta"]["std"]
    assert result["ta"]["trained"] > result["ta"]["std"] - 5


def test_the_averages_are_those_of_the_parts(result):
    assert set(result["per_corruption"]) == set(CORRUPTIONS)
    for arm in ARMS:
        mean = np.mean([scores[arm] for scores in result["per_corruption"].values()])
        assert result["ra"][arm] == pytest.approx(mean, abs=0.02)
    assert result["regret"] == pytest.approx(result["ra"]["perfect"] - result["ra"]["trained"], abs=0.02)
    counts = np.array(result["oracle"]["confusion"]["counts"])
    assert (counts.sum(1) == result["images"]).all()
    recall = 100 * counts.diagonal() / counts.sum(1)
    assert result["oracle"]["type_accuracy"] == pytest.approx(recall.mean(), abs=0.02)
    assert result["oracle"]["clean_recall"] == pytest.approx(recall[0], abs=0.02)


def test_the_same_seed_gives_the_same_result(result, image_folder):
    assert replay(Bundle.load("cifar10"), str(image_folder), options=EvaluationOptions(seed=3)) == result


def test_the_shares_of_the_regret_sum_to_it(result):
    for split in (result["regret_split"], *result["regret_split"]["per_corruption"].values()):
        shares = sum(split[name] for name in ("policy", "severity", "type", "clean"))
        assert split["total"] == pytest.approx(shares, abs=0.003)
    assert result["regret_split"]["total"] == pytest.approx(result["regret"], abs=0.01)
    lost = result["ta"]["perfect"] - result["ta"]["trained"]
    assert result["regret_split"]["clean_frames_patched"] == pytest.approx(lost, abs=0.01)


def test_a_partial_oracle_keeps_only_what_is_true():
    replayer = Replayer(Bundle.load("cifar10"), threads=1)
    joint = np.random.default_rng(0).random((4, 96)).astype(np.float32)
    joint /= joint.sum(1, keepdims=True)
    known = replayer.partial(joint, "shot_noise", "type")
    assert np.flatnonzero(known.any(axis=0)).tolist() == [6, 7, 8, 9, 10]
    np.testing.assert_allclose(known[:, 6] / known[:, 7], joint[:, 6] / joint[:, 7], rtol=1e-5)
    assert not replayer.partial(joint, "fog", "corrupted")[:, 0].any()
    np.testing.assert_array_equal(replayer.partial(joint, "clean", "corrupted")[:, 0], 1)


def test_eight_frames_tell_more_than_one(result):
    after = result["oracle"]["after_8_frames"]
    assert after["type_accuracy"] >= result["oracle"]["type_accuracy"]
    assert set(after["per_severity"]) == set(result["oracle"]["per_severity"]) == {"5"}


def test_the_same_picture_is_found_and_counts_as_right(result, clear, image_folder):
    assert ["defocus_blur", "gaussian_blur", 1] in replay(
        Bundle.load("cifar10"), str(image_folder), (1,), EvaluationOptions(limit=40)
    )["oracle"]["merged"]
    assert result["oracle"]["type_accuracy_merged"] >= result["oracle"]["type_accuracy"]
    pixels = torch.from_numpy(clear[0][:4]).permute(0, 3, 1, 2).contiguous()
    samples = {}
    for name, change in (("fog", 0), ("snow", 1), ("frost", 2)):
        pixels = pixels.clone()
        pixels[:, :, ::2] = (pixels[:, :, ::2].int() + change).clamp(max=255).to(torch.uint8)
        samples[name, 2] = pixels.numpy()
    assert indistinguishable_pairs(samples, ("fog", "snow", "frost")) == [("fog", "snow", 2)]


@pytest.fixture
def corrupted(clear) -> tuple[np.ndarray, np.ndarray]:
    """20 clear frames under fog of severity 5, uint8 (20, 32, 32, 3), and labels."""
    pixels = torch.from_numpy(clear[0][:20]).permute(0, 3, 1, 2).contiguous()
    return corrupt(pixels, "fog", 5.0, seeds_for(0, 20)).permute(0, 2, 3, 1).numpy(), clear[1][:20]


def test_a_set_in_cifar10_cs_files_is_read_by_severity(corrupted, tmp_path):
    images, labels = corrupted
    blank = np.zeros((80, 32, 32, 3), np.uint8)
    np.save(tmp_path / "fog.npy", np.concatenate([blank, images]))
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    sets = list(evaluation_sets(str(tmp_path), CLASSES, 32, (1, 5), None, 0))
    assert [(s.corruption, s.severity, len(s.images)) for s in sets] == [("fog", 1, 20), ("fog", 5, 20)]
    np.testing.assert_array_equal(sets[1].images.pixels.permute(0, 2, 3, 1).numpy(), images)
    assert not sets[0].images.pixels.any()
    result = replay(Bundle.load("cifar10"), str(tmp_path))
    assert list(result["per_corruption"]) == ["fog"]
    assert result["oracle"]["clean_recall"] is None


def test_a_set_in_imagenet_cs_folders_is_read(corrupted, clear, tmp_path):
    images, labels = corrupted
    for root, pictures in ((tmp_path / "fog/5", images), (tmp_path / "clean", clear[0][:20])):
        for number in range(20):
            folder = root / CLASSES[labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number}.png"), pictures[number][:, :, ::-1])
        for name in CLASSES:  # the 20 frames need not show every class
            (root / name).mkdir(exist_ok=True)
            cv2.imwrite(str(root / name / "extra.png"), pictures[0][:, :, ::-1])
    sets = list(evaluation_sets(str(tmp_path), CLASSES, 32, (5,), None, 0))
    assert [(s.corruption, s.severity, len(s.images)) for s in sets] == [("clean", 0, 30), ("fog", 5, 30)]


def test_a_limit_decodes_only_the_chosen_images(image_folder, tmp_path):
    place = tmp_path / "fog/5"
    shutil.copytree(image_folder / "test", place)
    whole = load_images(place)
    chosen = next(evaluation_sets(str(tmp_path), CLASSES, 32, (5,), 12, 3)).images
    assert torch.equal(chosen.pixels, subset(whole, 12, 3).pixels)
    for index, path in enumerate(sorted(place.rglob("*.png"))):
        if not (chosen.pixels == whole.pixels[index]).flatten(1).all(1).any():
            path.write_bytes(b"not an image")
    again = next(evaluation_sets(str(tmp_path), CLASSES, 32, (5,), 12, 3)).images
    assert torch.equal(again.pixels, chosen.pixels)


def test_bad_data_is_named(image_folder, tmp_path):
    def run(root):
        return replay(Bundle.load("cifar10"), str(root))

    missing = tmp_path / "missing"
    shutil.copytree(image_folder / "test", missing)
    shutil.rmtree(missing / "frog")
    with pytest.raises(InputError, match="class folder 'frog' is missing"):
        run(missing)
    (missing / "frog").mkdir()
    with pytest.raises(InputError, match="frog holds no image"):
        run(missing)
    larger = tmp_path / "larger"
    for name in CLASSES:
        (larger / "fog/5" / name).mkdir(parents=True)
        cv2.imwrite(str(larger / "fog/5" / name / "0.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(InputError, match="images are 40x40, the bundle takes 32x32"):
        run(larger)
    empty = tmp_path / "npy"
    empty.mkdir()
    np.save(empty / "labels.npy", np.zeros(5, np.int64))
    with pytest.raises(InputError, match="no corrupted images"):
        run(empty)
    np.save(empty / "fog.npy", np.zeros((5, 32, 32), np.uint8))
    with pytest.raises(InputError, match="expected uint8"):
        run(empty)
    np.save(empty / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="10 images, but labels"):
        run(empty)
    whole = (empty / "fog.npy").read_bytes()
    (empty / "fog.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"fog\.npy: is not a NumPy array file"):
        run(empty)
    with (empty / "fog.npy").open("wb") as file:
        np.savez(file, np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(FormatError, match=r"fog\.npy: is not a NumPy array file"):
        run(empty)
    for labels in (np.zeros((5, 1), np.int64), np.zeros(5)):
        np.save(empty / "labels.npy", labels)
        with pytest.raises(InputError, match=r"labels\.npy: .*, expected whole numbers \(N,\)"):
            run(empty)


def test_labels_follow_the_bundles_class_order_not_the_folders(image_folder):
    forward = next(evaluation_sets(str(image_folder), CLASSES, 32, (5,), None, 0))
    backward = next(evaluation_sets(str(image_folder), CLASSES[::-1], 32, (5,), None, 0))
    assert torch.equal(backward.images.labels, 9 - forward.images.labels)


def test_clean_images_are_fitted_to_the_model_like_frames(image_folder):
    assert next(evaluation_sets(str(image_folder), CLASSES, 24, (5,), 5, 0)).images.size == 24


def test_the_command_writes_the_agreed_json(image_folder, tmp_path):
    report = tmp_path / "result.json"
    done = invoke("replay", "--data", image_folder, "--limit", 10, "--severity", "1,5", "--seed", 2, "--json", report)
    result = json.loads(report.read_text())
    assert set(result["ta"]) == set(result["ra"]) == set(ARMS)
    assert result["images"] == 10
    assert result["seed"] == 2
    assert result["versions"]["onnxruntime"]
    assert "replay" in result["command"]
    assert {"type_accuracy", "clean_recall", "severity_mae"} <= set(result["oracle"])
    assert f"{result['ra']['trained']:.2f}" in done.stdout
    failed = invoke("replay", "--data", image_folder, "--severity", "6", check=False)
    assert failed.returncode == 2
    assert "--severity '6'" in failed.stderr


def test_a_classifier_may_take_another_range(image_folder, tmp_path):
    """The bundle `cifar10` as one that takes values to 255 answers the same."""
    bundle = Bundle.load("cifar10")
    model = read_model(bundle.read(MODEL))
    prepend(model, Preprocessing(1 / 255), "NCHW")
    about = bundle.manifest
    parts = BundleParts(
        name="bytes",
        classes=about.classes,
        input=replace(about.input, high=255),
        model=model.SerializeToString(),
        signatures=bundle.signatures,
        oracle=bundle.read(ORACLE),
        table=bundle.table,
        policy=about.policy,
        filter=about.filter,
        provenance={},
        measured={},
    )
    other = write_bundle(tmp_path / "bytes", parts)
    options = EvaluationOptions(seed=3, limit=10)
    with pytest.raises(BundleError, match="0…1"):
        Bundle.load_classifier(other.path)
    expected, found = (replay(each, str(image_folder), (5,), options) for each in (bundle, other))
    assert found["ra"] == pytest.approx(expected["ra"], abs=1)
    done = invoke("replay", "--bundle", other.path, "--data", image_folder, "--limit", 2, "--severity", 5)
    assert "clean" in done.stdout
