"""The gallery's images: small, drawn, as data URIs of JPEG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from detkit.errors import DetkitError
from detkit.io.draw import draw_marked
from detkit.io.images import jpeg_bytes, read_image, scaled_to
from detkit.report.charts import data_uri

GALLERY, EXAMPLE = 520, 200  # pixels of the longer side
_MARGIN = 0.4  # of the box, around an example
# Places in the drawing palette: red, orange, green.
_COLOURS = {"false": 0, "missed": 2, "right": 3}


def gallery_image(entry: Mapping[str, Any]) -> str | None:
    """The image of an entry of ``content["worst"]``: false positives red, missed objects orange and dashed; None if
    it cannot be read."""
    wrong, missed = entry["false_positives"], entry["missed"]
    boxes = [one["box"] for one in (*wrong, *missed)]
    captions = [f"{one['label']} {one['score']:.2f}, {one['kind']}" for one in wrong]
    captions += [f"missed: {one['label']}" for one in missed]
    colours = [_COLOURS["false"]] * len(wrong) + [_COLOURS["missed"]] * len(missed)
    dashed = [False] * len(wrong) + [True] * len(missed)
    return _drawn(entry["file"], np.array(boxes, float).reshape(-1, 4), captions, colours, dashed)


def example_image(kind: str, one: Mapping[str, Any]) -> str | None:
    """One example of ``content["examples"]``, cut out with some of its surroundings; None if it cannot be read."""
    colour = {"right": "right", "false_positive": "false", "missed": "missed"}[kind]
    box = np.array(one["box"], float)
    return _drawn(one["file"], box[None], [""], [_COLOURS[colour]], [kind == "missed"], around=box)


def _drawn(
    file: str,
    boxes: np.ndarray,
    captions: list[str],
    colours: list[int],
    dashed: list[bool],
    around: np.ndarray | None = None,
) -> str | None:
    try:
        image = read_image(file)
    except DetkitError:
        return None
    side = GALLERY
    if around is not None:
        side = EXAMPLE
        x1, y1, x2, y2 = around
        margin = _MARGIN * max(x2 - x1, y2 - y1, 20)
        height, width = image.shape[:2]
        left, top = int(np.clip(x1 - margin, 0, width - 1)), int(np.clip(y1 - margin, 0, height - 1))
        right, bottom = int(np.clip(x2 + margin, left + 1, width)), int(np.clip(y2 + margin, top + 1, height))
        image, boxes = image[top:bottom, left:right], boxes - np.array([left, top, left, top])
    marked = draw_marked(scaled_to(image, side), boxes * (side / max(image.shape[:2])), captions, colours, dashed)
    return data_uri("image/jpeg", jpeg_bytes(marked))
