import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.faults.frames import BITS, encode_jpeg, read_stamp, scene, stamped


@given(st.integers(0, 2**BITS - 1), st.sampled_from([30, 90]))
def test_a_stamp_survives_jpeg(number, quality):
    import cv2

    image = stamped(scene(48, 400), number)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(image, quality), np.uint8), cv2.IMREAD_COLOR)
    assert read_stamp(decoded) == number


def test_an_image_without_a_stamp_has_none():
    assert read_stamp(scene(480, 640)) is None
    assert read_stamp(scene(8, 8)) is None
