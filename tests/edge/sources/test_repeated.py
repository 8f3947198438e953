"""Sources that start again at their end."""

from itertools import islice

import numpy as np
import pytest

from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.open import check_repeatable, open_source
from rws.edge.sources.repeated import RepeatedSource
from rws.errors import SourceError, UsageError
from support.fakes import write_images, write_video


def balanced(source):
    return source.received == source.delivered + source.dropped + source.rejected + source.buffered


def test_numbers_and_times_of_a_video_go_on(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 240, 20), fps=20)
    with RepeatedSource(lambda: open_source(path)) as source:
        frames = list(islice(source, 27))
        assert (source.live, source.sequential, source.length, source.paths) == (False, True, None, (path,))
        assert source.state == "running"
    assert [frame.index for frame in frames] == list(range(27))
    np.testing.assert_allclose([frame.media_time for frame in frames], np.arange(27) / 20, atol=1e-6)
    stamps = [frame.captured_at for frame in frames]
    assert stamps == sorted(stamps)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], ([*range(20, 240, 20)] * 3)[:27], atol=5)
    assert (source.delivered, source.rejected) == (27, 0)
    assert balanced(source)


def test_rejected_images_keep_their_number_in_each_round(tmp_path):
    folder = write_images(tmp_path / "images", 4)
    (folder / "2.png").write_bytes(b"not an image")
    source = RepeatedSource(lambda: open_source(folder))
    assert [frame.index for frame in islice(source, 7)] == [0, 1, 3, 4, 5, 7, 8]
    assert (source.received, source.delivered, source.rejections["undecodable"]) == (9, 7, 2)
    assert balanced(source)


def test_it_ends_when_it_is_stopped_and_not_before():
    source = RepeatedSource(lambda: ArraySource(np.zeros((3, 8, 8, 3), np.uint8)))
    seen = []
    for frame in source:
        seen.append(frame.index)
        if len(seen) == 8:
            source.stop()
    assert seen == list(range(8))
    assert (source.state, source.stopped) == ("ended", True)
    assert list(source) == []


def test_a_file_that_has_vanished_ends_it_with_an_error(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 240, 20))
    with RepeatedSource(lambda: open_source(path)) as source:
        frames = iter(source)
        next(frames)
        path.unlink()
        with pytest.raises(SourceError, match="no such file"):
            list(frames)
        assert source.received == source.delivered == 11


@pytest.mark.parametrize("spec", ["0", "/dev/video7", "pattern:64x64@5", "http://host/clip.mp4", "v4l2src ! appsink"])
def test_what_cannot_be_read_again_is_refused(spec):
    with pytest.raises(UsageError, match="cannot be repeated; --loop takes video files"):
        check_repeatable([spec])


def test_files_can_be_read_again(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 240, 20))
    folder = write_images(tmp_path / "images", 2)
    check_repeatable([str(path), str(folder), f"{folder}/*.png", "nowhere.jpg"])
