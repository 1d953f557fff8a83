"""Loss terms against hand-worked numbers, torch's own functions and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.ops.losses import (
    class_loss,
    class_probabilities,
    distribution_focal_loss,
    iou_loss,
    localization_loss,
    objectness_loss,
    quality_focal_loss,
    squared_loss,
    varifocal_loss,
)


def test_localization_loss_sums_all_eight_where_there_is_an_object() -> None:
    wanted = torch.tensor([1, 0.5, 0.7, 0.3, 0.4, 0, 1, 0])
    predicted = wanted + torch.tensor([-0.1, 0.1, 0.2, 0.0, 0.3, 0.1, -0.5, 0.0])
    assert localization_loss(predicted, wanted).item() == pytest.approx(0.01 + 0.01 + 0.04 + 0.09 + 0.01 + 0.25)


def test_localization_loss_counts_presence_only_where_there_is_none() -> None:
    predicted = torch.tensor([0.3, 5.0, -2.0, 9.0, 1.0, 0.2, 0.4, 0.4], requires_grad=True)
    loss = localization_loss(predicted, torch.zeros(8))
    assert loss.item() == pytest.approx(0.09)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad[0].item() == pytest.approx(0.6)
    assert (predicted.grad[1:] == 0).all()


def test_localization_loss_names_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        localization_loss(torch.zeros(3, 8), torch.zeros(3, 7))


@pytest.mark.parametrize(("kind", "apart"), [("iou", 1.0), ("giou", 1 + 80 / 100)])
def test_iou_loss(kind: str, apart: float) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 2, 5]])
    other = torch.tensor([[0.0, 0, 10, 10], [8, 5, 10, 10]])
    assert iou_loss(boxes, other, kind).tolist() == pytest.approx([0.0, apart])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_iou_loss_has_finite_gradients_and_no_rows_is_fine(kind: str) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 2, 5], [3, 3, 3, 3]], requires_grad=True)
    loss = iou_loss(boxes, torch.tensor([[0.0, 0, 10, 10], [8, 5, 10, 10], [1, 1, 5, 6]]), kind)  # type: ignore[arg-type]
    (loss.sum() + iou_loss(boxes[:0], torch.zeros(0, 4), kind).sum()).backward()  # type: ignore[arg-type]
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_class_loss_equals_torch() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(
        class_loss(logits, labels), F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(1)
    )
    torch.testing.assert_close(
        class_loss(logits, labels, "softmax", smoothing=0.1),
        F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1),
    )
    torch.testing.assert_close(
        class_loss(logits, labels, "softmax", squared=True), squared_loss(logits.softmax(1), hot)
    )
    torch.testing.assert_close(class_loss(logits, labels, squared=True), squared_loss(logits.sigmoid(), hot))
    assert class_loss(logits[:0], labels[:0]).shape == (0,)


def test_class_probabilities() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2)]])
    assert class_probabilities(logits, "softmax").tolist()[0] == pytest.approx([0.25, 0.25, 0.5])
    assert class_probabilities(logits).tolist()[0] == pytest.approx([0.5, 0.5, 2 / 3])


def test_objectness_loss() -> None:
    logits, wanted = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.25])
    assert objectness_loss(logits, wanted).tolist() == pytest.approx([math.log(2)] * 2)
    assert objectness_loss(logits, wanted, squared=True).tolist() == pytest.approx([0.25, 0.0625])


def test_quality_losses_by_hand() -> None:
    logits, quality = torch.tensor([0.0, math.log(3), 0.0]), torch.tensor([1.0, 0.5, 0.0])  # scores 1/2, 3/4, 1/2
    half = -(math.log(0.75) + math.log(0.25)) / 2
    wanted = torch.tensor([0.25 * math.log(2), half / 16, 0.25 * math.log(2)])
    torch.testing.assert_close(quality_focal_loss(logits, quality), wanted)
    wanted = torch.tensor([math.log(2), 0.5 * half, 0.75 * 0.25 * math.log(2)])
    torch.testing.assert_close(varifocal_loss(logits, quality), wanted)


def test_distribution_focal_loss_by_hand() -> None:
    """Probabilities 1/6, 2/6, 3/6 of the distances 0, 1, 2, where 1.25 and then 0 are wanted."""
    logits = torch.tensor([1.0, 2.0, 3.0]).log().expand(2, 3)
    found = distribution_focal_loss(logits, torch.tensor([1.25, 0.0]))
    torch.testing.assert_close(found, torch.tensor([-0.75 * math.log(1 / 3) - 0.25 * math.log(0.5), math.log(6)]))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_only_known_classes_count(activation: str, squared: bool) -> None:
    """As if there were no others."""
    logits, labels = torch.tensor([[0.3, -1.0, 2.0, 0.1]], requires_grad=True), torch.tensor([2])
    known = torch.tensor([[True, False, True, False]])
    found = class_loss(logits, labels, activation, squared=squared, known=known)
    torch.testing.assert_close(found, class_loss(logits[:, [0, 2]], torch.tensor([1]), activation, squared=squared))
    found.sum().backward()
    assert (logits.grad != 0).tolist() == known.tolist()
