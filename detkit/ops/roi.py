"""RoI pooling and RoI align: the part of a feature map under each region, as a grid of fixed size.

Both are operators of ``torch.library`` with a fake and an autograd formula. On the CPU compiled kernels work channels
last: features in channels_last strides are read as they are (others are copied once), results come in channels_last
strides, so ``pooled.permute(0, 2, 3, 1).flatten(1)`` costs nothing before a fully connected layer. On other devices
torchvision does the work. Results equal torchvision's (pooling exactly, align to rounding); the gradient's sums have a
fixed order, whatever the number of threads. Regions get no gradient. ``torch.fx`` sees each as one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from detkit.ops.compiled import run_chunks, thread_count
from detkit.ops.inputs import float_array

Kernel = Callable[..., None]

_THREADED = 1 << 18  # numbers in the result above which starting threads costs less than it saves


def roi_pool(
    features: Tensor, rois: Tensor | Sequence[Tensor], size: int | tuple[int, int], scale: float = 1.0
) -> Tensor:
    """The maximum of the features in each of h x w bins of each region (Girshick 2015, section 2.1).

    Bins take whole cells, as in ``torchvision.ops.roi_pool``.

    Args:
        features: (B, C, H, W).
        rois: (R, 5) batch index and xyxy, or one (R_i, 4) tensor per image.
        size: h, w, or one number for both.
        scale: Cells per pixel of the regions.

    Returns:
        (R, C, h, w) in channels_last strides, in the float type of the features, float32 for integers; half precision
        is computed in float32.

    Raises:
        TypeError: Not tensors of numbers.
        ValueError: Wrong shapes, or an index of no image.
    """
    if has_torch_function(given := _tensors(features, rois)):
        return handle_torch_function(roi_pool, given, features, rois, size, scale)
    values, table, high, wide = _checked(features, rois, size)
    pooled: Tensor = _pool(values, table, high, wide, float(scale))
    return _typed(pooled, features)


def roi_align(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    size: int | tuple[int, int],
    scale: float = 1.0,
    sampling: int = 0,
    aligned: bool = True,
) -> Tensor:
    """The mean of bilinear samples of the features in each of h x w bins of each region (He et al. 2017, section 3).

    Args:
        features: (B, C, H, W).
        rois: (R, 5) batch index and xyxy, or one (R_i, 4) tensor per image.
        size: h, w, or one number for both.
        scale: Cells per pixel of the regions.
        sampling: Samples along a bin's side, 0 for about one per cell.
        aligned: Cell centres lie at half numbers, as they should (``torchvision.ops.roi_align`` has False as its
            default).

    Returns:
        (R, C, h, w) in channels_last strides, in the float type of the features, float32 for integers; half precision
        is computed in float32.

    Raises:
        TypeError: Not tensors of numbers.
        ValueError: Wrong shapes, or an index of no image.
    """
    if has_torch_function(given := _tensors(features, rois)):
        options = (size, scale, sampling, aligned)
        return handle_torch_function(roi_align, given, features, rois, *options)
    values, table, high, wide = _checked(features, rois, size)
    pooled: Tensor = _align(values, table, high, wide, float(scale), max(int(sampling), 0), bool(aligned))
    return _typed(pooled, features)


def _tensors(features: Tensor, rois: Tensor | Sequence[Tensor]) -> tuple[object, ...]:
    """What may be more than a tensor: a proxy of ``torch.fx``, a subclass."""
    return (features, *rois) if isinstance(rois, (list, tuple)) else (features, rois)


def _typed(pooled: Tensor, features: Tensor) -> Tensor:
    return pooled.to(features.dtype) if features.is_floating_point() else pooled


def roi_table(rois: Sequence[Tensor]) -> Tensor:
    """One (R_i, 4) tensor of boxes per image as (R, 5), batch index and xyxy."""
    plain = [float_array(boxes, "rois") for boxes in rois]
    parts = [torch.cat((boxes.new_full((len(boxes), 1), i), boxes), dim=1) for i, boxes in enumerate(plain)]
    return torch.cat(parts) if parts else torch.zeros(0, 5)


def _checked(
    features: Tensor, rois: Tensor | Sequence[Tensor], size: int | tuple[int, int]
) -> tuple[Tensor, Tensor, int, int]:
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
    from detkit.ops.roi_kernels import align

    return _forward(align, features, rois, high, wide, (scale, sampling, aligned))


@torch.library.custom_op("detkit::roi_align_backward", mutates_args=(), device_types="cpu")
def _align_backward(
    gradient: Tensor, rois: Tensor, features: Tensor, scale: float, sampling: int, aligned: bool
) -> Tensor:
    from detkit.ops.roi_kernels import align

    return _backward(align, gradient, rois, features, (scale, sampling, aligned))


@torch.library.custom_op("detkit::roi_pool", mutates_args=(), device_types="cpu")
def _pool(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> Tensor:
    from detkit.ops.roi_kernels import pool

    return _forward(pool, features, rois, high, wide, (scale,))


@torch.library.custom_op("detkit::roi_pool_backward", mutates_args=(), device_types="cpu")
def _pool_backward(gradient: Tensor, rois: Tensor, features: Tensor, scale: float) -> Tensor:
    from detkit.ops.roi_kernels import pool

    return _backward(pool, gradient, rois, features, (scale,))


def _forward(kernel: Kernel, features: Tensor, rois: Tensor, high: int, wide: int, options: Sequence[float]) -> Tensor:
    image = rois[:, 0]
    if not ((image >= 0) & (image < len(features))).all():
        raise ValueError(f"rois name images outside a batch of {len(features)}")
    pooled = features.new_empty((len(rois), high, wide, features.shape[1]))
    _in_threads(kernel, (_last(features), rois, pooled, pooled), False, options)
    return pooled.permute(0, 3, 1, 2)


def _backward(kernel: Kernel, gradient: Tensor, rois: Tensor, features: Tensor, options: Sequence[float]) -> Tensor:
    values = _last(features)
    out = torch.zeros_like(values)
    _in_threads(kernel, (values, rois, _last(gradient), out), True, options)
    return out.permute(0, 3, 1, 2)


def _in_threads(kernel: Kernel, tensors: Sequence[Tensor], backward: bool, options: Sequence[float]) -> None:
    """Calls a kernel on parts of the regions, or backward of the channels, so that no two write the same number."""
    arrays = tuple(tensor.detach().contiguous().numpy() for tensor in tensors)
    count = arrays[0].shape[3] if backward else len(arrays[1])
    threads = max(1, min(thread_count(), count // 16 if backward else count)) if arrays[2].size > _THREADED else 1
    run_chunks(lambda start, stop: kernel(arrays, backward, start, stop, options), count, threads)


@_align.register_kernel("cuda")
def _(features: Tensor, rois: Tensor, high: int, wide: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    return _channels_last(_torchvision().roi_align(features, rois, scale, high, wide, sampling or -1, aligned))


@_align_backward.register_kernel("cuda")
def _(gradient: Tensor, rois: Tensor, features: Tensor, scale: float, sampling: int, aligned: bool) -> Tensor:
    sizes = *gradient.shape[-2:], *features.shape
    return _channels_last(_torchvision()._roi_align_backward(gradient, rois, scale, *sizes, sampling or -1, aligned))


@_pool.register_kernel("cuda")
def _(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> Tensor:
    return _channels_last(_torchvision().roi_pool(features, rois, scale, high, wide)[0])


@_pool_backward.register_kernel("cuda")
def _(gradient: Tensor, rois: Tensor, features: Tensor, scale: float) -> Tensor:
    size = gradient.shape[-2:]
    places = _torchvision().roi_pool(features, rois, scale, *size)[1]
    return _channels_last(_torchvision()._roi_pool_backward(gradient, rois, places, scale, *size, *features.shape))


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _torchvision() -> Any:
    import torchvision  # noqa: F401  (registers its operators)

    return torch.ops.torchvision


def _fake(features: Tensor, rois: Tensor, high: int, wide: int, *options: float) -> Tensor:
    return features.new_empty((rois.shape[0], high, wide, features.shape[1])).permute(0, 3, 1, 2)


def _fake_backward(gradient: Tensor, rois: Tensor, features: Tensor, *options: float) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    features, rois, _, _, *ctx.options = inputs
    ctx.save_for_backward(rois, features)


def _align_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _align_backward(gradient, *ctx.saved_tensors, *ctx.options), None, None, None, None, None, None


def _pool_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _pool_backward(gradient, *ctx.saved_tensors, *ctx.options), None, None, None, None


_align.register_fake(_fake)
_align.register_autograd(_align_gradient, setup_context=_keep)
_align_backward.register_fake(_fake_backward)
_pool.register_fake(_fake)
_pool.register_autograd(_pool_gradient, setup_context=_keep)
_pool_backward.register_fake(_fake_backward)


def _last(features: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous: a view where the strides are channels_last."""
    return features.detach().permute(0, 2, 3, 1).contiguous()
