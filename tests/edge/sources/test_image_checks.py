"""Images, videos and streams are limited and checked alike, and each check has its knob."""

import io
import logging
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rws.edge.faults.frames import encode_jpeg, read_stamp, scene, stamped
from rws.edge.faults.servers import MjpegServer
from rws.edge.sources.capture.decoding.checks import Checks
from rws.edge.sources.open import open_source
from rws.errors import SourceError

GOOD = scene(48, 400)
BAR = GOOD.copy()
BAR[-8:] = 128
NIGHT = np.zeros_like(GOOD)


def folder_of(path, *images):
    for number, image in enumerate(images):
        data = image if isinstance(image, bytes) else encode_jpeg(image)
        (path / f"{number}.jpg").write_bytes(data)
    return path


def video_of(path, images):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"b": "20000000"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_images_of_a_folder_are_checked_as_frames_are(tmp_path, caplog):
    jpeg = encode_jpeg(GOOD)
    folder_of(tmp_path, GOOD, NIGHT, jpeg[: len(jpeg) * 2 // 3], b"no image", BAR, scene(480, 640))
    with open_source(tmp_path, checks=Checks(max_pixels=50_000)) as source:
        assert [frame.index for frame in source] == [0, 4]
    assert source.rejections == {"black": 1, "damaged": 1, "undecodable": 1, "too large": 1}
    assert "1.jpg: is black; --accept black takes it as it is" in caplog.text
    assert "5.jpg: has more pixels than --max-pixels allows" in caplog.text


def test_one_image_that_cannot_be_used_says_why(tmp_path):
    with pytest.raises(SourceError, match="is black; --accept black"):
        list(open_source(folder_of(tmp_path, NIGHT) / "0.jpg"))
    assert len(list(open_source(tmp_path / "0.jpg", checks=Checks(accept=("black",))))) == 1


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_where_all_is_black_the_guess_gives_way_and_says_it(tmp_path, kind, caplog):
    source = open_source(
        folder_of(tmp_path, *[NIGHT] * 15) if kind == "folder" else video_of(tmp_path / "night.mp4", [NIGHT] * 15)
    )
    with source:
        assert len(list(source)) == 5
    assert source.rejections == {"black": 10}
    assert caplog.text.count("every frame looks black") == 1


def test_a_grey_bar_is_part_of_an_image_whose_decoder_knows_of_damage(tmp_path):
    with open_source(video_of(tmp_path / "bar.mp4", [BAR] * 12)) as source:
        assert len(list(source)) == 12
    assert source.rejected == 0


def test_a_black_video_is_accepted_from_its_first_frame_on_request(tmp_path):
    with open_source(video_of(tmp_path / "night.mp4", [NIGHT] * 5), checks=Checks(accept=("black",))) as source:
        assert len(list(source)) == 5


def test_a_video_of_too_many_pixels_is_refused_with_its_size(tmp_path):
    path = video_of(tmp_path / "clip.mp4", [GOOD])
    with pytest.raises(SourceError, match=r"has frames of 400 x 48 pixels; --max-pixels allows 10000"):
        open_source(path, checks=Checks(max_pixels=10_000))


def test_a_video_that_grows_in_the_middle_is_cut_to_what_is_allowed(tmp_path):
    pieces = []
    for image in (scene(240, 320), scene(480, 640)):
        file = io.BytesIO()
        with av.open(file, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
            for _ in range(10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        pieces.append(file.getvalue())
    (tmp_path / "grows.ts").write_bytes(b"".join(pieces))
    with open_source(tmp_path / "grows.ts", checks=Checks(max_pixels=100_000)) as source:
        shapes = {frame.image.shape for frame in source}
    assert shapes == {(240, 320, 3)}
    assert source.rejected >= 8


def test_huge_images_of_a_camera_cost_neither_memory_nor_the_others_frames(tmp_path):
    # An image of one colour is small; decoded, this one would take 0.8 GB.
    huge = bytes(cv2.imencode(".jpg", np.full((16_000, 16_000), 90, np.uint8))[1])
    server = MjpegServer(lambda number: huge if number % 4 == 3 else encode_jpeg(stamped(GOOD, number)), 30.0)
    with server, open_source(server.url, latest=False) as source:
        stamps = [read_stamp(frame.image) for frame, _ in zip(source, range(12), strict=False)]
        if sys.platform == "linux":
            status = Path(f"/proc/{source.pid}/status").read_text()
            assert int(status.partition("VmHWM:")[2].split()[0]) < 400_000
    assert all(stamp % 4 != 3 for stamp in stamps)
    assert source.rejections["too large"] >= 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_capture_process_has_a_limit_of_memory(tmp_path):
    with open_source(video_of(tmp_path / "clip.mp4", [GOOD] * 3)) as source:
        limits = Path(f"/proc/{source.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max data size"))
    assert 2**30 <= int(line.split()[3]) <= 3 * 2**30


def test_a_damaged_jpeg_of_a_camera_is_rejected_and_the_next_one_passes():
    def damaged(number):
        data = encode_jpeg(stamped(GOOD, number))
        # It has its end mark, but a part is missing.
        return data[: len(data) // 2] + data[len(data) * 2 // 3 :] if number % 3 == 2 else data

    with MjpegServer(damaged, 50.0) as server, open_source(server.url, latest=False) as source:
        stamps = [read_stamp(frame.image) for frame, _ in zip(source, range(12), strict=False)]
    assert all(stamp % 3 != 2 for stamp in stamps)
    assert source.rejections["damaged"] >= 4


def test_an_array_file_of_huge_images_is_refused(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((1, 10, 2000, 3), np.uint8))
    with pytest.raises(SourceError, match="has images of 2000 x 10 pixels; 10000 are allowed"):
        open_source(tmp_path / "wide.npy", checks=Checks(max_pixels=10_000))


def test_decompression_bombs_and_animations_stay_within_the_limit(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    bomb = bytes(cv2.imencode(".png", np.zeros((9000, 9000), np.uint8))[1])
    assert len(bomb) < 200_000
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "good.png").write_bytes(bytes(cv2.imencode(".png", GOOD)[1]))
    with open_source(tmp_path) as source:
        assert len(list(source)) == 1
    assert source.rejections == {"too large": 1}
