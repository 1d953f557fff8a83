"""Numbers and plots that describe a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.dataset import Dataset
from detkit.io.files import written_figure
from detkit.printed import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}  # COCO's, square pixels
IMAGES = 300
PIXELS = 4096  # drawn from each image


class Colour(NamedTuple):
    """RGB of a data set, in 0..255 units.

    Attributes:
        mean: (3,) float64.
        covariance: (3, 3) float64.
        images: How many were read.
    """

    mean: np.ndarray
    covariance: np.ndarray
    images: int


def colour_statistics(annotations: Annotations, *, images: int = IMAGES, seed: int = 0) -> Colour:
    """Mean and covariance of RGB over a seeded sample of images; every image weighs the same.

    The covariance feeds AlexNet's PCA colour augmentation (Krizhevsky et al., 2012, section 4.1). Images that cannot
    be read are passed over.

    Args:
        annotations: Whose images.
        images: So many are read.
        seed: Of the choice.

    Raises:
        DetkitError: None of them can be read.
    """
    rng = np.random.default_rng(seed)
    total, product, read = np.zeros(3), np.zeros((3, 3)), 0
    order = np.sort(rng.permutation(len(annotations))[:images]).tolist()
    for read, (_, sample) in enumerate(Dataset(annotations).readable(order, [], reduce_to=256), 1):  # noqa: B007
        pixels = sample.image.reshape(-1, 3)
        chosen = pixels[rng.integers(0, len(pixels), PIXELS)].astype(np.float64)
        total += chosen.mean(axis=0)
        product += chosen.T @ chosen / len(chosen)
    mean = total / read
    return Colour(mean, product / read - np.outer(mean, mean), read)


def describe_annotations(annotations: Annotations) -> dict[str, Any]:
    """Plain numbers: images, boxes, per class, sizes, aspect, boxes per image, image sizes (pixels)."""
    a = annotations
    per_image = np.diff(a.offsets)
    sides = np.sqrt(a.xywh[:, 2] * a.xywh[:, 3])
    aspect = a.xywh[:, 2] / a.xywh[:, 3]
    images_with = [np.unique(a.image_index[a.labels == i]).size for i in range(len(a.classes))]
    known = a.sizes[(a.sizes > 0).all(axis=1)]
    return {
        **a.counts(),
        "classes": {
            name: {"boxes": int(count), "images": int(images)}
            for name, count, images in zip(a.classes, a.class_counts(), images_with, strict=True)
        },
        "sizes": {name: int(((a.area >= low) & (a.area < high)).sum()) for name, (low, high) in SIZES.items()},
        "side": _quantiles(sides),
        "aspect": _quantiles(aspect),
        "boxes_per_image": {**_quantiles(per_image), "mean": float(per_image.mean()) if len(a) else 0.0},
        "width": _quantiles(known[:, 1]),
        "height": _quantiles(known[:, 0]),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
    if not len(values):
        return dict.fromkeys(names, 0.0)
    return {name: round(float(np.percentile(values, q)), 3) for name, q in names.items()}


def description_lines(numbers: Mapping[str, Any]) -> list[str]:
    """What ``describe_annotations`` returned, and "rgb", a ``Colour`` as a dict, as text for a person."""
    lines = [
        f"images   {numbers['images']} ({numbers['images_without_boxes']} without boxes)",
        f"boxes    {numbers['boxes']} ({numbers['crowd']} crowd, {numbers['difficult']} difficult)",
    ]
    for name in ("boxes_per_image", "side", "aspect", "width", "height"):
        lines.append(f"{name:16s} " + "  ".join(f"{key} {value:g}" for key, value in numbers[name].items()))
    lines.append("sizes    " + "  ".join(f"{name} {count}" for name, count in numbers["sizes"].items()))
    if "rgb" in numbers:
        mean = ", ".join(f"{v:.1f}" for v in numbers["rgb"]["mean"])
        rows = "; ".join(", ".join(f"{v:.0f}" for v in row) for row in numbers["rgb"]["covariance"])
        lines.append(f"rgb      mean [{mean}]  covariance [{rows}]  ({counted(numbers['rgb']['images'], 'image')})")
    width = max((len(name) for name in numbers["classes"]), default=0)
    for name, row in sorted(numbers["classes"].items(), key=lambda item: -item[1]["boxes"]):
        lines.append(f"  {name:{width}s} {row['boxes']:8d} boxes in {row['images']:7d} images")
    return lines


def plot_annotations(annotations: Annotations, path: Path, *, overwrite: bool = False) -> None:
    """One image of four plots: boxes per class, box sides, aspect, boxes per image."""
    a = annotations
    with written_figure(path, 13, 9, overwrite=overwrite) as figure:
        axes = figure.subplots(2, 2).ravel()
        counts = a.class_counts()
        order = np.argsort(-counts, kind="stable")[:40]
        axes[0].barh([a.classes[i] for i in order[::-1]], counts[order[::-1]], color="#4477aa")
        axes[0].tick_params(axis="y", labelsize=9 if len(order) <= 20 else 6)
        more = f" (40 of {len(counts)})" if len(counts) > 40 else ""
        axes[0].set(title=f"Boxes of each class{more}", xlabel="boxes")
        sides = np.sqrt(a.xywh[:, 2] * a.xywh[:, 3])
        _log_histogram(axes[1], sides, "Box size", "square root of width x height, pixels")
        for edge in (32, 96):
            axes[1].axvline(edge, color="#aa3377", linestyle=":")
        _log_histogram(axes[2], a.xywh[:, 2] / a.xywh[:, 3], "Aspect", "width / height")
        per_image = np.diff(a.offsets)
        top = int(per_image.max(initial=0))
        axes[3].hist(per_image, bins=np.arange(min(top, 60) + 2) - 0.5 if top <= 60 else 60, color="#4477aa")
        axes[3].set(title="Boxes per image", xlabel="boxes", ylabel="images")
        figure.suptitle(", ".join(map(counted, (len(a), len(a.labels), len(a.classes)), ("image", "box", "class"))))


def _log_histogram(axes: Axes, values: np.ndarray, title: str, label: str) -> None:
    if len(values):
        low, high = max(float(values.min()), 1e-3), float(values.max())
        axes.hist(values, bins=list(np.geomspace(low * 0.99, high * 1.01, 50)), color="#4477aa")
        axes.set_xscale("log")
    axes.set(title=title, xlabel=label, ylabel="boxes")
