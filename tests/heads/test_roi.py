"""The RoI head: labels and sampling by hand, losses against torchvision's, prediction, trunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss

from detkit.errors import DetkitError
from detkit.heads.roi import RoIHead
from detkit.heads.trunk import RegionPooling, compress_detector, level_of, split_layers, with_context
from detkit.ops.coder import encode_deltas
from detkit.structures import Limits, Target

SIZES = torch.tensor([[64, 64]])


def head(**changes: Any) -> RoIHead:
    torch.manual_seed(0)
    return RoIHead([8], [8], 3, **{"layers": "mlp", "width": 16, "size": 3, **changes})


def target(*rows: tuple[float, ...], **more: Any) -> Target:
    table = torch.tensor(rows).reshape(len(rows), 5)
    return Target(table[:, :4], table[:, 4].long(), **more)


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).reshape(len(rows), 4)


OBJECT = (10.0, 10.0, 30.0, 30.0, 1)
HALF = (10.0, 10.0, 30.0, 20.0)  # IoU 0.5
LESS = (10.0, 10.0, 30.0, 19.0)  # 0.45
FAR = (40.0, 40.0, 60.0, 60.0)


def test_the_losses_are_torchvisions() -> None:
    """On regions that show an object or background, labels in torchvision's order (background 0)."""
    roi, generator = head(beta=1 / 9), torch.Generator().manual_seed(0)
    proposals = [boxes(OBJECT[:4], HALF, LESS, FAR, (12.0, 9, 33, 31)), boxes(FAR, HALF)]
    targets = [target(OBJECT, (45, 45, 62, 62, 2)), target()]
    raw = roi.raw([torch.randn(2, 8, 8, 8, generator=generator)], proposals)
    losses = roi.loss(raw, targets, SIZES)

    labels = torch.tensor([2, 2, 0, 3, 2, 0, 0])
    labels[3] = 0  # FAR and the second object: IoU 225 / 464
    matched = boxes(OBJECT[:4], OBJECT[:4], FAR, FAR, OBJECT[:4], FAR, FAR)
    deltas = encode_deltas(matched, raw["rois"], (10.0, 10.0, 5.0, 5.0))
    logits = torch.cat((raw["classes"][:, -1:], raw["classes"][:, :-1]), dim=1)
    regression = torch.cat((torch.zeros(7, 4), raw["boxes"].flatten(1)), dim=1)
    wanted = fastrcnn_loss(logits, regression, [labels], [deltas])
    for name, value in zip(("classes", "boxes"), wanted, strict=True):
        torch.testing.assert_close(losses[name].sum / losses[name].count, value)


def test_crowds_and_difficult_objects_are_neither() -> None:
    regions = [boxes(OBJECT[:4], (12.0, 12, 14, 14), FAR)]
    for kind in ("crowd", "difficult"):
        roi = head()
        aside = target(OBJECT, **{kind: torch.tensor([True])})
        raw = roi.raw([torch.randn(1, 8, 8, 8)], regions)
        losses = roi.loss(raw, [aside], SIZES)
        # A crowd covers what lies inside it, a difficult object what overlaps it.
        assert losses["classes"].count == (1 if kind == "crowd" else 2)
        assert losses["boxes"].sum == 0
        background = -raw["classes"].log_softmax(1)[:, -1]
        torch.testing.assert_close(losses["classes"].sum, background[[2] if kind == "crowd" else [1, 2]].sum())
        sampled = roi.sample(regions, [aside])[0].tolist()
        assert list(OBJECT[:4]) not in sampled
        assert list(FAR) in sampled


def test_an_objects_weight_multiplies_its_terms() -> None:
    roi = head()
    raw = roi.raw([torch.randn(1, 8, 8, 8)], [boxes(HALF)])
    once, twice = (roi.loss(raw, [target(OBJECT, weight=torch.tensor([w]))], SIZES) for w in (1.0, 2.0))
    assert all(torch.isclose(2 * once[name].sum, twice[name].sum) for name in once)


def many(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = 44 * torch.rand(count, 2, generator=generator)
    return torch.cat((corner, corner + 4 + 16 * torch.rand(count, 2, generator=generator)), dim=1)


def test_sampling_takes_a_quarter_of_objects_at_most() -> None:
    roi = head(rois=64)
    near = torch.tensor(OBJECT[:4]) + torch.rand(100, 4)
    (sampled,) = roi.sample([torch.cat((near, many(300)))], [target(OBJECT)])
    overlap = torchvision.ops.box_iou(sampled, boxes(OBJECT[:4])).squeeze(1)
    assert len(sampled) == 64
    assert (overlap >= 0.5).sum() == 16


def test_objects_are_proposals_in_training() -> None:
    (sampled,) = head().sample([boxes()], [target(OBJECT)])
    assert sampled.tolist() == [list(OBJECT[:4])]


def test_background_that_overlaps_an_object_comes_first() -> None:
    roi = head(rois=8, background=(0.1, 0.5))
    shifted = torch.tensor([[20.0, 20, 40, 40]]).repeat(5, 1)  # IoU 1 / 7
    (sampled,) = roi.sample([torch.cat((torch.tensor([FAR]).repeat(20, 1), shifted))], [target(OBJECT)])
    assert sampled.tolist().count([20, 20, 40, 40]) == 5
    assert sampled.tolist().count(list(FAR)) == 2


def test_sampling_goes_on_from_the_generators_state() -> None:
    roi, proposals, targets = head(), [many(500)], [target(OBJECT)]
    state = roi.generator.get_state()
    first = roi.sample(proposals, targets)[0]
    assert not torch.equal(first, roi.sample(proposals, targets)[0])
    roi.generator.set_state(state)
    assert torch.equal(first, roi.sample(proposals, targets)[0])


def test_prediction_undoes_what_the_loss_asks_for() -> None:
    roi, wanted = head(), boxes(OBJECT[:4], FAR)
    rois = boxes(HALF, (42.0, 38, 58, 63))
    deltas = encode_deltas(wanted, rois, roi.weights)
    raw = {
        "rois": rois,
        "image": torch.tensor([0, 0]),
        "classes": torch.tensor([[0.0, 5, 0, 0], [0, 0, 9, 0]]),
        "boxes": torch.zeros(2, 3, 4),
    }
    raw["boxes"][0, 1], raw["boxes"][1, 2] = deltas[0], deltas[1]
    (found,) = roi.predict(raw, SIZES, Limits(conf=0.5))
    assert found.labels.tolist() == [2, 1]
    torch.testing.assert_close(found.boxes, wanted.flip(0))
    (only,) = roi.predict(raw, SIZES, Limits(conf=0.5, classes=(1,)))
    assert only.labels.tolist() == [1]
    raw["classes"][0] = torch.tensor([0.0, 0, 0, 9])  # background is no class
    assert roi.predict(raw, SIZES, Limits(conf=0.5))[0].labels.tolist() == [2]


@pytest.mark.parametrize(("labels", "iou", "left"), [((1, 1), 0.4, 1), ((1, 1), 0.5, 2), ((1, 2), 0.4, 2)])
def test_a_class_suppresses_its_own_boxes_only(labels: tuple[int, ...], iou: float, left: int) -> None:
    classes = 9.0 * nn.functional.one_hot(torch.tensor(labels), 4)
    raw = {"rois": boxes(OBJECT[:4], LESS), "image": torch.zeros(2).long(), "classes": classes}
    raw["boxes"] = torch.zeros(2, 3, 4)
    assert len(head().predict(raw, SIZES, Limits(conf=0.5, iou=iou))[0]) == left


def test_chunks_change_nothing() -> None:
    features, proposals = [torch.randn(1, 8, 8, 8)], [many(50)]
    results = []
    for chunk in (256, 7):
        roi = head(chunk=chunk)
        raw = roi.raw(features, proposals)
        sum(term.sum for term in roi.loss(raw, [target(OBJECT)], SIZES).values()).backward()
        results.append([raw["classes"], *(p.grad for p in roi.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_levels_are_the_papers() -> None:
    """Equation 1: 224 pixels on the level of stride 16, half of it one finer; limited to the levels there are."""
    sides = torch.tensor([224.0, 223, 112, 111, 448, 1000, 1, 0])
    rois = torch.stack((torch.zeros(8), torch.zeros(8), sides, sides), dim=1)
    assert level_of(rois, [4, 8, 16, 32]).tolist() == [2, 1, 1, 0, 3, 3, 0, 0]
    assert level_of(rois, [8, 16]).tolist() == [1, 0, 0, 0, 1, 1, 0, 0]


def test_regions_of_all_levels_come_back_in_their_order() -> None:
    features = [torch.full((1, 2, 64 >> i, 64 >> i), float(i)) for i in range(3)]
    sides = torch.tensor([20.0, 300, 130, 10, 500])
    rois = torch.stack((sides * 0, sides * 0, sides * 0, sides, sides), dim=1)
    pooled = RegionPooling([8, 16, 32], pool="align", size=2, sampling=2)(features, rois)
    assert pooled[:, 0, 0, 0].tolist() == pytest.approx([0, 1, 0, 0, 2])
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_a_coarse_level_may_be_left_to_the_proposals() -> None:
    maps = [torch.randn(1, 4, 64 // s, 64 // s) for s in (8, 16, 32)]
    rois = torch.tensor([[0.0, 0, 0, 64, 64], [0, 3, 5, 20, 30]])
    for aligned in (True, False):
        some = RegionPooling([8, 16, 32], pool="align", size=3, levels=1, aligned=aligned)(maps, rois)
        whole = torchvision.ops.roi_align(maps[0], rois, 3, 1 / 8, 2, aligned)
        torch.testing.assert_close(some, whole)


def test_crops_have_context_of_so_many_pixels() -> None:
    """Girshick et al. 2014, appendix A: the region fills the crop but for ``padding`` pixels; outside is the mean."""
    pixels = torch.zeros(1, 3, 40, 40)
    pixels[..., 12:28, 12:28] = 1
    region, everything = torch.tensor([[0.0, 12, 12, 28, 28], [0, 0, 0, 40, 40]]).split(1)
    assert with_context(region, 32, 8).tolist() == [[0, 4, 4, 36, 36]]
    crops = RegionPooling([1], pool="crops", size=32, sampling=0, padding=8)
    (crop,) = crops([pixels], region)
    assert crop[0, 8:-8, 8:-8].eq(1).all()
    assert crop[0].sum() == 16 * 16
    (whole,) = crops([torch.ones(1, 3, 40, 40)], everything)
    torch.testing.assert_close(whole[:, 9:-9, 9:-9], torch.ones(3, 14, 14))
    assert whole[:, :7].eq(0).all()


def test_fixed_batch_norm_keeps_its_statistics() -> None:
    trunk = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    for norm, moves in (("fixed", False), ("trained", True)):
        roi = RoIHead([8], [8], 3, trunk, norm=norm).train()
        before = trunk[1].running_mean.clone()
        roi.raw([torch.randn(1, 8, 8, 8)], [many(5)])
        assert torch.equal(trunk[1].running_mean, before) != moves


def test_points_beside_the_boxes() -> None:
    """Loss and answers by hand: each region of 20 x 10 or 40 x 40 pixels, points from its centre."""
    roi = head(points=2, flip_pairs=((0, 1),), point_gain=2.0)
    assert (roi.protocol, roi.flip_pairs) == ("points", ((0, 1),))
    rois = boxes((10.0, 10, 30, 20), (10.0, 10, 50, 50))
    points = torch.tensor([[[15.0, 12, 2], [99, 99, 0]]])
    raw = {
        "rois": rois,
        "image": torch.zeros(2, dtype=torch.int64),
        "classes": torch.tensor([[0.0, 9, 0, 0], [0, 0, 0, 9]]),
        "boxes": torch.zeros(2, 3, 4),
        "points": torch.tensor([[[0.0, 0.1], [0.5, 0.5]], [[0.0, 0], [0, 0]]]),
    }
    object_of_20 = target(OBJECT, points=points)  # shown by the first region: the second has an IoU of 0.25
    loss = roi.loss(raw, [object_of_20], SIZES)["points"]
    # (20, 16) for (15, 12): a quarter and a fifth of the root of the area; smooth L1 with beta 0.1; gain 2.
    assert loss.sum.item() == pytest.approx(2 * (0.25 - 0.05 + 0.2 - 0.05))
    assert loss.count.item() == 1
    (found,) = roi.predict(raw, SIZES, Limits(conf=0.5))
    assert found.extra["points"].tolist() == [[[20, 16], [30, 20]]]
    for others in (target(OBJECT), target()):  # no points, no object
        loss = roi.loss(raw, [others], SIZES)["points"]
        assert loss.sum.item() == loss.count.item() == 0
    with pytest.raises(DetkitError, match="1 points an object, the model 2"):
        roi.loss(raw, [target(OBJECT, points=points[:, :1])], SIZES)


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 10), (10, 12)], ids=["wide", "tall"])
def test_truncated_svd_is_the_nearest_matrix_of_its_rank(inputs: int, outputs: int) -> None:
    """Eckart and Young: the squares of the singular values left out are the error, the largest of them bounds it."""
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())
    weight, bias = trunk[1].weight.detach().clone(), trunk[1].bias.detach().clone()
    values = torch.linalg.svdvals(weight.double())
    x = torch.randn(50, inputs)
    for rank in (10, 7, 1):
        copied = nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))
        copied[1].load_state_dict({"weight": weight, "bias": bias})
        (split,) = split_layers(copied, [rank], decompose=True)
        assert split[:3] == (inputs, outputs, rank)
        product = copied[1][1].weight @ copied[1][0].weight
        error = torch.linalg.norm((product - weight).double())
        left = values[rank:].square().sum().sqrt()
        assert error.item() == pytest.approx(left.item(), abs=1e-5)
        assert split.error == pytest.approx((left / torch.linalg.norm(values)).item(), abs=1e-6)
        off = (copied(x) - nn.functional.linear(x, weight, bias)).norm(dim=1)
        bound = values[rank].item() if rank < 10 else 0.0
        assert (off <= bound * x.norm(dim=1) + 1e-5).all()


class Whole:
    """As much of a detector as ``compress_detector`` looks at."""

    def __init__(self, roi: nn.Module) -> None:
        self.head, self.scores, self.record = roi, {"AP50": 0.5}, {"seed": 0}
        self.config: dict[str, Any] = {"model": {"head": {"name": "roi", "svd": None}}}


def test_compressing_a_detector() -> None:
    """Fewer weights; the file's config knows; the scores are no longer its own."""
    roi = head(width=32)
    whole, before = Whole(roi), sum(p.numel() for p in roi.parameters())
    assert [layer.rank for layer in compress_detector(whole, [4, 4])] == [4, 4]
    assert sum(p.numel() for p in roi.parameters()) < before
    assert whole.config["model"]["head"]["svd"] == whole.record["svd"] == [4, 4]
    assert not whole.scores
    head(width=32, svd=[4, 4]).load_state_dict(roi.state_dict())
    with pytest.raises(DetkitError, match="split already"):
        compress_detector(whole, [2])
    with pytest.raises(DetkitError, match="no fully connected layers"):
        compress_detector(Whole(RoIHead([8], [8], 3, nn.Conv2d(8, 4, 3))), [2])
    for ranks in ([40], [4, 4, 4], [0]):
        with pytest.raises(DetkitError, match="svd"):
            compress_detector(Whole(head(width=32)), ranks)
        with pytest.raises(ValueError, match="svd"):
            head(width=32, svd=ranks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"size": 0}, "size must be above 0", id="no cells"),
        pytest.param({"levels": 2}, "levels must lie within 0..1", id="more maps than there are"),
        pytest.param({"chunk": 0}, "chunk must be above 0", id="no regions at a time"),
        pytest.param({"positive_share": 2.0}, "positive_share must lie", id="more than all"),
        pytest.param({"pool": "crops"}, "does not fit", id="crops of a feature map"),
        pytest.param({"layers": "backbone"}, "no trunk", id="no trunk"),
        pytest.param({"points": 2, "flip_pairs": ((0, 2),)}, "flip_pairs names", id="pairs of no points"),
    ],
)
def test_options_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, DetkitError), match=message):
        head(**arguments)


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="equally many channels"):
        RoIHead([8, 16], [8, 16], 3, layers="mlp")
    with pytest.raises(ValueError, match="leaves nothing"):
        RoIHead([3], [1], 3, nn.Flatten(), pool="crops", size=32, padding=16)
    with pytest.raises(ValueError, match="trunk does not take 8 channels at size 7"):
        RoIHead([8], [8], 3, nn.Conv2d(9, 4, 3))
    with pytest.raises(ValueError, match="needs proposals"):
        head().raw([torch.zeros(1, 8, 8, 8)])
