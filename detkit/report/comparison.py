"""Several detectors on the same images: one table, one chart, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.io.files import written_figure
from detkit.metrics.bootstrap import draws
from detkit.metrics.coco import Coco
from detkit.printed import aligned
from detkit.tables import GroundTruth, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD = ("run", "parameters", "multiply-adds", *Coco.scores, "AP50's 95% interval", "ms/image", "95%", "training min")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A detector that is compared.

    Attributes:
        name: For people.
        results: Its detections.
        seconds: Of single images, from pixels to boxes.
        minutes: Of training; None: unknown.
        facts: As ``detkit.explain.summary.predictor_facts``.
    """

    name: str
    results: Results
    seconds: Sequence[float]
    minutes: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Detectors on the same images.

    Attributes:
        images: How many there are.
        samples: Draws of them.
        runs: Of each detector name, parameters, multiply_adds, AP and AP50 with a 95% interval, seconds (median, p95),
            minutes.
        differences: Of each pair and score, second minus first on the same draws of the images (paired bootstrap).
        data: As ``detkit.data.summary.DataSummary.to_dict``.
    """

    images: int
    samples: int
    runs: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The form of ``compare --json``."""
        return asdict(self)

    def lines(self, scores: Sequence[str] = ("AP50",)) -> list[str]:
        """A table, and a sentence per difference of these scores."""
        lines = [*aligned([_HEAD, *map(_cells, self.runs)]), ""]
        for one in self.differences:
            if one["metric"] in scores:
                verdict = "more than noise" if one["significant"] else "may be noise"
                between = f"95% interval {one['low']:+.3f} .. {one['high']:+.3f}"
                what = f"{one['second']} against {one['first']}: {one['metric']} {one['value']:+.3f}"
                lines.append(f"{what}, {between}: {verdict}")
        return lines

    def draw(self, path: Path, *, overwrite: bool = False) -> None:
        """AP50 with its interval against the time per image and against the time of training, as an image.

        Raises:
            DetkitError: Another ending than .png, .svg, .pdf or .jpg, a file that exists, a full disk.
        """
        with written_figure(path, 11, 4.6, overwrite=overwrite) as figure:
            draw_runs(figure, self.runs)


def compare_results(
    gt: GroundTruth, candidates: Sequence[Candidate], *, samples: int = 1000, seed: int = 0
) -> Comparison:
    """Compares detectors by their detections.

    Args:
        gt: The labels.
        candidates: Two or more.
        samples: Draws of the images.
        seed: Of the draws.
    """
    drawn = {
        score: [draws(gt, one.results, score, samples=samples, seed=seed) for one in candidates]
        for score in Coco.scores
    }
    runs = []
    for i, one in enumerate(candidates):
        times = {"median": float(np.median(one.seconds)), "p95": float(np.quantile(one.seconds, 0.95))}
        row: dict[str, Any] = {"name": one.name, "minutes": one.minutes, "seconds": times, **one.facts}
        row |= {score: drawn[score][i].value for score in Coco.scores}
        row["intervals"] = {score: drawn[score][i].interval() for score in Coco.scores}
        runs.append(row)
    differences = []
    for (i, first), (j, second) in combinations(enumerate(candidates), 2):
        for score in Coco.scores:
            found = drawn[score][j].minus(drawn[score][i])
            names = {"first": first.name, "second": second.name, "metric": score}
            differences.append({**names, **asdict(found), "significant": found.significant})
    return Comparison(gt.images, samples, runs, differences)


def _cells(run: dict[str, Any]) -> tuple[str, ...]:
    low, high = run["intervals"]["AP50"]
    return (
        run["name"],
        _number(run.get("parameters"), 1e-6, 2, " M"),
        _number(run.get("multiply_adds"), 1e-9, 2, " G"),
        *(f"{run[score]:.3f}" for score in Coco.scores),
        f"{low:.3f} .. {high:.3f}",
        *(_number(run["seconds"][key], 1000, 1) for key in ("median", "p95")),
        _number(run["minutes"], 1, 1),
    )


def _number(value: float | None, unit: float, digits: int, suffix: str = "") -> str:
    return "-" if value is None else f"{value * unit:.{digits}f}{suffix}"


def draw_runs(figure: Figure, runs: Sequence[dict[str, Any]]) -> None:
    """Draws ``Comparison.draw`` on a figure; a panel whose numbers are not known is left out."""
    from matplotlib.ticker import LogLocator

    panels = {
        "milliseconds per image": [1000 * run["seconds"]["median"] for run in runs],
        "minutes of training": [math.nan if run["minutes"] is None else run["minutes"] for run in runs],
    }
    panels = {title: places for title, places in panels.items() if any(x > 0 for x in places)}
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, places) in zip(plots[0], panels.items(), strict=True):
        for number, (run, x) in enumerate(zip(runs, places, strict=True)):
            low, high = run["intervals"]["AP50"]
            reach = [[max(run["AP50"] - low, 0)], [max(high - run["AP50"], 0)]]
            axes.errorbar(x, run["AP50"], yerr=reach, fmt="o", capsize=3, color=f"C{number % 10}", label=run["name"])
        known = [x for x in places if x > 0]
        if max(known) > 5 * min(known):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # more numbers would run into each other
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        else:
            axes.set_xlim(0, 1.15 * max(known))
        axes.set(xlabel=title, ylabel="AP50, 95% interval")
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
