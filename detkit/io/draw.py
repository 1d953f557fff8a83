"""Boxes with readable names on a copy of an image."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detkit.rows import BACKGROUND

if TYPE_CHECKING:
    from detkit.structures import Detections, Target

# Distinct from each other and from most photos; neighbours in the list differ most. Class i has colour i modulo length.
PALETTE = (
    (255, 56, 56), (0, 194, 255), (255, 178, 29), (61, 219, 134), (132, 56, 255), (207, 210, 49), (255, 55, 199),
    (26, 147, 52), (52, 69, 230), (255, 112, 31), (0, 212, 187), (146, 204, 23), (255, 149, 200), (44, 153, 168),
    (100, 115, 255), (203, 56, 255), (170, 110, 40), (72, 249, 10), (203, 42, 90), (128, 160, 190),
)  # fmt: skip
Colour = tuple[int, int, int]
Corners = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont
_NOWHERE: Corners = (0, 0, -1, -1)
_FONT_SUFFIXES = (".ttf", ".ttc", ".otf")
_FANCY = re.compile("Bold|Black|Light|Thin|Italic|Oblique|Mono|Serif|Condensed", re.IGNORECASE)
GAP = 6  # pixels between the images of a sheet
_FONT_FOLDERS = (
    "~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts", "~/Library/Fonts",
    "/Library/Fonts", "/System/Library/Fonts", "$WINDIR/Fonts", "$LOCALAPPDATA/Microsoft/Windows/Fonts",
)  # fmt: skip


def colour_of(label: int) -> Colour:
    """The RGB colour of a class, the same in every image."""
    return PALETTE[label % len(PALETTE)]


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with each box, its class and its score; the best lie on top.

    Lines and letters grow with the image; labels stay inside it. ``extra["points"]``, (N, K, 2) or (N, K, 3: x, y,
    visible or score) in pixels, are drawn too.
    """
    found = detections.numpy()
    best = found[np.argsort(found.scores, kind="stable")[::-1]]
    captions = [f"{name} {score:.2f}" for name, score in zip(best.names, best.scores, strict=True)]
    if "masks" in best.extra:
        shown = coloured(image, best.extra["masks"], best.labels)
        return draw_marked(shown, best.boxes, captions, best.labels, framed=False)
    return draw_marked(image, best.boxes, captions, best.labels, points=best.extra.get("points"))


def draw_target(image: np.ndarray, target: Target, classes: Sequence[str] = ()) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with the labelled objects.

    Crowd regions are hatched and difficult objects dashed, and their captions say so.
    """
    labels = target.numpy()
    captions = []
    for label, crowd, difficult in zip(labels.labels.tolist(), labels.crowd, labels.difficult, strict=True):
        name = classes[label] if 0 <= label < len(classes) else str(label)
        notes = [word for word, on in (("crowd", crowd), ("difficult", difficult)) if on]
        captions.append(f"{name} ({', '.join(notes)})" if notes else name)
    dashed = labels.crowd | labels.difficult
    if labels.mask is not None:
        there = [k for k in np.unique(labels.mask).tolist() if k < BACKGROUND]
        shown = coloured(image, [_padded(labels.mask == k, image) for k in there], there)
        return draw_marked(shown, labels.boxes, captions, labels.labels, framed=False)
    return draw_marked(image, labels.boxes, captions, labels.labels, dashed, hatched=labels.crowd, points=labels.points)


def _padded(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A mask of an image's part of an input as one of the whole input."""
    return np.pad(mask, [(0, whole - part) for whole, part in zip(image.shape[:2], mask.shape, strict=True)])


def coloured(
    image: np.ndarray, masks: Sequence[np.ndarray] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB), half of it the colours of ``labels`` where ``masks`` (N, H, W) are."""
    canvas = _copy(image)
    for mask, label in zip(masks, labels, strict=True):
        canvas[mask] = (canvas[mask] * 0.5 + np.asarray(colour_of(int(label))) * 0.5).astype(np.uint8)
    return canvas


def draw_marked(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[int] | np.ndarray,
    dashed: Sequence[bool] | np.ndarray | None = None,
    *,
    hatched: np.ndarray | None = None,
    points: np.ndarray | None = None,
    framed: bool = True,
) -> np.ndarray:
    """A copy of ``image`` with boxes and what is said of each; the first ones lie on top.

    Args:
        image: uint8 (H, W, 3) RGB.
        boxes: (N, 4) xyxy in pixels.
        captions: One per box; "": nothing.
        colours: (N,) places in ``PALETTE``.
        dashed: (N,) True: a dashed frame.
        hatched: (N,) True: stripes across the box.
        points: (N, K, 2) or (N, K, 3: x, y, visible or score).
        framed: False: only the captions are drawn.
    """
    canvas = _copy(image)
    shades = [colour_of(int(colour)) for colour in colours]
    last_first = range(len(boxes) - 1, -1, -1)
    for i in last_first:
        if hatched is not None and hatched[i]:
            _hatch(canvas, boxes[i], shades[i])
        if framed:
            _box(canvas, boxes[i], shades[i], dashed is not None and bool(dashed[i]))
    for i in last_first:
        if points is not None:
            _points(canvas, np.asarray(points[i]), shades[i])
    _captions(canvas, boxes, captions, shades)
    return canvas


def draw_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of ``image`` (uint8 (H, W, 3) RGB) with thin frames of ``boxes`` (N, 4), the first ones on top."""
    canvas = _copy(image)
    width = max(1, line_width(canvas) // 2)
    for i in range(len(boxes) - 1, -1, -1):
        _frame(canvas, _corners(canvas, boxes[i]), width, colour_of(i), dashed=False)
    return canvas


def scaled_to(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` (H, W, 3) with ``side`` pixels along its longer side."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def sheet(images: Sequence[np.ndarray], captions: Sequence[str] = (), columns: int = 0) -> np.ndarray:
    """Images side by side on white, a caption above each: uint8 (H, W, 3) RGB.

    Args:
        images: Each uint8 (h, w, 3) RGB.
        captions: One per image, or none at all.
        columns: 0: somewhat more columns than rows.
    """
    columns = columns or min(len(images), max(1, round(len(images) ** 0.5 * 1.2)))
    tabs = [_tab(caption, 13, (255, 255, 255)) for caption in captions]
    high, wide = max(image.shape[0] for image in images), max(part.shape[1] for part in (*images, *tabs))
    above = max((tab.shape[0] for tab in tabs), default=0)
    step = high + above + GAP, wide + GAP
    canvas = np.full((-(-len(images) // columns) * step[0] + GAP, columns * step[1] + GAP, 3), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = GAP + k // columns * step[0], GAP + k % columns * step[1]
        if tabs:
            canvas[top : top + tabs[k].shape[0], left : left + tabs[k].shape[1]] = tabs[k]
        canvas[top + above :, left:][: image.shape[0], : image.shape[1]] = image
    return canvas


def _copy(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"draw: image must be uint8 (H, W, 3) RGB, got {image.dtype} {tuple(image.shape)}")
    return np.array(image, order="C")


def line_width(canvas: np.ndarray) -> int:
    """Pixels of lines on an image of this size."""
    return max(1, round(0.6 + sum(canvas.shape[:2]) / 2 * 0.003))


def _font_size(canvas: np.ndarray, captions: int = 1) -> int:
    """Pixels of letters; so many captions that they would hide the image are smaller."""
    height, width = canvas.shape[:2]
    return max(10, round(min((height + width) / 2 * 0.024, math.sqrt(0.02 * height * width / max(captions, 1)))))


def _corners(canvas: np.ndarray, box: np.ndarray) -> Corners:
    """First and last pixel of the box inside the image; the last before the first if it has none or is not finite."""
    if not np.isfinite(box).all():
        return _NOWHERE
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in box)
    left, top = max(0, round(x1)), max(0, round(y1))
    right, bottom = min(width, max(round(x2), left + 1)) - 1, min(height, max(round(y2), top + 1)) - 1
    return (left, top, right, bottom) if right >= left and bottom >= top and x2 > 0 and y2 > 0 else _NOWHERE


def _box(canvas: np.ndarray, box: np.ndarray, colour: Colour, dashed: bool) -> None:
    left, top, right, bottom = corners = _corners(canvas, box)
    width = line_width(canvas)
    if min(right - left, bottom - top) < 6 * width:
        width = max(1, width // 2)
    # The frame lies inside the box, so that its outer edge is the box; a dark rim keeps it visible on its own colour.
    _frame(canvas, (left + width, top + width, right - width, bottom - width), 1, (0, 0, 0), dashed)
    _frame(canvas, corners, width, colour, dashed)


def _frame(canvas: np.ndarray, corners: Corners, width: int, colour: Colour, dashed: bool) -> None:
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


def _hatch(canvas: np.ndarray, box: np.ndarray, colour: Colour) -> None:
    left, top, right, bottom = _corners(canvas, box)
    region = canvas[top : bottom + 1, left : right + 1]
    width = line_width(canvas)
    rows, columns = np.ogrid[: region.shape[0], : region.shape[1]]
    stripes = (rows + columns) % (10 * width) < width
    region[stripes] = (region[stripes] * 0.35 + np.asarray(colour) * 0.65).astype(np.uint8)


def _points(canvas: np.ndarray, points: np.ndarray, colour: Colour) -> None:
    radius = line_width(canvas) + 1
    for point in points.reshape(-1, points.shape[-1]):
        if not np.isfinite(point).all() or (len(point) > 2 and point[2] <= 0):
            continue
        centre = (int(np.clip(point[0], -1e6, 1e6)), int(np.clip(point[1], -1e6, 1e6)))
        cv2.circle(canvas, centre, radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, radius, colour, -1, cv2.LINE_AA)


def _captions(canvas: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: list[Colour]) -> None:
    """A filled tab with its text at each box, most important first; later tabs avoid earlier ones where they can."""
    size = _font_size(canvas, len(texts))
    taken = np.zeros((len(texts), 4), np.int64)
    tabs: list[np.ndarray] = []
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        corners = _corners(canvas, box)
        if text and corners != _NOWHERE:
            tab = _tab(text, size, colour)[: canvas.shape[0], : canvas.shape[1]]
            taken[len(tabs)] = _place(canvas, corners, tab, taken[: len(tabs)])
            tabs.append(tab)
    for (x1, y1, x2, y2), tab in reversed(list(zip(taken.tolist(), tabs, strict=False))):
        canvas[y1:y2, x1:x2] = tab


def _place(canvas: np.ndarray, corners: Corners, tab: np.ndarray, taken: np.ndarray) -> Corners:
    """Where a tab goes, the whole of it inside the image: above the box, else inside its top, else below, else further
    down in it (several answers may share a box)."""
    left, top, _, bottom = corners
    height, width = tab.shape[:2]
    x, lowest = min(left, canvas.shape[1] - width), canvas.shape[0] - height
    wishes = (top - height, top, bottom + 1, *range(top + height, bottom + 1 - height, height), bottom + 1 - height)
    rows = [y for y in wishes if 0 <= y <= lowest] or [min(top, lowest)]
    near = taken[(taken[:, 0] < x + width) & (taken[:, 2] > x)]
    free = (y for y in rows if not ((near[:, 1] < y + height) & (near[:, 3] > y)).any())
    y = next(free, rows[0])
    return x, y, x + width, y + height


@lru_cache(maxsize=2048)
def _tab(text: str, size: int, colour: Colour) -> np.ndarray:
    """(h, w, 3) uint8: the text in black or white, whichever stands out more, on the colour."""
    text = " ".join(text.split())
    runs = _runs(text, size)
    pad = max(2, size // 5)
    boxes = [font.getbbox(part) for part, font in runs]
    ascent, descent = (max(side) for side in zip(*(font.getmetrics() for _, font in runs), strict=True))
    widths = [right - left for left, _, right, _ in boxes]
    image = Image.new("RGB", (max(1, math.ceil(sum(widths))) + 2 * pad, ascent + descent + pad), colour)
    ink = "black" if np.asarray(colour) @ (0.299, 0.587, 0.114) > 125 else "white"  # by luminance
    x: float = pad
    for (part, font), (left, *_), width in zip(runs, boxes, widths, strict=True):
        ImageDraw.Draw(image).text((x - left, pad // 2 + ascent), part, fill=ink, font=font, anchor="ls")
        x += width
    tab = np.array(image)
    tab.flags.writeable = False
    return tab


def _runs(text: str, size: int) -> list[tuple[str, Font]]:
    """The text in pieces, each with a font that has its letters; "?" for letters that no font of this system has."""
    base = _base_font(size)
    if text.isascii() or _has_letters(base, text):
        return [(text, base)]
    pieces: list[tuple[str, bool]] = []
    for char in text:
        joins = char.isspace() or unicodedata.category(char) in ("Mn", "Mc", "Cf")
        known = pieces[-1][1] if joins and pieces else _has_letters(base, char)
        # Words may differ.
        if pieces and pieces[-1][1] == known and (known or joins or not pieces[-1][0].endswith(" ")):
            char = pieces.pop()[0] + char
        pieces.append((char, known))
    runs = []
    for part, known in pieces:
        file = None if known else _font_file(part)
        text = part if known or file else "?" + " " * part.endswith(" ")
        runs.append((text, ImageFont.truetype(file, size) if file else base))
    return runs


@lru_cache(maxsize=2048)
def _font_file(text: str) -> str | None:
    """The first font of this system that has every letter of the text; a warning where none has."""
    for file in _font_files():
        with suppress(OSError):
            if _has_letters(ImageFont.truetype(file, 20), text):
                return file
    warnings.warn(
        f"no font of this system has the letters of {text.strip()!r}: drawn as ?; Noto Sans has them", stacklevel=1
    )
    return None


@cache
def _font_files() -> list[str]:
    """All fonts, upright ones of normal weight without serifs first."""
    folders = (Path(os.path.expandvars(folder)).expanduser() for folder in _FONT_FOLDERS)
    files = [str(file) for folder in folders for file in folder.rglob("*") if file.suffix.lower() in _FONT_SUFFIXES]
    return sorted(files, key=lambda file: (bool(_FANCY.search(file)), file))


@lru_cache(maxsize=64)
def _base_font(size: int) -> Font:
    """DejaVu Sans from matplotlib's files (found without importing it), else Pillow's own font."""
    spec = importlib.util.find_spec("matplotlib")
    file = Path(str(spec and spec.origin)).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(file), size) if file.is_file() else ImageFont.load_default(size)
    return font  # type: ignore[return-value]


def _has_letters(font: Font, text: str) -> bool:
    missing = bytes(font.getmask("\U0010fffe"))
    shown = [char for char in text if not char.isspace() and unicodedata.category(char) != "Cf"]
    return all(bytes(font.getmask(char)) != missing for char in shown)
