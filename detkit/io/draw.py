"""Boxes with readable names on a copy of an image."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ImageFont

from detkit.structures import Detections, Target

# Distinct from each other and from most photos; neighbours in the list differ most. Class i has colour i modulo length.
PALETTE = (
    (255, 56, 56), (0, 194, 255), (255, 178, 29), (61, 219, 134), (132, 56, 255), (207, 210, 49), (255, 55, 199),
    (26, 147, 52), (52, 69, 230), (255, 112, 31), (0, 212, 187), (146, 204, 23), (255, 149, 200), (44, 153, 168),
    (100, 115, 255), (203, 56, 255), (170, 110, 40), (72, 249, 10), (203, 42, 90), (128, 160, 190),
)  # fmt: skip
GAP = 6  # pixels between the images of a sheet
# Fonts with the scripts that DejaVu lacks, as the common systems name them.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "msyh.ttc",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "ARIALUNI.TTF", "Nirmala.ttf",
)  # fmt: skip


def colour_of(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class, the same in every image."""
    return PALETTE[label % len(PALETTE)]


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with each box, its class and its score; points if ``extra`` has them.

    ``extra["points"]`` is (N, K, 2) or (N, K, 3: x, y, visible or score) in pixels. Lines and letters grow with the
    image; labels stay inside it.
    """
    found = detections.numpy()
    captions = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores, strict=True)]
    canvas = _copy(image)
    # The best are drawn last, so that they lie on top.
    order = np.argsort(found.scores, kind="stable")
    for i in order:
        _box(canvas, found.boxes[i], colour_of(int(found.labels[i])))
    for i in order:
        if "points" in found.extra:
            _points(canvas, np.asarray(found.extra["points"][i]), colour_of(int(found.labels[i])))
    best = order[::-1]
    _captions(canvas, found.boxes[best], [captions[i] for i in best], found.labels[best])
    return canvas


def draw_target(image: np.ndarray, target: Target, classes: Sequence[str] = ()) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with the labelled objects.

    Crowd regions are hatched and difficult objects dashed, and their captions say so.
    """
    labels = target.numpy()
    canvas = _copy(image)
    for box, label, crowd, difficult in zip(labels.boxes, labels.labels, labels.crowd, labels.difficult, strict=True):
        colour = colour_of(int(label))
        if crowd:
            _hatch(canvas, box, colour)
        _box(canvas, box, colour, dashed=bool(difficult or crowd))
    captions = []
    for i in range(len(labels)):
        label = int(labels.labels[i])
        name = classes[label] if 0 <= label < len(classes) else str(label)
        notes = [word for word, on in (("crowd", labels.crowd[i]), ("difficult", labels.difficult[i])) if on]
        captions.append(f"{name} ({', '.join(notes)})" if notes else name)
        if labels.points is not None:
            _points(canvas, np.asarray(labels.points[i]), colour_of(label))
    _captions(canvas, labels.boxes, captions, labels.labels)
    return canvas


def draw_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with thin frames of ``boxes`` (N, 4), the first ones on top."""
    canvas = _copy(image)
    for i in range(len(boxes) - 1, -1, -1):
        corners = _corners(canvas, boxes[i])
        if corners is not None:
            _frame(canvas, corners, max(1, _line_width(canvas) // 2), colour_of(i), dashed=False)
    return canvas


def draw_marked(
    image: np.ndarray, boxes: np.ndarray, captions: Sequence[str], colours: Sequence[int], dashed: Sequence[bool]
) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with ``boxes`` (N, 4) xyxy and what is said of each ("": nothing).

    colours: places in ``PALETTE``; dashed frames where ``dashed``. The first ones lie on top.
    """
    canvas = _copy(image)
    for i in range(len(boxes) - 1, -1, -1):
        _box(canvas, boxes[i], colour_of(colours[i]), dashed[i])
    said = [i for i, caption in enumerate(captions) if caption]
    _captions(canvas, boxes[said], [captions[i] for i in said], np.array(colours, np.int64)[said])
    return canvas


def sheet(images: Sequence[np.ndarray], captions: Sequence[str] = (), columns: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) RGB: images (each uint8 (h, w, 3) RGB) side by side on white, a caption above each.

    columns: 0 for somewhat more columns than rows.
    """
    columns = columns or min(len(images), max(1, round(len(images) ** 0.5 * 1.2)))
    tabs = [_tab(caption, 13, (255, 255, 255)) for caption in captions]
    high, wide = max(picture.shape[0] for picture in images), max(part.shape[1] for part in (*images, *tabs))
    above = max((tab.shape[0] for tab in tabs), default=0)
    step = high + above + GAP, wide + GAP
    canvas = np.full((-(-len(images) // columns) * step[0] + GAP, columns * step[1] + GAP, 3), 255, np.uint8)
    for k, picture in enumerate(images):
        top, left = GAP + k // columns * step[0], GAP + k % columns * step[1]
        if tabs:
            canvas[top : top + tabs[k].shape[0], left : left + tabs[k].shape[1]] = tabs[k]
        canvas[top + above :, left:][: picture.shape[0], : picture.shape[1]] = picture
    return canvas


def _copy(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"draw: image must be uint8 (H, W, 3) RGB, got {image.dtype} {tuple(image.shape)}")
    return np.array(image, order="C")


def _line_width(canvas: np.ndarray) -> int:
    return max(1, round(0.6 + sum(canvas.shape[:2]) / 2 * 0.003))


def _font_size(canvas: np.ndarray) -> int:
    return max(10, round(sum(canvas.shape[:2]) / 2 * 0.024))


def _corners(canvas: np.ndarray, box: np.ndarray) -> tuple[int, int, int, int] | None:
    """First and last pixel of the box inside the image; None if it has none or is not finite."""
    if not np.isfinite(box).all():
        return None
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in box)
    left, top = max(0, round(x1)), max(0, round(y1))
    right, bottom = min(width, max(round(x2), left + 1)) - 1, min(height, max(round(y2), top + 1)) - 1
    return (left, top, right, bottom) if right >= left and bottom >= top and x2 > 0 and y2 > 0 else None


def _box(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], dashed: bool = False) -> None:
    corners = _corners(canvas, box)
    if corners is None:
        return
    left, top, right, bottom = corners
    width = _line_width(canvas)
    if min(right - left, bottom - top) < 6 * width:
        width = max(1, width // 2)
    # The frame lies inside the box, so that its outer edge is the box; a dark rim keeps it visible on its own colour.
    for inset, shade in ((width, (0, 0, 0)), (0, colour)):
        thick = 1 if inset else width
        _frame(canvas, (left + inset, top + inset, right - inset, bottom - inset), thick, shade, dashed)


def _frame(
    canvas: np.ndarray, corners: tuple[int, int, int, int], width: int, colour: tuple[int, int, int], dashed: bool
) -> None:
    left, top, right, bottom = corners
    if right < left or bottom < top:
        return
    period = max(8, 6 * width)
    strips = (
        canvas[top : min(top + width, bottom + 1), left : right + 1],
        canvas[max(top, bottom + 1 - width) : bottom + 1, left : right + 1],
        canvas[top : bottom + 1, left : min(left + width, right + 1)].transpose(1, 0, 2),
        canvas[top : bottom + 1, max(left, right + 1 - width) : right + 1].transpose(1, 0, 2),
    )
    for strip in strips:
        if dashed:
            strip[:, np.arange(strip.shape[1]) % period < period * 0.6] = colour
        else:
            strip[:] = colour


def _hatch(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    corners = _corners(canvas, box)
    if corners is None:
        return
    left, top, right, bottom = corners
    region = canvas[top : bottom + 1, left : right + 1]
    width = _line_width(canvas)
    rows, columns = np.ogrid[: region.shape[0], : region.shape[1]]
    stripes = (rows + columns) % (10 * width) < width
    region[stripes] = (region[stripes] * 0.35 + np.asarray(colour) * 0.65).astype(np.uint8)


def _points(canvas: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> None:
    radius = _line_width(canvas) + 1
    for point in points.reshape(-1, points.shape[-1]):
        if not np.isfinite(point).all() or (len(point) > 2 and point[2] <= 0):
            continue
        centre = (int(np.clip(point[0], -1e6, 1e6)), int(np.clip(point[1], -1e6, 1e6)))
        cv2.circle(canvas, centre, radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, radius, colour, -1, cv2.LINE_AA)


def _captions(canvas: np.ndarray, boxes: np.ndarray, texts: list[str], labels: np.ndarray) -> None:
    """A filled tab with its text at each box, most important first; later tabs avoid earlier ones where they can."""
    size = _font_size(canvas)
    taken: list[tuple[int, int, int, int]] = []
    placed = []
    for box, text, label in zip(boxes, texts, labels, strict=True):
        corners = _corners(canvas, box)
        if corners is not None:
            tab = _tab(text, size, colour_of(int(label)))[: canvas.shape[0], : canvas.shape[1]]
            placed.append((_place(canvas, corners, tab, taken), tab))
    for (x, y), tab in reversed(placed):
        canvas[y : y + tab.shape[0], x : x + tab.shape[1]] = tab


def _place(
    canvas: np.ndarray, corners: tuple[int, int, int, int], tab: np.ndarray, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int]:
    """Upper left pixel of a tab, the whole tab inside the image: above the box, else inside its top, else below, else
    further down in it (several answers may share a box)."""
    left, top, _, bottom = corners
    height, width = tab.shape[:2]
    x = min(left, canvas.shape[1] - width)
    lowest = canvas.shape[0] - height
    places = (top - height, top, bottom + 1, *range(top + height, bottom + 1 - height, height), bottom + 1 - height)
    wishes = [y for y in places if 0 <= y <= lowest] or [min(top, lowest)]
    free = [y for y in wishes if all(not _overlap((x, y, x + width, y + height), other) for other in taken)]
    y = (free or wishes)[0]
    taken.append((x, y, x + width, y + height))
    return x, y


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=2048)
def _tab(text: str, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """(h, w, 3) uint8: the text in black or white, whichever stands out more, on the colour."""
    text = " ".join(text.split())
    font = _font_for(text, size)
    pad = max(2, size // 5)
    ascent, descent = font.getmetrics()
    left, _, right, _ = font.getbbox(text)
    mask, offset = font.getmask2(text, mode="L")
    alpha = np.zeros((ascent + descent + pad, max(1, int(np.ceil(right - left))) + 2 * pad), np.float32)
    glyphs = np.asarray(mask, np.float32).reshape(mask.size[1], mask.size[0]) / 255
    x, y = pad + int(offset[0] - left), pad // 2 + int(offset[1])
    part = alpha[max(0, y) : y + glyphs.shape[0], x : x + glyphs.shape[1]]
    part[:] = glyphs[: part.shape[0], : part.shape[1]]
    paper = np.asarray(colour, np.float32)
    luminance = paper @ np.asarray((0.299, 0.587, 0.114), np.float32)
    ink = 0.0 if luminance > 125 else 255.0
    tab = (paper * (1 - alpha[..., None]) + ink * alpha[..., None] + 0.5).astype(np.uint8)
    tab.flags.writeable = False
    return tab


@lru_cache(maxsize=64)
def _base_font(size: int) -> Any:
    """DejaVu Sans from matplotlib's files (found without importing it), else Pillow's own font."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin:
        file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _font_for(text: str, size: int) -> Any:
    """A font that has every letter of the text, if this system has one; else the base font."""
    base = _base_font(size)
    if text.isascii() or _has_letters(base, text):
        return base
    for name in _WIDE_FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if _has_letters(font, text):
            return font
    return base


def _has_letters(font: Any, text: str) -> bool:
    missing = bytes(font.getmask("\U0010fffe"))
    return all(char.isspace() or bytes(font.getmask(char)) != missing for char in text)
