"""Merge adapters into an open ONNX Runtime session: W + strength · B·A, as LoRA does, between two frames.

    python examples/merge_adapters.py [model.onnx] [rank]

Without a model it takes the model of the bundle that ships with rws. Two adapters of low rank, random here, are merged
with several strengths; the outputs are compared with those of a session from a file with the merged weights.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from rws import LiveSession

MODEL = Path(__file__).parents[1] / "edge/bundle/cifar10/model.onnx"


def random_adapter(weights: dict[str, np.ndarray], rank: int, seed: int) -> dict[str, np.ndarray]:
    """Return a change B·A of each weight, seen as a matrix (out, rest); float32, the weight's shape."""
    rng = np.random.default_rng(seed)
    changes = dict[str, np.ndarray]()
    for name, weight in weights.items():
        b, a = rng.normal(0, 1, (len(weight), rank)), rng.normal(0, 1, (rank, weight[0].size))
        changes[name] = (0.1 * weight.std() / rank**0.5 * (b @ a)).reshape(weight.shape).astype(np.float32)
    return changes


def main(path: str = str(MODEL), rank: int = 4) -> None:
    """Open, merge with three pairs of strengths, compare each time, reset."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    read = [name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input[1:2]]
    weights = {name: numpy_helper.to_array(tensors[name]) for name in dict.fromkeys(read) if name in tensors}
    session = LiveSession(path, tensors=list(weights), provider="cpu")
    print(f"{session.description}: {len(weights)} tensors, {sum(w.size for w in weights.values()):,} weights")
    adapters = [random_adapter(weights, rank, seed) for seed in (1, 2)]
    image = session.get_inputs()[0]
    frame = np.full([n if isinstance(n, int) else 1 for n in image.shape], 0.5, np.float32)
    for strengths in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        parts = [(np.float32(s), adapter) for s, adapter in zip(strengths, adapters, strict=True)]
        merged = {name: w + sum(s * adapter[name] for s, adapter in parts) for name, w in weights.items()}
        started = time.perf_counter()
        session.write_all(merged)
        took = (time.perf_counter() - started) * 1e3
        found = session.run(None, {image.name: frame})
        for name, array in merged.items():
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))
        rebuilt = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {image.name: frame})
        error = max(np.abs(one - other).max() for one, other in zip(found, rebuilt, strict=True))
        print(f"strengths {strengths}: merged in {took:.2f} ms, off by {error:.1g} from a new session")
    session.reset()


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
