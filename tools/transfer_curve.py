"""How much transfer brings, and how much to freeze for how many images: AP50 on test against training images.

    python tools/transfer_curve.py data/bccd -o curve [--images 10,40,200] [--seeds 3] [--steps 400]
    python tools/transfer_curve.py data/bccd -o curve --ways scratch,free --start rotation=RUN --start simclr=RUN

Four ways to train the recipe's network, each with the same number of steps: from scratch, and from ImageNet weights
with all stages of the backbone frozen, three of five, or none; and from backbones of your own. A seed draws the images
(those of 10 are among those of 40), the random weights and the order. It writes curve.csv, curve.json and curve.png
(mean and 95 % interval over the seeds, by Student's t) of all runs in the folder, and prints a table, with what a way
gains on scratch in the same draws. Runs that are finished are not run again, one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

import detkit
from detkit.data.dataset import read
from detkit.data.split import write_split
from detkit.engine.events import EpochDone
from detkit.io.files import write_text, written_figure

EPOCHS, BATCH = 10, 8
WAYS = {
    "scratch": ["model.backbone.weights=none", "train.backbone_lr=2e-3"],
    "all frozen": ["model.backbone.frozen=all"],
    "half frozen": ["model.backbone.frozen=3"],
    "free": ["model.backbone.frozen=0"],
}


def subset(data: Path, folder: Path, images: int, seed: int) -> Path:
    """A data.yaml whose part train is so many of the training images, drawn with ``seed``."""
    annotations = read(data, split="train")
    if images > len(annotations):
        raise SystemExit(f"{data}: {images} of {len(annotations)} training images cannot be drawn")
    rows = np.sort(np.random.default_rng(seed).permutation(len(annotations))[:images])
    return write_split(annotations, {"train": rows}, folder / f"data-{images}-{seed}", overwrite=True)[-1]


def train(options: argparse.Namespace, way: str, images: int, seed: int) -> None:
    """Trains and tests one network, unless the folder holds its result."""
    name = f"{way.replace(' ', '-')}-{images}-{seed}"
    done, run = options.out / f"{name}.json", options.out / name
    if done.is_file():
        return

    def show(event: object) -> None:
        if isinstance(event, EpochDone):
            print(f"{name}: {event}", file=sys.stderr, flush=True)

    if (run / "state.pt").is_file():
        result = detkit.train(resume=run, on_event=show)
    else:
        drawn = str(subset(options.data, options.out, images, seed).absolute())
        # Few images are repeated within an epoch: all runs have as many epochs, and files are not written every step.
        repeats = max(1, round(options.steps / EPOCHS * BATCH / images))
        steps = max(1, repeats * images // BATCH)
        val = {"path": str(options.data), "split": "val"}
        overrides = [
            f"data.train={json.dumps([{'path': drawn, 'split': 'train'}] * repeats)}",
            f"data.val={json.dumps(val)}",
            "data.test=null",
            f"train.epochs={max(1, round(options.steps / steps))}",
            f"train.validate_every={options.steps}",  # the last epoch: the weights are not chosen on validation
            f"train.batch={BATCH}",
            f"train.seed={seed}",
            *WAYS[way],
            *options.set,
        ]
        result = detkit.train(options.recipe, overrides=overrides, out=run, on_event=show)
    test = detkit.evaluate(run / "last.safetensors", options.data, split="test").metrics
    found = {"way": way, "images": images, "seed": seed, "AP50": test["AP50"], "AP": test["AP"],
             "val_AP50": result.row["AP50"], "steps": result.row["step"], "minutes": result.minutes}  # fmt: skip
    write_text(done, json.dumps(found) + "\n")


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a way and number of images: means over the seeds and, in ``half``, halves of their 95 % intervals.

    gain AP50, gain AP: how much more than from scratch with the same images and seed, where those runs are there.
    """
    scratch = {(one["images"], one["seed"]): one for one in found if one["way"] == "scratch"}
    rows = []
    for way, images in dict.fromkeys((one["way"], one["images"]) for one in found):
        mine = [one for one in found if (one["way"], one["images"]) == (way, images)]
        values = {key: [one[key] for one in mine] for key in ("AP50", "AP", "minutes")}
        pairs = [(one, scratch[images, one["seed"]]) for one in mine if (images, one["seed"]) in scratch]
        if way != "scratch" and pairs:
            values |= {f"gain {key}": [one[key] - base[key] for one, base in pairs] for key in ("AP50", "AP")}
        row = {"way": way, "images": images, "seeds": len(mine)}
        row |= {key: float(np.mean(numbers)) for key, numbers in values.items()}
        rows.append({**row, "half": {key: half_interval(numbers) for key, numbers in values.items()}})
    return rows


def half_interval(values: list[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; 0 for one value."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def draw(figure: Any, found: list[dict[str, Any]]) -> None:
    rows = summary(found)
    counts = sorted({row["images"] for row in rows})
    for axes, key in zip(figure.subplots(1, 2), ("AP50", "AP"), strict=True):
        for number, way in enumerate(dict.fromkeys(row["way"] for row in rows)):
            mine = sorted((row for row in rows if row["way"] == way), key=lambda row: row["images"])
            aside = 1.04 ** (number - 1.5)  # so that intervals do not hide each other
            at, halves = [row["images"] * aside for row in mine], [row["half"][key] for row in mine]
            axes.errorbar(at, [row[key] for row in mine], halves, fmt="o-", capsize=3, label=way)
            dots = [(one["images"] * aside, one[key]) for one in found if one["way"] == way]
            axes.plot(*zip(*dots, strict=True), ".", color=f"C{number}", alpha=0.5, markersize=5)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set(xlabel="training images", ylabel=f"{key} on test", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)


def write(folder: Path) -> list[dict[str, Any]]:
    """curve.csv, curve.json, curve.png of all runs in the folder that are finished, which are returned."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*-*-*.json")]
    found.sort(key=lambda one: (one["images"], list(WAYS).index(one["way"]), one["seed"]))
    write_text(folder / "curve.json", json.dumps({"runs": found, "summary": summary(found)}, indent=1), overwrite=True)
    lines = [",".join(map(str, row)) for row in (found[0], *(one.values() for one in found))]
    write_text(folder / "curve.csv", "\n".join(lines) + "\n", overwrite=True)
    with written_figure(folder / "curve.png", 11, 4.6, overwrite=True) as figure:
        draw(figure, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a YOLO data.yaml or its folder, in parts train, val and test")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--recipe", default="yolo_bccd")
    parser.add_argument("--images", default="10,40,200")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help=f"of {BATCH} images each; about 4 minutes on two cores")
    parser.add_argument("--ways", default=",".join(WAYS), help="of " + ", ".join(WAYS))
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="one more way: from a run's backbone, nothing frozen, at the rate of a start from scratch",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more overrides for every run")
    options = parser.parse_args()
    for name, _, run in (start.partition("=") for start in options.start):
        WAYS[name] = [f"model.backbone.weights={run}", "train.backbone_lr=2e-3"]
        options.ways += f",{name}"
    if options.steps < EPOCHS or unknown(options.ways):
        parser.error(f"--steps must be {EPOCHS} at least" if options.steps < EPOCHS else unknown(options.ways))
    settings, known = (
        json.dumps([options.recipe, options.steps, options.set, *options.start]),
        options.out / "settings.json",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    if known.is_file() and known.read_text(encoding="utf-8") != settings:
        parser.error(f"{options.out} holds runs with other --recipe, --steps or --set: give another folder")
    write_text(known, settings, overwrite=True)
    for seed in range(options.seeds):
        for images in map(int, options.images.split(",")):
            for way in options.ways.split(","):
                train(options, way, images, seed)
                found = write(options.out)
    shown = {"AP50": "AP50 on test", "gain AP50": "more than scratch", "AP": "AP", "gain AP": "more than scratch"}
    print(
        f"| images | from | seeds | {' | '.join(shown.values())} | minutes a run |\n|---|---|---|---|---|---|---|---|"
    )
    for row in summary(found):
        means = [f"{row[key]:.3f} ± {row['half'][key]:.3f}" if key in row else "" for key in shown]
        print(f"| {row['images']} | {row['way']} | {row['seeds']} | {' | '.join(means)} | {row['minutes']:.1f} |")


def unknown(ways: str) -> str:
    """A sentence on the first name that is no way to train; empty if there is none."""
    wrong = [way for way in ways.split(",") if way not in WAYS]
    return f"--ways knows no {wrong[0]!r}: choose of {', '.join(WAYS)}" if wrong else ""


if __name__ == "__main__":
    main()
