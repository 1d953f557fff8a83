"""How often a task made of the images themselves is answered right: an answer is the share of an image's views."""

from __future__ import annotations

import numpy as np

from detkit.interfaces import Metric
from detkit.tables import Evaluation, GroundTruth, Results


class Pretext(Metric):
    """The mean over the images of the score of their one answer; an image without an answer counts as 0."""

    answers = "labels"
    scores = ("accuracy",)
    rules = "pretext task (the share of the views of the images that are answered right)"
    takes_iou = False

    def evaluate(
        self, gt: GroundTruth, dt: Results, *, iou: float | None = None, max_detections: int = 100
    ) -> Evaluation:
        """The accuracy; labels are not looked at, so there is nothing to say of classes."""
        return Evaluation({"accuracy": float(np.sum(dt.score)) / gt.images if gt.images else -1.0}, {})
