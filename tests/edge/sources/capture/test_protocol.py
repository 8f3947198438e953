import pytest

from rws.edge.sources.capture.protocol import CaptureSettings, Ended, FrameReady, Next, Opened, decode, encode


@pytest.mark.parametrize(
    "message",
    [
        CaptureSettings("rtsp://me:hush@cam/ü", "network", "rtsp://me:***@cam/ü", None),
        CaptureSettings(0, "camera", "camera 0", True),
        Next(),
        Opened(29.97, None, False),
        FrameReady(480, 640, 12.5, 7, remarks=["its time stamps jump"]),
        Ended("holds no video\nthat can be decoded"),
    ],
)
def test_a_message_is_one_line_and_decodes_to_itself(message):
    line = encode(3, message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == (3, message)
