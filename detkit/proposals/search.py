"""Selective search (Uijlings et al. 2013, "Selective Search for Object Recognition"), in numba.

An image is cut into small segments (Felzenszwalb & Huttenlocher 2004), and the two most similar neighbours are joined
until one is left; the box of every segment on the way is a proposal. Several colour spaces, thresholds and measures of
similarity find what one of them would miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from detkit.interfaces import ProposalSource
from detkit.io.cache import Cache, image_hash
from detkit.ops.compiled import thread_count
from detkit.ops.inputs import check_positive
from detkit.ops.suppression import nms
from detkit.proposals import graph_kernels, search_kernels

if TYPE_CHECKING:
    from torch import Tensor

    from detkit.structures import Batch

PlanName = Literal["fast", "quality"]
PIXELS = 500 * 375  # of the copy that is searched of a larger image; lengths and areas below are that copy's
SIGMA, MIN_SIZE = 0.6, 88  # of the blur, in pixels (0.8 in the first paper finds less); pixels of a segment
MIN_SIDE = 8  # narrower boxes, in pixels, are left out
SMALL, SMALL_SHARE, SMALL_SAME = 40**2, 0.015, 0.7  # of fewer pixels and less of the image: overlap
VERSION = 4  # of the code: a higher one makes cached boxes stale, as other numbers of a plan or above do of themselves


@dataclass(frozen=True)
class Plan:
    """What is tried: every colour space x threshold x set of similarities.

    Attributes:
        spaces: Names of colour spaces.
        ks: Thresholds of the segmentation, rising.
        strategies: Which of colour, texture, size and fill are summed.
        same: A box that overlaps a likelier one more is left out.
    """

    spaces: tuple[str, ...]
    ks: tuple[float, ...]
    strategies: tuple[tuple[bool, bool, bool, bool], ...]
    same: float


_ALL, _NO_COLOUR = (True, True, True, True), (False, True, True, True)
PLANS = {
    "fast": Plan(("hsv", "lab"), (160, 320, 640), (_ALL, _NO_COLOUR), 0.99),
    "quality": Plan(
        ("hsv", "lab", "grey", "hue", "rg-intensity"),
        (146, 292, 500, 790, 1220),
        (_ALL, _NO_COLOUR, (False, False, False, True), (False, False, True, False)),
        0.96,
    ),
}


def selective_search(
    image_rgb: np.ndarray, plan: PlanName = "fast", *, max: int = 0, seed: int = 0, threads: int | None = None
) -> np.ndarray:
    """Boxes that may hold an object, the likelier ones first, no two the same or nearly so.

    An image of more than ``PIXELS`` is searched in a copy of so many, so neither what is found nor the time depend on
    the resolution. An object must be some 2 % of the image high and wide.

    Order (section 3.3 of the paper): a box made as the i-th from the end of its grouping is ranked by i times a random
    number, so large ones tend to come first, without one grouping ahead of the others.

    Args:
        image_rgb: uint8 (H, W, 3) RGB or (H, W).
        plan: ``fast`` (2 colour spaces x 3 thresholds x 2 sets of similarities, some 1200 boxes in a photo) or
            ``quality`` (5 x 5 x 4, some 3000).
        max: Boxes at most (0: all).
        seed: The same image and seed give the same boxes with any number of threads.
        threads: None: as many as torch or the machine has, one in a worker process.

    Returns:
        (N, 4) float32 xyxy, whole pixels.

    Raises:
        TypeError: Not a uint8 array.
        ValueError: Another shape, an unknown plan, a negative max, no threads.
    """
    if plan not in PLANS:
        raise ValueError(f"there is no plan {plan!r}: choose one of {', '.join(PLANS)}")
    if max < 0:
        raise ValueError(f"max must be 0 or more, got {max}")
    threads = thread_count() if threads is None else threads
    check_positive(threads=threads)
    image = _checked(image_rgb)
    searched = _bounded(image)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda space: _hierarchies(_channels(searched, space), PLANS[plan]), PLANS[plan].spaces)
        found = [boxes for part in parts for boxes in part]
    rank = np.concatenate([np.arange(len(boxes), 0, -1) for boxes in found])
    rank = rank * np.random.default_rng(seed).random(len(rank))
    boxes = np.concatenate(found)[np.argsort(rank, kind="stable")].astype(np.float32)
    size = np.array(searched.shape[1::-1])
    boxes = _distinct(boxes, size, PLANS[plan].same)[: max or None]
    return np.rint(boxes * np.tile(image.shape[1::-1] / size, 2)).astype(np.float32)


def graph_segments(image: np.ndarray, k: float, *, sigma: float = SIGMA, min_size: int = MIN_SIZE) -> np.ndarray:
    """The segment of each pixel (Felzenszwalb & Huttenlocher 2004).

    Args:
        image: uint8 (H, W) or (H, W, c), 4-connected, edges weighted by the distance of values.
        k: The larger, the larger the segments.
        sigma: Of the blur before, in pixels (0: none).
        min_size: Segments of fewer pixels are joined to a neighbour.

    Returns:
        (H, W) int32, numbered from 0 by first pixels.
    """
    atoms, finals = _segments(cv2.split(image), (k,), sigma, min_size)
    return finals[0][atoms].reshape(image.shape[:2])


def _checked(image: object) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f"image must be a uint8 numpy array, got {getattr(image, 'dtype', type(image).__name__)}")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        raise ValueError(f"image must be (H, W, 3) RGB or (H, W), with a pixel at least, got shape {image.shape}")
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image)


def _bounded(image: np.ndarray) -> np.ndarray:
    """``image``, or a smaller copy of about ``PIXELS`` where it has more."""
    height, width = image.shape[:2]
    scale = (height * width / PIXELS) ** 0.5
    if scale <= 1:
        return image
    return cv2.resize(image, [max(round(side / scale), 1) for side in (width, height)], interpolation=cv2.INTER_AREA)


def _distinct(boxes: np.ndarray, size: np.ndarray, same: float) -> np.ndarray:
    """``boxes``, the likelier first, without narrow ones and those that are nearly the same as a likelier one.

    Most boxes are small, and of these near doubles are worth least: they give way at less overlap.
    """
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= np.minimum(size, MIN_SIDE)).all(axis=1)]
    small = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) < min(SMALL, SMALL_SHARE * size.prod())
    keep = ~small
    keep[np.flatnonzero(small)[_apart(boxes[small], SMALL_SAME)]] = True
    boxes = boxes[keep]
    return boxes[_apart(boxes, same)]


def _apart(boxes: np.ndarray, limit: float) -> np.ndarray:
    return nms(boxes, np.arange(len(boxes), 0, -1, dtype=np.float32), limit)


def _channels(image: np.ndarray, space: str) -> Sequence[np.ndarray]:
    """The uint8 (H, W) channels of a colour space."""
    if space == "lab":
        return cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
    if space in ("hsv", "hue"):
        return cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))[: 1 if space == "hue" else 3]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return [grey] if space == "grey" else [*cv2.split(image)[:2], grey]


def _segments(
    channels: Sequence[np.ndarray], ks: Sequence[float], sigma: float, min_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The atom of each pixel (H W,) and the segment of each atom under each k (K, A), see ``atoms_of``."""
    smooth: np.ndarray = np.stack(channels, axis=2).astype(np.float32)
    h, w, c = smooth.shape
    if sigma:
        smooth = cv2.GaussianBlur(smooth, (0, 0), sigma).reshape(h, w, c)
    edges, weights = graph_kernels.sorted_edges(smooth)
    thresholds = np.array(ks, np.float32)
    common = graph_kernels.common_merges(edges, weights, h * w, w, thresholds[0])
    finals = np.stack([graph_kernels.own_merges(*common[1:], k, min_size) for k in thresholds])
    return graph_kernels.atoms_of(common[0], finals)


def _hierarchies(channels: Sequence[np.ndarray], plan: Plan) -> list[np.ndarray]:
    """(R, 4) int32 boxes of each grouping of one colour space, in order of their making."""
    h, w = channels[0].shape
    atoms, finals = _segments(channels, plan.ks, SIGMA, MIN_SIZE)
    codes = np.empty((4 * len(channels), h * w), np.uint8)
    for number, channel in enumerate(channels):
        gx, gy = (cv2.Scharr(channel, cv2.CV_16S, dx, 1 - dx).ravel() for dx in (1, 0))
        for direction, derivative in enumerate((gx, gy, gx + gy, gx - gy)):
            search_kernels.texture_codes(derivative, codes[4 * number + direction])
    values = np.stack([channel.ravel() for channel in channels])
    described = search_kernels.describe(atoms, finals.shape[1], w, values, codes)
    pairs = search_kernels.neighbours(atoms.reshape(h, w))
    strategies = np.array(plan.strategies)
    found = []
    for segments in finals:
        parts = search_kernels.gather(segments, *described)
        near = search_kernels.touching(*segments[pairs].T)
        found += list(search_kernels.group(*parts, near, len(channels), h * w, strategies))
    return found


class SelectiveSearch(ProposalSource):
    """Selective search as a source of proposals, found in the original image by whoever loads it.

    Args:
        channels: Not used.
        strides: Not used.
        folder: Of the cache, by default the user's.
        plan: As for ``selective_search``.
        max: Boxes kept per image, the likelier ones (0: all).
        seed: As for ``selective_search``.
        cache: Keep the boxes of the images of data sets on disk (some 10 KB each, see ``detkit.io.cache``), so that
            they are searched once.
    """

    def __init__(
        self,
        channels: Sequence[int] = (),
        strides: Sequence[int] = (),
        folder: str | Path | None = None,
        *,
        plan: PlanName = "fast",
        max: int = 2000,
        seed: int = 0,
        cache: bool = True,
    ) -> None:
        if max < 0:
            raise ValueError(f"max must be 0 or more, got {max}")
        self.plan, self.max_proposals, self.seed = plan, max, seed
        self.cache, self.folder = cache, folder

    @cached_property
    def _kept(self) -> Cache:
        numbers = [astuple(PLANS[self.plan]), PIXELS, SIGMA, MIN_SIZE, MIN_SIDE, SMALL, SMALL_SHARE, SMALL_SAME]
        parameters = {"plan": self.plan, "numbers": numbers, "seed": self.seed, "version": VERSION}
        return Cache("selective-search", parameters, folder=self.folder)

    def proposals_for_image(self, image: np.ndarray, path: str = "") -> np.ndarray:
        """The boxes of one image.

        Args:
            image: uint8 (H, W, 3) RGB.
            path: Of a data set's image, whose boxes are cached; "": not, as a camera's frames would fill the disk.

        Returns:
            (R, 4) float32 xyxy in the image's pixels.
        """

        def search() -> np.ndarray:
            return selective_search(image, self.plan, seed=self.seed).astype(np.int32)

        boxes = self._kept.get(image_hash(image), search) if self.cache and path else search()
        return boxes[: self.max_proposals or None].astype(np.float32)

    def propose(self, batch: Batch, features: list[Tensor], training: bool) -> tuple[list[Tensor], None]:
        """The boxes that came with the images, in input pixels.

        Raises:
            ValueError: they came without, so whoever loaded them did not call ``proposals_for_image``.
        """
        if batch.proposals is None:
            raise ValueError("this batch has no proposals: fill Sample.proposals (Detector.proposals_for_image)")
        return batch.proposals, None
