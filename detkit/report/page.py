"""One HTML file that needs nothing else: no network, no script, images and charts inside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import detkit
from detkit.io.files import write_text
from detkit.report.charts import calibration_chart, confusion_chart, curves_chart, errors_chart
from detkit.report.images import example_image, gallery_image

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
_MOST = 10  # rows of a table of what is most frequent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(path: str | Path, content: Mapping[str, Any], title: str, *, overwrite: bool = False) -> int:
    """Writes ``detkit.report.content.content`` as a page, and returns how many of its images could not be read.

    Raises DetkitError if the file exists (without ``overwrite``) or cannot be written.
    """
    path = Path(path)
    gallery, lost = _gallery(content["worst"], path.resolve().parent)
    examples, more = _examples(content["examples"], path.resolve().parent)
    sections = {
        "Summary": _summary(content),
        "Rules": _rules(content),
        "COCO and VOC": _protocols(content),
        "Classes": _classes(content),
        "Curves": _chart(curves_chart(content["curves"], content["settings"]["match_iou"]), "curves"),
        "Confusion": _chart(confusion_chart(content["confusion"]), "confusion matrix")
        + _confused(content["confusion"]),
        "Calibration": _calibration(content["calibration"]),
        "Errors": _chart(errors_chart(content["errors"]), "gain of each kind of error") + _errors(content),
        "Worst images": gallery,
        "Examples": examples,
        "Speed and size": _speed(content),
    }
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "\n".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{text}</section>' for name, text in sections.items()
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
    return lost + more


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def number(value: Any, digits: int = 3) -> str:
    """A number for people: a dash where there is nothing to measure (None, NaN, COCO's -1)."""
    if value is None or (isinstance(value, float) and (value != value or value == -1)):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """An HTML table; the first cell of a row is its name, cells with letters are set as text, others as numbers."""
    filled = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    words = [any(any(map(str.isalpha, cell)) for cell in column) for column in zip(*filled, strict=True)]
    kinds = [' class="text"' if word else "" for word in words] or [""] * len(head)
    top = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = ""
    for first, *rest in filled:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _side_by_side(tables: Iterable[str]) -> str:
    return f'<div class="side">{"".join(tables)}</div>'


def _chart(uri: str, what: str) -> str:
    return f'<img src="{uri}" alt="{escape(what)}">'


def _between(content: Mapping[str, Any], name: str) -> str:
    low, high = content.get("intervals", {}).get(name, (float("nan"), float("nan")))
    return "" if low != low else f"{low:.3f} .. {high:.3f}"


def _summary(content: Mapping[str, Any]) -> str:
    coco, best, counts = content["protocols"]["coco"], content["best_threshold"], content["counts"]
    gap = content["calibration"]["all"]["error"]
    tiles = [(name, number(coco[name])) for name in ("AP", "AP50", "AP75")]
    tiles += [("VOC2010 AP", number(content["protocols"]["voc2010"]["AP"])), ("best F1", number(best["f1"]))]
    tiles += [("at score", number(best["score"])), ("calibration error", number(gap))]
    shown = "".join(f"<li>{escape(name)}<b>{value}</b></li>" for name, value in tiles)
    said = ", ".join(f"{value:,} {name}" for name, value in counts.items())
    intervals = "; ".join(f"{name} {_between(content, name)}" for name in content.get("intervals", {}))
    draws = content["settings"]["bootstrap"]
    drawn = f"<p>95% intervals, {draws:,} draws of the images: {intervals}</p>" if intervals else ""
    return f'<ul class="tiles">{shown}</ul><p>{said}</p>{drawn}'


def _rules(content: Mapping[str, Any]) -> str:
    return table(("rule", "in force"), content["settings"]["rules"].items())


def _protocols(content: Mapping[str, Any]) -> str:
    own = content["protocol"] if "intervals" in content else None
    tables = []
    for name, metrics in content["protocols"].items():
        rows = [(key, value, *([_between(content, key)] if name == own else [])) for key, value in metrics.items()]
        tables.append(table(("number", "value", *(["95% interval"] if name == own else [])), rows, name))
    sizes = [(name, row["objects"], row["AP"], row["AR"]) for name, row in content["by_size"].items()]
    return _side_by_side([*tables, table(("size", "objects", "AP", "AR"), sizes, "by size of the object (COCO)")])


def _classes(content: Mapping[str, Any]) -> str:
    rows, curves = content["per_class"], content["curves"]["per_class"]
    columns = list(dict.fromkeys(["objects", *(name for row in rows.values() for name in row)]))
    filled = []
    for name, row in rows.items():
        best = curves[name]["best"] if name in curves else {}
        filled.append((name, *(row.get(column) for column in columns), best.get("f1"), best.get("score")))
    return table(("class", *columns, "best F1", "at score"), filled, content["protocol"])


def _confused(confusion: Mapping[str, Any]) -> str:
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
            tables.append(table(("class", "times"), most, f"most often {title}"))
    return _side_by_side(tables)


def _calibration(tables: Mapping[str, Any]) -> str:
    names = {"all": "all detections", "shown": f"scores from {tables['shown']['conf']:.3f}"}
    chart = _chart(calibration_chart([(names[key], one) for key, one in tables.items()]), "reliability")
    shown = []
    for key, one in tables.items():
        edges = one["edges"]
        bins = [i for i, count in enumerate(one["count"]) if count]
        columns = [one[name] for name in ("count", "score", "precision")]
        rows = [(f"{edges[i]:.1f} .. {edges[i + 1]:.1f}", *(column[i] for column in columns)) for i in bins]
        caption = f"{names[key]}: expected calibration error {number(one['error'])}"
        shown.append(table(("score", "detections", "mean score", "right"), rows, caption))
    return chart + _side_by_side(shown)


def _errors(content: Mapping[str, Any]) -> str:
    errors, iou = content["errors"], content["settings"]["match_iou"]
    rows: list[tuple[Any, ...]] = [
        (name, kind["count"], f"{100 * kind['gain']:+.2f}", kind["meaning"]) for name, kind in errors["kinds"].items()
    ]
    rows += [
        ("every false positive", "", f"{100 * errors['false_positives']:+.2f}", "if there were none"),
        ("every miss", "", f"{100 * errors['false_negatives']:+.2f}", "if what is missed were not asked for"),
    ]
    caption = f"AP {100 * errors['AP']:.2f} at IoU {iou:g}, and the points that putting errors right would add (TIDE)"
    return table(("error", "number", "AP points", "meaning"), rows, caption)


def _link(file: str, folder: Path) -> str:
    """To the image: relative where it can be, so that data and report can move together."""
    full = os.path.abspath(file)
    try:
        href = quote(Path(os.path.relpath(full, folder)).as_posix())
    except ValueError:  # another drive
        href = Path(full).as_uri()
    return f'<a href="{escape(href, quote=True)}">{escape(Path(file).name)}</a>'


def _gallery(worst: Sequence[Mapping[str, Any]], folder: Path) -> tuple[str, int]:
    figures, lost = [], 0
    for entry in worst:
        uri = gallery_image(entry)
        lost += uri is None
        image = _chart(uri, f"errors in {Path(entry['file']).name}") if uri else '<p class="none">no image</p>'
        said = [f"{one['label']} {one['score']:.2f} ({one['kind']})" for one in entry["false_positives"]]
        said += [
            f"missed {one['label']}" + (f" (found at {one['found_at']:.3f})" if one["found_at"] is not None else "")
            for one in entry["missed"]
        ]
        text = f"{_link(entry['file'], folder)}: costs {100 * entry['cost']:.2f} AP points; {escape(', '.join(said))}"
        figures.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    explained = (
        "<p>Red: false positives from the best-F1 threshold up; orange, dashed: objects that are not found there. The "
        "cost is what AP at one IoU would gain without that false positive, or with that object found first.</p>"
    )
    return explained + (f'<div class="gallery">{"".join(figures)}</div>' if figures else "<p>None.</p>"), lost


def _examples(examples: Mapping[str, Mapping[str, Any]], folder: Path) -> tuple[str, int]:
    rows, lost = "", 0
    for name, found in examples.items():
        rows += f'<tr><th scope="row">{escape(name)}</th>'
        for kind in _EXAMPLES:
            if kind not in found:
                rows += "<td></td>"
                continue
            one = found[kind]
            uri = example_image(kind, one)
            lost += uri is None
            image = _chart(uri, f"{name}: {_EXAMPLES[kind]}") if uri else ""
            said = f"{one['score']:.2f} {one['kind']}" if "score" in one else "no detection"
            caption = f"<figcaption>{escape(said)}, {_link(one['file'], folder)}</figcaption>"
            rows += f"<td><figure>{image}{caption}</figure></td>"
        rows += "</tr>"
    head = "".join(f'<th scope="col" class="text">{title}</th>' for title in ("class", *_EXAMPLES.values()))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>', lost


def _speed(content: Mapping[str, Any]) -> str:
    text, model, timings = "", content.get("model", {}), content.get("timings", {})
    if model:
        text += table(
            ("model", ""), [(name, value if isinstance(value, int) else str(value)) for name, value in model.items()]
        )
    if "ms" in timings:
        names = {"data": "reading and preparing", "model": "model", "post": "post-processing", "total": "together"}
        if not timings["split"]:
            names = {"data": names["data"], "model": "model with post-processing", "total": names["total"]}
        rows = [(said, *(number(timings["ms"][key][s], 1) for s in ("median", "p95"))) for key, said in names.items()]
        caption = f"milliseconds an image, in batches of {timings['batch']} (--batch 1 measures single images)"
        text += table(("part", "median", "95%"), rows, caption)
    return text or '<p class="none">Detections from a file: no model was run.</p>'
