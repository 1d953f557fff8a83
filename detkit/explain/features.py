"""What a network looks at: its first filters, its maps, the patches of a data set that excite a channel most."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit import registry
from detkit.data.dataset import Dataset
from detkit.data.loader import collate
from detkit.data.resize import Resize
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.explain.summary import Field, Tracer
from detkit.interfaces import Head, Raw
from detkit.io.draw import draw_boxes, scaled_to
from detkit.necks.identity import Identity
from detkit.structures import Sample


class _Classifier(Head, nn.Module):
    """A published network's classifier in a head's place."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def raw(self, features: list[Tensor], proposals: list[Tensor] | None = None) -> Raw:
        """classes (B, C) logits."""
        return {"classes": self.classifier(features[-1])}


def published_network(name: str, weights: str = "imagenet", size: int | None = None) -> Detector:
    """A backbone with its classifier, to be looked into: it does not predict.

    Classes are ImageNet's where weights know 1000 of them, else numbers.

    Args:
        name: Of the backbone.
        weights: "imagenet", "none" or a file.
        size: Of the square that images are stretched to; None: the network's own.

    Raises:
        DetkitError: The weights cannot be had, no such network was published, or an image of this size is too small.
    """
    from torchvision.models import ResNet18_Weights

    build = registry.find_part("backbone", name)
    if "weights" not in signature(build).parameters:
        raise DetkitError(f"{name} is whatever its graph says, and has no published form", do="name another backbone")
    network = build(0, weights=weights).eval()
    backbone = network.backbone
    side = size or backbone.size
    try:
        with torch.no_grad():
            count = network(torch.zeros(1, 3, side, side)).shape[1]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DetkitError(f"{name} does not take {side} pixels: {reason}", "--size", "give a larger one") from None
    known = count == 1000 and weights != "none"
    names = ResNet18_Weights.DEFAULT.meta["categories"] if known else [str(k) for k in range(count)]
    neck, resize = Identity(backbone.channels, backbone.strides), Resize(side, mode="stretch", stride=1)
    return Detector(backbone, neck, _Classifier(network.classifier), classes=names, resize=resize, config={}).eval()


def first_filters(detector: Detector) -> np.ndarray:
    """(O, h, w, 3) float32 weights of the first convolution, red, green, blue; of one channel: three times the same.

    Raises:
        DetkitError: The network has no convolution that reads pixels.
    """
    for module in detector.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] in (1, 3):
            weights = module.weight.detach().float().cpu().permute(0, 2, 3, 1)
            return weights.expand(-1, -1, -1, 3).numpy()
    raise DetkitError("no convolution of this network reads pixels", do="give another model")


def stages_of(detector: Detector, stage: int | None = None) -> list[nn.Module]:
    """The backbone's stages; of one that only hands pixels on (R-CNN's) those of the CNN that the head holds.

    Args:
        detector: The network.
        stage: A number that is to be among them.

    Raises:
        DetkitError: There are none, or none of the number ``stage``.
    """
    stages = list[nn.Module](detector.backbone.stages)
    if not any(True for _ in detector.backbone.parameters()):
        trunk = dict(detector.head.named_children()).get("trunk", nn.Sequential())
        # Behind them are the classifier's single layers.
        stages = list(takewhile(lambda part: any(True for _ in part.children()), trunk.children()))
        if not stages:
            raise DetkitError("this model has no convolutions to look into", do="give another one")
    if stage is not None and not 0 <= stage < len(stages):
        raise DetkitError(f"there is no stage {stage}", "--stage", f"this model has stages 0 to {len(stages) - 1}")
    return stages


def stage_maps(detector: Detector, image: np.ndarray, stage: int) -> np.ndarray:
    """(C, h, w) float32: what a stage makes of an image, uint8 (H, W, 3) RGB; cells of padding are cut off.

    Raises:
        DetkitError: No such stage.
    """
    return _maps(detector, [Sample(image)], stage)[0].cpu().numpy()


@dataclass(frozen=True, slots=True)
class Peaks:
    """The strongest answer of each channel in each image.

    Attributes:
        values: (P, C) float32.
        cells: (P, C, 2) int64 column, row.
        images: (P,) places in the data set.
        field: What a cell sees of the input.
        failed: Images that could not be read, and why.
    """

    values: np.ndarray
    cells: np.ndarray
    images: np.ndarray
    field: Field
    failed: list[str]

    def choose(self, count: int) -> list[int]:
        """The ``count`` channels whose nine strongest answers stand out most from all images', in rising order."""
        strongest = np.sort(self.values, axis=0)[-9:].mean(axis=0)
        apart = (strongest - self.values.mean(axis=0)) / (self.values.std(axis=0) + 1e-6)
        return sorted(np.argsort(-apart, kind="stable")[:count].tolist())


def find_peaks(
    detector: Detector, dataset: Dataset, stage: int, *, images: int = 300, seed: int = 0, batch: int = 8
) -> Peaks:
    """Where each channel of a stage answers most, in each of several images.

    Args:
        detector: The network.
        dataset: The images.
        stage: Of the backbone, from 0.
        images: How many are drawn.
        seed: Of the draw.
        batch: Images at a time.

    Raises:
        DetkitError: No such stage, or no image could be read.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))[:images].tolist()
    field, failures = _field(detector, stage), list[DetkitError]()
    used, values, cells = list[int](), list[np.ndarray](), list[np.ndarray]()
    readable = dataset.readable(order, failures)
    while group := list(islice(readable, batch)):
        used += [index for index, _ in group]
        for maps in _maps(detector, [sample for _, sample in group], stage):
            value, place = maps.flatten(1).max(1)
            values.append(value.cpu().numpy())
            cells.append(torch.stack((place % maps.shape[2], place // maps.shape[2]), 1).cpu().numpy())
    failed = [f"{failure.where}: {failure.what}" for failure in failures]
    return Peaks(np.stack(values), np.stack(cells), np.array(used), field, failed)


class Patch(NamedTuple):
    """What a cell sees.

    Attributes:
        image: uint8 (h, w, 3) RGB, the cell framed.
        value: The channel's answer.
        path: Of the whole image.
    """

    image: np.ndarray
    value: float
    path: str


def cut_patches(
    found: Peaks,
    detector: Detector,
    dataset: Dataset,
    channel: int,
    *,
    count: int = 9,
    window: float | None = None,
    side: int = 128,
) -> list[Patch]:
    """The patches, of different images, that excite a channel most, strongest first.

    Zeiler & Fergus 2014 (arXiv 1311.2901, section 4.1) show nine and Girshick et al. 2014 (arXiv 1311.2524, section
    3.1) let a unit speak for itself so. The cell itself, one stride wide, is framed: of deep ones the field is far
    larger than what excites them.

    Args:
        found: Of this detector and data set.
        detector: The network.
        dataset: The images.
        channel: Of the stage that the peaks are of.
        count: Of patches.
        window: Pixels of the input to cut out, None: the cell's receptive field; what lies inside the image is shown.
        side: Of a patch, in pixels.

    Raises:
        DetkitError: No such channel.
    """
    if not 0 <= channel < found.values.shape[1]:
        do = f"the stage has channels 0 to {found.values.shape[1] - 1}"
        raise DetkitError(f"there is no channel {channel}", "--channels", do)
    made, seen_size = [], window or found.field.size
    for row in np.argsort(-found.values[:, channel], kind="stable")[:count].tolist():
        sample = dataset.load(int(found.images[row]))
        geometry = detector.resize.geometry(*sample.image.shape[:2])
        centre = found.field.centre + found.cells[row, channel] * found.field.stride
        sizes = np.array([[seen_size], [found.field.stride]]) / 2
        seen, cell = geometry.to_original(np.concatenate([centre - sizes, centre + sizes], axis=1))
        left, top = np.floor(seen[:2] + 1e-6).astype(int)
        right, bottom = np.maximum(np.ceil(seen[2:] - 1e-6).astype(int), (left + 1, top + 1))
        patch = scaled_to(sample.image[top:bottom, left:right], side)
        if seen_size > 2 * found.field.stride:
            scale = patch.shape[1] / (right - left)
            patch = draw_boxes(patch, ((cell - np.array([left, top, left, top])) * scale)[None])
        made.append(Patch(patch, float(found.values[row, channel]), sample.path))
    return made


def _after(detector: Detector, pixels: Tensor, stage: int) -> Tensor:
    """(B, C, h, w): a stage's output, at the image's own scale, of pixels (B, 3, H, W) in 0..255."""
    x = detector.normalised(pixels)
    for module in stages_of(detector, stage)[: stage + 1]:
        x = module(x)
    return x


def _maps(detector: Detector, samples: list[Sample], stage: int) -> list[Tensor]:
    """Each image's (C, h, w) of a stage, without the cells that see only padding."""
    batch = collate(samples, detector.resize)[0].to(detector.device)
    with torch.no_grad():
        maps = _after(detector, batch.pixels, stage)
    share = batch.sizes.cpu() / torch.tensor(batch.pixels.shape[-2:])
    ends = (share * torch.tensor(maps.shape[-2:])).ceil().long().clamp(min=1).tolist()
    return [one[:, :rows, :columns] for one, (rows, columns) in zip(maps, ends, strict=True)]


def _field(detector: Detector, stage: int) -> Field:
    pixels = torch.zeros((1, 3, *detector.resize.input_size), device=detector.device)
    with torch.no_grad(), Tracer(pixels) as tracer:
        return tracer.fields[_after(detector, pixels, stage)]
