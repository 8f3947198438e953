"""No input is left out in silence: it is read, or counted and named."""

import logging
import os
import struct

import av
import cv2
import numpy as np
import pytest

from rws.edge.sources.open import open_images, open_source
from rws.errors import SourceError
from support.fakes import write_images


def names(source):
    return [os.path.relpath(path, source.paths[0].parent) for path in source.paths]


def test_links_to_folders_and_files_are_followed_and_loops_end(tmp_path):
    write_images(tmp_path / "photos", 1)
    write_images(tmp_path / "elsewhere", 2)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "itself").symlink_to("itself")
    (tmp_path / "photos" / "one.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    source = open_source(tmp_path / "photos")
    assert len(list(source)) == 4  # 0.png, one.png, and two of the folder that is linked twice
    assert source.left_out == {"link to a folder read already": 2, "without suffix": 1}


def test_a_folder_is_read_under_its_own_name_before_its_links(tmp_path):
    write_images(tmp_path / "z", 1)
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (source,) = (open_source(tmp_path),)
    assert [path.parent.name for path in source.paths] == ["z"]


def test_what_is_left_out_is_counted_by_suffix_and_named_once(tmp_path, caplog):
    write_images(tmp_path, 2)
    others = ("a.heic", "b.HEIC", "c.txt", "d.mp4", "e", ".DS_Store", "f.\x1b[31m", "g." + "x" * 50)
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "UPPER.PNG").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / ".hidden.png").write_bytes((tmp_path / "0.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert len(list(source)) == 4
    assert source.left_out.total() == len(others)
    assert source.left_out[".heic"] == 2
    (message,) = caplog.messages
    assert "2 .heic (convert them to JPEG or PNG)" in message
    assert "1 .mp4 (give a video alone)" in message
    assert message.isprintable()


def test_many_kinds_are_counted_as_other(tmp_path):
    write_images(tmp_path, 1)
    for number in range(100):
        (tmp_path / f"file.{number}").touch()
    source = open_source(tmp_path)
    assert len(source.left_out) <= 13
    assert source.left_out.total() == 100


def test_a_folder_without_an_image_says_what_it_holds(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(SourceError, match=r"holds no image file; .* it holds 1 \.mp4 \(give a video alone"):
        open_source(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path, caplog, monkeypatch):
    write_images(tmp_path / "open", 1)
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who can read all
    source = open_source(tmp_path)
    assert (len(list(source)), source.left_out) == (1, {"unreadable folder": 1})
    assert "closed: cannot be read (Permission denied)" in caplog.text


def test_broken_links_and_pipes_with_the_name_of_an_image_are_rejected_and_named(tmp_path, caplog):
    write_images(tmp_path, 1)
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    source = open_source(tmp_path)
    assert len(list(source)) == 1
    assert source.rejections == {"undecodable": 2}
    assert "gone.png: No such file or directory" in caplog.text
    assert "pipe.png: not a regular file" in caplog.text


def test_a_deep_tree_is_read(tmp_path):
    write_images(tmp_path / "/".join("d" * 500), 1)
    assert len(list(open_source(tmp_path))) == 1


def test_a_glob_reads_the_folders_that_it_matches_and_no_image_twice(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b" / "c", 1)
    (tmp_path / "b" / "note.md").touch()
    for pattern in ("*", "**", "[ab]*", "**/*"):
        source = open_source(f"{tmp_path}/{pattern}")
        assert len(list(source)) == 3, pattern
        assert source.left_out == {".md": 1}, pattern


def test_lists_take_folders_globs_and_links_and_name_what_is_missing(tmp_path, caplog):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2)
    (tmp_path / "a" / "x.heic").touch()
    (tmp_path / "list.txt").write_text(f"b/1.png\na\nb/*.png\nfile://{tmp_path}/b/0.png\nmissing.png\nnone*.png\nb/\n")
    source = open_source(tmp_path / "list.txt")
    read = [os.path.relpath(frame.name, tmp_path) for frame in source]
    assert read == ["b/1.png", "a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/0.png", "b/0.png", "b/1.png"]
    assert (source.rejected, source.left_out) == (2, {".heic": 1})
    assert "missing.png" in caplog.text
    assert "none*.png" in caplog.text


def test_several_sources_add_up_what_was_left_out(tmp_path):
    for name in "ab":
        write_images(tmp_path / name, 1)
        (tmp_path / name / "x.txt").touch()
    assert open_images([str(tmp_path / "a"), str(tmp_path / "b")], "").left_out == {".txt": 2}


def oriented(upright, value):
    """The pixels to store so that a reader which obeys the EXIF value shows `upright`."""
    if value > 4:
        upright = np.swapaxes(upright, 0, 1)
    rows = -1 if value in (3, 4, 7, 8) else 1
    columns = -1 if value in (2, 3, 6, 7) else 1
    return {5: upright}.get(value, upright)[
        :: rows if value <= 4 else (-1 if value in (7, 6) else 1),
        :: columns if value <= 4 else (-1 if value in (7, 8) else 1),
    ]


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_each_orientation_of_exif_is_turned_upright(tmp_path, suffix, value):
    image = pytest.importorskip("PIL.Image")
    upright = np.zeros((48, 80, 3), np.uint8)
    upright[:16, :16] = 255  # top left
    upright[32:, :16] = 128  # bottom left
    exif = image.Exif()
    exif[0x112] = value
    path = tmp_path / f"a{suffix}"
    stored = image.fromarray(np.ascontiguousarray(oriented(upright, value)))
    stored.save(path, exif=exif, **({"quality": 95} if suffix in (".jpg", ".webp") else {}))
    (frame,) = open_source(path)
    np.testing.assert_allclose(frame.image.astype(int), upright, atol=24)


MATRICES = {
    "as stored": (1, 0, 0, 1),
    "90 clockwise": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "90 counter-clockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed and turned": (0, -1, -1, 0),
    "a little askew": (0.999, 0.035, -0.035, 0.999),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_video_is_turned_and_mirrored_as_its_display_matrix_says(tmp_path, name):
    stored = np.zeros((48, 80, 3), np.uint8)
    stored[:16, :16] = 255
    stored[32:, :16] = 128
    path = tmp_path / "phone.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (80, 48))
    for _ in range(3):
        writer.write(stored)
    writer.release()
    a, b, c, d = MATRICES[name]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(
        ">9i", *(round(v * s) for v, s in zip((a, b, 0, c, d, 0, 0, 0, 1), (65536,) * 8 + (2**30,), strict=True))
    )
    path.write_bytes(data)
    frame = next(iter(open_source(path)))
    # Where the matrix puts each stored pixel: x' = a·x + c·y, y' = b·x + d·y, then moved into the frame.
    rows, columns = np.mgrid[:48, :80]
    right, down = (np.rint(round(p) * columns + round(q) * rows).astype(int) for p, q in ((a, c), (b, d)))
    expected = np.zeros((np.ptp(down) + 1, np.ptp(right) + 1, 3), np.uint8)
    expected[down - down.min(), right - right.min()] = stored
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected).mean() < 6
    assert frame.image.flags.c_contiguous or frame.image.base is not None


RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)
TWELVE = np.rint(RAMP * 4095).astype(np.uint16)
SIXTEEN = np.rint(RAMP * 65535).astype(np.uint16)
EXPECTED = np.rint(RAMP * 255)


def coded(suffix, image):
    return cv2.imencode(suffix, image)[1].tobytes()


def pnm(kind, maximum, image):
    return f"P{kind}\n# comment\n64 48\n{maximum}\n".encode() + image.astype(">u2" if maximum > 255 else "u1").tobytes()


def tiff_with_maximum(image, maximum):
    """A little-endian TIFF of one strip that states its largest value."""
    tags = [
        (256, 3, 64),
        (257, 3, 48),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 3, 48),
    ]
    tags += [(279, 4, image.nbytes), (281, 3, maximum)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    return (head + bytes(4)).ljust(200, b"\0") + image.astype("<u2").tobytes()


DEPTHS = {
    "12 bits.png": (lambda: coded(".png", TWELVE), EXPECTED),
    "12 bits.tiff": (lambda: coded(".tiff", TWELVE), EXPECTED),
    "12 bits.jp2": (lambda: coded(".jp2", TWELVE), EXPECTED),
    "16 bits.png": (lambda: coded(".png", SIXTEEN), EXPECTED),
    "16 bits.tiff": (lambda: coded(".tiff", np.dstack([SIXTEEN] * 3)), EXPECTED),
    "stated.pgm": (lambda: pnm(5, 4095, TWELVE), EXPECTED),
    "stated 10 bits.ppm": (lambda: pnm(6, 1023, np.dstack([np.rint(RAMP * 1023)] * 3)), EXPECTED),
    "stated 100.pgm": (lambda: pnm(5, 100, np.rint(RAMP * 100)), EXPECTED),
    "dark, stated.pgm": (lambda: pnm(5, 65535, TWELVE), np.rint(RAMP * 4095 / 257)),
    "stated.tiff": (lambda: tiff_with_maximum(np.rint(RAMP * 16383).astype(np.uint16), 16383), EXPECTED),
    "float to 1.tiff": (lambda: coded(".tiff", RAMP.astype(np.float32)), EXPECTED),
    "float colour.tiff": (lambda: coded(".tiff", np.dstack([RAMP] * 3).astype(np.float32)), EXPECTED),
    "float to 255.tiff": (lambda: coded(".tiff", (RAMP * 255).astype(np.float32)), EXPECTED),
    "grey.bmp": (lambda: coded(".bmp", EXPECTED.astype(np.uint8)), EXPECTED),
    "transparent.png": (lambda: coded(".png", np.dstack([EXPECTED] * 3 + [EXPECTED * 0]).astype(np.uint8)), EXPECTED),
    "one bit.pbm": (lambda: b"P4\n64 48\n" + b"\xaa" * 8 * 48, np.tile([0, 255], (48, 32))),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_each_depth_becomes_the_right_eight_bits(tmp_path, name, caplog):
    make, expected = DEPTHS[name]
    (tmp_path / name).write_bytes(make())
    if name == "float colour.tiff" and cv2.__version__.startswith("4.8."):
        pytest.skip("OpenCV 4.8 reads TIFF of floating point colour as black")
    (frame,) = open_source(tmp_path / name)
    assert (frame.image.dtype, frame.image.shape) == (np.uint8, (48, 64, 3))
    np.testing.assert_allclose(frame.image.astype(int), np.dstack([expected] * 3), atol=2)
    assert ("read as 12-bit ones" in caplog.text) == name.startswith("12 bits")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg"])
def test_each_kind_of_colour_is_read(tmp_path, mode, suffix):
    image = pytest.importorskip("PIL.Image")
    picture = image.new("RGB", (64, 48), (255, 255, 255)).convert(mode)
    try:
        picture.save(tmp_path / f"a{suffix}")
    except OSError:
        pytest.skip("there is no such file")
    (frame,) = open_source(tmp_path / f"a{suffix}")
    assert (frame.image.shape, frame.image.min()) == ((48, 64, 3), 255)


def test_of_several_pages_the_first_is_read_and_that_is_said_once(tmp_path, caplog):
    pages = [np.full((48, 64, 3), value, np.uint8) for value in (90, 20)]
    for name in ("a.tiff", "b.tif"):
        assert cv2.imwritemulti(str(tmp_path / name), pages)
    assert [frame.image.mean() for frame in open_source(tmp_path)] == [90, 90]
    assert caplog.text.count("holds several pages, of which the first is read; said once") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 4000.0])
def test_a_float_image_of_another_range_is_refused(tmp_path, value):
    (tmp_path / "a.tiff").write_bytes(coded(".tiff", np.full((48, 64), value, np.float32)))
    with pytest.raises(SourceError, match="expected 8 or 16 bits, or floats from 0 to 1 or 255"):
        list(open_source(tmp_path / "a.tiff"))


@pytest.mark.parametrize(
    ("codec", "format", "full"),
    [
        ("libx264", "yuv420p", False),
        ("libx264", "yuv420p10le", False),
        ("libx264", "yuvj420p", True),
        ("libx264", "gray", True),
        ("ffv1", "yuv444p12le", False),
        ("ffv1", "gray16le", True),
        ("ffv1", "yuva420p", False),
    ],
)
def test_videos_of_each_depth_and_range_give_the_same_greys(tmp_path, codec, format, full):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, format
        stream.options = {"qp": "1"} if codec == "libx264" else {}
        stream.codec_context.color_range = 2 if full else 1
        for value in (20, 128, 235):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format=format, dst_color_range="JPEG" if full else "MPEG")))
        out.mux(stream.encode())
    with open_source(path) as source:
        means = [frame.image.mean() for frame in source]
    np.testing.assert_allclose(means, [20, 128, 235], atol=4)
