"""Model cards' tables: several detectors on the same photos, class by class, with bootstrap intervals.

    python tools/model_scores.py MODEL... --data DATA [--split val] [--classes person,car] [--size 320,384]
    python tools/model_scores.py RUN --data DATA --size 384 --ship weights/NAME.safetensors

Half of the photos (those at even places of the list) is for choices: sizes, epochs, thresholds. The other half and the
whole are for reports. Each MODEL is a run, a model file or a name; the threshold of best F1 comes from the first half.
Under each class stands its number of objects that are not difficult. --ship writes the model as it is shipped: float16,
with this size, that threshold and these scores in its header, and prints what ``detkit/zoo.py`` wants to know.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit import api
from detkit.data.dataset import Dataset, read
from detkit.engine.evaluator import detect_dataset
from detkit.io.download import sha256_of
from detkit.metrics import evaluate_results
from detkit.metrics.bootstrap import draws
from detkit.metrics.curves import best_threshold
from detkit.tables import GroundTruth, Results

Tables = tuple[GroundTruth, Results]
KEPT = ("seed", "data_hash", "versions", "objects")  # of the training record; the sizes of objects are for --slice


def part(tables: Tables, *, images: np.ndarray | None = None, labels: list[int] | None = None) -> Tables:
    """Only those images (bool, one each) or only the objects and detections of those labels."""
    truth, found = tables
    keep = np.ones(truth.images, bool) if images is None else images
    place = np.cumsum(keep) - 1
    wanted = np.ones(len(truth.classes), bool) if labels is None else np.isin(np.arange(len(truth.classes)), labels)

    def rows(table: Any) -> dict[str, Any]:
        chosen = keep[table.image] & wanted[table.label]
        fields = {name: getattr(table, name) for name in table.__slots__ if name != "rank"}
        kept = {n: v[chosen] for n, v in fields.items() if isinstance(v, np.ndarray) and len(v) == len(chosen)}
        return {**kept, "image": place[table.image[chosen]]}

    rank = None if truth.rank is None else np.argsort(np.argsort(truth.rank[keep]))
    return replace(truth, **{**rows(truth), "rank": rank, "images": int(keep.sum())}), replace(found, **rows(found))


def score(tables: Tables, metric: str = "AP50") -> float:
    return evaluate_results(*tables).metrics[metric]


def with_interval(tables: Tables, samples: int) -> str:
    if not len(tables[0].label):
        return "-"
    low, high = draws(*tables, "AP50", samples=samples).interval()
    return f"{score(tables):.3f} ({low:.2f} to {high:.2f})"


def columns(
    predictor: Any, dataset: Dataset, common: list[int], samples: int, ship: str | None = None
) -> dict[str, str]:
    """One model's column: row name -> text."""
    began = time.perf_counter()
    truth, found, _ = detect_dataset(predictor, dataset, workers=1)
    seconds = (time.perf_counter() - began) / len(dataset)
    whole = (truth, found)
    first = np.arange(truth.images) % 2 == 0
    halves = {"half for choices": part(whole, images=first), "half for the report": part(whole, images=~first)}
    threshold, f1 = best_threshold(*halves["half for choices"])
    column = {
        f"mean AP50 of {len(common)}, {name}": f"{score(part(t, labels=common)):.3f}" for name, t in halves.items()
    }
    column[f"mean AP50 of {len(common)}, all photos"] = with_interval(part(whole, labels=common), samples)
    column["AP50, all classes"] = with_interval(whole, samples)
    column |= {f"{name}, all classes": f"{score(whole, name):.3f}" for name in ("AP", "AP75")}
    column["threshold of best F1"] = f"{threshold:.3f} (F1 {f1:.3f})"
    column["ms a photo, loading and scores 0.001 included"] = f"{seconds * 1e3:.0f}"
    for label, name in enumerate(truth.classes):
        objects = int((truth.label == label)[~truth.difficult & ~truth.crowd].sum())
        column[f"{name} ({objects})"] = with_interval(part(whole, labels=[label]), samples)
    if ship:
        shipped(predictor, threshold, evaluate_results(*whole).metrics, ship)
    return column


def shipped(detector: Any, threshold: float, scores: dict[str, float], path: str) -> None:
    """Writes the detector as a file to ship: nothing in it tells where it was trained."""
    detector.threshold, detector.scores = round(threshold, 3), {k: round(v, 4) for k, v in scores.items()}
    detector.config["model"] = {**detector.config["model"], "size": detector.resize.height}
    detector.record = {key: detector.record[key] for key in KEPT if key in detector.record}
    detector.save(path, half=True)
    print(f"{path}: {Path(path).stat().st_size} bytes, sha256 {sha256_of(path)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--classes", default="", help="the common classes, by name (default: all)")
    parser.add_argument("--size", default="", help="input sizes to try, each a column (default: the model's own)")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap draws")
    parser.add_argument("--ship", default="", metavar="FILE", help="write the (one) model, as it is shipped")
    options = parser.parse_args()
    dataset = Dataset(read(options.data, split=options.split))
    common = [dataset.classes.index(name) for name in options.classes.split(",") if name]
    common = common or list(range(len(dataset.classes)))
    table = {}
    for model in options.models:
        for size in [int(text) for text in options.size.split(",") if text] or [None]:
            title = model + (f" at {size}" if size else "")
            predictor = api.load(model, size=size, device="cpu")
            table[title] = columns(predictor, dataset, common, options.samples, options.ship)
    print("| |" + "|".join(table) + "|\n" + "|---" * (len(table) + 1) + "|")
    for row in next(iter(table.values())):
        print(f"| {row} | " + " | ".join(column[row] for column in table.values()) + " |")


if __name__ == "__main__":
    main()
