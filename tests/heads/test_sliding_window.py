"""The sliding window: one convolutional pass equals cropping every window; windows, labels and scores by hand."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.backbones import BACKBONES
from detkit.backbones.base import he_init
from detkit.errors import DetkitError
from detkit.heads.dense import gather_objects
from detkit.heads.sliding_window import SlidingWindow, convolutionalize
from detkit.structures import Limits, Target


def crops_of(image: Tensor, size: int, stride: int) -> Tensor:
    """(h, w, 3, size, size): every window of an image (1, 3, H, W)."""
    return image[0].unfold(1, size, stride).unfold(2, size, stride).permute(1, 2, 0, 3, 4)


def textbook() -> nn.Sequential:
    """5 x 5 convolution to 16 channels, pooling, fully connected 400 and 400, softmax over 4, for 14 x 14 pixels."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    layers = [nn.Flatten(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4)]
    net = nn.Sequential(features, *layers, nn.Softmax(dim=-1))
    he_init(net)
    return net.eval()


@pytest.mark.parametrize(("size", "windows"), [(14, 1), (16, 2), (28, 8)])
@torch.no_grad()
def test_the_textbooks_map_holds_the_scores_of_all_crops(size: int, windows: int) -> None:
    net, image = textbook(), torch.randn(1, 3, size, size)
    scores = convolutionalize(net, 14)(image)
    assert scores.shape == (1, 4, windows, windows)
    crops = crops_of(image, 14, 2)
    assert crops.shape[:2] == (windows, windows)
    wanted = net(crops.flatten(0, 1)).unflatten(0, (windows, windows)).permute(2, 0, 1)
    torch.testing.assert_close(scores[0], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, windows, windows))


def test_a_fully_connected_layer_is_as_many_filters() -> None:
    """400 filters of 5 x 5 x 16: 160,400 parameters both ways, the same numbers in memory."""
    net = textbook()
    made = convolutionalize(net, 14)
    first = next(m for m in made if isinstance(m, nn.Conv2d) and m.out_channels == 400)
    assert first.weight.shape == (400, 16, 5, 5)
    assert sum(p.numel() for p in first.parameters()) == sum(p.numel() for p in net[2].parameters()) == 160_400
    assert first.weight.data_ptr() == net[2].weight.data_ptr()
    assert [m.kernel_size for m in made if isinstance(m, nn.Conv2d)] == [(5, 5), (5, 5), (1, 1), (1, 1)]


def classifier(name: str, classes: int = 3) -> nn.Module:
    module, attribute = BACKBONES[name].split(":")
    torch.manual_seed(0)
    return getattr(importlib.import_module(module), attribute)(classes).eval()


@torch.no_grad()
def test_lenet_without_padding_equals_its_crops() -> None:
    net, image = classifier("lenet5"), torch.randn(1, 3, 44, 40)
    scores = convolutionalize(net)(image)
    assert scores.shape == (1, 3, 4, 3)
    wanted = net(crops_of(image, 32, 4).flatten(0, 1)).unflatten(0, (4, 3)).permute(2, 0, 1)
    torch.testing.assert_close(scores[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "stride"), [("alexnet", 224, 32), ("vgg11", 224, 32), ("resnet18", 64, 32), ("googlenet", 64, 32)]
)
def test_networks_of_the_table(name: str, size: int, stride: int) -> None:
    with torch.device("meta"):
        made = convolutionalize(classifier(name), size)
        assert made(torch.zeros(1, 3, size, size)).shape == (1, 3, 1, 1)
        assert made(torch.zeros(2, 3, size + 2 * stride, size + stride)).shape == (2, 3, 3, 2)


@torch.no_grad()
def test_of_one_window_the_scores_are_the_classifiers() -> None:
    net, image = classifier("resnet18"), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(convolutionalize(net, 64)(image)[..., 0, 0], net(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)), None, "size"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)), 9, "Linear does not take"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4)), 4, "BatchNorm1d"),
        (nn.Sequential(nn.Linear(4, 4)), 4, "Linear"),
        (nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2)), 4, "AdaptiveMaxPool2d"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 2)), 4, "pools to 3 x 3"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), 8, "leaves 6 x 6"),
    ],
)
def test_what_has_no_convolution_is_told(model: nn.Module, size: int | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        convolutionalize(model, size)


def test_distances_to_codes_are_no_convolution() -> None:
    with pytest.raises(ValueError, match="RadialBasis"):
        convolutionalize(classifier("lenet5_1998", 10))
    with pytest.raises(TypeError, match="Linear"):
        convolutionalize(nn.Linear(3, 3))


def head(strides: tuple[int, ...] = (8,), classes: int = 3, **changes: Any) -> SlidingWindow:
    torch.manual_seed(0)
    return SlidingWindow([4] * len(strides), list(strides), classes, **{"cells": 2, "width": 8, **changes})


def maps(*sides: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 4, side, side, generator=generator) for side in sides]


def target(*rows: tuple[float, ...]) -> Target:
    table = torch.tensor(rows).reshape(len(rows), 5)
    return Target(table[:, :4], table[:, 4].long())


def test_windows_lie_where_the_cells_are() -> None:
    sliding = head((8, 16))
    raw = sliding.raw(maps(4, 2))
    assert raw["grid"].tolist() == [[3, 3], [1, 1]]
    boxes = sliding.priors(raw).boxes.tolist()
    assert boxes[0] == [0, 0, 16, 16]
    assert boxes[1] == [8, 0, 24, 16]
    assert boxes[8] == [16, 16, 32, 32]
    assert boxes[9] == [0, 0, 32, 32]


def test_the_backbones_poolings_make_larger_steps() -> None:
    trunk = nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5), nn.ReLU())
    sliding = head(trunk=trunk, layers="backbone", cells=6)
    raw = sliding.raw(maps(10))
    assert sliding.step == 2
    assert sliding.priors(raw).boxes[:2].tolist() == [[0, 0, 48, 48], [16, 0, 64, 48]]
    assert sliding.backbone_trunk is sliding.trunk
    by_three = nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(36, 5))  # of 11 cells, 2 are left over
    assert head(trunk=by_three, layers="backbone", cells=11).step == 3
    with pytest.raises(ValueError, match="pools to 3 x 3"):
        head(trunk=trunk, layers="backbone", cells=4)
    with pytest.raises(DetkitError, match="no trunk"):
        head(layers="backbone")


def test_of_an_unpadded_network_the_window_is_wider_than_its_cells() -> None:
    sliding = head((2,), cells=10, span=16)
    assert sliding.priors(sliding.raw(maps(11))).boxes[:2].tolist() == [[0, 0, 32, 32], [2, 0, 34, 32]]


def test_scores_are_a_softmax_with_background() -> None:
    sliding = head()
    feature = maps(4)
    raw = sliding.raw(feature)
    logits = sliding.layers[0](sliding.trunk(feature[0]))[:, 4:].flatten(2).transpose(1, 2)
    torch.testing.assert_close(sliding.scores(raw), logits.softmax(-1)[..., :-1])
    assert (sliding.scores(raw).sum(-1) - 0.01).abs().max() < 1e-3  # before training


def test_the_loss_is_the_cross_entropy_over_classes_and_background() -> None:
    sliding = head(boxes=False)
    raw = sliding.raw(maps(4))
    shown = target((8, 0, 24, 16, 2))  # window 1; its neighbours overlap it by a third or less
    losses = sliding.loss(raw, [shown], torch.tensor([[32, 32]]))
    assert set(losses) == {"objectness", "classes"}
    labels = torch.full((9,), 3)
    labels[1] = 2
    logits = torch.cat((raw["classes"][0], (raw["classes"].logsumexp(-1) - raw["objectness"])[0, :, None]), dim=1)
    wanted = nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(losses["objectness"].sum + losses["classes"].sum, wanted)


def test_windows_are_labelled_by_what_they_overlap() -> None:
    sliding = head()
    raw = sliding.raw(maps(4))
    objects = gather_objects([target((10, 0, 26, 16, 0))], "cpu")  # 7/9 of window 1, a third of window 2
    found = sliding.assign(sliding.priors(raw), objects, raw)
    assert found.positive.tolist() == [[0, 1, 0]]
    near = gather_objects([target((12, 0, 28, 16, 0))], "cpu")  # 0.6 of windows 1 and 2
    assert sliding.assign(sliding.priors(raw), near, raw).positive[:, 1].tolist() == [1, 2]
    tiny = gather_objects([target((1, 1, 3, 3, 0))], "cpu")
    assert sliding.assign(sliding.priors(raw), tiny, raw).positive.tolist() == [[0, 0, 0]]
    strict = head(best=False)
    assert not len(strict.assign(strict.priors(raw), tiny, raw).positive)


def test_a_map_smaller_than_a_window_gives_nothing() -> None:
    sliding, sizes = head((8, 16)), torch.tensor([[32, 32]])
    some = sliding.raw(maps(4, 1))
    assert some["grid"].tolist() == [[3, 3], [0, 0]]
    assert len(sliding.predict(some, sizes, Limits(conf=0.0))[0])
    none = sliding.raw(maps(1, 1))
    assert [len(found) for found in sliding.predict(none, sizes, Limits(conf=0.0))] == [0]
    with pytest.raises(DetkitError, match="no window fits"):
        sliding.loss(none, [target()], sizes)


@pytest.mark.parametrize("keys", [{"cells": 0}, {"width": 0}, {"span": 0}, {"positive": 2}, {"negative": -1}])
def test_impossible_arguments(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        head(**keys)
    with pytest.raises(ValueError, match="channels"):
        SlidingWindow([4, 8], [8, 16], 3)
