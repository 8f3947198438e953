"""Encoded images are refused before they are decoded, if they are too large or their own data tell of damage."""

import cv2
import numpy as np
import pytest
import simplejpeg

from rws.edge.faults.frames import encode_jpeg, scene
from rws.edge.sources.capture.decoding.checks import DAMAGED, TOO_LARGE, UNDECODABLE
from rws.edge.sources.capture.decoding.evidence.encoded import encoded_flaw, jpeg_damage

PIXELS = 48 * 64
JPEG_OPTIONS = {
    "plain": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart marks": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
    "4:4:4": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
}


def encode(suffix, options=(), image=None):
    image = scene(48, 64) if image is None else image
    return bytes(cv2.imencode(suffix, image, list(options))[1])


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tiff", ".webp"])
def test_the_size_of_each_format_is_known_before_it_is_decoded(suffix):
    data = encode(suffix, image=scene(48, 64)[:, :, 0] if suffix == ".pgm" else None)
    assert encoded_flaw(data, PIXELS) == ""
    assert encoded_flaw(data, PIXELS - 1) == TOO_LARGE


def test_the_size_that_a_decoder_of_jpeg_2000_obeys_counts():
    data = encode(".jp2")
    place = data.index(b"\xff\x4f\xff\x51") + 8
    huge = data[:place] + (40_000).to_bytes(4, "big") * 2 + data[place + 8 :]
    assert encoded_flaw(huge, 10**8) == TOO_LARGE


def test_a_very_wide_image_is_measured_in_pixels():
    assert encoded_flaw(encode(".png", image=np.zeros((1, 60_000, 3), np.uint8)), 60_000) == ""


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", b"text", bytes(100), b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_an_image_is_undecodable(data):
    assert encoded_flaw(data, 10**8) == UNDECODABLE


@pytest.mark.parametrize("options", JPEG_OPTIONS.values(), ids=JPEG_OPTIONS)
def test_a_cut_or_overwritten_jpeg_is_damaged_and_a_whole_one_is_not(options):
    data = encode(".jpg", options)
    assert encoded_flaw(data, PIXELS, thorough=True) == ""
    for part in (0.7, 0.9, 0.98):
        assert encoded_flaw(data[: int(len(data) * part)], PIXELS) == DAMAGED
    middle = len(data) * 2 // 3
    assert encoded_flaw(data[:middle] + bytes(200) + data[middle + 200 :], PIXELS) == DAMAGED


@pytest.mark.parametrize("end", [b"", b"\r\n", bytes(40), b"\xff" * 8])
def test_a_jpeg_without_its_end_mark_is_whole(end):
    assert jpeg_damage(encode_jpeg(scene(48, 64))[:-2] + end) == ""


def test_no_jpeg_passes_of_which_libjpeg_warns():
    data, rng = encode_jpeg(scene(120, 160)), np.random.default_rng(0)
    reported = 0
    for place in rng.integers(2, len(data) - 2, 300):
        flipped = bytearray(data)
        flipped[place] ^= int(rng.integers(1, 256))
        try:
            simplejpeg.decode_jpeg(bytes(flipped), strict=True)
        except ValueError:
            reported += 1
            assert encoded_flaw(bytes(flipped), 10**6) or cv2.imdecode(np.frombuffer(flipped, np.uint8), 1) is None
    assert reported > 30


def test_ffmpeg_knows_of_codes_that_libjpeg_ignores():
    data, rng = encode_jpeg(scene(240, 320), quality=95), np.random.default_rng(1)
    found = 0
    for place in rng.integers(700, len(data) - 2, 400):
        flipped = bytearray(data)
        flipped[place] ^= 0x55
        found += encoded_flaw(bytes(flipped), 10**6) == "" != encoded_flaw(bytes(flipped), 10**6, thorough=True)
    assert found > 0


@pytest.mark.parametrize("place", [20, -40, -6])
def test_a_png_with_a_wrong_checksum_is_damaged(place):
    data = bytearray(encode(".png"))
    data[place] ^= 1
    assert encoded_flaw(bytes(data), 10**12) in (DAMAGED, TOO_LARGE)


def test_a_cut_png_is_damaged():
    assert encoded_flaw(encode(".png")[:-12], PIXELS) == DAMAGED
