"""Why there are residual networks: the training error of plain and residual networks of growing depth.

    detkit data crops DATA -o crops --classes person,car,cat,dog,sheep,horse,cow,train,bus
    python tools/plain_and_residual.py crops -o study [--depths 20,32,56] [--epochs 12]

The networks of He et al. 2016 (arXiv 1512.03385, section 4.2 and figure 6), with their shortcuts and without, all with
batch normalisation, trained on small images in class folders. It writes study.json, study.png (loss over the epochs;
error on the training images after the last one) and prints the table. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import detkit
from detkit.engine.events import EpochDone
from detkit.io.files import write_text, written_figure

AUGMENT = (
    "augment={mosaic: 0, scale: null, aspect: 0, shift: 0, brightness: 0, contrast: 0, saturation: 0, hue: 0, pca: 0}"
)
# As in the paper: SGD with momentum, weight decay 1e-4, batches of 128; a cosine in the place of two steps.
TRAIN = "optimizer: sgd, lr: 0.1, backbone_lr: 0.1, weight_decay: 1e-4, batch: 128, ema: 0, precision: fp32, warmup: 1"


def train(data: Path, folder: Path, depth: int, residual: bool, epochs: int, seed: int) -> dict[str, Any]:
    """Trains one network, unless its folder holds a finished run, and measures it."""
    name = f"{'residual' if residual else 'plain'}{depth}"
    done, run = folder / f"{name}.json", folder / name
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    shutil.rmtree(run, ignore_errors=True)
    overrides = [
        "model.size=32",
        f"model.backbone={{name: resnet{depth}, residual: {str(residual).lower()}, taps: [2]}}",
        "model.head={name: classify}",
        AUGMENT,
        f"train={{epochs: {epochs}, seed: {seed}, validate_every: {epochs}, {TRAIN}}}",
    ]

    def show(event: object) -> None:
        if isinstance(event, EpochDone):
            print(f"{name}: {event}", file=sys.stderr, flush=True)

    detkit.train("classify", data=data, overrides=overrides, out=run, on_event=show)
    rows = list(csv.DictReader((run / "metrics.csv").open(encoding="utf-8")))
    errors = {
        split: 1 - detkit.evaluate(run / "last.safetensors", data, split=split).metrics["top1"]
        for split in ("train", "val")
    }
    found = {
        "depth": depth,
        "residual": residual,
        "loss": [float(row["loss"]) for row in rows],
        "minutes": float(rows[-1]["minutes"]),
        "error": errors,
    }
    write_text(done, json.dumps(found))
    return found


def draw(figure: Any, found: list[dict[str, Any]]) -> None:
    course, last = figure.subplots(1, 2)
    depths = sorted({one["depth"] for one in found})
    for one in found:
        label = f"{'residual' if one['residual'] else 'plain'}, {one['depth']} layers"
        style = {"color": f"C{depths.index(one['depth'])}", "linestyle": "-" if one["residual"] else "--"}
        course.plot(range(1, len(one["loss"]) + 1), one["loss"], label=label, **style)
    for residual, style in ((False, "s--"), (True, "o-")):
        some = sorted((one for one in found if one["residual"] == residual), key=lambda one: one["depth"])
        errors = [100 * one["error"]["train"] for one in some]
        last.plot([one["depth"] for one in some], errors, style, label="residual" if residual else "plain")
    course.set(xlabel="epoch", ylabel="training loss")
    last.set(xlabel="layers with weights", ylabel="error on the training images, %", xticks=depths)
    last.set_ylim(bottom=0)
    for axes in (course, last):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="CROPS", help="class folders, in parts train and val")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--depths", default="20,32,56", help="of 20, 32, 44, 56, 110")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kinds = [(int(depth), residual) for depth in options.depths.split(",") for residual in (False, True)]
    found = [train(options.data, options.out, *kind, options.epochs, options.seed) for kind in kinds]
    write_text(options.out / "study.json", json.dumps(found, indent=1), overwrite=True)
    with written_figure(options.out / "study.png", 10, 4.2, overwrite=True) as figure:
        draw(figure, found)
    print("| layers | shortcuts | last training loss | error on train | error on val | minutes |\n" + "|---" * 6 + "|")
    for one in found:
        errors = f"{one['error']['train']:.1%} | {one['error']['val']:.1%}"
        print(f"| {one['depth']} | {one['residual']} | {one['loss'][-1]:.3f} | {errors} | {one['minutes']:.1f} |")


if __name__ == "__main__":
    main()
