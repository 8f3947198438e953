import cv2
import pytest


@pytest.fixture(scope="module")
def image_files(clear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(clear[0][:40]):
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
    return folder
