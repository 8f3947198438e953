import os

import pytest

from rws.edge.faults.servers import RtspServer
from rws.edge.sources.open import open_source


def test_rtsp_gives_real_frames():
    if missing := RtspServer.missing():
        assert not os.environ.get("RWS_REQUIRE_SYSTEM"), missing
        pytest.skip(missing)
    server = RtspServer()
    try:
        with open_source(server.url) as source:
            frames = [frame for frame, _ in zip(source, range(5), strict=False)]
    finally:
        server.close()
    assert all(frame.image.shape == (480, 640, 3) for frame in frames)
    assert frames[0].image.max() > 200
