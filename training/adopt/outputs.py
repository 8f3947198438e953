"""Which outputs of a model count, and what they mean: found if that is safe, else asked for in one line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rws.edge.onnx.graph import data_inputs
from rws.edge.tasks.base import Head, TaskName, TaskSpec
from rws.edge.tasks.heads import guess_head
from rws.errors import BundleError, UsageError, check_known
from rws.training.adopt.graph import HEAVY, last_node, producers

_OF_ULTRALYTICS: Mapping[str, TaskName] = {"detect": "detect", "classify": "classify"}  # all else is raw
# What logits come from; features come from pooling, too.
_LOGITS = (*HEAVY, "Add", "Clip", "Mul", "Sub", "Div", "QGemm", "QLinearConv", "QLinearMatMul", "QLinearAdd")
_FEW = 6  # outputs that a message lists


@dataclass(frozen=True)
class Wanted:
    """What the user states about the outputs: a task, a detector's head, names of outputs (any value of the graph)."""

    task: TaskName | None = None
    head: Head = ""
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """The task, the outputs that it reads, and the reason, in a few words."""

    task: TaskSpec
    outputs: tuple[str, ...]
    reason: str


def check_wanted(wanted: Wanted, proto: onnx.ModelProto) -> None:
    """Raise UsageError if an output is named that is not a value of the graph."""
    unknown = [name for name in wanted.outputs if name not in producers(proto)]
    check_known("output", unknown, [value.name for value in proto.graph.output])


def by_ultralytics(proto: onnx.ModelProto) -> bool:
    """Return whether the file says that Ultralytics exported it: its task is in it, and it takes RGB 0…1."""
    return any("Ultralytics" in entry.value for entry in proto.metadata_props if entry.key in ("author", "description"))


def count_classes(task: TaskSpec, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return how many classes a task's outputs, of one image without batch axis, speak of; None if they do not say."""
    shape = shapes[0]
    if task.name == "raw" or task.head == "nms":
        return None
    if task.name == "detect":
        return {"fastestdet": shape[0] - 5, "yolov8": shape[0] - 4}.get(task.head, shape[-1] - 5)
    return shape[0]


def find_task(
    proto: onnx.ModelProto,
    found: Mapping[str, NDArray[Any]],
    size: tuple[int, int],
    wanted: Wanted,
    names: int | None,
) -> Reading:
    """Find what a model's outputs mean.

    Args:
        found: what the outputs are for a few images, by name, batch first.
        size: height and width of the input, pixels.
        names: number of class names, None if unknown.
    Raises UsageError, which says which option to give, if it is not safe to tell.
    """
    floats = {name: array for name, array in found.items() if array.dtype.kind == "f"}
    whole = [name for name in found if name not in floats]
    if whole and (wanted.outputs or not floats):
        last = last_node(proto, whole[0])
        cure = f"say --output {last.input[0]}" if last is not None and last.op_type == "ArgMax" else "name others"
        raise UsageError(
            f"model: output {whole[0]} holds whole numbers, as argmax gives, which cannot be trained: {cure}"
        )
    if loose := [name for name, array in floats.items() if not np.isfinite(array).all()]:
        raise BundleError(f"model: output {loose[0]} is not finite for random images; train or export it again")
    task, reason = wanted.task or ("detect" if wanted.head else None), "as --task says"
    if task is None and by_ultralytics(proto):
        written = {entry.key: entry.value for entry in proto.metadata_props}
        task, reason = _OF_ULTRALYTICS.get(written.get("task", ""), "raw"), "as the file's metadata says"
    if task == "raw":
        return Reading(TaskSpec("raw"), tuple(floats), reason)
    outputs = _Outputs(proto, floats, size, names)
    if task in (None, "detect") and (boxes := outputs.boxes(wanted, task)):
        return boxes
    name = outputs.only()
    array = floats[name]
    is_map = array.ndim == 4 and max(array.shape[2:]) > 1
    return outputs.as_map(name, task, reason) if is_map else outputs.as_vector(name, task, reason)


@dataclass(frozen=True)
class _Outputs:
    """The outputs of a model that are not whole numbers, as they are for a few images, batch first."""

    proto: onnx.ModelProto
    floats: Mapping[str, NDArray[Any]]
    size: tuple[int, int]
    names: int | None

    def __str__(self) -> str:
        shown = [f"{name} {array.shape[1:]}" for name, array in self.floats.items()]
        return ", ".join(shown[:_FEW]) + (", …" if len(shown) > _FEW else "")

    def kind(self, output: str) -> str:
        """Return the operator that an output comes from, nodes skipped that only move its values."""
        node = last_node(self.proto, output)
        while node is not None and node.op_type == "Transpose":
            node = last_node(self.proto, node.input[0])
        return "" if node is None else node.op_type

    def boxes(self, wanted: Wanted, task: TaskName | None) -> Reading | None:
        """Read the outputs as a detector's; None if they are not, UsageError if only the user can say."""
        shapes = {name: array.shape[1:] for name, array in self.floats.items()}
        if wanted.head:
            rank = 3 if wanted.head == "fastestdet" else 2
            fits = [name for name, shape in shapes.items() if len(shape) == rank]
            if len(fits) == 1:
                return Reading(TaskSpec("detect", wanted.head), (fits[0],), "as --head says")
            raise UsageError(f"--head {wanted.head}: fits {len(fits)} of the outputs {self}; say which with --output")
        asked = ""
        for count in sorted(self._counts(shapes)):
            guess = guess_head(shapes, self.size, count)
            if guess.task is None and not guess.outputs:
                continue
            if guess.task is not None and (self._is_sure(guess.outputs[0], guess.task.head)):
                return Reading(guess.task, guess.outputs, guess.reason)
            head = "" if guess.task is None else f": perhaps --task detect --head {guess.task.head}, with --names"
            asked = asked or f"{guess.reason}{head}"
        if asked or task == "detect":
            asked = asked or f"gives {self}, not boxes of a known head: say --head and --output"
            raise UsageError(f"model: {asked}, or --task raw")
        return None

    def _counts(self, shapes: Mapping[str, tuple[int, ...]]) -> set[int]:
        """Return how many classes the outputs may speak of."""
        if self.names is not None:
            return {self.names}
        flat = [side for shape in shapes.values() if len(shape) in (2, 3) for side in (shape[0], shape[-1])]
        return {count for side in flat for count in (side - 4, side - 5) if 0 < count <= 4096}

    def _is_sure(self, output: str, head: str) -> bool:
        """Return whether more than the shape supports a head: the number of names, operators, or values."""
        if head == "nms":
            scores, labels = (self.floats[output][..., place] for place in (4, 5))
            return bool(
                len(self.floats) == 1 and (labels == labels.round()).all() and 0 <= scores.min() <= scores.max() <= 1
            )
        node = last_node(self.proto, output)
        parts = [] if node is None or node.op_type != "Concat" else [self.kind(name) for name in node.input]
        joined = len(parts) == 3 and (parts[0], parts[2]) == ("Sigmoid", "Softmax")
        return self.names is not None or (head == "fastestdet" and joined)

    def only(self) -> str:
        """Return the one output that a task reads which reads one; UsageError if several could be meant."""
        left = list(self.floats)
        if len(left) > 1 and self.names is not None:
            ends = {name: {self.floats[name].shape[1:2], self.floats[name].shape[-1:]} for name in left}
            left = [name for name in left if (self.names,) in ends[name]] or left
        if len(left) > 1:
            left = list(self._last(left))
        if len(left) != 1:
            raise UsageError(f"model: gives {self}: say which with --output, or --task raw for all of them")
        return left[0]

    def _last(self, outputs: Sequence[str]) -> Iterator[str]:
        """Yield the outputs without those that only follow from another one, and without features that lead to one."""
        made, images, dropped = producers(self.proto), set(data_inputs(self.proto)), set[str]()
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

    def as_vector(self, name: str, task: TaskName | None, reason: str) -> Reading:
        """Read an output of numbers that have no place in the image as classes or labels, if that is safe."""
        array, kind = self.floats[name], self.kind(name)
        values = array.reshape(len(array), -1)
        count = values.shape[1]
        fault = f"model: output {name} gives {count} number{'s' * (count > 1)} per image"
        if task == "segment" or max(array.shape[1:], default=1) != count:
            shape = array.shape[1:]
            raise UsageError(
                f"model: output {name} {shape} is not one number per class: say --task raw, or another --output"
            )
        if count == 1 and task != "multilabel":
            raise UsageError(f"{fault}: say --task multilabel if it is a label's logit or probability, else --task raw")
        if kind not in ("Softmax", "Sigmoid", *HEAVY) and values.min() >= 0 and values.max() <= 1:
            raise UsageError(
                f"{fault} within 0…1, not logits: name what they come from with --output, or say --task raw"
            )
        if task is not None:
            return Reading(TaskSpec(task), (name,), reason)
        if kind == "Sigmoid":
            return Reading(TaskSpec("multilabel"), (name,), f"{count} sigmoids")
        if kind in ("Softmax", "LogSoftmax"):
            return Reading(TaskSpec("classify"), (name,), f"softmax of {count} classes")
        unit = np.abs(np.linalg.norm(values, axis=1) - 1).max() < 1e-3
        if self.names != count and (unit or count % 64 == 0 or kind not in _LOGITS):
            raise UsageError(
                f"{fault}, perhaps features: say --task raw, or --task classify if they are logits of classes"
            )
        return Reading(TaskSpec("classify"), (name,), f"{count} logits")

    def as_map(self, name: str, task: TaskName | None, reason: str) -> Reading:
        """Read an output (C, h, w) as a class for each pixel, if that is safe."""
        shape, kind = self.floats[name].shape[1:], self.kind(name)
        fault = f"model: output {name} {shape} is a map"
        if task in ("classify", "multilabel"):
            raise UsageError(f"{fault}: say --task segment or raw, or another --output")
        whole, mask = shape[1:] == self.size, shape[0] == 1 and kind == "Sigmoid"
        if shape[0] == 1 and not mask:
            raise UsageError(f"{fault} of one number that is not a sigmoid: say --task raw")
        if task is None and not (
            (whole and (shape[0] > 3 or mask)) or (kind == "Softmax" and shape[0] > 1) or self.names == shape[0]
        ):
            raise UsageError(f"{fault}: say --task segment if it has a class per pixel, else --task raw")
        return Reading(
            TaskSpec("segment"), (name,), reason if task else f"a map of {shape[0]} class{'es' * (shape[0] > 1)}"
        )
