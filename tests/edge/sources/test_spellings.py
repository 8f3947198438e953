"""The same camera, address or file, however it is written: the same promise."""

import os
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import pytest

from rws.edge.sources.capture.protocol import NetworkOptions
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.images import ImageSource
from rws.edge.sources.open import open_source
from rws.errors import SourceError, UsageError
from rws.text import shown
from support.cameras import PICTURES, digest_accepted, http_camera, picture, rtsp_camera, send, send_parts
from support.fakes import write_images, write_video


@pytest.fixture
def link(tmp_path):
    (tmp_path / "door").symlink_to("/dev/video93")
    return str(tmp_path / "door")


ABSENT = ["93", " 93 ", "/dev/video93", "video93", "file:///dev/video93", "/dev/v4l/by-id/usb-none-index0", "link"]


@pytest.mark.parametrize("spec", ABSENT)
def test_a_camera_that_is_not_there_yet_is_retried_however_it_is_named(spec, link):
    with open_source(link if spec == "link" else spec, retries=1) as source:
        assert source.live
        frames = source.frames()
        while source.state != "reconnecting":
            assert next(frames) is None
        with pytest.raises(SourceError, match=r"video93|camera 93|usb-none|door"):
            list(frames)
        assert "cannot be opened; check that it is connected" in source.error


@pytest.mark.parametrize("spec", ["/nowhere/video0", "/dev/shm/none.mp4", "/dev/fd/none", "dev/video93", "video93.mp4"])
def test_a_wrong_path_that_is_no_device_is_an_error_at_once(spec):
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(spec)


def test_a_file_is_the_same_in_each_spelling(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a clip#1?.mp4", [20, 120, 220])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    quoted = f"{tmp_path}/a%20clip%231%3F.mp4"
    specs = [path, str(path), f" {path} ", f"{path}/", "~/a clip#1?.mp4", "./a clip#1?.mp4"]
    urls = [f"file://{quoted}", f"FILE://{quoted}", f"file://localhost{quoted}", f"file:{quoted}"]
    for spec in [*specs, *urls]:
        with open_source(spec) as source:
            assert (source.live, len(list(source))) == (False, 3), spec


def test_images_and_folders_are_the_same_in_each_spelling(tmp_path, monkeypatch):
    write_images(tmp_path / "0", 2)
    monkeypatch.chdir(tmp_path)
    for spec in ("./0", "0/", f"file://{tmp_path}/0", f" {tmp_path}/0/ ", "0/*.png", Path("./0").absolute()):
        source = open_source(spec)
        assert isinstance(source, ImageSource), spec
        assert source.length == 2
    assert open_source("0").name == "camera 0"


def test_a_file_url_of_another_host_is_refused():
    with pytest.raises(UsageError, match="names a host; give the path alone"):
        open_source("file://server/share/clip.mp4")


@pytest.mark.parametrize("spec", ["a\n!\nb ! appsink", "a\t! appsink", "rtspsrc location=rtsp://cam\n! appsink"])
def test_a_pipeline_is_one_however_it_is_broken_into_lines(spec):
    with open_source(spec) as source:
        assert source.name == "pipeline"


SNAPSHOTS = ["/snap.jpg", "/snap", "/snap?x=1", "/snap.jpg?x", "/cgi-bin/snapshot.cgi", "/snap?file=a.jpg", "/snap.png"]


def played(url, count, **options):
    with open_source(url, retries=0, **options) as source:
        frames = list(islice(source, count))
        assert (source.state, source.live, source.reconnects) == ("running", True, 0)
        return source, frames


@pytest.mark.parametrize("path", SNAPSHOTS)
def test_an_address_of_single_images_is_polled_however_it_ends(path):
    def answer(handler):
        suffix = ".png" if path.endswith(".png") else ".jpg"
        send(handler, picture(20 + len(handler.server.paths), suffix), f"image/{suffix[1:]}")

    with http_camera(answer) as camera:
        source, frames = played(camera.url + path, 4, network=NetworkOptions(poll=0.1))
        # Another test, whose server was killed, may look for it at the port that this one has got.
        assert set(camera.paths) - {"/video.mjpg"} == {path}
    assert source.fps == pytest.approx(10)
    assert len({frame.image.tobytes() for frame in frames}) == 4
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.image.mean() for frame in frames] == sorted(frame.image.mean() for frame in frames)


def test_schemes_are_read_in_any_case():
    with http_camera(lambda handler: send(handler, picture(20 + len(handler.server.paths)))) as camera:
        assert (
            len(played(" " + camera.url.replace("http", "HTTP") + "/snap.jpg ", 2, network=NetworkOptions(poll=0.1))[1])
            == 2
        )


def test_an_image_that_a_camera_renews_slowly_is_repeated_and_not_frozen():
    def answer(handler):
        send(handler, PICTURES[len(handler.server.paths) // 40])

    with (
        http_camera(answer) as camera,
        open_source(f"{camera.url}/snap.jpg", stall=0.5, network=NetworkOptions(poll=0.05)) as source,
    ):
        frames = list(islice(source, 3))
        assert len({frame.image.tobytes() for frame in frames}) == 3
        assert set(source.rejections) == {"repeated"}
        assert source.rejections["repeated"] > 50
        assert (source.reconnects, source.state) == (0, "running")


def test_polling_slower_than_the_stall_limit_is_no_loss():
    with http_camera(lambda handler: send(handler, picture(20 + len(handler.server.paths)))) as camera:
        _, frames = played(f"{camera.url}/snap.jpg", 3, network=NetworkOptions(poll=1.2), stall=0.5)
    assert frames[2].captured_at - frames[1].captured_at == pytest.approx(1.2, abs=0.4)


def test_a_camera_that_fails_for_a_while_is_polled_again():
    def answer(handler):
        number = len(handler.server.paths)
        if 4 <= number < 7:
            send(handler, b"busy", "text/plain", status=503)
        else:
            send(handler, picture(20 + number))

    with (
        http_camera(answer) as camera,
        open_source(f"{camera.url}/snap.jpg", network=NetworkOptions(poll=0.05)) as source,
    ):
        assert len(list(islice(source, 6))) == 6
        assert source.reconnects == 1


@pytest.mark.parametrize("path", ["/basic.jpg", "/digest"])
def test_a_password_opens_snapshots_and_without_one_the_error_says_the_cure(path):
    def answer(handler):
        if handler.path == "/digest" and not digest_accepted(handler, "admin", "se cret@1"):
            return
        if handler.path != "/digest" and handler.headers.get("Authorization") != "Basic YWRtaW46c2UgY3JldEAx":
            send(handler, b"", status=401, WWW_Authenticate='Basic realm="cam"')
            return
        send(handler, picture(20 + len(handler.server.paths)))

    with http_camera(answer) as camera:
        _, frames = played(
            camera.url.replace("//", "//admin:se%20cret%401@") + path, 3, network=NetworkOptions(poll=0.05)
        )
        assert len(frames) == 3
        with open_source(camera.url + path, retries=0) as source, pytest.raises(SourceError) as caught:
            list(source)
    assert "asks for a user name and password (401); put the right ones into the address" in shown(str(caught.value))


def test_redirections_stay_with_http(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(picture(99))

    def answer(handler):
        where = {"/snap.jpg": "/real", "/file.jpg": f"file://{tmp_path}/secret.jpg"}.get(handler.path)
        if where:
            send(handler, b"", status=302, Location=where)
        else:
            send(handler, picture(20 + len(handler.server.paths)))

    with http_camera(answer) as camera:
        assert len(played(f"{camera.url}/snap.jpg", 2, network=NetworkOptions(poll=0.05))[1]) == 2
        with open_source(f"{camera.url}/file.jpg", retries=0) as source, pytest.raises(SourceError, match="cannot be"):
            list(source)


def test_an_image_without_end_is_refused():
    def answer(handler):
        send(handler, picture(40)) if len(handler.server.paths) == 1 else send(handler, b"x" * 2**26)

    with http_camera(answer) as camera, open_source(f"{camera.url}/snap", retries=0) as source:
        with pytest.raises(SourceError, match="sends more than 32 MiB for one image") as caught:
            list(source)
        assert source.delivered == 0, caught


def test_an_address_that_ends_as_an_image_may_be_a_stream_or_a_page(tmp_path):
    clip = write_video(tmp_path / "clip.mkv", [20, 120, 220]).read_bytes()

    def answer(handler):
        if handler.path == "/stream.jpg":
            send_parts(handler, "multipart/x-mixed-replace; boundary=b", parts["plain"])
        elif handler.path == "/jpegs.jpg":
            send_parts(handler, "image/jpeg", lambda _, jpeg: jpeg)
        else:
            send(handler, clip if handler.path == "/clip.jpg" else b"<html>log in</html>" * 99, "text/html")

    with http_camera(answer) as camera:
        assert len(played(f"{camera.url}/stream.jpg", 5)[1]) == 5
        assert len(played(f"{camera.url}/jpegs.jpg", 5)[1]) == 5
        with open_source(f"{camera.url}/clip.jpg", retries=0) as source:
            assert (len(list(source)), source.live) == (3, False)
        with open_source(f"{camera.url}/page.jpg", retries=0) as source, pytest.raises(SourceError, match="cannot be"):
            list(source)


def part(jpeg, boundary="--b", end="\r\n", kind="Content-Type: image/jpeg", length="", tail="\r\n"):
    heads = [head for head in (boundary, kind, length and f"Content-Length: {length}") if head]
    return "".join(head + end for head in [*heads, ""]).encode() + jpeg + tail.encode()


parts = {
    "plain": lambda n, jpeg: part(jpeg, length=len(jpeg)),
    "no first boundary": lambda n, jpeg: part(jpeg, "--b" if n else "", length=len(jpeg)),
    "no first boundary, no length": lambda n, jpeg: part(jpeg, "--b" if n else ""),
    "no boundary": lambda n, jpeg: part(jpeg, "", length=len(jpeg)),
    "boundary without dashes": lambda n, jpeg: part(jpeg, "b"),
    "another boundary": lambda n, jpeg: part(jpeg, "--other", length=len(jpeg)),
    "no length": lambda n, jpeg: part(jpeg),
    "no length, no end of line": lambda n, jpeg: part(jpeg, tail=""),
    "line feeds only": lambda n, jpeg: part(jpeg, end="\n", tail="\n", length=len(jpeg)),
    "no type": lambda n, jpeg: part(jpeg, kind="", length=len(jpeg)),
    "image/jpg": lambda n, jpeg: part(jpeg, kind="Content-Type: image/jpg"),
    "text before": lambda n, jpeg: (b"" if n else b"hello\r\n") + part(jpeg, length=len(jpeg)),
    "text between": lambda n, jpeg: part(jpeg, length=len(jpeg)) + b"text between\r\n",
    "length too small": lambda n, jpeg: part(jpeg, length=len(jpeg) - 7),
    "length too large": lambda n, jpeg: part(jpeg, length=len(jpeg) + 500),
}


@pytest.mark.parametrize("kind", parts)
def test_a_stream_of_jpegs_plays_whatever_delimits_its_parts(kind):
    def answer(handler):
        send_parts(handler, "multipart/x-mixed-replace; boundary=b", parts[kind])

    with http_camera(answer) as camera, open_source(f"{camera.url}/video") as source:
        frames = list(islice(source, 12))
        assert len(frames) == 12
        assert frames[-1].image.shape == (48, 64, 3)
        # If only a later part is wrong, the connection is lost once.
        assert source.reconnects <= 1


def test_parts_that_are_announced_far_too_long_have_a_reason_and_are_read_at_the_next_attempt(caplog):
    def answer(handler):
        send_parts(handler, "multipart/x-mixed-replace; boundary=b", lambda n, jpeg: part(jpeg, length=10**8))

    with http_camera(answer) as camera, open_source(f"{camera.url}/video", retries=1) as source:
        assert (len(list(islice(source, 5))), source.reconnects) == (5, 1)
    assert "sends no part of the length that it announces; reconnecting" in caplog.text


@pytest.mark.parametrize("kind", ["boundary=--b", 'boundary="b"', "charset=x; boundary=b", ""])
def test_a_boundary_may_be_announced_in_any_way(kind):
    with http_camera(
        lambda handler: send_parts(handler, f"multipart/x-mixed-replace; {kind}", parts["plain"])
    ) as camera:
        assert len(played(f"{camera.url}/video", 5)[1]) == 5


@pytest.mark.parametrize("transport", ["auto", "udp"])
@pytest.mark.parametrize("scheme", ["rtsp", "RTSP"])
def test_an_rtsp_camera_that_speaks_udp_only_is_read(transport, scheme):
    with (
        rtsp_camera() as url,
        open_source(url.replace("rtsp", scheme), network=NetworkOptions(transport), retries=2) as source,
    ):
        assert len(list(islice(source, 5))) == 5


def test_the_error_of_an_rtsp_camera_names_the_option():
    with (
        rtsp_camera() as url,
        open_source(url, network=NetworkOptions("tcp"), retries=0) as source,
        pytest.raises(SourceError, match="try --rtsp-transport udp"),
    ):
        list(source)


@pytest.mark.parametrize("options", [{"rtsp_transport": "smoke"}, {"poll": 0.0}, {"poll": float("nan")}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UsageError, match="expected one of auto, tcp, udp, and a poll of"):
        open_source("rtsp://cam/", network=NetworkOptions(**options))


def piped(data, spec="-", code="print(len(list(source)), source.live)"):
    """What a program prints that reads `data` from its standard input."""
    program = f"from rws.edge.sources.open import open_source\nwith open_source({spec!r}) as source: {code}"
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, timeout=60, check=False)
    return done.stdout.decode().strip() or done.stderr.decode().strip().splitlines()[-1]


@pytest.mark.parametrize("spec", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_a_video_comes_through_standard_input(tmp_path, spec, name):
    data = write_video(tmp_path / name, [20, 120, 220]).read_bytes()
    assert piped(data, spec) == "3 False"


def test_jpegs_and_a_single_image_come_through_standard_input():
    assert piped(b"".join(PICTURES[:9])) == "9 False"
    assert piped(PICTURES[0]) == "1 False"


@pytest.mark.parametrize("data", [b"", b"a.png\nb.png\n", b"\x93NUMPY" + bytes(999)])
def test_what_is_not_a_video_on_standard_input_is_one_line(data):
    assert "SourceError: standard input: " in piped(data)


def test_a_named_pipe_waits_for_its_writer_and_ends_with_it(tmp_path):
    data = write_video(tmp_path / "clip.mp4", [20, 120, 220]).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Timer(0.5, lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    with open_source(tmp_path / "pipe") as source:
        assert isinstance(source, CapturedSource)
        assert (len(list(source)), source.state) == (3, "ended")
    writer.join()


def test_an_inherited_descriptor_is_read(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [20, 120, 220])
    reading, writing = os.pipe()
    os.write(writing, path.read_bytes())
    os.close(writing)
    with open_source(f"/dev/fd/{reading}") as source:
        assert len(list(source)) == 3
    os.close(reading)


def test_a_socket_in_the_file_system_is_no_source(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(SourceError, match="is not a file, folder or camera"):
            open_source(tmp_path / "s")


def test_a_single_image_that_must_be_converted_says_so(tmp_path):
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(SourceError, match=r"\.heic cannot be read; convert it to JPEG or PNG"):
        open_source(tmp_path / "phone.HEIC")
