"""RoI pooling and align: equal to torchvision, gradients checked, layouts and wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from detkit.ops import roi as ops
from detkit.ops.roi import roi_align, roi_pool, roi_table


def regions(count: int, size: float, images: int = 2, seed: int = 0) -> Tensor:
    """Boxes around and beyond an image of ``size`` pixels, some without area or upside down."""
    generator = torch.Generator().manual_seed(seed)
    centre = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * size
    half = torch.exp(torch.randn(count, 2, generator=generator)) * size / 10
    rois = torch.cat((torch.zeros(count, 1), centre - half, centre + half), dim=1)
    rois[:, 0] = torch.arange(count) % images
    rois[0, 3:] = rois[0, 1:3]
    rois[1, 1:] = torch.tensor([-90.0, -90, -50, -50])
    rois[2, 1:] = torch.tensor([0.0, 0, size, size])
    rois[3, 1:] = torch.tensor([30.0, 30, 10, 5])
    rois[4, 1:] = torch.tensor([8.0, 8, 24, 40])  # on bin edges
    rois[5, 1:] = torch.tensor([-4.0, -12, 4, 12])  # halves, which round() takes away from zero
    return rois


def features(channels: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, 13, 17, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "scale"), [(7, 1 / 8), ((3, 5), 0.07), (1, 1 / 8)])
def test_pool_equals_torchvision_exactly(size: Any, scale: float, dtype: torch.dtype) -> None:
    x, rois = features(dtype=dtype), regions(60, 130).to(dtype)
    found, wanted = roi_pool(x, rois, size, scale), torchvision.ops.roi_pool(x, rois, size, scale)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [2, 0, 3])
@pytest.mark.parametrize(("size", "scale"), [(7, 1 / 8), ((3, 5), 0.07), (1, 1.0)])
def test_align_equals_torchvision(size: Any, scale: float, sampling: int, aligned: bool) -> None:
    x, rois = features(), regions(60, 130)
    found = roi_align(x, rois, size, scale, sampling, aligned)
    wanted = torchvision.ops.roi_align(x, rois, size, scale, sampling or -1, aligned)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
@pytest.mark.parametrize("channels", [7, 40])
def test_the_gradient_equals_torchvisions(name: str, channels: int) -> None:
    rois, found, wanted = regions(60, 130), features(channels).requires_grad_(), features(channels).requires_grad_()
    weight = torch.randn(60, channels, 7, 7)
    (getattr(ops, name)(found, rois, 7, 1 / 8) * weight).sum().backward()
    more = {"aligned": True} if name == "roi_align" else {}
    (getattr(torchvision.ops, name)(wanted, rois, 7, 1 / 8, **more) * weight).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampling", [2, 0])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradcheck_of_align(sampling: int, aligned: bool) -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = regions(8, 40).double()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 3, 1 / 8, sampling, aligned), (x,))


def test_gradcheck_of_pool() -> None:
    x = torch.randperm(2 * 3 * 5 * 6).double().view(2, 3, 5, 6).requires_grad_()  # no ties
    rois = regions(8, 40).double()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, 3, 1 / 8), (x,))


def test_of_equal_maxima_the_first_gets_the_gradient() -> None:
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    roi_pool(x, torch.tensor([[0.0, 0, 0, 1, 1]]), 1).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 0, 0, 0]


def test_operators_are_sound() -> None:
    """Fake, autograd and schema agree with what the kernels do."""
    x, rois = features(4, torch.float64).requires_grad_(), regions(8, 130).double()
    torch.library.opcheck(torch.ops.detkit.roi_align.default, (x, rois, 2, 3, 0.125, 2, True))
    torch.library.opcheck(torch.ops.detkit.roi_pool.default, (x, rois, 2, 3, 0.125))


@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_channels_last_in_and_out_changes_nothing_and_copies_nothing(name: str) -> None:
    op, x, rois = getattr(ops, name), features(), regions(20, 130)
    plain, last = op(x, rois, 7, 1 / 8), op(x.contiguous(memory_format=torch.channels_last), rois, 7, 1 / 8)
    assert torch.equal(plain, last)
    for result in (plain, last):
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert result.permute(0, 2, 3, 1).flatten(1).data_ptr() == result.data_ptr()


@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_threads_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rois = regions(100, 130)
    results = []
    monkeypatch.setattr(ops, "_THREADED", 0)
    for threads in (1, 3):
        monkeypatch.setattr(ops, "thread_count", lambda threads=threads: threads)
        x = features(50).requires_grad_()
        pooled = getattr(ops, name)(x, rois, 7, 1 / 8)
        pooled.square().sum().backward()
        results.append((pooled.detach(), x.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_nothing_in_nothing_out(name: str) -> None:
    op, x = getattr(ops, name), features().requires_grad_()
    assert op(x, torch.zeros(0, 5), 7).shape == (0, 7, 7, 7)
    pooled = op(x, [torch.zeros(0, 4), torch.zeros(0, 4)], 7)
    pooled.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_broken_regions_do_no_harm(value: float) -> None:
    x, rois = features().requires_grad_(), regions(8, 130)
    rois[6, 2:] = value
    rois[7, 1:3] = value
    for sampling in (0, 2):
        roi_align(x, rois, 7, 1 / 8, sampling)[:6].sum().backward()
    roi_pool(x, rois, 7, 1 / 8)[:6].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", [roi_align, roi_pool])
def test_half_precision_is_computed_in_float32_and_comes_back(op: Any, dtype: torch.dtype) -> None:
    x, rois = features().to(dtype).requires_grad_(), regions(8, 130)
    found = op(x, rois, 7, 1 / 8)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, op(x.float(), rois, 7, 1 / 8).to(dtype))
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_quantised_features_and_regions_are_the_numbers_that_they_stand_for() -> None:
    x, rois = torch.quantize_per_tensor(features(), 0.1, 0, torch.qint8), regions(8, 130)[:, 1:]
    boxes = torch.quantize_per_tensor(rois, 1.0, 0, torch.qint32)
    found = roi_align(x, [boxes, boxes], 3, 1 / 8)
    assert torch.equal(found, roi_align(x.dequantize(), [boxes.dequantize()] * 2, 3, 1 / 8))


class Pooling(torch.nn.Module):
    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        return roi_align(x, rois, 3, 1 / 8, aligned=False) + roi_pool(x, [rois[:, 1:], rois[:, 1:]], size=3)[:8]


def test_fx_and_export_see_one_operation_each() -> None:
    x, rois = features(), regions(8, 130)
    wanted = Pooling()(x, rois)
    traced = torch.fx.symbolic_trace(Pooling())
    assert {roi_align, roi_pool} <= {node.target for node in traced.graph.nodes}
    assert torch.equal(traced(x, rois), wanted)
    exported = torch.export.export(Pooling(), (x, rois))
    assert "detkit.roi_align" in str(exported.graph)
    assert torch.equal(exported.module()(x, rois), wanted)


def test_a_list_of_boxes_a_image() -> None:
    rois = regions(8, 130)
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    assert torch.equal(roi_table(boxes)[:, 0], torch.tensor([0.0] * 4 + [1] * 4))
    assert torch.equal(roi_align(features(), boxes, 3, 0.125), roi_align(features(), roi_table(boxes), 3, 0.125))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(([1.0], torch.zeros(1, 5), 7), TypeError, id="features are no tensor"),
        pytest.param((torch.zeros(1, 2, 4, 4, dtype=torch.bool), torch.zeros(1, 5), 7), TypeError, id="bool"),
        pytest.param((torch.zeros(2, 4, 4), torch.zeros(1, 5), 7), ValueError, id="no batch"),
        pytest.param((torch.zeros(1, 2, 4, 4), torch.zeros(1, 4), 7), ValueError, id="no batch index"),
        pytest.param((torch.zeros(1, 2, 4, 4), torch.zeros(1, 5), 0), ValueError, id="no cells"),
        pytest.param((torch.zeros(1, 2, 4, 4), torch.ones(1, 5), 7), ValueError, id="an image that is not there"),
        pytest.param((torch.zeros(1, 2, 4, 4), -torch.ones(1, 5), 7), ValueError, id="an image before the first"),
        pytest.param((torch.zeros(1, 2, 4, 4), torch.full((1, 5), torch.nan), 7), ValueError, id="image NaN"),
    ],
)
def test_wrong_input(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    for op in (roi_pool, roi_align):
        with pytest.raises(error):
            op(*arguments)
