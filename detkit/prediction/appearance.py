"""How objects look, from the maps that the detector computes anyway: no second network."""

from __future__ import annotations

from dataclasses import replace

import torch

from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.ops.roi import roi_align
from detkit.predictor import Predictor, Wrapped
from detkit.structures import Detections, Limits, Sample

_BINS = 2  # each way: what is above differs from what is below


class WithAppearance(Wrapped):
    """A detector whose detections have ``extra["embedding"]``, (N, D): the neck's finest map inside each box, or the
    vectors of another model.

    Args:
        detector: One of detkit's, alone; with ``looks`` any.
        looks: A model with head ``embed``, which sees each box cut out.

    Raises:
        DetkitError: It is not.
    """

    def __init__(self, detector: Predictor, looks: Detector | None = None) -> None:
        if looks is None and not isinstance(detector, Detector):
            do = "give one detkit model without --tta and --ensemble, or leave out --appearance"
            raise DetkitError("only a detkit model has a neck to take the appearance from", "--appearance", do)
        super().__init__(detector)
        self.detector, self.looks = detector, looks
        self._maps: list[torch.Tensor] = []
        if looks is None:
            assert isinstance(detector, Detector)
            detector.neck.register_forward_hook(self._keep)

    def _keep(self, neck: object, inputs: object, maps: list[torch.Tensor]) -> None:
        self._maps = maps

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        if not samples:
            return []
        if self.looks is not None:
            found = self.detector.predict_samples(samples, limits)
            return [self._looked(sample, one, self.looks) for sample, one in zip(samples, found, strict=True)]
        assert isinstance(self.detector, Detector)
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

    @staticmethod
    def _looked(sample: Sample, found: Detections, looks: Detector) -> Detections:
        """``found`` with the vectors of its boxes, each of one pixel at least."""
        height, width = sample.image.shape[:2]
        crops = []
        for x1, y1, x2, y2 in found.boxes.astype(int).tolist():
            left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            crops.append(sample.image[top : max(y2, top + 1), left : max(x2, left + 1)])
        return replace(found, extra={**found.extra, "embedding": looks.vectors(crops)})
