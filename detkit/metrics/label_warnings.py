"""Classes whose numbers seem to be those of another list than the data's: said beside the score, with counts."""

from __future__ import annotations

import numpy as np

from detkit.metrics.matching import match
from detkit.tables import GroundTruth, Results

_SAMPLE = 500  # images, spread over the data, that classes are compared on
_SURE = 5  # objects of a class, found, from which it is judged


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
    objects = gt[(gt.image % step == 0) & ~gt.crowd & ~gt.difficult]
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
