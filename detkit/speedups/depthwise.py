"""Depthwise convolutions that train at the speed of the memory on a CPU.

oneDNN computes the gradient of a 5 x 5 depthwise filter several times slower than the convolution itself, and in
bfloat16 that of a strided layer's input 30 times slower: together a third of a step of MobileNet-like networks in
float32, most of it in bfloat16. Here the filter's gradient comes from a kernel of our own and the strided input's is
computed in float32; everything else stays torch's. Results agree with torch's to rounding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.ops.compiled import kernel, run_chunks, thread_count

_WIDE = 64  # channels from which on the kernel is faster than oneDNN


def speed_up_depthwise(model: nn.Module) -> None:
    """Gives the model's depthwise convolutions the faster backward pass; on other devices they are as before.

    Only what is computed backward changes: weights, names and files stay the same.

    Args:
        model: Changed in place.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_depthwise(module):
            # Not a function that knows the module: a copied one would still compute with the first.
            module._conv_forward = partial(_conv_forward, module)  # type: ignore[method-assign]


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.groups >= _WIDE
        and conv.kernel_size[0] > 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.bias is None
        and not isinstance(conv.padding, str)
    )


def _conv_forward(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type == "cpu" and weight.requires_grad and torch.is_grad_enabled():
        return _Depthwise.apply(x, weight, conv.stride, conv.padding)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            dtype = x.dtype if ctx.stride == (1, 1) else torch.float32
            tensors = [tensor.to(dtype) for tensor in (gradient, x, weight)]
            geometry = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight))
            to_x = torch.ops.aten.convolution_backward(*tensors, None, *geometry, (True, False, False))[0].to(x.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = filter_gradient(x, gradient, weight.shape[-2:], ctx.stride, ctx.padding)
        return to_x, to_weight, None, None


def filter_gradient(
    x: Tensor, gradient: Tensor, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient of a depthwise filter. Images are summed one by one, so that float32 suffices.

    Args:
        x: (B, C, H, W).
        gradient: (B, C, h, w), of the output.
        size: (kh, kw) of the filter.
        stride: Downwards and to the right, in cells.
        padding: Above and at the left, in cells.

    Returns:
        (C, 1, kh, kw) float32.
    """
    inputs, outputs = _cells(x), _cells(gradient)
    sums = np.zeros((len(inputs), *size, inputs.shape[3]), np.float32)

    def work(start: int, stop: int) -> None:
        for image in range(start, stop):
            _filter_sums(_widened(inputs[image]), _widened(outputs[image]), sums[image], *stride, *padding)

    run_chunks(work, len(inputs), min(thread_count(), len(inputs)))
    return torch.from_numpy(sums.sum(0)).permute(2, 0, 1).unsqueeze(1)


def _cells(maps: Tensor) -> np.ndarray:
    """(B, H, W, C) float32, or the bits of bfloat16, which numpy lacks."""
    maps = maps.detach().permute(0, 2, 3, 1).contiguous()
    return (maps.view(torch.uint16) if maps.dtype == torch.bfloat16 else maps.float()).numpy()


def _widened(cells: np.ndarray) -> np.ndarray:
    """As float32: bfloat16 is its upper half."""
    return cells if cells.dtype == np.float32 else (cells.astype(np.uint32) << 16).view(np.float32)


@kernel
def _filter_sums(
    x: np.ndarray, gradient: np.ndarray, sums: np.ndarray, down: int, right: int, pad_top: int, pad_left: int
) -> None:
    """Adds x (H, W, C) * gradient (h, w, C), moved by each place of the filter, into sums (kh, kw, C).

    Four neighbouring cells at a time: their products are added before the sum is loaded and stored. The innermost loop
    runs over channels, side by side.
    """
    height, width, channels = x.shape
    rows, columns = gradient.shape[:2]
    for row in range(rows):
        cells = gradient[row]
        for ky in range(sums.shape[0]):
            y = row * down + ky - pad_top
            if y < 0 or y >= height:
                continue
            line = x[y]
            for kx in range(sums.shape[1]):
                left = kx - pad_left
                column = max(0, -(left // right))
                end = min(columns, (width - 1 - left) // right + 1)
                total = sums[ky, kx]
                while column + 4 <= end:
                    at = column * right + left
                    a, b, c, d = line[at], line[at + right], line[at + 2 * right], line[at + 3 * right]
                    e, f, g, h = cells[column], cells[column + 1], cells[column + 2], cells[column + 3]
                    for i in range(channels):
                        total[i] += (a[i] * e[i] + b[i] * f[i]) + (c[i] * g[i] + d[i] * h[i])
                    column += 4
                while column < end:
                    a, e = line[column * right + left], cells[column]
                    for i in range(channels):
                        total[i] += a[i] * e[i]
                    column += 1
