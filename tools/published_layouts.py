"""AP of three published detectors read by their output layout, beside what other code gave.

    python tools/published_layouts.py FOLDER DATA [--split val]

FOLDER holds yolox_nano.onnx, picodet_s_416_coco.onnx, nanodet-plus-m_416.param and .bin; the last is no ONNX file, so
one with the outputs of NanoDet's own export is made of it. The numbers beside ours were measured by pycocotools on the
600 photos of a part of PASCAL VOC, from scores of 0.03: AP50 of the nine classes of over 30 objects, then AP50 and AP
of all twenty. Exit code 1 if one of ours, of all photos, is more than 0.01 away. onnxruntime, one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

import detkit
from detkit.exporting.layouts import LAYOUTS
from detkit.importers.nanodet import import_nanodet

NINE = ("dog", "person", "cat", "sheep", "horse", "car", "cow", "train", "bus")
PUBLISHED = {
    "yolox": ("yolox_nano.onnx", (0.777, 0.629, 0.449)),
    "picodet": ("picodet_s_416_coco.onnx", (0.829, 0.680, 0.518)),
    "nanodet": ("nanodet-plus-m_416.param", (0.818, 0.715, 0.533)),
}


class Table(torch.nn.Module):
    """NanoDet as others deploy it: pixels as it is fed to scores and codes of all cells, (B, A, 112)."""

    def __init__(self, param: Path) -> None:
        super().__init__()
        self.detector, layout = import_nanodet(param), LAYOUTS["nanodet"]
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (layout.mean, layout.std))

    def forward(self, fed: Tensor) -> Tensor:
        raw = self.detector.raw((fed * self.std + self.mean).flip(1))
        return torch.cat((raw["classes"].sigmoid(), raw["boxes"]), 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data")
    parser.add_argument("--split", default="val")
    options, right = parser.parse_args(), True
    warnings.simplefilter("ignore")  # of torch's exporter, and of classes that the data does not have
    for name, (file, known) in PUBLISHED.items():
        with tempfile.TemporaryDirectory() as place:
            path = options.folder / file
            if path.suffix == ".param":
                table, path = Table(path).eval(), Path(place, "nanodet.onnx")
                torch.onnx.export(table, (torch.zeros(1, 3, 416, 416),), path, dynamo=True, verbose=False)
            model = detkit.load(path, engine="onnxruntime", layout=name, threads=1)
            found = detkit.evaluate(model, options.data, split=options.split)
        nine = sum(found.per_class[label]["AP50"] for label in NINE) / len(NINE)
        ours = nine, found.metrics["AP50"], found.metrics["AP"]
        near = all(abs(a - b) <= 0.01 for a, b in zip(ours, known, strict=True))
        right &= near
        print(f"{name:8} {[f'{x:.4f}' for x in ours]} known {known} {'ok' if near else 'AWAY'}", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
