import os
import subprocess

import pytest

from rws.edge.common.child import python_command
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


def test_a_camera_that_dies_comes_back_at_its_address_and_counts():
    program = python_command("from rws.edge.faults.servers import serve_stamped; serve_stamped()", "30", "1.5")
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True) as camera:
        with open_source(camera.stdout.readline().strip()) as source:
            received = 0
            for frame in source.frames():
                received += frame is not None
                if source.reconnects == 2 and frame is not None:
                    source.stop()
        sent, deaths = map(int, camera.communicate()[0].split())
    assert deaths == 2
    assert received >= 20
    assert sent >= source.received
