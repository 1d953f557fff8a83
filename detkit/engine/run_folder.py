"""What a run leaves behind for people: metrics.csv, curves.png, log.txt, run.json, first_batch.jpg, TensorBoard."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import detkit
from detkit.engine.events import (
    BatchDone,
    BatchValidated,
    EpochDone,
    EpochStarted,
    Event,
    Row,
    TrainFinished,
    TrainStarted,
)
from detkit.io.draw import draw_target
from detkit.io.figures import written_figure
from detkit.io.files import write_text
from detkit.io.images import write_image
from detkit.structures import Batch, Target

_CURVES_EVERY = 20.0  # seconds: drawing must not slow down runs of very short epochs


class RunFolder:
    """Listens to the engine's events and keeps the run folder's files.

    record: what run.json starts with (versions, seed, data hash, ...); rows: those of the run's earlier part, after a
    resume; metrics.csv is written anew from them, so that it never holds an epoch twice.
    """

    def __init__(self, run: Path, record: dict[str, Any], rows: Sequence[Row] = (), tensorboard: bool = False) -> None:
        self.run, self.record, self.rows = run, record, list(rows)
        run.mkdir(parents=True, exist_ok=True)
        self._drawn = 0.0
        self._board = _tensorboard(run) if tensorboard else None
        write_text(run / "metrics.csv", _csv(self.rows), overwrite=True)
        self._write_record({})

    def __call__(self, event: Event) -> None:
        """Records the event."""
        if isinstance(event, (BatchDone, BatchValidated, EpochStarted)):
            return
        self._log(str(event))
        if isinstance(event, TrainStarted):
            self.record |= {"device": event.device, "precision": event.precision, "parameters": event.parameters}
            self._write_record({})
        elif isinstance(event, EpochDone):
            self._add(event.row)
        elif isinstance(event, TrainFinished):
            self._draw(last=True)
            best = None if event.best_epoch is None else event.best_epoch + 1
            end = {"minutes": round(event.minutes, 2), "best_epoch": best, "threshold": event.threshold}
            self._write_record({**end, "metrics": event.row})
            if self._board is not None:
                self._board.close()

    def _add(self, row: Row) -> None:
        known = self.rows[0].keys() if self.rows else row.keys()
        self.rows.append(row)
        path = self.run / "metrics.csv"
        if len(self.rows) == 1 or row.keys() - known:
            write_text(path, _csv(self.rows), overwrite=True)
        else:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(_csv(self.rows).splitlines(keepends=True)[-1])
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, int(row["epoch"]))
            self._board.flush()
        self._draw()

    def _log(self, text: str) -> None:
        with (self.run / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def _write_record(self, more: dict[str, Any]) -> None:
        self.record |= more
        write_text(self.run / "run.json", json.dumps(self.record, indent=2, default=str) + "\n", overwrite=True)

    def _draw(self, last: bool = False) -> None:
        if self.rows and (last or time.monotonic() - self._drawn > _CURVES_EVERY):
            draw_curves(self.run / "curves.png", self.rows)
            self._drawn = time.monotonic()


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" for name, value in row.items()})
    return text.getvalue()


def _tensorboard(run: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run))


def draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """Losses (training, validation) and scores over the epochs as an image; ``rows`` as in metrics.csv."""
    with written_figure(path, 10, 4, overwrite=True) as figure:
        losses, scores = figure.subplots(1, 2)
        for axes, names, title in (
            (losses, ("loss", "val_loss"), "loss"),
            (scores, ("AP", "AP50", "AP75", "top1", "top5", "PCK"), "scores (validation)"),
        ):
            for name in names:
                points = [(row["epoch"], row[name]) for row in rows if name in row]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        scores.set_ylim(0, 1)


def save_first_batch(path: Path, batch: Batch, targets: Sequence[Target], classes: Sequence[str]) -> None:
    """The batch's images (up to 16) as the model sees them, with their boxes, in one image."""
    pictures = batch.pixels[:16].permute(0, 2, 3, 1).contiguous().cpu().numpy()
    drawn = [draw_target(p, t.numpy(), classes) for p, t in zip(pictures, targets, strict=False)]
    across = int(np.ceil(np.sqrt(len(drawn))))
    drawn += [np.full_like(drawn[0], 255)] * (-len(drawn) % across)
    rows = [np.concatenate(drawn[i : i + across], axis=1) for i in range(0, len(drawn), across)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.concatenate(rows, axis=0), overwrite=True)


def data_hash(dataset: Any) -> str:
    """First 16 digits of the SHA-256 of the labels: classes, image ids, boxes (not of the images)."""
    truth = dataset.annotations.ground_truth()
    digest = hashlib.sha256(json.dumps([truth.classes, list(dataset.annotations.image_ids)], default=str).encode())
    for column in (truth.image, truth.label, truth.xywh, truth.crowd, truth.difficult):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def machine_record() -> dict[str, Any]:
    """Versions and hardware, for run.json and the model file's header; no paths and names of the user's."""
    import torch
    import torchvision

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {
            "detkit": detkit.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
