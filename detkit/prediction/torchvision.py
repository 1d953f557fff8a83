"""torchvision's own detectors, with its COCO weights, as one more predictor."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detkit.backbones.pretrained import read_state, torchvision_file
from detkit.errors import DetkitError, nearest
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample
from detkit.zoo import TORCHVISION

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_EVERY = 100_000  # detections per image: what is kept is decided here, after other classes are left out
_BUILDING = threading.Lock()


class TorchvisionDetector(Predictor):
    """A torchvision detector that answers as detkit's own do.

    Labels are 0 .. C-1 over the classes that the model can name, without background and "N/A"; class_ids are COCO's.
    Masks are not computed; key points come as ``extra["points"]`` (N, 17, 3) x, y, visible. Resizing is torchvision's.

    Args:
        name: "torchvision/...".
        model: In torchvision's form.
        categories: Its names by torchvision's label.
        threshold: The score below which ``predict`` shows nothing.
    """

    def __init__(self, name: str, model: Any, categories: list[str], threshold: float = 0.5) -> None:
        named = [i for i, category in enumerate(categories) if i and category != "N/A"]
        self.name, self.model, self.threshold = name, model.eval(), threshold
        self.classes = tuple(categories[i] for i in named)
        self.class_ids = tuple(named)
        self.scale = 1.0
        self._label_of = np.full(len(categories), -1)
        self._label_of[named] = np.arange(len(named))
        self._post = getattr(model, "roi_heads", model)
        self._points = bool(getattr(self._post, "has_keypoint", bool)())
        if hasattr(self._post, "mask_roi_pool"):
            self._post.mask_roi_pool = None
        self._sizes = (model.transform.min_size, model.transform.max_size, model.transform.fixed_size)
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Pixels of the shorter side that images are scaled to."""
        least, _, fixed = self._sizes
        return round((fixed or least)[-1] * self.scale)

    @property
    def input_size(self) -> tuple[int, int]:
        """Of a square image."""
        return self.size, self.size

    def rescaled(self, factor: float) -> Predictor:
        """The same model, weights shared, whose input is ``factor`` times as large.

        Raises:
            DetkitError: It must not be.
        """
        if self.name.endswith("ssd300_vgg16"):  # its last layers need an input of 300
            return super().rescaled(factor)
        view = copy.copy(self)
        view.scale = self.scale * factor
        return view

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        """Detections (numpy) in each sample's original pixels; one call at a time."""
        device = next(self.model.parameters()).device
        with self._lock, torch.inference_mode():
            self._set(limits)
            usable = [i for i, sample in enumerate(samples) if self._fits(sample)]
            images = [torch.from_numpy(samples[i].image).to(device).permute(2, 0, 1) / 255 for i in usable]
            outputs = dict(zip(usable, self.model(images) if images else [], strict=True))
        return [self._detections(outputs.get(i), limits) for i in range(len(samples))]

    def _set(self, limits: Limits) -> None:
        # torchvision drops scores at its threshold, detkit those below.
        self._post.score_thresh = float(np.nextafter(np.float32(limits.conf), np.float32(-1)))
        self._post.nms_thresh = limits.iou
        self._post.detections_per_img = limits.max_detections if self._points else _EVERY
        least, most, fixed = self._sizes
        transform = self.model.transform
        transform.min_size = tuple(round(side * self.scale) for side in least)
        transform.max_size = round(most * self.scale)
        transform.fixed_size = fixed and tuple(round(side * self.scale) for side in fixed)

    def _fits(self, sample: Sample) -> bool:
        """False for a line of pixels so long that torchvision would scale its width to nothing."""
        sides, transform = sample.image.shape[:2], self.model.transform
        return transform.fixed_size is not None or min(sides) * transform.max_size >= max(sides)

    def _detections(self, output: dict[str, torch.Tensor] | None, limits: Limits) -> Detections:
        if output is None:
            return Detections.empty(self.classes)
        found = {key: value.cpu().numpy() for key, value in output.items()}
        boxes, labels = found["boxes"], self._label_of[found["labels"]]
        keep = (labels >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        if limits.classes is not None:
            keep &= np.isin(labels, limits.classes)
        keep = np.flatnonzero(keep)[: limits.max_detections]
        extra = {"points": found["keypoints"][keep]} if self._points else {}
        return Detections(boxes[keep], found["scores"][keep], labels[keep], self.classes, extra)


def load_torchvision(name: str) -> TorchvisionDetector:
    """The detector called ``torchvision/...`` with its COCO weights, from torch hub's cache or torchvision's server.

    Raises:
        DetkitError: No such detector (with the nearest name), no network and no file, or a damaged one.
    """
    short = name.partition("/")[2]
    if name not in TORCHVISION:
        near = nearest(short, [entry.partition("/")[2] for entry in TORCHVISION], otherwise="")
        do = near.replace("mean ", "mean torchvision/") or f"choose one of {', '.join(TORCHVISION)}"
        raise DetkitError(f"there is no model {name!r}", name, do)
    from torchvision.models import get_model_builder, get_model_weights

    weights: WeightsEnum = get_model_weights(short).DEFAULT  # type: ignore[attr-defined]
    path = torchvision_file(weights.url, f"the weights of {name}", "or choose a model that is here: detkit models")
    try:
        with _BUILDING, torch.random.fork_rng(devices=[]), _handing_out(weights, read_state(path)):
            model = get_model_builder(short)(weights=weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise DetkitError(f"the file is not that of {name}: {reason}", str(path), "delete it, then try again") from None
    return TorchvisionDetector(name, model, weights.meta["categories"])


@contextmanager
def _handing_out(weights: WeightsEnum, state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Lets torchvision build from ``state``: its builders choose layers by the weights, so they must be told of them,
    but would open the file as a pickle that may run code."""
    weights.get_state_dict = lambda *_, **__: state
    try:
        yield
    finally:
        del weights.get_state_dict
