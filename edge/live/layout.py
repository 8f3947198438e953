"""Where each weight stands in the block of memory that patches are computed in, and which output channel it is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 16  # float32 values in a cache line, where each slot starts
_PIECE = 131_072  # elements that are patched at a time: their float32 change fits the second-level cache


@dataclass(frozen=True, eq=False)
class Slot:
    """A block of weights as a backend reads it: a tensor, or what the backend has made of its layout.

    Args:
        shape: of the block.
        source: integers, flat, in C order: for each element, where its value stands among the clean values of all
            tensors (each in C order, one tensor after the other); −1 for padding, which is zero.
    """

    shape: tuple[int, ...]
    source: NDArray[np.signedinteger]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the slots stand in one flat block, and the pieces in which the block is patched.

    Args:
        slots: slot name → slot.
        starts: slot name → where it starts in the block, elements.
        size: of the block, elements.
        pieces: int64, (pieces, 5): start in the block, start in `channels`, and the lengths outer, repeat and inner of
            the pattern in which the piece's output channels come.
        channels: int64, (n,): the output channels, counted through all tensors, of one piece after the other.
    """

    slots: Mapping[str, Slot]
    starts: Mapping[str, int]
    size: int
    pieces: NDArray[np.int64]
    channels: NDArray[np.int64]

    def views(self, block: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return each slot of a block in its shape; the arrays share the block's memory."""
        return {name: self._part(block, name).reshape(slot.shape) for name, slot in self.slots.items()}

    def fill(self, block: NDArray[Any], values: NDArray[Any], first: int = 0) -> None:
        """Write values to where they stand in a block.

        Args:
            block: (size,).
            values: flat, consecutive clean values.
            first: number of the first of them among the clean values of all tensors.
        """
        for name, slot in self.slots.items():
            chosen = (slot.source >= first) & (slot.source < first + values.size)
            self._part(block, name)[chosen] = values[slot.source[chosen] - first]

    def _part(self, block: NDArray[Any], name: str) -> NDArray[Any]:
        return block[self.starts[name] : self.starts[name] + self.slots[name].source.size]


class Pattern(NamedTuple):
    """A flat block seen as an array (outer, repeat, inner), whose output channels do not depend on `repeat`.

    Args:
        outer, repeat, inner: the lengths of its axes.
        channels: int64, flat, (outer · inner,).
    """

    outer: int
    repeat: int
    inner: int
    channels: NDArray[np.int64]


def plain_slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Return a slot for each tensor, laid out as it is."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    return {
        name: Slot(shape, np.arange(end - int(np.prod(shape)), end, dtype=np.int32))
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }


def lay_out(shapes: Mapping[str, tuple[int, ...]], slots: Mapping[str, Slot]) -> Layout:
    """Place slots in one block, each on a cache line, and cut them into pieces.

    Args:
        shapes: tensor name → shape (out, …), in the order in which the slots count the clean values.
        slots: slot name → slot.
    """
    counts = [shape[0] for shape in shapes.values()]
    sizes = [int(np.prod(shape)) // shape[0] for shape in shapes.values()]
    channel_of = np.repeat(np.arange(sum(counts)), np.repeat(sizes, counts))
    starts: dict[str, int] = {}
    pieces: list[list[int]] = []
    channels: list[NDArray[np.int64]] = []
    end = known = 0
    for name, slot in slots.items():
        starts[name] = end
        for start, piece in _pieces(find_pattern(slot.source, channel_of)):
            pieces.append([end + start, known, piece.outer, piece.repeat, piece.inner])
            channels.append(piece.channels)
            known += piece.channels.size
        end += slot.source.size + -slot.source.size % _ALIGNMENT
    return Layout(slots, starts, end, np.array(pieces, np.int64), np.concatenate(channels))


def find_pattern(source: NDArray[np.signedinteger], channel_of: NDArray[np.int64]) -> Pattern:
    """See a slot as an array (outer, repeat, inner) with as few channel numbers as its layout allows.

    The `inner` output channels, which differ, stand side by side and come again `repeat` times. In a layout without
    such a pattern everything is `inner`: slower, and as exact.

    Args:
        source: of the slot; see `Slot`.
        channel_of: for each clean value the number of its output channel.

    Example:
        A weight (8, 3, 1, 1) has 8 output channels of 3 values. In its own order, OIHW, the values of a channel stand
        side by side: each of 8 (outer) channels comes 3 times (repeat).

        >>> oihw = np.arange(24)
        >>> channel_of = oihw // 3
        >>> outer, repeat, inner, channels = find_pattern(oihw, channel_of)
        >>> outer, repeat, inner, channels.tolist()
        (8, 3, 1, [0, 1, 2, 3, 4, 5, 6, 7])

        ONNX Runtime stores it as NCHW8c: 8 channels side by side (inner), 3 times (repeat).

        >>> nchw8c = oihw.reshape(8, 3).T.ravel()
        >>> outer, repeat, inner, channels = find_pattern(nchw8c, channel_of)
        >>> outer, repeat, inner, channels.tolist()
        (1, 3, 8, [0, 1, 2, 3, 4, 5, 6, 7])
    """
    numbers = channel_of[source]  # for padding that of the last element: it multiplies zeros
    patterns = []
    for inner in sorted({1, 4, 8, 16, 32, 64, len(source)}):
        if len(source) % inner == 0:
            rows = numbers.reshape(-1, inner)
            known = np.where((source >= 0).reshape(rows.shape), np.arange(len(rows))[:, None], 0)
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
