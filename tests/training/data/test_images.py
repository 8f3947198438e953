import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rws.errors import InputError
from rws.training.data.images import Images, load_images, split_train_validation
from support.command_line import CLASSES


def test_a_folder_is_read_in_label_order_with_exact_pixels(image_folder, clear):
    data = load_images(image_folder, "train")
    assert data.classes == CLASSES
    assert data.pixels.dtype == torch.uint8
    assert tuple(data.pixels.shape) == (len(clear[0]), 3, 32, 32)
    first = cv2.imread(str(sorted((image_folder / "train/airplane").iterdir())[0]))[:, :, ::-1]
    np.testing.assert_array_equal(data.pixels[0].permute(1, 2, 0).numpy(), first)
    assert data.labels[0] == 0


def test_the_cache_gives_the_same_images_and_notices_a_change(image_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(image_folder / "train", copy)
    once = load_images(copy, cache=tmp_path / "cache")
    again = load_images(copy, cache=tmp_path / "cache")
    assert once.digest() == again.digest()
    cv2.imwrite(str(sorted((copy / "cat").iterdir())[0]), np.zeros((32, 32, 3), np.uint8))
    assert load_images(copy, cache=tmp_path / "cache").digest() != once.digest()


def test_resizing_covers_and_crops(image_folder):
    assert tuple(load_images(image_folder, "test", size=24).pixels.shape[2:]) == (24, 24)


def test_splits_are_disjoint_complete_and_seeded(image_folder):
    data = load_images(image_folder, "train")
    train, validation = split_train_validation(data, 10, seed=3)
    assert len(train) + len(validation) == len(data)
    together = torch.cat([train.pixels, validation.pixels]).flatten(1)
    assert {row.numpy().tobytes() for row in together} == {row.numpy().tobytes() for row in data.pixels.flatten(1)}
    assert split_train_validation(data, 10, seed=3)[1].digest() == validation.digest()
    assert split_train_validation(data, 10, seed=4)[1].digest() != validation.digest()


def test_the_first_validation_images_show_all_classes(image_folder):
    data = load_images(image_folder, "train")
    many = Images(data.pixels.repeat(5, 1, 1, 1), data.labels.sort().values.repeat_interleave(5), data.classes)
    validation = split_train_validation(many, 150, seed=0)[1]
    assert len(validation.first(80).labels.unique()) == 10


def test_a_folder_without_splits_is_one_training_set(image_folder, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(image_folder / "train", flat)
    assert load_images(flat, "train").digest() == load_images(image_folder, "train").digest()
    with pytest.raises(InputError, match="no folder test or val"):
        load_images(flat, "test")


def test_too_large_a_validation_share_is_refused(image_folder):
    with pytest.raises(InputError, match="too few"):
        split_train_validation(load_images(image_folder, "train"), 60, seed=0)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), "no folder train"),  # there is a test folder
        (lambda root: [shutil.rmtree(f) for f in (root / "train").iterdir()], "no class folders"),
        (lambda root: [f.unlink() for f in (root / "train/cat").iterdir()], "cat holds no image"),
        (lambda root: (root / "train/cat/x.png").write_bytes(b"not an image"), "cannot decode"),
        (lambda root: cv2.imwrite(str(root / "train/cat/x.png"), np.zeros((8, 9, 3), np.uint8)), "9x8"),
    ],
)
def test_a_broken_folder_is_named(image_folder, tmp_path, prepare, message):
    root = tmp_path / "broken"
    shutil.copytree(image_folder, root)
    prepare(root)
    with pytest.raises(InputError, match=message):
        load_images(root, "train")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        load_images(tmp_path / "nowhere")


def test_a_torchvision_data_set_is_read_from_its_own_files(tmp_path, monkeypatch):
    """The real torchvision class on a tiny archive in CIFAR-10's format, with its check sums taken from the files."""
    import pickle

    from rws.edge.onnx.torchvision_compat import torchvision

    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (root / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    data = load_images(f"cifar10:{tmp_path}", "test")
    assert data.classes == CLASSES
    np.testing.assert_array_equal(data.pixels.numpy(), pixels.reshape(4, 3, 32, 32))
    assert len(load_images(f"cifar10:{tmp_path}", "train")) == 20
    assert load_images(f"cifar10:{tmp_path}", "test", size=16).size == 16


def test_a_part_of_a_data_set_is_fixed_by_its_seed(image_folder):
    whole = load_images(image_folder, "train")
    part = load_images(image_folder, "train", images=20, seed=3)
    assert part.digest() == load_images(image_folder, "train", images=20, seed=3).digest()
    assert part.digest() != load_images(image_folder, "train", images=20, seed=4).digest()
    known = {image.numpy().tobytes() for image in whole.pixels}
    assert len(part) == 20
    assert {image.numpy().tobytes() for image in part.pixels} <= known
    first = load_images(image_folder, "train", classes=3)
    assert first.classes == CLASSES[:3]
    assert len(first) == int((whole.labels < 3).sum())
    assert load_images(image_folder, "train", images=10**6).digest() == whole.digest()


def test_the_validation_images_of_tiny_imagenet_are_read_as_they_are_shipped(image_folder, tmp_path):
    (tmp_path / "val/images").mkdir(parents=True)
    lines = []
    for number, path in enumerate(sorted((image_folder / "test").rglob("*.png"))):
        name = f"val_{len(lines) * 7 % 1000:04d}_{number}.png"
        shutil.copy(path, tmp_path / "val/images" / name)
        lines.append(f"{name}\t{path.parent.name}\t0\t0\t31\t31")
    (tmp_path / "val/val_annotations.txt").write_text("\n".join(reversed(lines)))
    found, whole = load_images(tmp_path, "test"), load_images(image_folder, "test")
    assert found.classes == whole.classes
    pairs = [
        {(image.numpy().tobytes(), int(label)) for image, label in zip(data.pixels, data.labels, strict=True)}
        for data in (found, whole)
    ]
    assert pairs[0] == pairs[1]
    (tmp_path / "test/images").mkdir(parents=True)  # as shipped: without labels
    shutil.copy(path, tmp_path / "test/images/test_0.png")
    assert load_images(tmp_path, "test").digest() == found.digest()
    (tmp_path / "val/val_annotations.txt").write_text("gone.png\tcat\n")
    with pytest.raises(InputError, match=r"names .*gone\.png, which is not there"):
        load_images(tmp_path, "test")
    (tmp_path / "val/val_annotations.txt").write_text("only_a_name.png\n")
    with pytest.raises(InputError, match="a file's name and its class"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "archive", "float"])
def test_a_damaged_cache_is_made_again_with_a_warning(image_folder, tmp_path, caplog, damage):
    once = load_images(image_folder / "train", cache=tmp_path)
    (path,) = tmp_path.glob("*.npy")
    good = path.read_bytes()
    if damage in ("cut", "empty", "text"):
        path.write_bytes({"cut": good[:-9], "empty": b"", "text": b"text"}[damage])
    elif damage == "archive":
        with path.open("wb") as file:
            np.savez(file, np.zeros(3))
    else:
        np.save(path, np.zeros((2, 3, 8, 8), np.uint8) if damage == "other" else np.zeros(once.pixels.shape))
    assert load_images(image_folder / "train", cache=tmp_path).digest() == once.digest()
    assert f"{path}: " in caplog.text
    assert "the images are decoded again" in caplog.text
    assert path.read_bytes() == good


@pytest.mark.parametrize("kind", ["pipe", "empty"])
def test_what_is_named_like_an_image_and_is_none_is_named(image_folder, tmp_path, kind):
    copy = Path(shutil.copytree(image_folder / "train", tmp_path / "copy"))
    path = next(copy.iterdir()) / "0.png"
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "empty": Path.touch}[kind](path)
    with pytest.raises(InputError, match=r"cannot decode .*0\.png"):
        load_images(copy)
