"""Which outputs of a model count, and what they mean: found if that is safe, else asked for in one line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from rws.edge.onnx.graph import data_inputs
from rws.edge.tasks.base import Head, TaskName, TaskSpec
from rws.edge.tasks.heads import guess_head
from rws.errors import BundleError, InputError, UsageError, check_known
from rws.training.adopt.graph import HEAVY, last_node, producers

FloatArrays = Mapping[str, NDArray[np.float32]]  # what a model gives for a few images, by output, batch first
_TASK_OF_ULTRALYTICS: Mapping[str, TaskName] = {
    "detect": "detect",
    "classify": "classify",
    "segment": "raw",
    "pose": "raw",
    "obb": "raw",
}
_POOLED = ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "ReduceL2")
_PROBABILITIES = ("Softmax", "Sigmoid", "HardSigmoid")


@dataclass(frozen=True)
class Wanted:
    """What the user says of the outputs: a task, a detector's head, names of outputs (any value of the graph)."""

    task: TaskName | None = None
    head: Head = ""
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """The task, the outputs that it reads, and the reason, in a few words."""

    task: TaskSpec
    outputs: tuple[str, ...]
    reason: str


def find_task(
    proto: onnx.ModelProto,
    found: Mapping[str, NDArray[np.generic]],
    size: tuple[int, int],
    wanted: Wanted,
    names: int | None,
) -> Reading:
    """Find what a model's outputs mean.

    Args:
        found: what the outputs are for a few images, by name.
        size: height and width of the input, pixels.
        names: number of class names, None if unknown.
    Raises UsageError, which says which option to give, if it is not safe to tell.
    """
    floats = {name: array for name, array in found.items() if array.dtype.kind == "f"}
    if whole := [name for name in (wanted.outputs or found) if name not in floats]:
        last = last_node(proto, whole[0])
        before = f"--output {last.input[0]}" if last is not None and last.op_type == "ArgMax" else "other outputs"
        if wanted.outputs or not floats:
            raise UsageError(
                f"model: output {whole[0]} holds whole numbers, as argmax gives; take {before}, what they come from"
            )
    if loose := [name for name, array in floats.items() if not np.isfinite(array).all()]:
        raise BundleError(f"model: output {loose[0]} is not finite for random images; train or export it again")
    told = {entry.key: entry.value for entry in proto.metadata_props}
    task = wanted.task or ("detect" if wanted.head else None)
    if task is None and "Ultralytics" in told.get("author", "") + told.get("description", ""):
        task = _TASK_OF_ULTRALYTICS.get(told.get("task", ""))
    if task == "raw":
        return Reading(TaskSpec("raw"), tuple(floats), "all outputs" if len(floats) > 1 else "its output")
    if task in (None, "detect") and (boxes := _boxes(proto, floats, size, wanted, names)):
        return boxes
    if task == "detect":
        raise UsageError(
            f"model: gives {_listed(floats)}; no output is that of a known head of boxes{_of(names)}: say --head, --output or --task raw"
        )
    name = _only(proto, floats, wanted, names)
    return (
        _map(proto, name, floats[name], size, task, names)
        if floats[name].ndim == 4 and _is_map(floats[name])
        else _vector(proto, name, floats[name], task, names)
    )


def count_classes(task: TaskSpec, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return how many classes a task's outputs, of one image without batch axis, speak of; None if they do not say."""
    shape = shapes[0]
    if task.name == "raw" or task.head == "nms":
        return None
    if task.name == "detect":
        return (
            shape[0] - (5 if task.head == "fastestdet" else 4)
            if task.head in ("fastestdet", "yolov8")
            else shape[-1] - 5
        )
    return shape[0]


def _of(names: int | None) -> str:
    return "" if names is None else f" for {names} class names"


def _listed(floats: FloatArrays) -> str:
    return ", ".join(f"{name} {array.shape[1:]}" for name, array in list(floats.items())[:6]) + (
        ", …" if len(floats) > 6 else ""
    )


def _is_map(array: NDArray[np.float32]) -> bool:
    return max(array.shape[2:]) > 1


def _boxes(
    proto: onnx.ModelProto, floats: FloatArrays, size: tuple[int, int], wanted: Wanted, names: int | None
) -> Reading | None:
    shapes = {name: array.shape[1:] for name, array in floats.items()}
    if wanted.head:
        name = wanted.outputs[0] if wanted.outputs else _fitting(wanted.head, shapes)
        return Reading(TaskSpec("detect", wanted.head), (name,), "as --head says")
    counts = (
        [names]
        if names is not None
        else sorted({shape[0] - 5 for shape in shapes.values() if len(shape) == 3 and shape[0] > 5})
    )
    for count in counts:
        guess = guess_head(shapes, size, count)
        if (
            guess.task is not None
            and guess.task.head != "nms"
            and (names is not None or _is_fastestdet(proto, guess.outputs[0]))
        ):
            return Reading(guess.task, guess.outputs, guess.reason)
        if guess.task is None and guess.outputs:
            raise UsageError(f"model: {guess.reason}")
    for name, array in floats.items():
        if array.shape[2:] == (6,) and array.shape[1] <= 1000 and (array[..., 5] == array[..., 5].round()).all():
            if len(floats) == 1 and array[..., 4].min() >= 0 and array[..., 4].max() <= 1:
                return Reading(TaskSpec("detect", "nms"), (name,), "a list of boxes with scores and classes")
    for name, shape in shapes.items():
        for head, count in (
            (("yolov8", shape[0] - 4), ("yolov5", shape[-1] - 5), ("yolox", shape[-1] - 5))
            if len(shape) == 2 and names is None
            else ()
        ):
            guess = guess_head({name: shape}, size, count) if count > 0 else None
            if guess is not None and guess.outputs:
                hint = f"perhaps --task detect --head {head} ({count} classes, with --names), else --task raw"
                raise UsageError(f"model: gives {_listed(floats)}; {hint}")
    return None


def _fitting(head: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    rank = 3 if head == "fastestdet" else 2
    fits = [name for name, shape in shapes.items() if len(shape) == rank]
    if len(fits) != 1:
        raise UsageError(
            f"--head {head}: {len(fits)} outputs have {rank} axes ({', '.join(shapes)}); say which with --output"
        )
    return fits[0]


def _is_fastestdet(proto: onnx.ModelProto, output: str) -> bool:
    """Return whether an output is made of one map of sigmoids, four of boxes and the others of softmax."""
    node = last_node(proto, output)
    made = producers(proto)
    kinds = [_kind(proto, name) for name in node.input] if node is not None and node.op_type == "Concat" else []
    return len(kinds) == 3 and kinds[0] == "Sigmoid" and kinds[2] == "Softmax" and bool(made)


def _kind(proto: onnx.ModelProto, output: str) -> str:
    """Return the operator that an output comes from, nodes skipped that only move its values."""
    made = producers(proto)
    node = last_node(proto, output)
    while node is not None and node.op_type == "Transpose":
        node = last_node(proto, node.input[0])
    return "" if node is None or not made else node.op_type


def _only(proto: onnx.ModelProto, floats: FloatArrays, wanted: Wanted, names: int | None) -> str:
    """Return the one output that a task reads which reads one; UsageError if several could be meant."""
    left = [name for name in floats if not wanted.outputs or name in wanted.outputs]
    if len(left) > 1 and names is not None:
        fits = [name for name in left if names in (floats[name].shape[1:2] + floats[name].shape[-1:])]
        left = fits or left
    if len(left) > 1:
        left = list(_last(proto, left))
    if len(left) != 1:
        raise UsageError(f"model: gives {_listed(floats)}: say which with --output, or --task raw for all of them")
    return left[0]


def _last(proto: onnx.ModelProto, outputs: Sequence[str]) -> Iterator[str]:
    """Yield the outputs without those that only follow from another one, and without features that lead to another."""
    made, images = producers(proto), set(data_inputs(proto))
    dropped: set[str] = set()
    for output in outputs:
        waiting, seen, sources, heavy = [output], set[str](), set[str](), False
        while waiting:
            node = made.get(waiting.pop())
            heavy = heavy or (node is not None and node.op_type in HEAVY)
            for name in node.input if node is not None else ():
                if name in outputs or name in images:
                    sources.add(name)
                elif name not in seen:
                    seen.add(name)
                    waiting.append(name)
        if sources and not sources & images:
            dropped |= sources if heavy else {output}
    yield from (output for output in outputs if output not in dropped)


def _vector(
    proto: onnx.ModelProto, name: str, array: NDArray[np.float32], task: TaskName | None, names: int | None
) -> Reading:
    """Read an output that has numbers without a place: classes, labels, or something else."""
    values = array.reshape(len(array), -1)
    count, kind = values.shape[1], _kind(proto, name)
    flat = max(array.shape[1:], default=1) == count
    fault = f"model: output {name} gives {count} number{'s' * (count > 1)} per image"
    if task == "segment" or not flat:
        shape = array.shape[1:]
        raise UsageError(
            f"model: output {name} {shape} is not a map or a class vector: say --task raw, or another --output"
        )
    if task is None and count == 1:
        raise UsageError(f"{fault}: say --task multilabel if it is a label's logit or probability, --task raw if not")
    if task == "classify" and count == 1:
        raise InputError(f"{fault}, which is no choice of a class: take --task multilabel or raw")
    positive = bool(values.min() >= 0 and values.max() <= 1)
    if positive and kind not in _PROBABILITIES:
        raise UsageError(f"{fault} within 0…1, not logits: say with --output which value they come from, or --task raw")
    if task is not None:
        return Reading(TaskSpec(task), (name,), "as --task says")
    if kind in ("Sigmoid", "HardSigmoid"):
        return Reading(TaskSpec("multilabel"), (name,), f"{count} sigmoids")
    if kind in ("Softmax", "LogSoftmax") or names == count:
        return Reading(
            TaskSpec("classify"), (name,), f"softmax of {count} classes" if names != count else "as many as class names"
        )
    unit = np.abs(np.linalg.norm(values, axis=1) - 1).max() < 1e-3
    if unit or count % 64 == 0 or kind not in (*HEAVY, "Add", "Clip", "Mul", "Sub", "Div"):
        raise UsageError(
            f"{fault}, which may be features: say --task raw, or --task classify (or --names) if they are logits"
        )
    return Reading(TaskSpec("classify"), (name,), f"{count} logits")


def _map(
    proto: onnx.ModelProto,
    name: str,
    array: NDArray[np.float32],
    size: tuple[int, int],
    task: TaskName | None,
    names: int | None,
) -> Reading:
    """Read an output (C, h, w) as a class for each pixel if that is safe."""
    channels, kind = array.shape[1], _kind(proto, name)
    whole = array.shape[2:] == size
    if task in ("classify", "multilabel"):
        raise UsageError(
            f"model: output {name} {array.shape[1:]} is a map: take --task segment or raw, or another --output"
        )
    safe = kind == "Softmax" or names == channels or (whole and channels > 3)
    if task is None and not safe and not (whole and channels == 1 and kind == "Sigmoid"):
        raise UsageError(
            f"model: output {name} {array.shape[1:]} is a map: say --task segment if it has a class per pixel, else --task raw"
        )
    if channels == 1 and kind != "Sigmoid":
        raise InputError(f"model: output {name} is a map of one number that is not a sigmoid: take --task raw")
    return Reading(TaskSpec("segment"), (name,), f"a map of {channels} class{'es' * (channels > 1)}")


def check_wanted(wanted: Wanted, proto: onnx.ModelProto) -> None:
    """Raise UsageError if an output is named that is not a value of the graph."""
    check_known(
        "output",
        [name for name in wanted.outputs if name not in producers(proto)],
        [value.name for value in proto.graph.output],
    )
