"""Objects that annotators left out, proposed by a model: a COCO json with a data set's labels and more.

    python tools/fill_labels.py MODEL DATA -o filled.json [--split train] [--sure 0.5] [--doubt 0.25]

What the model finds where nothing is labelled becomes an object if its score is at least ``--sure``, and from
``--doubt`` on a difficult one, which trains neither as object nor as background. Nothing is added that overlaps a
labelled object of any class (IoU above 0.4); what lies for the most part inside an object of its own class, or holds
one, is difficult at best. Classes are matched by name, COCO's and PASCAL VOC's spellings too.
The images stay where they are.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from detkit import api, ops
from detkit.data.annotations import Annotations, Findings, Source
from detkit.data.convert import write_coco_json
from detkit.data.dataset import Dataset, read
from detkit.data.reading import ImageTable, ObjectTable, assemble
from detkit.engine.evaluator import detect_dataset

SAME, INSIDE = 0.4, 0.7


def corners(xywh: np.ndarray) -> np.ndarray:
    return np.asarray(ops.convert(xywh, "xywh", "xyxy"), np.float32)


def added(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, known: np.ndarray, kinds: np.ndarray, sure: float):
    """Rows of one image's detections that are new, best first, and whether each is difficult; known (M, 4), kinds
    (M,) are the labelled boxes and classes."""
    rows = [int(i) for i in np.argsort(-scores, kind="stable")]
    if len(known):
        rows = [i for i in rows if ops.iou(boxes[i : i + 1], known).max() <= SAME]
    taken: list[int] = []
    for i in rows:  # one box a place, of whichever class is the likelier
        if not taken or ops.iou(boxes[i : i + 1], boxes[taken]).max() <= SAME:
            taken.append(i)
    doubtful = []
    for i in taken:
        mates = known[kinds == labels[i]]
        part = (ops.crowd_iou(boxes[i : i + 1], mates) > INSIDE).any()
        group = (ops.crowd_iou(mates, boxes[i : i + 1]) > INSIDE).any()
        doubtful.append(bool(scores[i] < sure or part or group))
    return taken, doubtful


def fill(annotations: Annotations, model: str, sure: float, doubt: float) -> tuple[Annotations, Counter[str]]:
    """The annotations with what the model adds to them, and how many objects of each kind were added."""
    a = annotations
    _, found, _ = detect_dataset(api.load(model, device="cpu"), Dataset(a), workers=1)
    likely = found.score >= doubt
    columns = [(a.image_index, a.xywh, a.labels, a.crowd, a.difficult)]
    counts: Counter[str] = Counter()
    for image in np.unique(found.image[likely]):
        rows = np.flatnonzero(likely & (found.image == image))
        own = slice(int(a.offsets[image]), int(a.offsets[image + 1]))
        boxes, labels = corners(found.xywh[rows]), found.label[rows]
        new, doubtful = added(boxes, labels, found.score[rows], corners(a.xywh[own]), a.labels[own], sure)
        picked = rows[new]
        none = np.zeros(len(new), bool)
        columns.append(
            (np.full(len(new), image), found.xywh[picked], found.label[picked], none, np.array(doubtful, bool))
        )
        for label, flag in zip(found.label[picked], doubtful, strict=True):
            counts[f"{a.classes[label]}{' (difficult)' if flag else ''}"] += 1
    image, xywh, labels, crowd, difficult = (np.concatenate(column) for column in zip(*columns, strict=True))
    objects = ObjectTable(image.astype(np.int64), xywh, labels.astype(np.int64), str, crowd, difficult)
    images = ImageTable(list(range(1, len(a) + 1)), a.files, a.sizes)
    filled = assemble(objects, images, dict(enumerate(a.classes, 1)), Findings(), Source("voc", Path()))
    return replace(filled, source=None), counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--sure", type=float, default=0.5)
    parser.add_argument("--doubt", type=float, default=0.25)
    options = parser.parse_args()
    annotations = read(options.data, split=options.split)
    filled, counts = fill(annotations, options.model, options.sure, options.doubt)
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in filled.files])
    write_coco_json(filled, options.out, image_folder=os.path.relpath(folder, options.out.parent.resolve()))
    for kind, count in sorted(counts.items()):
        print(f"{count:6d}  {kind}")
    print(f"{len(annotations.labels)} labelled, {sum(counts.values())} added: {options.out}")


if __name__ == "__main__":
    main()
