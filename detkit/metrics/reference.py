"""The numbers of pycocotools itself, to hold ours against."""

from __future__ import annotations

import contextlib
import io

import numpy as np

from detkit.metrics.coco import metric_table
from detkit.tables import GroundTruth, Results


def pycocotools_metrics(gt: GroundTruth, dt: Results) -> dict[str, float]:
    """COCO's twelve numbers as pycocotools computes them.

    It has no difficult objects: here they are ignored, as detkit does it, before its matching.

    Args:
        gt: The labels.
        dt: The detections.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluator(COCOeval):  # type: ignore[misc]
        def _prepare(self) -> None:
            super()._prepare()
            for objects in self._gts.values():
                for one in objects:
                    one["ignore"] = one["ignore"] or one["difficult"]

    ids = np.arange(gt.images) if gt.rank is None else gt.rank
    names = {"area": gt.area, "iscrowd": gt.crowd.astype(int), "difficult": gt.difficult, "id": gt.ids}
    found = {"score": dt.score, "area": dt.xywh[:, 2] * dt.xywh[:, 3], "id": np.arange(1, len(dt) + 1)}
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for table, columns in ((gt, names), (dt, found)):
            columns = {"image_id": ids[table.image], "category_id": table.label, "bbox": table.xywh, **columns}
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            side = COCO()
            side.dataset = {
                "images": [{"id": i} for i in range(gt.images)],
                "categories": [{"id": k} for k in range(len(gt.classes))],
                "annotations": [{"iscrowd": 0, **dict(zip(columns, row, strict=True))} for row in rows],
            }
            side.createIndex()
            sides.append(side)
        evaluator = Evaluator(*sides, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(metric_table(), evaluator.stats.tolist(), strict=True))
