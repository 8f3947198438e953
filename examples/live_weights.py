"""Change the weights of a running ONNX Runtime session between two frames.

    python examples/live_weights.py [model.onnx] [number of shallow convolutions]

Without a model it takes the model of the bundle that ships with rws. It writes new weights into an open session,
compares the outputs with those of a session built from a file with the same weights, and restores the clean weights.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from rws import LiveSession
from rws.edge.onnx.graph import prepare

MODEL = Path(__file__).parents[1] / "edge/bundle/cifar10/model.onnx"


def rebuilt(model: onnx.ModelProto, name: str, weights: np.ndarray) -> onnxruntime.InferenceSession:
    """Build a session the usual way: write the weights into the model and load all of it."""
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(weights, name))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def main(path: str = str(MODEL), layers: int = 5) -> None:
    """Open, run, write, run, compare, reset, run."""
    session = LiveSession(path, layers=layers, provider="cpu")
    print(f"{session.description}; tensors: {', '.join(session.tensor_names)}")
    image = session.get_inputs()[0]
    lengths = [length if isinstance(length, int) else 1 for length in image.shape]
    frame = np.random.default_rng(0).random(lengths, np.float32)
    clean = session.run(None, {image.name: frame})

    model, name = prepare(onnx.load(path)), session.tensor_names[0]  # names are those of the prepared graph
    weights = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
    halved = weights * np.float32(0.5)
    started = time.perf_counter()
    session.write(name, halved)
    print(f"wrote {name} {halved.shape} in {(time.perf_counter() - started) * 1e3:.2f} ms")
    written = session.run(None, {image.name: frame})

    expected = rebuilt(model, name, halved).run(None, {image.name: frame})
    for found, wanted, before in zip(written, expected, clean, strict=True):
        error, change = np.abs(found - wanted).max(), np.abs(wanted - before).max()
        print(f"outputs changed by {change:.3g}; a session rebuilt from a file differs by {error:.1g}")

    session.reset()
    restored = session.run(None, {image.name: frame})
    same = all(one.tobytes() == other.tobytes() for one, other in zip(restored, clean, strict=True))
    print(f"after reset the outputs are {'the same, bit for bit' if same else 'different'}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
