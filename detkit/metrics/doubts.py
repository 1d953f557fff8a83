"""What makes a score doubtful though nothing in the file is wrong: said beside the score, with counts."""

from __future__ import annotations

import numpy as np

from detkit.metrics.matching import match
from detkit.tables import GroundTruth, Results

_FEW = 20  # detections that say nothing about a whole file
_SEARCHED = 20_000  # detections among which repeated ones are looked for, in a file that is in order
_SAMPLE = 500  # images, spread over the data, that classes are compared on
_SURE = 5  # objects of a class, found, from which it is judged


def doubts(results: Results, sizes: np.ndarray) -> list[str]:
    """Sentences on scores and boxes that look like those of another kind of file; sizes (I, 2) height, width in pixels.

    Boxes that end outside their images (corners taken for a width and height, resized images) or are fractions;
    scores that were cut off or are all the same; detections that stand in the file twice.
    """
    if len(results) < _FEW:
        return []
    notes = []
    size = sizes.T[::-1].astype(np.float64)
    size[:, (size == 0).any(axis=0)] = np.inf  # unknown
    ends = [results.xywh[:, axis] + results.xywh[:, axis + 2] for axis in (0, 1)]
    if max(end.max() for end in ends) <= 1.01 < size.min():
        notes.append("all boxes lie within one pixel: are they fractions of the image? COCO's bbox is in pixels")
    out = [end > (limit + 1)[results.image] for end, limit in zip(ends, size, strict=True)]
    outside = int(np.count_nonzero(out[0] | out[1]))
    if outside > len(results) / 4:
        what = f"{outside} of {len(results)} boxes end outside their images"
        notes.append(f"{what}: are they x1, y1, x2, y2 instead of x, y, width, height, or of resized images?")
    low, high = float(results.score.min()), float(results.score.max())
    if low == high:
        notes.append(f"all detections have the score {low:g}: AP depends on their order in the file")
    elif low > 0.1:
        notes.append(f"no detection scores below {low:.2g}: AP counts those too (detkit detect --conf 0.001)")
    if twice := _twice(some := _worth_searching(results)):
        what = f"{'at least ' * (len(some) < len(results))}{twice} detections stand in the file again"
        notes.append(f"{what}, box, class and score: each one more is a false one")
    return notes


def _worth_searching(results: Results) -> Results:
    """All detections, but only the first ones of a file that keeps those of an image together."""
    runs = 1 + np.count_nonzero(results.image[1:] != results.image[:-1])
    in_order = runs == np.count_nonzero(np.bincount(results.image))
    return results[np.arange(_SEARCHED)] if in_order and len(results) > _SEARCHED else results


def _twice(results: Results) -> int:
    """Detections that equal an earlier one."""
    keys = (results.image * 1_000_003 + results.label).view(np.uint64)
    for column in (results.score, *np.ascontiguousarray(results.xywh).T):
        keys ^= keys >> np.uint64(32)  # whole numbers have all their bits at the top, where products lose them
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys += column.view(np.uint64)
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def swapped_classes(gt: GroundTruth, dt: Results) -> list[str]:
    """One sentence if most classes' objects are found by detections of another class, each by one of its own.

    That is how numbers of another list of classes look: 1 to 80 where the data has COCO's 91 ids, or counted from 0.
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
