"""The bundle cifar10, on real images."""

import numpy as np
import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.options import ModelOptions
from rws.edge.bundle.self_test import self_test
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.training.corruptions import CORRUPTIONS


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("cifar10")


@pytest.fixture(scope="module")
def x(demo_stream) -> np.ndarray:
    return (demo_stream.images[:48].transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)


def test_it_is_whole_and_small(bundle):
    assert bundle.signatures.names == CORRUPTIONS
    assert len(self_test(bundle)) == 4
    sizes = {path.name: path.stat().st_size for path in CIFAR10_BUNDLE.iterdir()}
    assert sum(sizes.values()) < 6e6
    assert sizes["model.onnx"] < 4e6


def test_both_backends_agree_under_every_signature(bundle, x):
    onnx, torch = bundle.model(ModelOptions(threads=1)), bundle.model(ModelOptions("torch", threads=1))
    clean = onnx.predict(x)[0]
    mixes = [{}, {"fog": 0.5, "snow": 0.5}, *({name: 1.0} for name in bundle.signatures.names)]
    for mix in mixes:
        onnx.apply(mix)
        torch.apply(mix)
        np.testing.assert_allclose(onnx.predict(x)[0], torch.predict(x)[0], atol=1e-4)
    onnx.reset()
    np.testing.assert_array_equal(onnx.predict(x)[0], clean)


def test_the_frame_loop_recognises_the_streams_corruptions(bundle, demo_stream):
    with Runtime.from_bundle(bundle, ModelOptions(threads=1)) as runtime:
        results = list(runtime.stream(ArraySource(demo_stream.images, sequential=True)))
    held = [i for i, layers in enumerate(demo_stream.corruptions) if list(layers.values()) == [5.0]]
    named = np.mean([results[i].belief.type in demo_stream.corruptions[i] for i in held])
    assert named > 0.9
    assert not runtime.pipeline.model.mix
