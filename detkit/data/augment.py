"""Random changes to training images, with boxes that follow the pixels.

Geometry is composed into one map and resampled once; colours are shifted by one table look-up; albumentations does
the rest of the pixel work and is imported only when an image needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detkit.data.resize import Resize, moved_target
from detkit.data.restyle import Looks, restyled
from detkit.data.warp import Outline, Warp, cropped, turned
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.structures import Sample, Target

if TYPE_CHECKING:
    from albumentations import Compose

# Covariance of ImageNet's RGB values (0..255), from the eigenvectors and eigenvalues in common use for AlexNet's PCA.
_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
IMAGENET_COVARIANCE = _VECTORS @ np.diag([0.2175, 0.0188, 0.0045]) @ _VECTORS.T * 255**2

Pair = tuple[float, float]
_RANGES = ("crop_area", "scale")
_HIGHEST = {
    "scale": 10, "rotate": 180, "shear": 60, "warp": 0.25, "warp_grid": 32, "shift": 255, "hue": 0.5, "noise": 128,
    "blur": 20,
}  # fmt: skip


@dataclass(kw_only=True, eq=False)
class Augment:
    """``augment(sample, rng, resize)``: a changed copy of a sample, at the model's input size. 0 or None is off.

    Args:
        mirror: Chance of left-right.
        flip: Chance of upside-down.
        crop: Chance of a random window, with an object where there is one.
        crop_area: Range of the window's share of the image's area.
        min_visible: An object of which less is left becomes difficult (neither object nor background).
        scale: Range of factors on the fitted size (the place is then random).
        aspect: Largest relative change of width to height.
        rotate: Largest angle in degrees.
        shear: Largest angle in degrees.
        boxes: What stands for an object when its box is turned, sheared or warped: the ``ellipse`` inside, tight for
            most things, or its ``corners``, right for screens, signs and houses and too large for others.
        warp: Local displacement, as a share (up to 0.25) of a cell of a grid.
        warp_grid: Cells of that grid along each side.
        shift: Largest change of each colour channel (0..255).
        brightness: Largest relative change.
        contrast: Largest relative change.
        saturation: Largest relative change.
        hue: Largest change, as a share of the circle.
        pca: AlexNet's colour shift: standard deviation of its three factors (0.1 in Krizhevsky et al., "ImageNet
            classification with deep convolutional neural networks", 2012, section 4.1).
        covariance: 3 x 3, of RGB values 0..255, whose axes ``pca`` goes along; None: ImageNet's.
        noise: Largest standard deviation (0..255), on a share ``chance`` of the images.
        blur: Largest radius in pixels, on a share ``chance`` of the images.
        grey: Chance of losing all colour.
        chance: Share of the images that get noise, and blur.
        mosaic: Chance of joining four images (only where other images are at hand).
        mixup: Chance of blending two images (only where other images are at hand).
        restyle: Chance of the looks of another image (only where other images are at hand), see ``restyle_by``.
        restyle_by: Its ``statistics`` of colour, or the amplitudes of its lowest frequencies (``fourier``).

    Attributes:
        flip_pairs: Points that a mirror swaps; whoever knows the model sets them.
    """

    mirror: float = 0.5
    flip: float = 0.0
    crop: float = 0.0
    crop_area: Pair = (0.3, 1.0)
    min_visible: float = 0.2
    scale: Pair | None = (0.5, 1.4)
    aspect: float = 0.1
    rotate: float = 0.0
    shear: float = 0.0
    boxes: Outline = "ellipse"
    warp: float = 0.0
    warp_grid: int = 4
    shift: float = 10.0
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.4
    hue: float = 0.02
    pca: float = 0.1
    covariance: list[list[float]] | None = None
    noise: float = 0.0
    blur: int = 0
    grey: float = 0.0
    chance: float = 0.2
    mosaic: float = 0.5
    mixup: float = 0.0
    restyle: float = 0.0
    restyle_by: Looks = "statistics"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = int(name == "warp_grid"), _HIGHEST.get(name, 1)
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise DetkitError(f"{name} must lie between {low} and {high}, got {value}", f"augment.{name}")
            if name in _RANGES and value is not None and not (len(value) == 2 and 0 < value[0] <= value[1] <= high):
                what = f"{name} must be two rising numbers above 0 and up to {high}, got {list(value)}"
                raise DetkitError(what, f"augment.{name}")
        self._axes = principal_axes(IMAGENET_COVARIANCE if self.covariance is None else self.covariance)
        self.flip_pairs: Sequence[tuple[int, int]] = ()

    def __call__(
        self, sample: Sample, rng: np.random.Generator, resize: Resize, more: Callable[[], Sample] | None = None
    ) -> Sample:
        """A changed sample of ``resize.size`` (height, width); ``more()`` returns another random sample."""
        if more is not None and self.mosaic and rng.random() < self.mosaic:
            parts = [self._cropped(s, rng) for s in (sample, more(), more(), more())]
            changed = self._mosaic(parts, resize, rng)
        else:
            changed = self._placed(sample, rng, resize)
        if more is not None and self.mixup and rng.random() < self.mixup:
            changed = mixup_of(changed, self._placed(more(), rng, resize), rng)
        if more is not None and self.restyle and rng.random() < self.restyle:
            changed = changed.replace(image=restyled(changed.image, more().image, self.restyle_by))
        return changed.replace(image=self._coloured(changed.image, rng))

    @classmethod
    def off(cls, **strengths: object) -> Augment:
        """Everything off but ``strengths``."""
        off: dict[str, Any] = {name: None if name == "scale" else 0 for name in cls._strengths()}
        return cls(**(off | strengths))

    @classmethod
    def _strengths(cls) -> list[str]:
        # Of what others switch on.
        settings = ("crop_area", "min_visible", "boxes", "warp_grid", "covariance", "chance", "restyle_by")
        return [field.name for field in fields(cls) if field.name not in settings]

    def reduce_to(self, resize: Resize) -> int | None:
        """A JPEG may be decoded smaller, down to this many pixels of its longer side; None: not."""
        return None if self.crop else max(resize.height, resize.width)

    @property
    def changes(self) -> bool:
        """False if every image stays as evaluation sees it."""
        return any(getattr(self, name) for name in self._strengths())

    def prepare(self) -> None:
        """Imports albumentations if it will be needed, so that forked workers share it."""
        _ = self._pixels

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_pixels"}

    # Geometry

    def _cropped(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.shape[:2]
        target = usable(sample.target, (height, width))
        sample = sample.replace(target=target)
        if not self.crop or rng.random() >= self.crop:
            return sample
        centres = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
        for _ in range(10):
            share, aspect = rng.uniform(*self.crop_area), np.exp(rng.uniform(-0.3, 0.3))
            w = min(max(round(width * np.sqrt(share) * aspect), 1), width)
            h = min(max(round(height * np.sqrt(share) / aspect), 1), height)
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            if not len(centres) or ((centres > (x, y)) & (centres < (x + w, y + h))).all(axis=1).any():
                return cropped(sample, (x, y, x + w, y + h), self.min_visible)
        return sample

    def _mosaic(self, samples: Sequence[Sample], resize: Resize, rng: np.random.Generator) -> Sample:
        """Four images around a random point of one (Bochkovskiy et al., "YOLOv4", 2020, section 3.4).

        Each is resampled once, straight into its place. Image id and path are those of the first.
        """
        if any(sample.proposals is not None for sample in samples):
            raise ValueError("a mosaic cannot carry proposals: switch augment.mosaic off for this family")
        height, width = resize.height, resize.width
        x, y = (int(side * rng.uniform(0.3, 0.7)) for side in (width, height))
        quadrants = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        image = np.empty((height, width, 3), np.uint8)
        targets = []
        for sample, (x1, y1, x2, y2) in zip(samples, quadrants, strict=True):
            warp = self._place(resize, sample, (y2 - y1, x2 - x1), rng)
            warp.image(sample.image, image[y1:y2, x1:x2], resize.fill)
            place = Geometry(x2 - x1, y2 - y1, left=x1, top=y1)
            targets.append(moved_target(warp.target(sample.target, self.min_visible), place))
        return samples[0].replace(image=image, target=joined(targets))

    def _placed(self, sample: Sample, rng: np.random.Generator, resize: Resize) -> Sample:
        sample = self._cropped(sample, rng)
        if self._moves:
            warp = self._place(resize, sample, (resize.height, resize.width), rng)
            image = np.empty((resize.height, resize.width, 3), np.uint8)
            warp.image(sample.image, image, resize.fill)
            return warp.sample(sample, image, self.min_visible)
        # Resampled exactly as in evaluation.
        mirror, flip = rng.random(2) < (self.mirror, self.flip)
        sample = turned(sample, bool(mirror), bool(flip), self.flip_pairs)
        image, geometry = replace(resize, stride=1)(sample.image)
        matrix = np.array([[geometry.scale_x, 0, 0], [0, geometry.scale_y, 0]])
        return Warp(matrix, (resize.height, resize.width)).sample(sample, image, 0, clip=False)

    @property
    def _moves(self) -> bool:
        return bool(self.scale or self.aspect or self.rotate or self.shear or self.warp)

    def _place(self, resize: Resize, sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Warp:
        """Draws where a sample goes inside an area of ``size`` (height, width)."""
        height, width = sample.image.shape[:2]
        geometry = resize.geometry(height, width)
        mirror, flip = rng.random(2) < (self.mirror, self.flip)
        factor = 1.0 if self.scale is None else float(np.exp(rng.uniform(*np.log(self.scale))))
        stretch = np.exp(rng.uniform(-1, 1) * np.log1p(self.aspect) / 2)
        angle, slant_x, slant_y = np.deg2rad(rng.uniform(-1, 1, 3) * (self.rotate, self.shear, self.shear))
        cos, sin = np.cos(angle), np.sin(angle)
        scale_x = geometry.scale_x * factor * stretch * (-1 if mirror else 1)
        scale_y = geometry.scale_y * factor / stretch * (-1 if flip else 1)
        slant = np.array([[1, np.tan(slant_x)], [np.tan(slant_y), 1]])
        linear = np.array([[cos, -sin], [sin, cos]]) @ slant @ np.diag([scale_x, scale_y])
        extent = np.abs(linear) @ (width, height)
        # A random place inside the area, or a random part of the image where it is larger.
        corner = rng.random(2) * ((size[1], size[0]) - extent)
        offset = corner + extent / 2 - linear @ (width / 2, height / 2)
        displacement = None
        if self.warp:
            cell = np.array([size[1], size[0]]) / self.warp_grid
            nodes = rng.uniform(-1, 1, (self.warp_grid + 1, self.warp_grid + 1, 2)) * self.warp * cell
            displacement = nodes.astype(np.float32)
        return Warp(np.column_stack([linear, offset]), size, displacement, self.flip_pairs, self.boxes)

    # Colour

    def _coloured(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        added = rng.uniform(-self.shift, self.shift, 3) if self.shift else np.zeros(3)
        if self.pca:
            added = added + self._axes @ rng.normal(0, self.pca, 3)
        image = colour_shift(image, np.rint(added))
        if self._pixels is None:
            return image
        self._pixels.set_random_seed(int(rng.integers(2**31)))
        return self._pixels(image=image)["image"]

    @cached_property
    def _pixels(self) -> Compose | None:
        jitter = self.brightness or self.contrast or self.saturation or self.hue
        if not (jitter or self.grey or self.blur or self.noise):
            return None
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer one
        import albumentations as A

        around = [(1 - s, 1 + s) for s in (self.brightness, self.contrast, self.saturation)]
        steps = (
            (jitter, A.ColorJitter(*around, hue=(-self.hue, self.hue), p=1)),
            (self.grey, A.ToGray(p=self.grey)),
            (self.blur, A.Blur(blur_limit=(3, max(2 * self.blur + 1, 3)), p=self.chance)),
            (self.noise, A.GaussNoise(std_range=(0, self.noise / 255), p=self.chance)),
        )
        return A.Compose([step for strength, step in steps if strength])


def joined(targets: Sequence[Target]) -> Target:
    """The objects of several targets (numpy) as those of one image; points only where all of them have some."""
    names = ["boxes", "labels", "crowd", "difficult", "area", "weight"]
    if all(t.points is not None for t in targets):
        names.append("points")
    columns: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in targets]) for name in names}
    known = [set(t.known) for t in targets if t.known is not None]
    return Target(**columns, known=tuple(sorted(set.intersection(*known))) if known else None)


def mixup_of(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Two images of one size blended, with the objects of both (Zhang et al., Bag of Freebies, 2019, section 3.1).

    The share of each is drawn from Beta(1.5, 1.5) and is the weight of its objects in the loss.
    """
    if first.proposals is not None or second.proposals is not None:
        raise ValueError("mixup cannot carry proposals: switch augment.mixup off for this family")
    share = float(rng.beta(1.5, 1.5))
    image = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)
    parts = [
        replace(sample.target, weight=sample.target.weight * np.float32(weight))
        for sample, weight in ((first, share), (second, 1 - share))
    ]
    return first.replace(image=image, target=joined(parts))


def usable(target: Target, size: tuple[int, int]) -> Target:
    """``target`` (numpy) without boxes that are not finite, have no area, or lie outside ``size`` (height, width)."""
    height, width = size
    boxes = target.boxes
    inside = np.minimum(boxes[:, 2:], (width, height)) - np.maximum(boxes[:, :2], 0)
    keep = np.isfinite(boxes).all(axis=1) & (inside > 0).all(axis=1)
    return target if keep.all() else target[keep]


def colour_shift(image: np.ndarray, added: Sequence[float] | np.ndarray) -> np.ndarray:
    """``image`` (uint8 (H, W, 3) RGB) with (3,) values added to its channels, clipped to 0..255."""
    table = np.arange(256)[:, None] + np.asarray(added)
    return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8).reshape(1, 256, 3))


def principal_axes(covariance: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(3, 3) float64: columns eigenvector * eigenvalue of an RGB covariance (0..255), for values of 0..255.

    AlexNet adds [p1, p2, p3] [a1 l1, a2 l2, a3 l3]' to pixels of 0..1 (Krizhevsky et al., 2012, section 4.1).
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.allclose(matrix, matrix.T):
        what = "covariance must be a symmetric 3 x 3 table of numbers"
        raise DetkitError(what, "augment.covariance", "copy it from data stats")
    values, vectors = np.linalg.eigh(matrix / 255**2)
    return 255 * vectors * values
