"""Change the weights of a running ONNX Runtime session between two frames.

    python examples/live_weights.py [model.onnx] [number of shallow convolutions]

Without a model it takes the one of the bundle that ships with rws. It writes other weights into a session that runs,
compares the outputs with those of a session that was built from a file with the same weights, and goes back.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from rws.edge.bundle.bundle import DEFAULT_BUNDLE
from rws.edge.live.session import LiveSession
from rws.edge.onnx.graph import prepare


def rebuilt(path: str, tensors: dict[str, np.ndarray]) -> onnxruntime.InferenceSession:
    """Build a session the usual way: write the weights into the model and load all of it."""
    model = prepare(onnx.load(path))
    for tensor in model.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def main(path: str = str(DEFAULT_BUNDLE / "model.onnx"), layers: int = 5) -> None:
    """Open, run, write, run, compare, reset, run."""
    session = LiveSession(path, layers=layers, provider="cpu")
    print(f"{session.description}; tensors: {', '.join(session.tensor_names)}")
    image = session.get_inputs()[0]
    lengths = [length if isinstance(length, int) else 1 for length in image.shape]
    frame = np.random.default_rng(0).random(lengths, np.float32)
    clean = session.run(None, {image.name: frame})

    name = session.tensor_names[0]
    weights = next(tensor for tensor in prepare(onnx.load(path)).graph.initializer if tensor.name == name)
    halved = numpy_helper.to_array(weights) * np.float32(0.5)
    started = time.perf_counter()
    session.write(name, halved)
    print(f"wrote {name} {halved.shape} in {(time.perf_counter() - started) * 1e3:.2f} ms")
    written = session.run(None, {image.name: frame})

    expected = rebuilt(path, {name: halved}).run(None, {image.name: frame})
    for found, wanted, before in zip(written, expected, clean, strict=True):
        error, change = np.abs(found - wanted).max(), np.abs(wanted - before).max()
        print(f"outputs changed by {change:.3g}; a session rebuilt from a file differs by {error:.1g}")

    session.reset()
    back = session.run(None, {image.name: frame})
    same = all(one.tobytes() == other.tobytes() for one, other in zip(back, clean, strict=True))
    print(f"after reset the outputs are {'the same, bit for bit' if same else 'different'}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
