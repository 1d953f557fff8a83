"""One HTML file that needs nothing else: no network, no script, images and charts inside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

import detkit
from detkit.errors import DetkitError
from detkit.io.draw import draw_marked
from detkit.io.files import write_text
from detkit.io.images import jpeg_bytes, read_image, scaled_to
from detkit.report.charts import calibration_chart, confusion_chart, curves_chart, data_uri, errors_chart
from detkit.report.content import Facts, Report
from detkit.report.text import number

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
nav a { margin-right: .9rem; } img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; }
caption { text-align: left; color: #555; padding-bottom: .2rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; } td.text { white-space: normal; }
.side { display: flex; flex-wrap: wrap; align-items: flex-start; column-gap: 2.5rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; }
.tiles li { list-style: none; border: 1px solid #ddd; border-radius: .4rem; padding: .5rem 1rem; }
.tiles b { display: block; font-size: 1.4rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.gallery img { max-height: 22rem; } figure { margin: 0; text-align: left; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } .none { color: #777; }
""".strip()
_EXAMPLES = {"right": "surest right", "false_positive": "dearest false positive", "missed": "largest missed"}
GALLERY, EXAMPLE = 520, 200  # pixels of the longer side
_MARGIN = 0.4  # of the box, around an example
# Places in the drawing palette: red, orange, green.
_COLOURS = {"false_positive": 0, "missed": 2, "right": 3}
_MOST = 10  # rows of a table of what is most frequent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_UNREADABLE = '<p class="none">no image</p>'


class Html(str):
    """Text that is HTML already."""


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
    folder = path.resolve().parent
    sections = {
        "Summary": _summary(facts),
        "Rules": html_table(("rule", "in force"), facts["settings"]["rules"].items()),
        "COCO and VOC": _protocols(facts),
        "Classes": _classes(facts),
        "Curves": _image(curves_chart(facts["curves"], facts["settings"]["match_iou"]), "curves"),
        "Confusion": _image(confusion_chart(facts["confusion"]), "confusion matrix") + _confused(facts["confusion"]),
        "Calibration": _calibration(facts["calibration"]),
        "Errors": _image(errors_chart(facts["errors"]), "gain of each kind of error") + _errors(facts),
        "Worst images": _gallery(facts["worst"], folder),
        "Examples": _examples(facts["examples"], folder),
        "Speed and size": _speed(facts),
    }
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = " ".join(f'<a href="#{anchor}">{name}</a>' for name, anchor in anchors.items())
    body = "\n".join(
        f'<section id="{anchors[name]}"><h2>{name}</h2>{text}</section>' for name, text in sections.items()
    )
    write_text(
        path,
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}\n<p>detkit {detkit.__version__}</p></body></html>\n",
        overwrite=overwrite,
    )
    return body.count(_UNREADABLE)


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """An HTML table; the first cell of a row is its name, columns with letters are set as text, others as numbers.

    Args:
        head: The columns' names.
        rows: Cells: text, numbers, None, or ``Html``.
        caption: Stands above.
    """
    filled = [[_text(cell) for cell in row] for row in rows]
    words = [any(any(map(str.isalpha, cell)) for cell in column) for column in zip(*filled, strict=True)]
    kinds = [' class="text"' if word else "" for word in words] or [""] * len(head)
    top = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = ""
    for first, *rest in filled:
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>'
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(cell: object) -> str:
    if isinstance(cell, Html):
        return cell
    return number(cell) if isinstance(cell, (int, float, type(None))) else escape(str(cell))


def _side_by_side(tables: Iterable[str]) -> str:
    return f'<div class="side">{"".join(tables)}</div>'


def _image(uri: str | None, what: str) -> str:
    return f'<img src="{uri}" alt="{escape(what)}">' if uri else _UNREADABLE


def _between(facts: Facts, name: str) -> str:
    low, high = facts.get("intervals", {}).get(name, (float("nan"), float("nan")))
    return "" if low != low else f"{low:.3f} .. {high:.3f}"


def _summary(facts: Facts) -> str:
    coco, best = facts["protocols"]["coco"], facts["best_threshold"]
    tiles = {name: coco[name] for name in ("AP", "AP50", "AP75")}
    tiles |= {"VOC2010 AP": facts["protocols"]["voc2010"]["AP"], "best F1": best["f1"], "at score": best["score"]}
    tiles["calibration error"] = facts["calibration"]["all"]["error"]
    shown = "".join(f"<li>{escape(name)}<b>{number(value)}</b></li>" for name, value in tiles.items())
    said = ", ".join(f"{value:,} {name}" for name, value in facts["counts"].items())
    intervals = "; ".join(f"{name} {_between(facts, name)}" for name in facts.get("intervals", {}))
    draws = facts["settings"]["bootstrap"]
    drawn = f"<p>95% intervals, {draws:,} draws of the images: {intervals}</p>" if intervals else ""
    return f'<ul class="tiles">{shown}</ul><p>{said}</p>{drawn}'


def _protocols(facts: Facts) -> str:
    tables = []
    for name, metrics in facts["protocols"].items():
        if name == facts["protocol"] and "intervals" in facts:
            rows = [(key, value, _between(facts, key)) for key, value in metrics.items()]
            tables.append(html_table(("number", "value", "95% interval"), rows, name))
        else:
            tables.append(html_table(("number", "value"), metrics.items(), name))
    sizes = [(name, row["objects"], row["AP"], row["AR"]) for name, row in facts["by_size"].items()]
    return _side_by_side([*tables, html_table(("size", "objects", "AP", "AR"), sizes, "by size of the object (COCO)")])


def _classes(facts: Facts) -> str:
    rows, curves = facts["per_class"], facts["curves"]["per_class"]
    columns = list(dict.fromkeys(["objects", *(name for row in rows.values() for name in row)]))
    filled = []
    for name, row in rows.items():
        best = curves[name]["best"] if name in curves else {}
        filled.append((name, *(row.get(column) for column in columns), best.get("f1"), best.get("score")))
    return html_table(("class", *columns, "best F1", "at score"), filled, facts["protocol"])


def _confused(confusion: Facts) -> str:
    *names, _ = confusion["classes"]
    counts = confusion["counts"]
    between = [(f"{a} as {b}", counts[i][j]) for i, a in enumerate(names) for j, b in enumerate(names) if i != j]
    kinds = {
        "taken for another class": between,
        "missed": [(name, counts[i][-1]) for i, name in enumerate(names)],
        "invented": [(name, counts[-1][i]) for i, name in enumerate(names)],
    }
    tables = []
    for title, rows in kinds.items():
        most = sorted((row for row in rows if row[1]), key=lambda row: -row[1])[:_MOST]
        if most:
            tables.append(html_table(("class", "times"), most, f"most often {title}"))
    return _side_by_side(tables)


def _calibration(tables: Facts) -> str:
    names = {"all": "all detections", "shown": f"scores from {tables['shown']['conf']:.3f}"}
    shown = []
    for key, one in tables.items():
        columns = zip(one["edges"], one["edges"][1:], one["count"], one["score"], one["precision"], strict=False)
        rows = [(f"{low:.1f} .. {high:.1f}", count, *means) for low, high, count, *means in columns if count]
        caption = f"{names[key]}: expected calibration error {number(one['error'])}"
        shown.append(html_table(("score", "detections", "mean score", "right"), rows, caption))
    chart = calibration_chart([(names[key], one) for key, one in tables.items()])
    return _image(chart, "reliability") + _side_by_side(shown)


def _errors(facts: Facts) -> str:
    errors, iou = facts["errors"], facts["settings"]["match_iou"]
    rows = [(name, kind["count"], kind["gain"], kind["meaning"]) for name, kind in errors["kinds"].items()]
    rows += [
        ("every false positive", "", errors["false_positives"], "if there were none"),
        ("every miss", "", errors["false_negatives"], "if what is missed were not asked for"),
    ]
    shown = [(name, count, f"{100 * gain:+.2f}", meaning) for name, count, gain, meaning in rows]
    caption = f"AP {100 * errors['AP']:.2f} at IoU {iou:g}, and the points that putting errors right would add (TIDE)"
    return html_table(("error", "number", "AP points", "meaning"), shown, caption)


def _link(file: str, folder: Path) -> str:
    """To the image: relative where it can be, so that data and report can move together."""
    full = os.path.abspath(file)
    try:
        href = quote(Path(os.path.relpath(full, folder)).as_posix())
    except ValueError:  # another drive
        href = Path(full).as_uri()
    return f'<a href="{escape(href, quote=True)}">{escape(Path(file).name)}</a>'


def _gallery(worst: Sequence[Facts], folder: Path) -> str:
    figures = ""
    for entry in worst:
        image = _image(_gallery_image(entry), f"errors in {Path(entry['file']).name}")
        said = [f"{one['label']} {one['score']:.2f} ({one['kind']})" for one in entry["false_positives"]]
        for one in entry["missed"]:
            found = "" if one["found_at"] is None else f" (found at {one['found_at']:.3f})"
            said.append(f"missed {one['label']}{found}")
        text = f"{_link(entry['file'], folder)}: costs {100 * entry['cost']:.2f} AP points; {escape(', '.join(said))}"
        figures += f"<figure>{image}<figcaption>{text}</figcaption></figure>"
    explained = (
        "<p>Red: false positives from the best-F1 threshold up; orange, dashed: objects that are not found there. The "
        "cost is what AP at one IoU would gain without that false positive, or with that object found first.</p>"
    )
    return explained + (f'<div class="gallery">{figures}</div>' if figures else "<p>None.</p>")


def _examples(examples: Facts, folder: Path) -> str:
    rows = []
    for name, found in examples.items():
        cells = []
        for kind, title in _EXAMPLES.items():
            one = found.get(kind)
            if one:
                image = _image(_example_image(kind, one), f"{name}: {title}")
                said = f"{one['score']:.2f} {one['kind']}" if "score" in one else "no detection"
                caption = f"<figcaption>{escape(said)}, {_link(one['file'], folder)}</figcaption>"
                cells.append(Html(f"<figure>{image}{caption}</figure>"))
            else:
                cells.append(Html())
        rows.append((name, *cells))
    return html_table(("class", *_EXAMPLES.values()), rows)


def _speed(facts: Facts) -> str:
    text, timings = "", facts.get("timings", {})
    if model := facts.get("model"):
        text += html_table(("model", ""), model.items())
    if "ms" in timings:
        names = {"data": "reading and preparing", "model": "model", "post": "post-processing", "total": "together"}
        if not timings["split"]:
            names = {"data": names["data"], "model": "model with post-processing", "total": names["total"]}
        rows = [(said, *(number(timings["ms"][key][s], 1) for s in ("median", "p95"))) for key, said in names.items()]
        caption = f"milliseconds per image, in batches of {timings['batch']} (--batch 1 measures single images)"
        text += html_table(("part", "median", "95%"), rows, caption)
    return text or '<p class="none">Detections from a file: no model was run.</p>'


def _gallery_image(entry: Facts) -> str | None:
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


def _example_image(kind: str, one: Facts) -> str | None:
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
