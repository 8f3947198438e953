"""Where each weight stands in the block of memory that patches are computed in, and which output channel it is of.

A slot is a part of the block as a backend reads it, given as integers: for each element, the number of its value among
the clean values of all tensors (each in C order, one after the other); −1 for padding, which is zero.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Slots = Mapping[str, NDArray[np.signedinteger]]
_ALIGNMENT = (
    64  # float32 values, where each slot starts: what ONNX Runtime asks of packed weights in a file (256 bytes)
)
_PIECE = 131_072  # elements that are patched at a time: their float32 change fits the second-level cache


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the slots stand in one flat block, and the pieces in which the block is patched."""

    slots: Slots
    starts: Mapping[str, int]  # slot name → where it starts in the block, elements
    size: int  # of the block, elements
    pieces: NDArray[np.int64]  # (pieces, 5): start in the block, start in `channels`, lengths of the piece's `Pattern`
    channels: NDArray[np.int64]  # (n,): the channels of one piece's pattern after the other

    def views(self, block: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return each slot of a block (size,); the arrays share its memory."""
        return {
            name: block[start : start + self.slots[name].size].reshape(self.slots[name].shape)
            for name, start in self.starts.items()
        }

    def fill(self, block: NDArray[Any], values: NDArray[Any], first: int = 0) -> None:
        """Write consecutive clean values, flat, the first of which has the number `first`, to a block (size,)."""
        end = first + values.size
        for name, view in self.views(block).items():
            numbers = self.slots[name]
            low, high = self._ranges[name]
            if first <= low and high < end:
                np.take(values, numbers - first if first else numbers, out=view, mode="clip")  # by far the fastest mode
            elif high >= first and low < end:
                chosen = (numbers >= first) & (numbers < end)
                view[chosen] = values[numbers[chosen] - first]

    @cached_property
    def _ranges(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest number in each slot."""
        return {name: (int(slot.min()), int(slot.max())) for name, slot in self.slots.items()}


class Pattern(NamedTuple):
    """A flat slot seen as an array (outer, repeat, inner), whose output channel does not depend on `repeat`."""

    outer: int
    repeat: int
    inner: int
    channels: NDArray[np.int64]  # (outer · inner,), the output channels, counted through all tensors


def plain_slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.int32]]:
    """Return a slot for each tensor, laid out as it is."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    return {
        name: np.arange(end - math.prod(shape), end, dtype=np.int32).reshape(shape)
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }


def lay_out(shapes: Mapping[str, tuple[int, ...]], slots: Slots) -> Layout:
    """Place slots in one block, each on a cache line, in pieces; `shapes` (out, …) as the clean values are counted."""
    counts = [shape[0] for shape in shapes.values()]
    lengths = np.repeat([math.prod(shape[1:]) for shape in shapes.values()], counts)
    channel_of = np.repeat(np.arange(sum(counts)), lengths)
    starts, size = place(slots)
    pieces: list[list[int]] = []
    channels: list[NDArray[np.int64]] = []
    known = 0
    for name, slot in slots.items():
        for start, piece in _pieces(find_pattern(slot.ravel(), channel_of)):
            pieces.append([starts[name] + start, known, piece.outer, piece.repeat, piece.inner])
            channels.append(piece.channels)
            known += piece.channels.size
    return Layout(slots, starts, size, np.array(pieces, np.int64), np.concatenate(channels))


def place(slots: Slots) -> tuple[dict[str, int], int]:
    """Return where each slot starts in a block, in elements, and the size of the block."""
    ends = np.cumsum([0, *(aligned(slot.size) for slot in slots.values())])
    return dict(zip(slots, ends.tolist(), strict=False)), int(ends[-1])


def aligned(size: int) -> int:
    """Return where, after `size` elements, the next slot may start."""
    return size + -size % _ALIGNMENT


def find_pattern(slot: NDArray[np.signedinteger], channel_of: NDArray[np.int64]) -> Pattern:
    """See a flat slot as an array (outer, repeat, inner) with as few channel numbers as its layout allows.

    In a layout without such a pattern everything is `inner`: slower, as exact. `channel_of`: clean value → channel.

    Example, a weight (8, 3, 1, 1) in its own order, OIHW, and as ONNX Runtime stores it, NCHW8c:
        >>> oihw = np.arange(24)
        >>> find_pattern(oihw, oihw // 3)[:3]
        (8, 3, 1)
        >>> find_pattern(oihw.reshape(8, 3).T.ravel(), oihw // 3)[:3]
        (1, 3, 8)
    """
    numbers = channel_of[slot]  # for padding that of the last element: it multiplies zeros
    patterns = []
    for inner in sorted({1, 4, 8, 16, 32, 64, slot.size}):
        if slot.size % inner == 0:
            rows = numbers.reshape(-1, inner)
            known = np.where((slot >= 0).reshape(rows.shape), np.arange(len(rows))[:, None], 0)
            rows = np.take_along_axis(rows, np.maximum.accumulate(known), axis=0)
            starts = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))
            repeat = len(rows) // len(starts)
            if np.array_equal(starts, np.arange(0, len(rows), repeat)):
                patterns.append(Pattern(len(starts), repeat, inner, rows[starts].ravel()))
    return min(patterns, key=lambda pattern: pattern.channels.size)


def _pieces(pattern: Pattern) -> Iterable[tuple[int, Pattern]]:
    """Cut a pattern along `outer`; yields where each part starts, in elements, and the part."""
    _, repeat, inner, channels = pattern
    step = max(1, _PIECE // (repeat * inner))
    for first in range(0, pattern.outer, step):
        part = channels[first * inner : (first + step) * inner]
        yield first * repeat * inner, Pattern(part.size // inner, repeat, inner, part)
