import cv2
import numpy as np
import pytest
import torch

from rws.edge.preprocess import InputSpec, preprocess
from rws.errors import FormatError, InputError
from rws.training.data.clean_images import load_clean_images, load_labelled, shrunk
from support.command_line import CLASSES


def test_images_are_read_from_folders_and_videos(image_files, tmp_path, clear):
    found = load_clean_images(str(image_files), 32)
    assert found.pixels.shape == (40, 3, 32, 32)
    assert not found.sequential
    assert load_clean_images(str(image_files), 16, limit=7).pixels.shape == (7, 3, 16, 16)
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for image in clear[0][:20]:
        video.write(image[:, :, ::-1].copy())
    video.release()
    found = load_clean_images(str(tmp_path / "v.avi"), 32, every=5)
    assert found.pixels.shape == (4, 3, 32, 32)
    assert found.sequential
    with pytest.raises(InputError, match="--every"):
        load_clean_images(str(image_files), 32, every=0)
    with pytest.raises(InputError, match="--limit"):
        load_clean_images("pattern", 32)


@pytest.mark.parametrize(
    ("frame", "size", "found"),
    [
        ((120, 160), (48, 64), (72, 96)),  # at most 1.5 times the model's
        ((120, 160), (80, 80), (120, 120)),
        ((120, 160), (200, 200), (200, 200)),  # never smaller
        ((960, 1280), (400, 400), (480, 480)),  # of which every second pixel has the lengths of a small frame
    ],
)
def test_whole_frames_are_as_large_as_they_are_up_to_a_limit(frame, size, found, tmp_path):
    for name, shape in (("a", frame), ("b", (30, 30))):  # the first one counts
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    assert load_clean_images(str(tmp_path), size, whole=True).pixels.shape == (2, 3, *found)
    assert load_clean_images(str(tmp_path), size).pixels.shape == (2, 3, *size)


def test_images_are_shrunk_as_the_device_shrinks_frames():
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    pixels = torch.from_numpy(frame.transpose(2, 0, 1).copy())[None]
    expected = preprocess(frame, InputSpec(60, 80, "RGB", dtype="uint8", high=255, fit="stretch"))[0]
    assert torch.equal(shrunk(pixels, (60, 80))[0], torch.from_numpy(expected))
    assert shrunk(pixels, (90, 120)) is pixels


def test_frames_of_a_live_source_are_kept_for_a_build_that_is_resumed(tmp_path):
    first = load_clean_images("pattern", 32, limit=3, keep=tmp_path)
    again = load_clean_images("pattern", 32, limit=3, keep=tmp_path)
    assert first.sequential
    assert again.sequential
    assert torch.equal(first.pixels, again.pixels)
    with pytest.raises(InputError, match="remove it"):
        load_clean_images("pattern", 48, limit=3, keep=tmp_path)


def test_labels_are_places_in_the_models_classes(image_folder):
    found = load_labelled(str(image_folder / "train"), 32, [*reversed(CLASSES)])
    assert found.labels[0] == len(CLASSES) - 1
    assert found.classes == tuple(reversed(CLASSES))
    folders = load_labelled(str(image_folder / "train"), 32, len(CLASSES))
    assert folders.classes[folders.labels[0]] == CLASSES[0]
    with pytest.raises(InputError, match="10 class folders, but the model gives 1000 logits"):
        load_labelled(str(image_folder / "train"), 32, 1000)
    with pytest.raises(InputError, match="none of the class names"):
        load_labelled(str(image_folder / "train"), 32, ["cat"])


def test_kept_frames_that_are_damaged_are_named(tmp_path):
    source = "pattern:40x32@1000"
    load_clean_images(source, 16, limit=3, keep=tmp_path)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="is not a NumPy array file"):
        load_clean_images(source, 16, limit=3, keep=tmp_path)
    np.save(path, np.zeros(3))
    with pytest.raises(FormatError, match=r"holds float64 \(3,\), expected uint8"):
        load_clean_images(source, 16, limit=3, keep=tmp_path)
