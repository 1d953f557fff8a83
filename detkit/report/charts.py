"""The report's charts, as data URIs of SVG: nothing to fetch, sharp at any size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window system, no global state

from detkit.report.content import Facts

_MANY = 20  # classes that a chart tells apart
_LETTERS = 24  # of a class name along an axis


def data_uri(kind: str, data: bytes) -> str:
    """``data`` of the MIME type ``kind`` as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _uri(figure: Figure) -> str:
    file = io.BytesIO()
    # The same page from the same numbers: no date, no random names.
    with matplotlib.rc_context({"svg.hashsalt": "detkit", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return data_uri("image/svg+xml", file.getvalue())


def curves_chart(curves: Facts, iou: float) -> str:
    """Precision against recall, and F1 against the score threshold with the best one marked; thin lines are classes.

    Args:
        curves: As in a report.
        iou: The threshold of matching.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    classes = sorted(curves["per_class"].items(), key=lambda item: -item[1]["objects"])[:_MANY]
    for number, (name, curve) in enumerate([*classes, ("all together", curves["overall"])]):
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "linewidth": 0.9, "alpha": 0.7}
        if number == len(classes):
            style = {"color": "black", "linewidth": 2.2}
        left.plot(curve["recall"], curve["precision"], label=_short(name), **style)
        # Down from one score to the next lower one a threshold keeps the same detections.
        right.plot(curve["score"], curve["f1"], drawstyle="steps-post", **style)
    title, best = "F1", curves["overall"]["best"]
    if best["f1"] > 0:
        right.axvline(best["score"], color="black", linestyle=":", linewidth=1)
        right.plot(best["score"], best["f1"], "o", color="black")
        title = f"F1, best {best['f1']:.3f} at score {best['score']:.3f}"
    left.set(xlabel="recall", ylabel="precision", title=f"precision and recall, IoU {iou:g}")
    right.set(xlabel="score threshold", ylabel="F1", title=title)
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return _uri(figure)


def confusion_chart(confusion: Facts) -> str:
    """The matrix as shares of each object class; the background's row as shares of the invented detections."""
    counts = np.array(confusion["counts"], float)
    names = [_short(name) for name in confusion["classes"]]
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    side = min(max(4.0, 0.42 * len(names) + 1.6), 16.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    small = max(4.0, min(9.0, 560 / len(names)))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=small)
    axes.set_yticks(range(len(names)), names, fontsize=small)
    threshold = confusion["threshold"]
    said = ("labelled", "pixels") if threshold is None else ("object", f"scores from {threshold:.3f}")
    axes.set(xlabel="detected as", ylabel=said[0], title=said[1])
    if len(names) <= _MANY + 5:
        style: Facts = {"ha": "center", "va": "center", "fontsize": small}
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[row, column] > 0.6 else "black"
            cell = f"{counts[row, column]:.0f}" if threshold is not None else f"{100 * shares[row, column]:.0f}%"
            axes.text(column, row, cell, color=ink, **style)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")
    return _uri(figure)


def calibration_chart(tables: Sequence[tuple[str, Facts]]) -> str:
    """Precision against mean score per bin, and how many detections a bin holds, for each of these tables."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="scores that mean what they say")
    for number, (name, table) in enumerate(tables):
        points = [(s, p) for s, p, n in zip(table["score"], table["precision"], table["count"], strict=True) if n]
        if points:
            left.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=name)
        edges = np.array(table["edges"])
        right.bar(edges[:-1], table["count"], np.diff(edges), align="edge", alpha=0.6, color=f"C{number}", label=name)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share that is right", title="reliability")
    right.set(xlim=(0, 1), xlabel="score", ylabel="detections", title="how many", yscale="symlog")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    return _uri(figure)


def errors_chart(errors: Facts) -> str:
    """What AP would gain if one kind of error were put right."""
    kinds = errors["kinds"]
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    gains = [100 * kind["gain"] for kind in kinds.values()]
    bars = axes.barh([f"{name} ({kind['count']:,})" for name, kind in kinds.items()], gains, color="C3")
    axes.bar_label(bars, [f"{gain:+.1f}" for gain in gains], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="AP points that putting it right would add (number of such errors)")
    axes.grid(alpha=0.3, axis="x")
    return _uri(figure)


def _short(name: str) -> str:
    # A dollar sign would start a formula.
    name = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
    return name.replace("$", r"\$")
