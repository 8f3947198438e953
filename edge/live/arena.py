"""The memory that patches are computed in: W = W_std + Σ α_c·R_c, from the clean copy, all or nothing.

Subtracting a patch does not give float32 bits back, so nothing is ever undone: every mix starts from the clean weights.
Signatures stay as integers and are dequantised while they are added, a piece that fits the cache at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.kernel import multiply_add
from rws.edge.signatures.quantization import largest_value, value_dtype
from rws.edge.signatures.signature_set import SignatureSet
from rws.errors import SignatureError

ALPHA_STEP = 1 / 256

_LARGEST = float(np.finfo(np.float32).max)
_ALIGNMENT = 64  # bytes: a cache line, and what vector instructions like best
_PIECE = 131_072  # elements that are patched at a time: their float32 change fits the second-level cache


@dataclass(frozen=True, eq=False)
class Slot:
    """A block of weights as a backend reads it: a tensor, or what the backend has made of its layout.

    Args:
        shape: of the block.
        source: int64, flat, in C order: for each element, where its value stands among the clean values of all tensors
            (each in C order, one tensor after the other); −1 for padding, which is zero.
    """

    shape: tuple[int, ...]
    source: NDArray[np.int64]


def plain_slots(clean: Mapping[str, NDArray[np.float32]]) -> dict[str, Slot]:
    """A slot for each tensor, laid out as it is."""
    ends = np.cumsum([array.size for array in clean.values()])
    return {
        name: Slot(array.shape, np.arange(end - array.size, end))
        for (name, array), end in zip(clean.items(), ends, strict=True)
    }


def changed(clean: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Other weights, each moved by a quarter of its tensor's spread, to see whether a model follows them."""
    rng = np.random.default_rng(0)
    return {
        name: array + np.float32(0.25 * (array.std() or 1)) * rng.standard_normal(array.shape, np.float32)
        for name, array in clean.items()
    }


class Arena:
    """The patched tensors of one model: a clean copy, and the working copy that the model reads, each one flat block.

    Strengths are rounded to multiples of `ALPHA_STEP`: two mixes that are then equal are the same mix.

    Args:
        clean: the clean tensors, float32, in the order of the network.
        signatures: what can be mixed, made for these tensors; None for a model that is only ever clean.
        slots: slot name → layout, for a model that lays its weights out anew; left out: `plain_slots`.
        publish: called after the working copy has changed, for a model that keeps its weights elsewhere.

    Raises:
        SignatureError: if the signatures are for other tensors.
    """

    def __init__(
        self,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: SignatureSet | None,
        slots: Mapping[str, Slot] | None = None,
        publish: Callable[[], None] | None = None,
    ) -> None:
        if signatures is not None:
            signatures = signatures.fitted_to(clean)
        slots = plain_slots(clean) if slots is None else slots
        self._tensor_names = tuple(clean)
        self._publish = publish
        self._mix: dict[str, float] | None = {}
        self._spans, size = _place(slots)
        self.flat = _aligned(size)
        self._clean = _aligned(size)
        self._fill(self._clean, slots, _concatenated(clean.values()))
        np.copyto(self.flat, self._clean)
        channels = _channel_numbers(clean)
        found = [
            piece for name, slot in slots.items() for piece in _pieces(slot.source, channels, self._spans[name].start)
        ]
        self._channels = _concatenated(piece.channels for piece in found)
        firsts = np.cumsum([0, *(piece.channels.size for piece in found)])[:-1].tolist()
        self._pieces = np.array(
            [[piece.start, first, *piece.lengths] for piece, first in zip(found, firsts, strict=True)], np.int64
        )
        entries = signatures.entries if signatures is not None else {}
        blocks = np.zeros((len(entries), size), value_dtype(signatures.bits if signatures is not None else 8))
        self._values = dict(zip(entries, blocks, strict=True))
        self._scales = {}
        for name, entry in entries.items():
            self._fill(self._values[name], slots, _concatenated(entry[tensor].values for tensor in clean))
            self._scales[name] = _concatenated(
                np.broadcast_to(entry[tensor].scale, array.shape[:1]) for tensor, array in clean.items()
            )
        largest = largest_value(signatures.bits) if signatures is not None else 0
        self._reach = {name: largest * float(scales.max()) for name, scales in self._scales.items()}
        self._clean_reach = float(np.abs(self._clean).max())

    @property
    def views(self) -> dict[str, NDArray[np.float32]]:
        """The slots as the model reads them: views of the working copy that stay valid for ever."""
        return {name: self.flat[span.start : span.end].reshape(span.shape) for name, span in self._spans.items()}

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the network."""
        return self._tensor_names

    @property
    def mix(self) -> dict[str, float]:
        """The mix in effect, without zeros."""
        return dict(self._mix or {})

    def apply(self, mix: Mapping[str, float]) -> bool:
        """Put `mix` into effect; see `PatchableModel.apply`."""
        mix = self._checked(mix)
        if mix == self._mix:
            return False
        self._write(mix)
        return True

    def reset(self) -> None:
        """Copy the clean weights back, bit for bit."""
        self._write({})

    def overwrite(self, tensors: Mapping[str, NDArray[np.float32]], slots: Mapping[str, Slot]) -> None:
        """Put other weights in the place of the clean ones until the next `reset`, to test that the model reads them.

        Args:
            tensors: float32, as the clean ones.
            slots: those that the arena was made with.
        """
        self._mix = None
        self._fill(self.flat, slots, _concatenated(tensors.values()))
        if self._publish is not None:
            self._publish()

    def settle(self) -> None:
        """Go back to the clean weights if an interrupt has left others half-written; before every prediction."""
        if self._mix is None:
            self.reset()

    def _write(self, mix: dict[str, float]) -> None:
        # Until every tensor is in place the mix is unknown: an interrupt in between makes the next call write again.
        self._mix = None
        if mix:
            self._compose(mix)
        else:
            np.copyto(self.flat, self._clean)
        if self._publish is not None:
            self._publish()
        self._mix = mix

    def _compose(self, mix: Mapping[str, float]) -> None:
        base = self._clean
        for name, alpha in mix.items():
            factors = (self._scales[name] * np.float32(alpha))[self._channels]
            multiply_add(base, self._values[name], factors, self.flat, self._pieces)
            base = self.flat

    def _checked(self, mix: Mapping[str, float]) -> dict[str, float]:
        """The mix on the grid, without zeros, in the order of the signatures: the sum then has one order and result."""
        for name, alpha in mix.items():
            if name not in self._values:
                raise SignatureError(f"signature {name!r} is not there; known: {', '.join(self._values) or 'none'}")
            if not _is_finite_number(alpha):
                raise SignatureError(f"signature {name!r}: strength is {alpha!r}, expected a finite number")
        if self._clean_reach + sum(abs(float(alpha)) * self._reach[name] for name, alpha in mix.items()) > _LARGEST:
            strengths = ", ".join(f"{name} {alpha:g}" for name, alpha in mix.items())
            raise SignatureError(f"mix {strengths}: the patched weights are not finite; choose smaller strengths")
        names = [name for name in self._values if name in mix] if len(mix) > 1 else mix
        rounded = {name: round(float(mix[name]) / ALPHA_STEP) * ALPHA_STEP for name in names}
        return {name: alpha for name, alpha in rounded.items() if alpha}

    def _fill(self, block: NDArray[Any], slots: Mapping[str, Slot], values: NDArray[Any]) -> None:
        """Lay values out in the slots of a block that holds zeros."""
        for name, slot in slots.items():
            used = slot.source >= 0
            block[self._spans[name].start : self._spans[name].end][used] = values[slot.source[used]]


class _Span(NamedTuple):
    """Where a slot stands in the block, in elements, and its shape."""

    start: int
    end: int
    shape: tuple[int, ...]


class _Piece(NamedTuple):
    """A part of the block in which output channels stand in a regular pattern.

    Args:
        start: of the part, in elements.
        lengths: outer, run and block: the part is seen as an array of that shape, in which a channel does not depend
            on the place in the run.
        channels: int64, (outer · block,): the numbers of the output channels, counted through all tensors.
    """

    start: int
    lengths: tuple[int, int, int]
    channels: NDArray[np.int64]


def _pieces(source: NDArray[np.int64], channels: NDArray[np.int64], start: int) -> Iterable[_Piece]:
    """Cut a part of the block into pieces, with as few channel numbers as its layout allows.

    The output channels of a block, which differ, stand side by side and come again `run` times. In C order a block is
    one channel; in ONNX Runtime's NCHWc it is 8 or 16. In a layout without any such pattern everything is one block:
    slower, and as exact.
    """
    numbers = channels[source]  # for padding that of the last element: it multiplies zeros
    patterns = []
    for block in sorted({1, 4, 8, 16, 32, 64, len(source)}):
        if len(source) % block == 0:
            rows = numbers.reshape(-1, block)
            known = np.where((source >= 0).reshape(rows.shape), np.arange(len(rows))[:, None], 0)
            rows = np.take_along_axis(rows, np.maximum.accumulate(known), axis=0)
            starts = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))
            run = len(rows) // len(starts)
            if np.array_equal(starts, np.arange(0, len(rows), run)):
                patterns.append((run, rows[starts]))
    run, blocks = min(patterns, key=lambda pattern: pattern[1].size)
    block = blocks.shape[1]
    step = max(1, _PIECE // (run * block))
    for first in range(0, len(blocks), step):
        part = blocks[first : first + step]
        yield _Piece(start + first * run * block, (len(part), run, block), part.ravel())


def _place(slots: Mapping[str, Slot]) -> tuple[dict[str, _Span], int]:
    """Where each slot stands in the block, aligned; and the size of the block."""
    spans = {}
    start = 0
    for name, slot in slots.items():
        end = start + slot.source.size
        spans[name] = _Span(start, end, slot.shape)
        start = end + -end % (_ALIGNMENT // 4)
    return spans, start


def _channel_numbers(clean: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
    """For each value of all tensors the number of its output channel, counted through all tensors."""
    counts = [array.shape[0] for array in clean.values()]
    sizes = np.concatenate([np.full(array.shape[0], array.size // array.shape[0]) for array in clean.values()])
    return np.repeat(np.arange(sum(counts)), sizes)


def _aligned(size: int) -> NDArray[np.float32]:
    """Zeros, float32, (size,), that start on a cache line."""
    raw = np.zeros(size * 4 + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * 4].view(np.float32)


def _concatenated(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.ravel(array) for array in arrays])


class ArenaModel:
    """What every model whose weights live in an arena has in common; see `PatchableModel`."""

    _arena: Arena

    @property
    def mix(self) -> dict[str, float]:
        """The mix in effect: {signature: α}, without zeros; {} is the clean model."""
        return self._arena.mix

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The patched tensors, in the order of the network."""
        return self._arena.tensor_names

    def apply(self, mix: Mapping[str, float]) -> bool:
        """Patch with `mix`; see `PatchableModel.apply`."""
        return self._arena.apply(mix)

    def reset(self) -> None:
        """Go back to the clean weights, bit for bit."""
        self._arena.reset()


def _is_finite_number(alpha: Any) -> bool:
    try:
        return math.isfinite(alpha)
    except (TypeError, OverflowError):
        return False
