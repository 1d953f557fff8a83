"""How objects look, from the maps that the detector computes anyway: no second network."""

from __future__ import annotations

from dataclasses import replace

import torch

from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.ops.roi import roi_align
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample

_BINS = 2  # each way: what is above differs from what is below


class WithAppearance(Predictor):
    """A detector whose detections have ``extra["embedding"]``, (N, D): the neck's finest map inside each box.

    Args:
        detector: One of detkit's, alone.

    Raises:
        DetkitError: It is not.
    """

    def __init__(self, detector: Predictor) -> None:
        if not isinstance(detector, Detector):
            do = "give one detkit model without --tta and --ensemble, or leave out --appearance"
            raise DetkitError("only a detkit model has a neck to take the appearance from", "--appearance", do)
        self.detector = detector
        for name in ("classes", "class_ids", "threshold", "iou", "protocol", "flip_pairs", "precision"):
            setattr(self, name, getattr(detector, name))
        self._maps: list[torch.Tensor] = []
        detector.neck.register_forward_hook(self._keep)

    def _keep(self, neck: object, inputs: object, maps: list[torch.Tensor]) -> None:
        self._maps = maps

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        if not samples:
            return []
        batch = self.detector.batch_of(samples)
        with torch.inference_mode(), self.detector.autocast():
            found = self.detector(batch, limits=limits)
            assert isinstance(found, list)
            boxes = [restore.to_input(one.boxes) for one, restore in zip(found, batch.restore, strict=True)]
            pooled = roi_align(self._maps[0].float(), boxes, _BINS, 1 / self.detector.neck.strides[0])
            looks = pooled.flatten(1).split([len(one) for one in found])
            return [
                replace(one, extra={**one.extra, "embedding": look}).numpy()
                for one, look in zip(found, looks, strict=True)
            ]
