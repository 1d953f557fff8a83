"""RoI pooling and RoI align: the part of a feature map under each region, as a grid of fixed size.

Both are operators of ``torch.library`` with a fake and an autograd formula. On the CPU compiled kernels work channels
last: features in channels_last strides are read as they are (others are copied once), results come in channels_last
strides, so ``pooled.permute(0, 2, 3, 1).flatten(1)`` costs nothing before a fully connected layer. On other devices
torchvision does the work. Results equal torchvision's (pooling exactly, align to rounding); the gradient's sums have a
fixed order, whatever the number of threads. Regions get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.ops.compiled import run_chunks, thread_count
from detkit.ops.inputs import float_array

_THREADED = 1 << 18  # numbers in the result above which starting threads costs less than it saves


def roi_pool(
    features: Tensor, rois: Tensor | Sequence[Tensor], size: int | tuple[int, int], scale: float = 1.0
) -> Tensor:
    """The maximum of the features in each of h x w bins of each region (Girshick 2015, section 2.1).

    features (B, C, H, W); rois: (R, 5) batch index and xyxy, or one (R_i, 4) tensor an image; size: h, w, or one
    number for both; scale: cells a pixel of the regions. Returns (R, C, h, w) in channels_last strides, float64 for
    float64, else float32. Bins take whole cells, as torchvision.ops.roi_pool. Wrong types are a TypeError; wrong shapes
    or an index of no image a ValueError.
    """
    features, table, high, wide = _checked(features, rois, size)
    return _pool(features, table, high, wide, float(scale))


def roi_align(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    size: int | tuple[int, int],
    scale: float = 1.0,
    sampling: int = 0,
    aligned: bool = True,
) -> Tensor:
    """The mean of bilinear samples of the features in each of h x w bins of each region (He et al. 2017, section 3).

    sampling: samples along a bin's side, 0 for about one a cell; aligned: cell centres lie at half numbers, as they
    should (torchvision.ops.roi_align has False as its default). The rest as in ``roi_pool``.
    """
    features, table, high, wide = _checked(features, rois, size)
    return _align(features, table, high, wide, float(scale), max(int(sampling), 0), bool(aligned))


def roi_table(rois: Sequence[Tensor]) -> Tensor:
    """One (R_i, 4) tensor of boxes an image as (R, 5), batch index and xyxy."""
    parts = [torch.cat((boxes.new_full((len(boxes), 1), i), boxes), dim=1) for i, boxes in enumerate(rois)]
    return torch.cat(parts) if parts else torch.zeros(0, 5)


def _checked(features: Tensor, rois: Any, size: Any) -> tuple[Tensor, Tensor, int, int]:
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a tensor, got {type(features).__name__}")
    features = float_array(features, "features")
    table = float_array(rois if isinstance(rois, Tensor) else roi_table(rois), "rois").to(features.dtype)
    if features.ndim != 4 or table.ndim != 2 or table.shape[1] != 5:
        shapes = tuple(features.shape), tuple(table.shape)
        raise ValueError(f"features must be (B, C, H, W) and rois (R, 5), got {shapes[0]} and {shapes[1]}")
    high, wide = (size, size) if isinstance(size, int) else size
    if high < 1 or wide < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return features, table, high, wide


@torch.library.custom_op("detkit::roi_align", mutates_args=(), device_types="cpu")
def _align(features: Tensor, rois: Tensor, high: int, wide: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    from detkit.ops.roi_kernels import align_forward

    values, regions, pooled = _last(features), _regions(rois, features), _empty(features, rois, high, wide)
    arrays = values.numpy(), regions, scale, sampling, aligned, pooled.numpy()
    run_chunks(lambda start, stop: align_forward(*arrays, start, stop), len(regions), _threads(pooled, len(regions)))
    return pooled.permute(0, 3, 1, 2)


@torch.library.custom_op("detkit::roi_align_backward", mutates_args=(), device_types="cpu")
def _align_backward(
    gradient: Tensor, rois: Tensor, shape: Sequence[int], scale: float, sampling: int, aligned: bool
) -> Tensor:
    from detkit.ops.roi_kernels import align_backward

    batch, channels, height, width = shape
    given, out = _last(gradient), gradient.new_zeros((batch, height, width, channels))
    arrays = given.numpy(), _contiguous(rois), scale, sampling, aligned, out.numpy()
    run_chunks(lambda start, stop: align_backward(*arrays, start, stop), channels, _threads(given, channels // 16))
    return out.permute(0, 3, 1, 2)


@torch.library.custom_op("detkit::roi_pool", mutates_args=(), device_types="cpu")
def _pool(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> Tensor:
    from detkit.ops.roi_kernels import pool_forward

    values, regions, pooled = _last(features), _regions(rois, features), _empty(features, rois, high, wide)
    arrays = values.numpy(), regions, scale, pooled.numpy()
    run_chunks(lambda start, stop: pool_forward(*arrays, start, stop), len(regions), _threads(pooled, len(regions)))
    return pooled.permute(0, 3, 1, 2)


@torch.library.custom_op("detkit::roi_pool_backward", mutates_args=(), device_types="cpu")
def _pool_backward(gradient: Tensor, rois: Tensor, features: Tensor, scale: float) -> Tensor:
    from detkit.ops.roi_kernels import pool_backward

    given, values = _last(gradient), _last(features)
    out = torch.zeros_like(values)
    arrays = given.numpy(), _contiguous(rois), scale, values.numpy(), out.numpy()
    channels = values.shape[-1]
    run_chunks(lambda start, stop: pool_backward(*arrays, start, stop), channels, _threads(given, channels // 16))
    return out.permute(0, 3, 1, 2)


@_align.register_kernel("cuda")
def _(features: Tensor, rois: Tensor, high: int, wide: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    import torchvision  # noqa: F401  (registers its operators)

    pooled = torch.ops.torchvision.roi_align(features, rois, scale, high, wide, sampling or -1, aligned)
    return pooled.contiguous(memory_format=torch.channels_last)


@_align_backward.register_kernel("cuda")
def _(gradient: Tensor, rois: Tensor, shape: Sequence[int], scale: float, sampling: int, aligned: bool) -> Tensor:
    high, wide = gradient.shape[-2:]
    out = torch.ops.torchvision._roi_align_backward(gradient, rois, scale, high, wide, *shape, sampling or -1, aligned)
    return out.contiguous(memory_format=torch.channels_last)


@_pool.register_kernel("cuda")
def _(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> Tensor:
    import torchvision  # noqa: F401

    pooled = torch.ops.torchvision.roi_pool(features, rois, scale, high, wide)[0]
    return pooled.contiguous(memory_format=torch.channels_last)


@_pool_backward.register_kernel("cuda")
def _(gradient: Tensor, rois: Tensor, features: Tensor, scale: float) -> Tensor:
    high, wide = gradient.shape[-2:]
    places = torch.ops.torchvision.roi_pool(features, rois, scale, high, wide)[1]
    out = torch.ops.torchvision._roi_pool_backward(gradient, rois, places, scale, high, wide, *features.shape)
    return out.contiguous(memory_format=torch.channels_last)


@_align.register_fake
def _(features: Tensor, rois: Tensor, high: int, wide: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    return _empty(features, rois, high, wide).permute(0, 3, 1, 2)


@_align_backward.register_fake
def _(gradient: Tensor, rois: Tensor, shape: Sequence[int], scale: float, sampling: int, aligned: bool) -> Tensor:
    batch, channels, height, width = shape
    return gradient.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


@_pool.register_fake
def _(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> Tensor:
    return _empty(features, rois, high, wide).permute(0, 3, 1, 2)


@_pool_backward.register_fake
def _(gradient: Tensor, rois: Tensor, features: Tensor, scale: float) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _keep_align(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, _, *ctx.options = inputs
    ctx.shape = features.shape
    ctx.save_for_backward(rois)


def _align_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    return _align_backward(gradient, rois, ctx.shape, *ctx.options), None, None, None, None, None, None


def _keep_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, _, ctx.scale = inputs
    ctx.save_for_backward(features, rois)


def _pool_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    features, rois = ctx.saved_tensors
    return _pool_backward(gradient, rois, features, ctx.scale), None, None, None, None


_align.register_autograd(_align_gradient, setup_context=_keep_align)
_pool.register_autograd(_pool_gradient, setup_context=_keep_pool)


def _last(features: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous: a view where the strides are channels_last."""
    return features.detach().permute(0, 2, 3, 1).contiguous()


def _contiguous(rois: Tensor) -> np.ndarray:
    array: np.ndarray = rois.detach().contiguous().numpy()
    return array


def _regions(rois: Tensor, features: Tensor) -> np.ndarray:
    regions = _contiguous(rois)
    image = regions[:, 0]
    if not ((image >= 0) & (image < len(features))).all():
        raise ValueError(f"rois name images outside a batch of {len(features)}")
    return regions


def _empty(features: Tensor, rois: Tensor, high: int, wide: int) -> Tensor:
    return features.new_empty((len(rois), high, wide, features.shape[1]))


def _threads(work: Tensor, parts: int) -> int:
    return max(1, min(thread_count(), parts)) if work.numel() > _THREADED else 1
