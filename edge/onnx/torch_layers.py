"""Layers of ONNX in torch, for the table of `rws.edge.onnx.torch_operators`."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rws.edge.onnx.torch_operators import Ints, operator

_EPSILON = 1e-5
# The weight gradient of a strided 1×1 convolution of fewer channels than a vector has lanes writes beyond its memory,
# which kills the process, in any memory format (torch 2.13, AVX-512). So the input is thinned out first.
_LANES = 16


def _sides(x: Tensor, kernel: Ints, strides: Ints, dilations: Ints, auto_pad: str, pads: Any) -> list[int]:
    """Return the padding as `F.pad` takes it: before and after of the last axis, of the one before it, …."""
    sides = []
    for axis in range(len(kernel) - 1, -1, -1):
        before, after = (pads[axis], pads[axis + len(kernel)]) if pads and auto_pad != "VALID" else (0, 0)
        if auto_pad.startswith("SAME"):
            length, reach = x.shape[2 + axis], (kernel[axis] - 1) * dilations[axis] + 1
            total = max((-(-length // strides[axis]) - 1) * strides[axis] + reach - length, 0)
            before = (total + (auto_pad == "SAME_LOWER")) // 2
            after = total - before
        sides += [before, after]
    return sides


@operator("Conv")
def _conv(
    x: Tensor, w: Tensor, b: Any = None, auto_pad: str = "", dilations: Any = None, group: int = 1, pads: Any = None,
    strides: Any = None
) -> Tensor:  # fmt: skip
    ones = [1] * (w.dim() - 2)
    strides, dilations = strides or ones, dilations or ones
    sides = _sides(x, w.shape[2:], strides, dilations, auto_pad, pads)
    padding = sides[::-2]
    if sides[::2] != sides[1::2]:
        x, padding = F.pad(x, sides), [0] * len(ones)
    if max(w.shape[2:]) == 1 < max(strides) and w.shape[1] < _LANES and not any(padding):
        for axis, step in enumerate(strides, 2):
            x = x[(slice(None),) * axis + (slice(None, None, step),)]
        strides = ones
    return getattr(F, f"conv{len(ones)}d")(x, w, b, strides, padding, dilations, group)  # type: ignore[no-any-return]


@operator("ConvTranspose")
def _conv_transpose(
    x: Tensor, w: Tensor, b: Any = None, auto_pad: str = "", dilations: Any = None, group: int = 1,
    output_padding: Any = None, output_shape: Any = None, pads: Any = None, strides: Any = None
) -> Tensor:  # fmt: skip
    count = w.dim() - 2
    strides, dilations, more = strides or [1] * count, dilations or [1] * count, output_padding or [0] * count
    y: Tensor = getattr(F, f"conv_transpose{count}d")(x, w, None, strides, 0, 0, group, dilations)
    sides = []
    for axis in range(count - 1, -1, -1):
        before, after = (pads[axis], pads[axis + count]) if pads else (0, 0)
        if output_shape or auto_pad.startswith("SAME"):
            length = output_shape[axis - count] if output_shape else x.shape[2 + axis] * strides[axis]
            total = y.shape[2 + axis] + more[axis] - length
            before = (total + (auto_pad != "SAME_UPPER")) // 2
            after = total - before
        sides += [-before, more[axis] - after]
    y = F.pad(y, sides) if any(sides) else y
    return y if b is None else y + b.reshape(-1, *[1] * count)


@operator("MaxPool")
def _max_pool(
    x: Tensor, kernel_shape: Ints, auto_pad: str = "", ceil_mode: int = 0, dilations: Any = None, pads: Any = None,
    strides: Any = None
) -> Tensor:  # fmt: skip
    ones = [1] * len(kernel_shape)
    strides, dilations = strides or ones, dilations or ones
    sides = _sides(x, kernel_shape, strides, dilations, auto_pad, pads)
    padding = sides[::-2]
    if sides[::2] != sides[1::2] or any(2 * side > size for side, size in zip(padding, kernel_shape, strict=True)):
        least = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, padding = F.pad(x, sides, value=least), [0] * len(ones)
    pool = getattr(F, f"max_pool{len(ones)}d")
    return pool(x, kernel_shape, strides, padding, dilations, bool(ceil_mode))  # type: ignore[no-any-return]


@operator("AveragePool")
def _average_pool(
    x: Tensor, kernel_shape: Ints, auto_pad: str = "", ceil_mode: int = 0, count_include_pad: int = 0,
    pads: Any = None, strides: Any = None
) -> Tensor:  # fmt: skip
    ones = [1] * len(kernel_shape)
    strides, pool = strides or ones, getattr(F, f"avg_pool{len(ones)}d")
    sides = _sides(x, kernel_shape, strides, ones, auto_pad, pads)
    if sides[::2] == sides[1::2] and all(2 * s <= k for s, k in zip(sides[::-2], kernel_shape, strict=True)):
        return pool(x, kernel_shape, strides, sides[::-2], bool(ceil_mode), bool(count_include_pad))  # type: ignore[no-any-return]
    y, inside = (pool(F.pad(v, sides), kernel_shape, strides, 0, bool(ceil_mode)) for v in (x, torch.ones_like(x[:1])))
    return y if count_include_pad else y / inside  # type: ignore[no-any-return]


@operator("Gemm")
def _gemm(
    a: Tensor, b: Tensor, c: Any = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    a = a.t() if transA else a
    if transB and alpha == beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b, c)
    y = alpha * torch.matmul(a, b.t() if transB else b)
    return y if c is None else y + beta * c


operator("BatchNormalization")(
    lambda x, scale, b, mean, var, epsilon=_EPSILON: F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)
)
operator("InstanceNormalization")(lambda x, scale, b, epsilon=_EPSILON: F.group_norm(x, x.shape[1], scale, b, epsilon))
operator("GroupNormalization", since=21)(
    lambda x, scale, b, num_groups, epsilon=_EPSILON: F.group_norm(x, num_groups, scale, b, epsilon)
)


@operator("LayerNormalization")
def _layer_norm(x: Tensor, scale: Tensor, b: Any = None, axis: int = -1, epsilon: float = _EPSILON) -> Tensor:
    shape = x.shape[axis:]
    if scale.shape == shape and (b is None or b.shape == shape):
        return F.layer_norm(x, shape, scale, b, epsilon)
    return F.layer_norm(x, shape, eps=epsilon) * scale + (0 if b is None else b)


@operator("LRN")
def _lrn(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    squares = F.pad(x.square().transpose(1, -1), ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1)
    return x / (bias + alpha / size * squares.transpose(1, -1)) ** beta


@operator("DepthToSpace")
def _depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "DCR":
        x = torch.unflatten(x, 1, (blocksize**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, blocksize)


@operator("SpaceToDepth")
def _space_to_depth(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    y = F.pixel_unshuffle(x, blocksize)
    return torch.unflatten(y, 1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2) if mode == "DCR" else y


@operator("GridSample")
def _grid_sample(
    x: Tensor, grid: Tensor, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, mode, padding_mode, bool(align_corners))


# Resizing.


@operator("Upsample", "Resize", host=(1,))
def _upsample(x: Tensor, scales: Any, mode: str = "nearest") -> Any:
    return _resize(x, scales=scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@operator("Resize", since=11, host=(1, 2, 3))
def _resize(
    x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, axes: Any = None,
    coordinate_transformation_mode: str = "half_pixel", keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor", **cubic: Any
) -> Tensor:  # fmt: skip
    places = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
    lengths = [x.shape[axis] for axis in places]
    if sizes:
        new, scales = sizes, [size / length for size, length in zip(sizes, lengths, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            scales = [(min if keep_aspect_ratio_policy == "not_larger" else max)(scales)] * len(scales)
            new = [floor(length * scale + 0.5) for length, scale in zip(lengths, scales, strict=True)]
    else:
        new = [floor(length * scale) for length, scale in zip(lengths, scales, strict=True)]
    every = zip(places, lengths, new, scales, strict=True)
    changed = [(axis, size, scale) for axis, length, size, scale in every if size != length or scale != 1]
    if not cubic and (quick := _interpolation(x, changed, mode, coordinate_transformation_mode, nearest_mode)):
        size = list(x.shape[2:])
        for axis, length, _ in changed:
            size[axis - 2] = length
        return F.interpolate(x, size, **quick)
    for axis, size, scale in changed:
        at = _coordinates(x, axis, size, scale, coordinate_transformation_mode)
        if mode == "nearest":
            index = {"floor": at.floor, "ceil": at.ceil}.get(nearest_mode, (at - 0.5).ceil)()
            index = (at + 0.5).floor() if nearest_mode == "round_prefer_ceil" else index
            x = x.index_select(axis, index.long().clamp(0, x.shape[axis] - 1))
        else:
            x = _weighted(x, axis, at, scale, mode, **cubic)
    return x


def _interpolation(
    x: Tensor, changed: Sequence[tuple[int, int, float]], mode: str, coordinates: str, nearest: str
) -> dict[str, Any]:
    """Return the arguments with which `F.interpolate` does the same, or none."""
    corners = coordinates == "align_corners"
    exact = all(size == x.shape[axis] * scale for axis, size, scale in changed)
    half = exact and coordinates.endswith("half_pixel") and all(size > 1 for _, size, _ in changed)
    if x.dim() != 4 or min(axis for axis, *_ in changed) < 2:
        return {}
    if mode == "nearest":
        whole = exact and all(scale == floor(scale) for *_, scale in changed)
        same = (coordinates, nearest) == ("asymmetric", "floor") or (half and nearest.startswith("round"))
        return {"mode": "nearest"} if whole and same else {}
    return {"mode": f"bi{mode}", "align_corners": corners} if corners or half else {}


def _coordinates(x: Tensor, axis: int, size: int, scale: float, mode: str) -> Tensor:
    """Return where along an axis each of its `size` new elements lies, float32."""
    length, places = x.shape[axis], torch.arange(size, dtype=torch.float32, device=x.device)
    if mode == "asymmetric":
        return places / scale
    if mode == "align_corners":
        return places * ((length - 1) / max(size - 1, 1))
    if mode == "pytorch_half_pixel" and size == 1:
        return places * 0
    if not mode.startswith(("half_pixel", "pytorch_half_pixel")):
        raise NotImplementedError(mode)
    shift = length / 2 * (1 - size / (scale * length)) if mode == "half_pixel_symmetric" else 0
    return (places + 0.5) / scale - 0.5 + shift


def _weighted(
    x: Tensor, axis: int, at: Tensor, scale: float, mode: str, antialias: int = 0, cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0
) -> Tensor:  # fmt: skip
    """Resize an axis: each new element is a weighted sum of those near to `at`."""
    length, shrink = x.shape[axis], min(1.0, scale) if antialias else 1.0
    radius = (1 if mode == "linear" else 2) / shrink
    places = (at - radius).floor()[:, None] + torch.arange(1, 2 * ceil(radius) + 1, device=x.device)
    away = (places - at[:, None]).abs() * shrink
    weights = (1 - away).clamp(0)
    if mode == "cubic":
        a = cubic_coeff_a
        far = torch.where(away < 2, ((a * away - 5 * a) * away + 8 * a) * away - 4 * a, 0)
        weights = torch.where(away <= 1, ((a + 2) * away - (a + 3)) * away * away + 1, far)
    if exclude_outside:
        weights = torch.where((places < 0) | (places >= length), 0, weights)
    weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype)
    index, shape = places.long().clamp(0, length - 1), [-1] + [1] * (x.dim() - 1 - axis)
    return sum(  # type: ignore[return-value]
        x.index_select(axis, index[:, tap]) * weights[:, tap].reshape(shape) for tap in range(index.shape[1])
    )


def _gates(w: Tensor, order: Ints) -> Tensor:
    return torch.cat([w.chunk(len(order))[gate] for gate in order])


@operator("LSTM", many=True)
def _lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None, p: Any = None,
    hidden_size: int = 0, direction: str = "forward", outputs: int = 1
) -> tuple[Tensor, ...]:  # fmt: skip
    if not (lengths is p is None and direction in ("forward", "bidirectional")):
        raise NotImplementedError("lengths, peepholes or direction")
    order, flat = (0, 2, 3, 1), []  # ONNX: input, output, forget, cell; torch: input, forget, cell, output
    for k in range(len(w)):
        flat += [_gates(w[k], order), _gates(r[k], order)]
        flat += [_gates(half, order) for half in b[k].chunk(2)] if b is not None else []
    zeros = x.new_zeros(len(w), x.shape[1], r.shape[2])
    state = [zeros if h is None else h, zeros if c is None else c]
    y, *last = torch.lstm(x, state, flat, b is not None, 1, 0.0, False, len(w) == 2, False)
    return (torch.unflatten(y, 2, (len(w), -1)).transpose(1, 2), *last)[:outputs]
