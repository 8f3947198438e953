import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.benchmarks.streams.protocols import PROTOCOLS, TYPES, Stream, frames_of, make_stream
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES, corrupt

LABELS = np.random.default_rng(0).integers(0, 10, 60)
WHOLE = [CORRUPTIONS.index(name) for name in WHOLE_SEVERITIES]

any_stream = st.builds(
    lambda protocol, frames, severity, seed: make_stream(protocol, LABELS, frames=frames, severity=severity, seed=seed),
    st.sampled_from(PROTOCOLS),
    st.integers(5, 60),
    st.sampled_from([1.0, 2.5, 5.0, "all"]),
    st.integers(0, 2**40),
)


def columns(stream: Stream) -> tuple[np.ndarray, ...]:
    return stream.image, stream.type, stream.severity, stream.seed, stream.cut


def without_repetitions(stream: Stream) -> Stream:
    """Keep each clean image once."""
    first = np.unique(np.where(stream.type < 0, stream.image, len(LABELS) + np.arange(len(stream))), return_index=True)
    return Stream(stream.protocol, *(column[np.sort(first[1])] for column in columns(stream)))


@settings(max_examples=60)
@given(any_stream)
def test_clean_is_severity_0_and_nothing_else_is(stream):
    np.testing.assert_array_equal(stream.type < 0, stream.severity == 0)
    assert stream.severity.min() >= 0
    assert stream.severity.max() <= 5
    assert [column.dtype for column in columns(stream)] == [np.int64, np.int64, np.float32, np.int64, np.bool_]
    assert stream.cut[0]
    whole = np.isin(stream.type, WHOLE)
    np.testing.assert_array_equal(stream.severity[whole], np.round(stream.severity[whole]))


@settings(max_examples=40)
@given(any_stream)
def test_each_type_shows_the_same_images_once(stream):
    if stream.protocol == "gradual":
        assert np.bincount(stream.image).max() == TYPES
        return
    if stream.protocol == "potpourri":
        stream = without_repetitions(stream)
    frames = len(stream) // TYPES
    shown = [np.sort(stream.image[stream.type == kind]) for kind in range(-1, TYPES - 1)]
    assert all(len(np.unique(images)) == frames and np.array_equal(images, shown[0]) for images in shown)


@pytest.mark.parametrize("severity", [3.0, "all"])
def test_only_the_order_differs_between_protocols(severity):
    frames = [
        sorted(zip(*(column.tolist() for column in columns(stream)[:4]), strict=True))
        for stream in (
            without_repetitions(make_stream(name, LABELS, frames=20, severity=severity, seed=7))
            for name in PROTOCOLS
            if name != "gradual"
        )
    ]
    assert all(found == frames[0] for found in frames)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_seed_gives_the_same_stream_and_another_gives_another(protocol):
    first, again, other = (make_stream(protocol, LABELS, frames=20, seed=seed) for seed in (4, 4, 5))
    for one, two in zip(columns(first), columns(again), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.image, other.image)
    assert not np.intersect1d(first.seed, other.seed).size


def test_iid_goes_through_the_types_and_cuts_before_each():
    stream = make_stream("iid", LABELS, frames=20)
    np.testing.assert_array_equal(stream.type, np.repeat(np.arange(-1, 19), 20))
    np.testing.assert_array_equal(np.flatnonzero(stream.cut), np.arange(0, 400, 20))
    assert (np.diff(LABELS[stream.image[:20]]) < 0).any()


def test_mixed_changes_from_frame_to_frame_and_never_cuts():
    stream = make_stream("mixed", LABELS, frames=50)
    assert stream.cut.sum() == 1
    assert (np.diff(stream.type) != 0).mean() > 0.9


def test_half_of_a_potpourri_is_clean():
    stream = make_stream("potpourri", LABELS, frames=50)
    assert stream.cut.sum() == 1
    assert (stream.type < 0).mean() == 0.5
    changed = np.diff(stream.type) != 0
    assert 0.6 < changed.mean() < 0.85


@pytest.mark.parametrize("protocol", ["continual", "correlated"])
def test_blocks_of_one_type_come_in_random_order_without_a_cut(protocol):
    stream = make_stream(protocol, LABELS, frames=20)
    order = stream.type[::20]
    np.testing.assert_array_equal(stream.type, np.repeat(order, 20))
    assert sorted(order) == list(range(-1, 19))
    assert (np.diff(order) < 0).any()
    assert stream.cut.sum() == 1
    np.testing.assert_array_equal(stream.block_starts(), np.arange(0, 400, 20))
    labels = LABELS[stream.image].reshape(20, 20)
    assert (np.diff(labels, axis=1) >= 0).all() == (protocol == "correlated")


def test_gradual_climbs_to_5_and_falls_back_inside_each_block():
    stream = make_stream("gradual", LABELS, frames=40)
    continual = make_stream("continual", LABELS, frames=40)
    blocks = stream.severity.reshape(20, 40)
    kinds = stream.type.reshape(20, 40).max(1)
    assert sorted(kinds) == sorted(np.unique(continual.type))
    for block, kind in zip(blocks, kinds, strict=True):
        if kind < 0:
            assert not block.any()
            continue
        np.testing.assert_allclose(block, block[::-1], atol=1e-6)
        assert (np.diff(block[:20]) >= 0).all()
        assert block.max() > 4.8
        if kind not in WHOLE:
            assert 0 < block.min() < 0.2


def test_all_severities_are_equally_frequent_in_separate_blocks():
    stream = make_stream("continual", LABELS, frames=20, severity="all")
    severity = stream.severity.reshape(100, 4)
    assert (severity == severity[:, :1]).all()
    assert np.bincount(severity[:, 0].astype(int)).tolist() == [5, 19, 19, 19, 19, 19]
    mixed = make_stream("mixed", LABELS, frames=20, severity="all")
    assert (np.diff(mixed.severity[mixed.type >= 0]) != 0).mean() > 0.6


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fewer_corruptions_are_the_same_frames_of_those(protocol):
    whole = make_stream(protocol, LABELS, frames=20, seed=4)
    part = make_stream(protocol, LABELS, frames=20, seed=4, corruptions=("snow", "fog"))
    assert len(part) == (80 if protocol == "potpourri" else 60)
    seen = {tuple(row) for row in zip(part.image, part.type, part.seed, strict=True)}
    assert seen <= {tuple(row) for row in zip(whole.image, whole.type, whole.seed, strict=True)}
    assert {CORRUPTIONS[kind] for kind in part.type if kind >= 0} == {"snow", "fog"}


@pytest.fixture(scope="module")
def pixels(clear):
    return torch.from_numpy(clear[0][:60]).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("protocol", ["mixed", "gradual"])
def test_slices_hold_the_pixels_of_the_whole(protocol, pixels):
    stream = make_stream(protocol, LABELS, frames=6, seed=3)
    whole = frames_of(stream, pixels, 0, len(stream))
    assert whole.shape == (120, 3, 32, 32)
    parts = [frames_of(stream, pixels, start, start + 7) for start in range(0, 120, 7)]
    assert torch.equal(torch.cat(parts), whole)
    for frame in (0, 50, 119):
        clean = pixels[stream.image[frame : frame + 1]]
        if stream.type[frame] >= 0:
            seeds = torch.from_numpy(stream.seed[frame : frame + 1])
            clean = corrupt(clean, CORRUPTIONS[stream.type[frame]], float(stream.severity[frame]), seeds)
        assert torch.equal(whole[frame : frame + 1], clean)


def test_what_cannot_be_is_said():
    for arguments, message in (
        ({"protocol": "shuffled"}, "unknown protocol 'shuffled'; known: iid, mixed"),
        ({"frames": 61}, r"61 frames per type \(--frames\) .* 60 images"),
        ({"frames": 0}, "0 frames"),
        ({"severity": 0}, "severity is 0"),
        ({"severity": 5.5}, "severity is 5.5"),
        ({"severity": "most"}, "severity is 'most'"),
        ({"severity": "all", "frames": 4}, "too few for 5 severities"),
        ({"seed": -1}, "seed is -1"),
        ({"corruptions": ["fog", "rain"]}, "corruptions are .*'rain'.*, expected some of gaussian_noise"),
        ({"corruptions": []}, "expected some of"),
    ):
        given_arguments = {"protocol": "iid", "frames": 20} | arguments
        with pytest.raises(InputError, match=message):
            make_stream(given_arguments.pop("protocol"), LABELS, **given_arguments)
