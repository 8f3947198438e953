import numpy as np
import pytest
import torch

from rws.benchmarks.streams.images import clean_images
from rws.benchmarks.streams.ours import OURS, Ours, our_methods, run_method, run_ours
from rws.benchmarks.streams.protocols import frames_of, make_stream
from rws.benchmarks.streams.scores import NAMES
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.errors import InputError


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("cifar10")


@pytest.fixture(scope="module")
def images(bundle, image_folder):
    return clean_images(bundle, str(image_folder))


def test_grouped_by_mix_the_answers_are_those_of_frame_by_frame(bundle, images):
    labels = images.labels.numpy()
    streams = {name: make_stream(name, labels, frames=5, seed=2) for name in ("iid", "gradual")}
    methods = our_methods(bundle)
    outcomes = run_ours(methods, streams, images.pixels)
    assert set(outcomes) == {(name, method) for name in streams for method in OURS}
    for method in methods:
        for name, stream in streams.items():
            answers = run_method(method, stream, images.pixels, 7)
            np.testing.assert_array_equal(outcomes[name, method.name].predicted, answers)


def test_what_each_method_puts_in_force(bundle, images):
    stream = make_stream("continual", images.labels.numpy(), frames=6, seed=2)
    outcomes = {name: found for (_, name), found in run_ours(our_methods(bundle), {"": stream}, images.pixels).items()}
    assert outcomes["std"].mixes == ({},)
    (always,) = outcomes["always"].mixes
    assert set(always) == set(bundle.signatures.names)
    for frame, kind in enumerate(stream.type):
        mix = outcomes["perfect"].mixes[outcomes["perfect"].mix[frame]]
        assert list(mix) == ([] if kind < 0 else [NAMES[kind + 1]])
    for name in ("frame", "trained"):
        assert (outcomes[name].believed == stream.type + 1).mean() > 0.8
    assert len(outcomes["std"].believed) == 0


class Recorder:
    """Writes down what it is given."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[tuple[int, np.ndarray] | None] = []

    def reset(self) -> None:
        self.calls.append(None)

    def classify(self, x, types, severities):
        assert len(x) == len(types) == len(severities)
        self.calls.append((len(x), x))
        return types % 10


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 6), (4, [4, 2]), (64, [6])])
def test_a_method_sees_each_frame_once_in_order_and_no_batch_over_a_cut(images, batch, sizes):
    stream = make_stream("iid", images.labels.numpy(), frames=6)
    recorder = Recorder()
    answers = run_method(recorder, stream, images.pixels, batch)
    np.testing.assert_array_equal(answers, stream.type % 10)
    assert [call and call[0] for call in recorder.calls] == [None, *sizes] * 20
    seen = np.concatenate([call[1] for call in recorder.calls if call])
    expected = frames_of(stream, images.pixels, 0, len(stream)).numpy() / np.float32(255)
    np.testing.assert_array_equal(seen, expected)
    assert seen.dtype == np.float32


def test_an_unknown_method_is_named(bundle):
    with pytest.raises(InputError, match="unknown method 'guess'"):
        Ours("guess", bundle, bundle.model(ModelOptions(threads=1)), bundle.oracle(threads=1))


def test_a_folder_without_splits_is_taken_as_it_is(bundle, images, image_folder):
    assert torch.equal(images.pixels[0], clean_images(bundle, str(image_folder / "test")).pixels[0])
