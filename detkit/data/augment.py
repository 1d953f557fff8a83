"""Random changes to training images, with boxes that follow the pixels.

Geometry is composed into one map and resampled once; colours are shifted by one table look-up; albumentations does
the rest of the pixel work and is imported only when an image needs it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from detkit.data.mosaic import mixup, mosaic
from detkit.data.resize import Resize
from detkit.data.warp import Displacement, Warp, cropped
from detkit.errors import DetkitError
from detkit.structures import Sample, Target

# Covariance of ImageNet's RGB values (0..255), from the eigenvectors and eigenvalues in common use for AlexNet's PCA.
_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
IMAGENET_COVARIANCE = _VECTORS @ np.diag([0.2175, 0.0188, 0.0045]) @ _VECTORS.T * 255**2

Pair = tuple[float, float]


class Augment:
    """``augment(sample, rng, resize)``: a changed copy of a sample, at the model's input size. 0 or None is off.

    mirror, flip: chance of left-right and of upside-down.
    crop: chance of a random window with a share of the image's area in ``crop_area``, with an object where there
    is one. min_visible: an object of which less is left becomes difficult (neither object nor background).
    scale: range of factors on the fitted size (the place is then random); aspect: largest relative change of
    width to height; rotate, shear: largest angle in degrees; warp: local displacement, as a share (up to 0.25) of a
    cell of a ``warp_grid`` x ``warp_grid`` grid.
    shift: largest change of each colour channel (0..255); brightness, contrast, saturation, hue: largest relative
    change (hue: share of the circle); pca: AlexNet's colour shift, standard deviation of its three factors (0.1 in
    Krizhevsky et al., 2012, section 4.1), along the axes of ``covariance`` (3 x 3, of RGB values 0..255; None:
    ImageNet's). noise: largest standard deviation (0..255) and blur: largest radius in pixels, each on a share
    ``chance`` of the images; grey: chance of losing all colour.
    mosaic, mixup: chance of joining four images and of blending two (only where other images are at hand).
    """

    def __init__(
        self,
        *,
        mirror: float = 0.5,
        flip: float = 0.0,
        crop: float = 0.0,
        crop_area: Pair = (0.3, 1.0),
        min_visible: float = 0.2,
        scale: Pair | None = (0.5, 1.4),
        aspect: float = 0.1,
        rotate: float = 0.0,
        shear: float = 0.0,
        warp: float = 0.0,
        warp_grid: int = 4,
        shift: float = 10.0,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.4,
        hue: float = 0.02,
        pca: float = 0.1,
        covariance: list[list[float]] | None = None,
        noise: float = 0.0,
        blur: int = 0,
        grey: float = 0.0,
        chance: float = 0.2,
        mosaic: float = 0.5,
        mixup: float = 0.0,
    ) -> None:
        given = {k: v for k, v in locals().items() if k != "self"}
        for name in ("mirror", "flip", "crop", "min_visible", "grey", "chance", "mosaic", "mixup"):
            _within(name, given[name], 0, 1)
        for name, high in (("aspect", 1), ("rotate", 180), ("shear", 60), ("warp", 0.25), ("shift", 255), ("hue", 0.5)):
            _within(name, given[name], 0, high)
        for name in ("brightness", "contrast", "saturation", "pca"):
            _within(name, given[name], 0, 1)
        _within("noise", noise, 0, 128)
        _within("blur", blur, 0, 20)
        _within("warp_grid", warp_grid, 1, 32)
        _range("crop_area", crop_area, 1)
        if scale is not None:
            _range("scale", scale, 10)
        self.mirror, self.flip, self.crop, self.crop_area = mirror, flip, crop, crop_area
        self.min_visible, self.aspect, self.rotate, self.shear = min_visible, aspect, rotate, shear
        self.scale = scale
        self.warp, self.warp_grid, self.shift = warp, warp_grid, shift
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.pca, self.noise, self.blur, self.grey, self.chance = pca, noise, blur, grey, chance
        self.mosaic, self.mixup = mosaic, mixup
        self.covariance = covariance
        self._axes = principal_axes(IMAGENET_COVARIANCE if covariance is None else covariance)
        self._pixels: Any = None
        self.flip_pairs: Sequence[tuple[int, int]] = ()  # points that a mirror swaps; whoever knows the model sets them
        self.dropped = 0  # boxes without an area or outside the image, left out before any change

    def __call__(
        self, sample: Sample, rng: np.random.Generator, resize: Resize, more: Callable[[], Sample] | None = None
    ) -> Sample:
        """A changed sample of ``resize.size`` (height, width); ``more()`` returns another random sample."""
        if more is not None and self.mosaic and rng.random() < self.mosaic:
            parts = [self._cropped(s, rng) for s in (sample, more(), more(), more())]
            place = self._placer(resize)
            size = (resize.height, resize.width)
            changed = mosaic(parts, size, rng, place, fill=resize.fill, min_visible=self.min_visible)
        else:
            changed = self._placed(sample, rng, resize)
        if more is not None and self.mixup and rng.random() < self.mixup:
            changed = mixup(changed, self._placed(more(), rng, resize), rng)
        return changed.replace(image=self._coloured(changed.image, rng))

    @classmethod
    def off(cls, **strengths: Any) -> Augment:
        """Everything off but ``strengths``."""
        names = inspect.signature(cls).parameters
        kept = ("crop_area", "min_visible", "warp_grid", "covariance", "chance")
        return cls(**{**{name: None if name == "scale" else 0 for name in names if name not in kept}, **strengths})

    def reduce_to(self, resize: Resize) -> int | None:
        """A JPEG may be decoded smaller, down to this many pixels of its longer side; None: not."""
        return None if self.crop else max(resize.height, resize.width)

    @property
    def changes(self) -> bool:
        """False if every image stays as evaluation sees it."""
        colours = (self.shift, self.brightness, self.contrast, self.saturation, self.hue, self.pca)
        more = (self.noise, self.blur, self.grey, self.mosaic, self.mixup)
        return any((self.mirror, self.flip, self.crop, self._moves, *colours, *more))

    def prepare(self) -> None:
        """Imports albumentations if it will be needed, so that forked workers share it."""
        if self._pixels is None:
            self._pixels = self._pixel_pipeline()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    # Geometry

    def _cropped(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.shape[:2]
        target = usable(sample.target, (height, width))
        self.dropped += len(sample.target) - len(target)
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

    def _placed(self, sample: Sample, rng: np.random.Generator, resize: Resize) -> Sample:
        sample = self._cropped(sample, rng)
        if self._moves:
            warp = self._placer(resize)(sample, (resize.height, resize.width), rng)
        else:  # resampled exactly as in evaluation
            mirror, flip = rng.random(2) < (self.mirror, self.flip)
            sample = turned(sample, bool(mirror), bool(flip), self.flip_pairs)
            image, geometry = replace(resize, stride=1)(sample.image)
            matrix = np.array([[geometry.scale_x, 0, 0], [0, geometry.scale_y, 0]])
            warp = Warp(matrix, (resize.height, resize.width))
            proposals = None if sample.proposals is None else geometry.to_input(sample.proposals)
            return sample.replace(image=image, target=warp.target(sample.target, 0), proposals=proposals)
        return warp.sample(sample, resize.fill, self.min_visible)

    @property
    def _moves(self) -> bool:
        return bool(self.scale or self.aspect or self.rotate or self.shear or self.warp)

    def _placer(self, resize: Resize) -> Callable[[Sample, tuple[int, int], np.random.Generator], Warp]:
        """The function that draws where a sample goes inside an area of a given (height, width)."""

        def place(sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Warp:
            height, width = sample.image.shape[:2]
            geometry = resize.geometry(height, width)
            mirror, flip = rng.random(2) < (self.mirror, self.flip)
            factor = 1.0 if self.scale is None else float(np.exp(rng.uniform(*np.log(self.scale))))
            stretch = np.exp(rng.uniform(-1, 1) * np.log1p(self.aspect) / 2)
            angle, slant_x, slant_y = np.deg2rad(rng.uniform(-1, 1, 3) * (self.rotate, self.shear, self.shear))
            cos, sin = np.cos(angle), np.sin(angle)
            scales = np.diag(
                [
                    geometry.scale_x * factor * stretch * (-1 if mirror else 1),
                    geometry.scale_y * factor / stretch * (-1 if flip else 1),
                ]
            )
            slant = np.array([[1, np.tan(slant_x)], [np.tan(slant_y), 1]])
            linear = np.array([[cos, -sin], [sin, cos]]) @ slant @ scales
            extent = np.abs(linear) @ (width, height)
            # A random place inside the area, or a random part of the image where it is larger.
            corner = rng.random(2) * ((size[1], size[0]) - extent)
            offset = corner + extent / 2 - linear @ (width / 2, height / 2)
            displacement = None
            if self.warp:
                cell = np.array([size[1], size[0]]) / self.warp_grid
                nodes = rng.uniform(-1, 1, (self.warp_grid + 1, self.warp_grid + 1, 2)) * self.warp * cell
                displacement = Displacement(nodes.astype(np.float32))
            return Warp(np.column_stack([linear, offset]), size, displacement, self.flip_pairs)

        return place

    # Colour

    def _coloured(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        added = rng.uniform(-self.shift, self.shift, 3) if self.shift else np.zeros(3)
        if self.pca:
            added = added + self._axes @ rng.normal(0, self.pca, 3)
        image = colour_shift(image, np.rint(added))
        self.prepare()
        if self._pixels is None:
            return image
        self._pixels.set_random_seed(int(rng.integers(2**31)))
        return self._pixels(image=image)["image"]

    def _pixel_pipeline(self) -> Any:
        jitter = self.brightness or self.contrast or self.saturation or self.hue
        if not (jitter or self.grey or self.blur or self.noise):
            return None
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer one
        import albumentations as A

        steps: list[Any] = []
        if jitter:
            around = [(1 - s, 1 + s) for s in (self.brightness, self.contrast, self.saturation)]
            steps.append(A.ColorJitter(*around, hue=(-self.hue, self.hue), p=1))
        if self.grey:
            steps.append(A.ToGray(p=self.grey))
        if self.blur:
            steps.append(A.Blur(blur_limit=(3, 2 * self.blur + 1), p=self.chance))
        if self.noise:
            steps.append(A.GaussNoise(std_range=(0, self.noise / 255), p=self.chance))
        return A.Compose(steps)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise DetkitError(f"{name} must lie between {low} and {high}, got {value}", f"augment.{name}")


def _range(name: str, value: Sequence[float], high: float) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= high:
        raise DetkitError(
            f"{name} must be two rising numbers above 0 and up to {high}, got {list(value)}", f"augment.{name}"
        )


def usable(target: Target, size: tuple[int, int]) -> Target:
    """``target`` (numpy) without boxes that are not finite, have no area, or lie outside ``size`` (height, width)."""
    height, width = size
    boxes = target.boxes
    inside = np.minimum(boxes[:, 2:], (width, height)) - np.maximum(boxes[:, :2], 0)
    keep = np.isfinite(boxes).all(axis=1) & (inside > 0).all(axis=1)
    return target if keep.all() else target[keep]


def turned(sample: Sample, mirror: bool, flip: bool, flip_pairs: Sequence[tuple[int, int]] = ()) -> Sample:
    """``sample`` mirrored left-right and, or, upside down, exactly; see ``Warp`` for ``flip_pairs``."""
    if not (mirror or flip):
        return sample
    height, width = sample.image.shape[:2]
    matrix = np.array([[-1.0 if mirror else 1.0, 0, width * mirror], [0, -1.0 if flip else 1.0, height * flip]])
    warp = Warp(matrix, (height, width), flip_pairs=flip_pairs)
    image = cv2.flip(sample.image, -1 if mirror and flip else int(mirror))
    proposals = None if sample.proposals is None else warp.boxes(sample.proposals).astype(np.float32)
    return sample.replace(image=image, target=warp.target(sample.target, 0), proposals=proposals)


def colour_shift(image: np.ndarray, added: Sequence[float] | np.ndarray) -> np.ndarray:
    """``image`` (uint8 (H, W, 3) RGB) with (3,) values added to its channels, clipped to 0..255."""
    table = np.arange(256)[:, None] + np.asarray(added)
    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, 3))


def principal_axes(covariance: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(3, 3) float64: columns eigenvector * eigenvalue of an RGB covariance (0..255), for values of 0..255.

    AlexNet adds [p1, p2, p3] [a1 l1, a2 l2, a3 l3]' to pixels of 0..1 (Krizhevsky et al., 2012, section 4.1).
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.allclose(matrix, matrix.T):
        raise DetkitError(
            "covariance must be a symmetric 3 x 3 table of numbers", "augment.covariance", "copy it from data stats"
        )
    values, vectors = np.linalg.eigh(matrix / 255**2)
    return 255 * vectors * values
