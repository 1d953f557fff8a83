"""Several detectors on the same images: one table, one chart, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from detkit.io.figures import written_figure
from detkit.metrics.bootstrap import draws
from detkit.tables import GroundTruth, Results

METRICS = ("AP", "AP50")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A detector: its detections; seconds, of single images, from pixels to boxes; minutes of training (None:
    unknown); facts as ``detkit.explain.summary.facts``."""

    name: str
    results: Results
    seconds: Sequence[float]
    minutes: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def judge(gt: GroundTruth, candidates: Sequence[Candidate], *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """runs: of each its parameters, multiply_adds, AP and AP50 with a 95% interval, seconds (median, p95), minutes;
    differences: of each pair and metric, second minus first on the same draws of the images (paired bootstrap)."""
    drawn = {
        metric: [draws(gt, one.results, metric, samples=samples, seed=seed) for one in candidates] for metric in METRICS
    }
    runs = []
    for i, one in enumerate(candidates):
        times = {"median": float(np.median(one.seconds)), "p95": float(np.quantile(one.seconds, 0.95))}
        row: dict[str, Any] = {"name": one.name, "minutes": one.minutes, "seconds": times, **one.facts}
        row |= {metric: drawn[metric][i].value for metric in METRICS}
        row["intervals"] = {metric: drawn[metric][i].interval() for metric in METRICS}
        runs.append(row)
    differences = []
    for (i, first), (j, second) in combinations(enumerate(candidates), 2):
        for metric in METRICS:
            found = drawn[metric][j].minus(drawn[metric][i])
            names = {"first": first.name, "second": second.name, "metric": metric}
            interval = {"low": found.low, "high": found.high, "significant": found.significant}
            differences.append({**names, "value": found.value, **interval})
    return {"images": gt.images, "samples": samples, "runs": runs, "differences": differences}


def table(compared: dict[str, Any], differences: Sequence[str] = ("AP50",)) -> list[str]:
    """Lines for the terminal; differences: of which metrics."""
    head = ("run", "parameters", "multiply-adds", *METRICS, "AP50's 95% interval", "ms/image", "95%", "training min")
    rows = [head]
    for run in compared["runs"]:
        low, high = run["intervals"]["AP50"]
        times = (f"{1000 * run['seconds'][key]:.1f}" for key in ("median", "p95"))
        minutes = "-" if run["minutes"] is None else f"{run['minutes']:.1f}"
        size = (_scaled(run.get("parameters"), 1e6, "M"), _scaled(run.get("multiply_adds"), 1e9, "G"))
        values = (f"{run[metric]:.3f}" for metric in METRICS)
        rows.append((run["name"], *size, *values, f"{low:.3f} .. {high:.3f}", *times, minutes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    for one in compared["differences"]:
        if (metric := one["metric"]) in differences:
            verdict = "more than noise" if one["significant"] else "may be noise"
            between = f"95% interval {one['low']:+.3f} .. {one['high']:+.3f}"
            lines.append(f"{one['second']} against {one['first']}: {metric} {one['value']:+.3f}, {between}: {verdict}")
    return [*lines[: len(rows)], "", *lines[len(rows) :]]


def _scaled(value: int | None, unit: float, letter: str) -> str:
    return "-" if value is None else f"{value / unit:.2f} {letter}"


def draw(path: Path, compared: dict[str, Any], *, overwrite: bool = False) -> None:
    """AP50 with its interval against the time of an image and against the time of training, as an image.

    Raises DetkitError for another ending than .png, .svg, .pdf or .jpg, a file that exists, a full disk.
    """
    with written_figure(path, 11, 4.6, overwrite=overwrite) as figure:
        _draw(figure, compared)


def _draw(figure: Any, compared: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator

    panels = [
        ("milliseconds an image", [1000 * run["seconds"]["median"] for run in compared["runs"]]),
        ("minutes of training", [math.nan if run["minutes"] is None else run["minutes"] for run in compared["runs"]]),
    ]
    panels = [panel for panel in panels if any(x > 0 for x in panel[1])]  # shipped models do not say how long it took
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, places) in zip(plots[0], panels, strict=True):
        for number, (run, x) in enumerate(zip(compared["runs"], places, strict=True)):
            low, high = run["intervals"]["AP50"]
            reach = [[max(run["AP50"] - low, 0)], [max(high - run["AP50"], 0)]]
            axes.errorbar(x, run["AP50"], yerr=reach, fmt="o", capsize=3, color=f"C{number % 10}", label=run["name"])
        known = [x for x in places if x > 0]
        if known and max(known) > 5 * min(known):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # more numbers would run into each other
            for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                which("{x:g}")
        elif known:
            axes.set_xlim(0, 1.15 * max(known))
        axes.set(xlabel=title, ylabel="AP50, 95% interval")
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
