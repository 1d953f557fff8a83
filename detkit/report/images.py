"""The gallery's images: small, drawn, as data URIs of JPEG."""

from __future__ import annotations

import numpy as np

from detkit.errors import DetkitError
from detkit.io.draw import draw_marked
from detkit.io.images import jpeg_bytes, read_image, scaled_to
from detkit.report.charts import data_uri
from detkit.report.content import Facts

GALLERY, EXAMPLE = 520, 200  # pixels of the longer side
_MARGIN = 0.4  # of the box, around an example
# Places in the drawing palette: red, orange, green.
_COLOURS = {"false_positive": 0, "missed": 2, "right": 3}


def gallery_image(entry: Facts) -> str | None:
    """The image of an entry of ``worst``: false positives red, missed objects orange and dashed; None if unreadable."""
    wrong, missed = entry["false_positives"], entry["missed"]
    boxes = np.array([one["box"] for one in (*wrong, *missed)], float).reshape(-1, 4)
    captions = [f"{one['label']} {one['score']:.2f}, {one['kind']}" for one in wrong]
    captions += [f"missed: {one['label']}" for one in missed]
    kinds = ["false_positive"] * len(wrong) + ["missed"] * len(missed)
    try:
        return _drawn(read_image(entry["file"]), boxes, captions, kinds, GALLERY)
    except DetkitError:
        return None


def example_image(kind: str, one: Facts) -> str | None:
    """One of ``examples``, cut out with some of its surroundings; None if its image cannot be read."""
    box = np.array(one["box"], float)
    try:
        image = read_image(one["file"])
    except DetkitError:
        return None
    margin = _MARGIN * max(*(box[2:] - box[:2]), 20)
    size = np.array(image.shape[1::-1])
    left, top = np.clip(box[:2] - margin, 0, size - 1).astype(int)
    right, bottom = np.clip(box[2:] + margin, (left + 1, top + 1), size).astype(int)
    return _drawn(image[top:bottom, left:right], box[None] - np.array([left, top] * 2), [""], [kind], EXAMPLE)


def _drawn(image: np.ndarray, boxes: np.ndarray, captions: list[str], kinds: list[str], side: int) -> str:
    colours, dashed = [_COLOURS[kind] for kind in kinds], [kind == "missed" for kind in kinds]
    marked = draw_marked(scaled_to(image, side), boxes * (side / max(image.shape[:2])), captions, colours, dashed)
    return data_uri("image/jpeg", jpeg_bytes(marked))
