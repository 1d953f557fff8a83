"""What goes into an exported graph that torch has no operator for, and how detkit's own operators are said in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.exporting.engines import onnx_package
from detkit.ops import roi  # noqa: F401  (defines its operators)
from detkit.ops.suppression import batched_nms


def suppressed(boxes: Tensor, scores: Tensor, iou: float, floor: float) -> Tensor:
    """NMS within each class as an operator whose result has the shape of the scores.

    Args:
        boxes: (G, S, 4) xyxy.
        scores: (G, L, S), of L classes.
        iou: A box whose IoU with a better one of its class is above it is dropped.
        floor: A score that is not above it takes no part.

    Returns:
        (G, L, S): the scores, -1 where the box is dropped or takes no part.
    """
    kept: Tensor = _suppressed(boxes, scores, iou, floor)
    return kept


@torch.library.custom_op("detkit::suppressed", mutates_args=(), device_types="cpu")
def _suppressed(boxes: Tensor, scores: Tensor, iou: float, floor: float) -> Tensor:
    group, label, row = (scores > floor).nonzero(as_tuple=True)
    kept = batched_nms(boxes[group, row], scores[group, label, row], group * scores.shape[1] + label, iou)
    place = group[kept], label[kept], row[kept]
    return torch.full_like(scores, -1).index_put(place, scores[place])


@_suppressed.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, floor: float) -> Tensor:
    return torch.empty_like(scores)


def in_onnx() -> dict[Any, Callable[..., Any]]:
    """Of each of detkit's operators, and of one that torch writes otherwise, what writes it in ONNX."""
    op, types = onnx_package("onnxscript").opset18, onnx_package().TensorProto

    def nms(boxes: object, scores: object, iou: float, floor: float) -> object:
        limits = op.Constant(value_floats=[iou]), op.Constant(value_floats=[floor])
        kept = op.NonMaxSuppression(boxes, scores, op.Shape(boxes, start=1, end=2), *limits)
        nothing = op.Expand(op.Constant(value_float=-1.0), op.Shape(scores))
        return op.ScatterND(nothing, kept, op.GatherND(scores, kept))

    def align(maps: object, rois: object, high: int, wide: int, scale: float, sampling: int, aligned: bool) -> object:
        image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=types.INT64)
        boxes = op.Slice(rois, op.Constant(value_ints=[1]), op.Constant(value_ints=[5]), op.Constant(value_ints=[1]))
        return op.RoiAlign(
            maps,
            boxes,
            image,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=high,
            output_width=wide,
            sampling_ratio=sampling,
            spatial_scale=scale,
        )

    def pool(maps: object, rois: object, high: int, wide: int, scale: float) -> object:
        return op.MaxRoiPool(maps, rois, pooled_shape=[high, wide], spatial_scale=scale)

    def shares(maps: object, axis: int, scale: float) -> object:
        number, (half, one) = types.FLOAT, (op.Constant(value_float=value) for value in (0.5, 1.0))
        length = op.Cast(op.Squeeze(op.Shape(maps, start=axis, end=axis + 1)), to=number)
        # A whole number of pixels must not be rounded down by the last bit of the product.
        fewer = op.Floor(length * op.Constant(value_float=float(np.nextafter(np.float32(scale), np.float32(2)))))
        new = op.Range(half, fewer, one) * op.Constant(value_float=1 / scale)
        far = op.Abs(op.Range(half, length, one) - op.Unsqueeze(new, op.Constant(value_ints=[1])))
        near = op.Relu(one - far * op.Constant(value_float=scale))
        return near / op.ReduceSum(near, op.Constant(value_ints=[1]))

    def smaller(maps: object, size: object, corners: bool, high: float, wide: float) -> object:
        """Antialiased, as sums over rows and columns: torch's exporter writes Resize with a scale that comes from the
        rounded sizes, and OpenVINO's has no antialiasing."""
        return op.MatMul(op.MatMul(shares(maps, 2, high), maps), op.Transpose(shares(maps, 3, wide), perm=[1, 0]))

    known = torch.ops.detkit
    table: dict[Any, Callable[..., Any]] = {torch.ops.aten._upsample_bilinear2d_aa.default: smaller}
    return table | {known.suppressed.default: nms, known.roi_align.default: align, known.roi_pool.default: pool}
