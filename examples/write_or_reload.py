"""Change the weights of a model without a reload, and measure it against the reload.

    python examples/write_or_reload.py [model.onnx] [changes]

Without a model it takes the model of the bundle that ships with rws. Each change gives the first convolution other
weights: by a write into the open session, and by a new session from the changed file.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from rws import LiveSession

MODEL = Path(__file__).parents[1] / "edge/bundle/cifar10/model.onnx"


def main(path: str = str(MODEL), changes: int = 20) -> None:
    """Open the model twice, then change its weights by a write and by a reload, repeatedly."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in tensors)
    clean = numpy_helper.to_array(tensors[name])
    with tempfile.TemporaryDirectory() as cache:
        for opening in ("first", "second"):  # the second time, what was learned is read from the cache
            started = time.perf_counter()
            live = LiveSession(path, tensors=[name], provider="cpu", cache=cache)
            print(f"{opening} opening: {(time.perf_counter() - started) * 1e3:.0f} ms, {live.description}")
    image = live.get_inputs()[0]
    frame = np.random.default_rng(0).random([n if isinstance(n, int) else 1 for n in image.shape], np.float32)
    times: dict[str, list[float]] = {"write": [], "reload": []}
    for seed in range(changes):
        weights = clean + np.random.default_rng(seed).normal(0, clean.std(), clean.shape).astype(np.float32)
        started = time.perf_counter()
        live.write(name, weights)
        times["write"].append(time.perf_counter() - started)
        tensors[name].CopyFrom(numpy_helper.from_array(weights, name))
        started = time.perf_counter()
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        times["reload"].append(time.perf_counter() - started)
        found, expected = live.run(None, {image.name: frame}), session.run(None, {image.name: frame})
        same = all(np.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in zip(found, expected, strict=True))
        if not same:
            sys.exit("the outputs are different")
    write, reload = (1e3 * float(np.median(times[way])) for way in ("write", "reload"))
    print(f"{changes} changes, the same outputs: a write takes {write:.3f} ms, a reload {reload:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
