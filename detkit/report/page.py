"""One HTML file that needs nothing else: no network, no script, images and charts inside.

What stands where is written in page.html and table.html, templates of jinja2; here are the numbers and the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import detkit
from detkit.errors import DetkitError
from detkit.io.draw import colour_of, draw_marked, scaled_to, sheet
from detkit.io.files import write_text
from detkit.io.images import image_bytes, read_image
from detkit.printed import number
from detkit.report import charts
from detkit.report.content import Facts, Report
from detkit.rows import BACKGROUND
from detkit.tables import Maps

GALLERY, EXAMPLE, TILE = 520, 200, 340  # pixels of the longer side
_MARGIN = 0.4  # of the box, around an example
# Places in the drawing palette: red, orange, green.
_COLOURS = {"false_positive": 0, "missed": 2, "right": 3}
_NO_CLASS = {"background": [160, 160, 160], "not judged": [0, 0, 0]}
_MAP = np.array([*map(colour_of, range(BACKGROUND)), *_NO_CLASS.values()], np.uint8)  # of pixels' classes
_MOST = 10  # rows of a table of what is most frequent

_TEMPLATES = Environment(loader=PackageLoader("detkit.report", "."), autoescape=True, undefined=StrictUndefined)
_TEMPLATES.filters |= {"number": number, "basename": os.path.basename}


def write_report(path: str | Path, report: Report, title: str, *, overwrite: bool = False) -> int:
    """Writes an evaluation as a page.

    Args:
        path: Of the file.
        report: With its details.
        title: Of the page.
        overwrite: Replace a file that exists.

    Returns:
        How many of its images could not be read.

    Raises:
        DetkitError: The file exists or cannot be written.
    """
    path, facts = Path(path), report.facts
    parts: Facts = {"tables": {"classes": _classes(facts), "speed": _speed(facts)}}
    if "curves" in facts:
        parts = _box_parts(facts, parts["tables"])
    elif report.maps is not None:
        parts["gallery"] = [_side_by_side(report.maps, entry) for entry in facts["worst"]]
        parts["colours"] = dict(zip(facts["per_class"], _MAP.tolist(), strict=False)) | _NO_CLASS
    text = _TEMPLATES.get_template("page.html").render(
        title=title,
        version=detkit.__version__,
        facts=facts,
        between=partial(_between, facts),
        href=partial(_href, path.resolve().parent),
        charts=charts,
        table=html_table,
        **parts,
    )
    write_text(path, text, overwrite=overwrite)
    return [*parts.get("gallery", ()), *parts.get("examples", {}).values()].count(None)


def _box_parts(facts: Facts, tables: Facts) -> Facts:
    """What only a page about boxes shows, with its tables added to ``tables``."""
    shown = f"scores from {facts['best_threshold']['score']:.3f}"
    calibrations = [("all detections", facts["calibration"]["all"]), (shown, facts["calibration"]["shown"])]
    return {
        "gallery": [_gallery_image(entry) for entry in facts["worst"]],
        "examples": {
            (name, kind): _drawn(one["file"], [one["box"]], [""], [kind], example=True)
            for name, found in facts["examples"].items()
            for kind, one in found.items()
        },
        "calibrations": calibrations,
        "tables": tables
        | {
            "protocols": _protocols(facts),
            "confused": _confused(facts["confusion"]),
            "calibration": [_calibration(name, table) for name, table in calibrations],
            "errors": _errors(facts),
        },
    }


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """An HTML table; the first cell of a row is its name, columns with letters are set as text, others as numbers.

    Args:
        head: The columns' names.
        rows: Cells: text, numbers or None.
        caption: Stands above.
    """
    filled = [[number(cell) if isinstance(cell, (int, float, type(None))) else str(cell) for cell in r] for r in rows]
    words = [any(map(str.isalpha, "".join(column))) for column in zip(*filled, strict=True)] or [False] * len(head)
    columns = list(zip(head, words, strict=True))
    return Markup(_TEMPLATES.get_template("table.html").render(columns=columns, rows=filled, caption=caption))


def _between(facts: Facts, name: str) -> str:
    low, high = facts.get("intervals", {}).get(name, (float("nan"), float("nan")))
    return "" if low != low else f"{low:.3f} .. {high:.3f}"


def _protocols(facts: Facts) -> list[Markup]:
    tables = []
    for name, metrics in facts["protocols"].items():
        head, rows = ["number", "value"], [list(item) for item in metrics.items()]
        if name == facts["protocol"] and "intervals" in facts:
            head, rows = [*head, "95% interval"], [[*row, _between(facts, row[0])] for row in rows]
        tables.append(html_table(head, rows, name))
    sizes = [(name, row["objects"], row["AP"], row["AR"]) for name, row in facts["by_size"].items()]
    return [*tables, html_table(("size", "objects", "AP", "AR"), sizes, "by size of the object (COCO)")]


def _classes(facts: Facts) -> Markup:
    rows, curves = facts["per_class"], facts["curves"]["per_class"] if "curves" in facts else None
    columns = list(dict.fromkeys(["objects", *(name for row in rows.values() for name in row)]))
    filled = []
    for name, row in rows.items():
        best = curves[name]["best"] if curves and name in curves else {}
        more = () if curves is None else (best.get("f1"), best.get("score"))
        filled.append((name, *(row.get(column) for column in columns), *more))
    head = () if curves is None else ("best F1", "at score")
    return html_table(("class", *columns, *head), filled, facts["protocol"])


def _confused(confusion: Facts) -> list[Markup]:
    *names, _ = confusion["classes"]
    counts = confusion["counts"]
    between = [(f"{a} as {b}", counts[i][j]) for i, a in enumerate(names) for j, b in enumerate(names) if i != j]
    kinds = {
        "taken for another class": between,
        "missed": [(name, counts[i][-1]) for i, name in enumerate(names)],
        "invented": list(zip(names, counts[-1], strict=False)),
    }
    tables = []
    for title, rows in kinds.items():
        most = sorted((row for row in rows if row[1]), key=lambda row: -row[1])[:_MOST]
        if most:
            tables.append(html_table(("class", "times"), most, f"most often {title}"))
    return tables


def _calibration(name: str, one: Facts) -> Markup:
    columns = zip(one["edges"], one["edges"][1:], one["count"], one["score"], one["precision"], strict=False)
    rows = [(f"{low:.1f} .. {high:.1f}", count, *means) for low, high, count, *means in columns if count]
    caption = f"{name}: expected calibration error {number(one['error'])}"
    return html_table(("score", "detections", "mean score", "right"), rows, caption)


def _errors(facts: Facts) -> Markup:
    errors, iou = facts["errors"], facts["settings"]["match_iou"]
    rows = [(name, kind["count"], kind["gain"], kind["meaning"]) for name, kind in errors["kinds"].items()]
    rows += [
        ("every false positive", "", errors["false_positives"], "if there were none"),
        ("every miss", "", errors["false_negatives"], "if what is missed were not asked for"),
    ]
    shown = [(name, count, f"{100 * gain:+.2f}", meaning) for name, count, gain, meaning in rows]
    caption = f"AP {100 * errors['AP']:.2f} at IoU {iou:g}, and the points that putting errors right would add (TIDE)"
    return html_table(("error", "number", "AP points", "meaning"), shown, caption)


def _speed(facts: Facts) -> list[Markup]:
    timings = facts.get("timings", {})
    tables = [html_table(("model", ""), facts["model"].items())] if "model" in facts else []
    if "ms" in timings:
        names = {"data": "reading and preparing", "model": "model", "post": "post-processing", "total": "together"}
        if not timings["split"]:
            names = {"data": names["data"], "model": "model with post-processing", "total": names["total"]}
        rows = [(said, *(number(timings["ms"][key][s], 1) for s in ("median", "p95"))) for key, said in names.items()]
        caption = f"milliseconds per image, in batches of {timings['batch']} (--batch 1 measures single images)"
        tables.append(html_table(("part", "median", "95%"), rows, caption))
    return tables


def _href(folder: Path, file: str) -> str:
    """To the image: relative where it can be, so that data and report can move together."""
    full = os.path.abspath(file)
    try:
        return quote(Path(os.path.relpath(full, folder)).as_posix())
    except ValueError:  # another drive
        return Path(full).as_uri()


def _gallery_image(entry: Facts) -> str | None:
    """The image of an entry of ``worst``: false positives red, missed objects orange and dashed; None if unreadable."""
    wrong, missed = entry["false_positives"], entry["missed"]
    captions = [f"{one['label']} {one['score']:.2f}, {one['kind']}" for one in wrong]
    captions += [f"missed: {one['label']}" for one in missed]
    kinds = ["false_positive"] * len(wrong) + ["missed"] * len(missed)
    return _drawn(entry["file"], [one["box"] for one in (*wrong, *missed)], captions, kinds)


def _side_by_side(maps: Maps, entry: Facts) -> str | None:
    """An image, and the classes of its pixels by the labels and by the answer; None if unreadable."""
    try:
        image, both = read_image(entry["file"]), maps(entry["image"])
    except DetkitError:
        return None
    tiles = [scaled_to(tile, TILE) for tile in (image, *(_MAP[one] for one in both))]
    return charts.data_uri("image/jpeg", image_bytes(sheet(tiles, ("photo", "labels", "answer"), 3), ".jpg", 90))


def _drawn(
    file: str, places: list[list[float]], captions: list[str], kinds: list[str], example: bool = False
) -> str | None:
    """An image with these boxes, an example cut out with some of its surroundings; None if it cannot be read."""
    try:
        image = read_image(file)
    except DetkitError:
        return None
    boxes = np.array(places, float).reshape(-1, 4)
    side = EXAMPLE if example else GALLERY
    if example:
        margin = _MARGIN * max(*(boxes[0, 2:] - boxes[0, :2]), 20)
        size = np.array(image.shape[1::-1])
        left, top = np.clip(boxes[0, :2] - margin, 0, size - 1).astype(int)
        right, bottom = np.clip(boxes[0, 2:] + margin, (left + 1, top + 1), size).astype(int)
        image, boxes = image[top:bottom, left:right], boxes - (left, top, left, top)
    colours, dashed = [_COLOURS[kind] for kind in kinds], [kind == "missed" for kind in kinds]
    marked = draw_marked(scaled_to(image, side), boxes * (side / max(image.shape[:2])), captions, colours, dashed)
    return charts.data_uri("image/jpeg", image_bytes(marked, ".jpg", 82))
