"""Which class is taken for which, what is missed or invented, and whether the labels seem to be of another list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.metrics.matching import match
from detkit.tables import GroundTruth, Results

_SAMPLE = 500  # images, spread over the data, that classes are compared on
_SURE = 5  # objects of a class, found, from which it is judged


@dataclass(slots=True, frozen=True, eq=False)
class Confusion:
    """Which class is taken for which; background comes last.

    Attributes:
        counts: (C + 1, C + 1) int64, row = the object's class, column = the detection's: counts[c, -1] are missed
            objects of class c, counts[-1, c] detections of c on nothing; counts[-1, -1] is 0.
        classes: Names.
    """

    counts: np.ndarray
    classes: tuple[str, ...]


def confusion_matrix(
    gt: GroundTruth, dt: Results, *, conf: float = 0.25, iou: float = 0.5, max_detections: int = 100
) -> Confusion:
    """Confusion matrix at one IoU threshold.

    First every detection is matched within its own class as for AP, so the diagonal holds the true positives that
    precision and recall count; what is left on both sides is then matched whatever the class, best score first.
    Detections on crowds or difficult objects count neither way.

    Args:
        gt: The labels.
        dt: The detections.
        conf: The lowest score.
        iou: The threshold.
        max_detections: Per image and class.
    """
    background = len(gt.classes)
    dt = dt[dt.score >= conf]
    same = match(gt, dt, thresholds=np.array([iou]), max_detections=max_detections)
    taken = same.taken[same.taken >= 0]
    answer = np.full(len(gt.image), background)  # the class that each object is found as
    answer[taken] = gt.label[taken]
    free = np.flatnonzero((answer == background) | gt.crowd)
    rest = dt[np.sort(same.row[same.taken < 0])]
    other = match(gt[free], rest, thresholds=np.array([iou]), max_detections=len(rest) + 1, by_class=False)
    on_object = other.taken >= 0
    answer[free[other.taken[on_object]]] = other.label[on_object]
    invented = other.label[~on_object]
    rows = np.append(gt.label[gt.wanted], np.full(len(invented), background))
    columns = np.append(answer[gt.wanted], invented)
    size = background + 1
    return Confusion(np.bincount(rows * size + columns, minlength=size * size).reshape(size, size), gt.classes)


def swapped_classes(gt: GroundTruth, dt: Results) -> list[str]:
    """One sentence if most classes' objects are found by detections of another class, each by one of its own.

    That is how numbers of another list of classes look: 1 to 80 where the data has COCO's 91 ids, or counted from 0.

    Args:
        gt: The labels.
        dt: The detections.
    """
    if len(gt.classes) < 2:
        return []
    step = max(1, gt.images // _SAMPLE)
    objects = gt[(gt.image % step == 0) & gt.wanted]
    found = match(objects, dt[dt.image % step == 0], thresholds=np.array([0.5]), by_class=False)
    taken = found.taken >= 0
    size = len(gt.classes)
    pairs = np.bincount(objects.label[found.taken[taken]] * size + found.label[taken], minlength=size * size)
    table = pairs.reshape(size, size)
    total, other = table.sum(axis=1), table.argmax(axis=1)
    judged = total >= _SURE
    clear = judged & (table.max(axis=1, initial=0) > 0.6 * total) & (other != np.arange(size))
    wrong = np.flatnonzero(clear)
    if len(wrong) < 2 or len(wrong) <= judged.sum() / 2 or len(set(other[wrong].tolist())) < len(wrong):
        return []
    some = ", ".join(f"{gt.classes[k]} by {gt.classes[other[k]]}" for k in wrong[:3])
    what = f"the objects of {len(wrong)} of {judged.sum()} classes are found as another class ({some}, ...)"
    return [f"{what}: are the class numbers those of another list than the data's?"]
