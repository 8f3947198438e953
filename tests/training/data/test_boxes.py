import cv2
import numpy as np
import pytest

from rws.edge.preprocess import InputSpec
from rws.errors import FormatError, InputError
from rws.training.data.boxes import load_boxes
from rws.training.data.clean_images import fit_frames

CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, :, 0] = 200  # blue, as OpenCV writes it
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), frame)
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.0 0.5 0.5 0.5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("fit", "boxes"),
    [
        ("stretch", [[24, 16, 40, 48], [0, 16, 16, 48]]),
        ("letterbox", [[24, 24, 40, 40], [0, 24, 16, 40]]),
        ("crop", [[16, 16, 48, 48], [0, 16, 0, 48]]),
    ],
)
def test_boxes_are_in_pixels_of_the_fitted_image_and_end_at_its_edges(folder, fit, boxes):
    spec = InputSpec(64, 64, "BGR", fit=fit)
    images, found = load_boxes(folder / "images", spec, CLASSES)
    pixels = fit_frames(images, spec)
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels[0, :, 32, 32].tolist() == [0, 0, 200]  # RGB, whatever the model takes
    np.testing.assert_allclose(found[0].boxes, boxes, atol=1e-4)
    assert found[0].labels == ["dog", "cat"]
    assert len(found[1].boxes) == 0  # it has no label file


@pytest.mark.parametrize("text", ["2 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 0.5 0.5 0.1 1.5", "cat 0.5 0.5 0.1 0.1"])
def test_a_line_of_another_form_is_refused(folder, text):
    (folder / "labels" / "b.txt").write_text(text)
    with pytest.raises(FormatError, match=r"b.txt: expected lines `class x y width height`"):
        load_boxes(folder / "images", InputSpec(64, 64, "RGB"), CLASSES)


def test_a_folder_without_images_is_refused(folder):
    with pytest.raises(InputError, match="holds no image"):
        load_boxes(folder / "labels", InputSpec(64, 64, "RGB"), CLASSES)
