"""What a run leaves behind for people: metrics.csv, curves.png, log.txt, run.json, first_batch.jpg; and its loggers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

import detkit
from detkit.data.dataset import Dataset
from detkit.engine.events import BatchDone, BatchValidated, EpochDone, EpochStarted, Event, Row, TrainFinished
from detkit.errors import DetkitError
from detkit.interfaces import Logger
from detkit.io.draw import draw_target, sheet
from detkit.io.files import write_text, written_figure
from detkit.io.images import write_image
from detkit.structures import Batch, Target

LOGGERS = {"tensorboard": "detkit.engine.run_folder:TensorBoard"}

_CURVES_EVERY = 20.0  # seconds: drawing must not slow down runs of very short epochs


class RunFolder:
    """Listens to the engine's events and keeps the run folder's files.

    Args:
        run: The folder.
        record: What run.json holds from the start (versions, seed, data hash, ...).
        rows: Those of the run's earlier part, after a resume.
        scores: Names in a row that are drawn beside the losses.
    """

    def __init__(self, run: Path, record: Mapping[str, object], rows: Sequence[Row], scores: Sequence[str]) -> None:
        self.run, self.record, self.rows, self.scores = run, record, list(rows), scores
        self._drawn = 0.0
        self._write_metrics()
        self._write_record({})

    def __call__(self, event: Event) -> None:
        """Records the event."""
        if isinstance(event, (BatchDone, BatchValidated, EpochStarted)):
            return
        with (self.run / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {event}\n")
        if isinstance(event, EpochDone):
            self.rows.append(event.row)
            self._write_metrics()
            if time.monotonic() - self._drawn > _CURVES_EVERY:
                self._draw()
        elif isinstance(event, TrainFinished):
            self._draw()
            end = event.to_dict()
            self._write_record({name: end[name] for name in ("minutes", "best_epoch", "threshold", "metrics")})

    def _write_metrics(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        write_text(self.run / "metrics.csv", text.getvalue(), overwrite=True)

    def _write_record(self, end: Mapping[str, object]) -> None:
        text = json.dumps({**self.record, **end}, indent=2, default=str) + "\n"
        write_text(self.run / "run.json", text, overwrite=True)

    def _draw(self) -> None:
        if self.rows:
            draw_curves(self.run / "curves.png", self.rows, self.scores)
            self._drawn = time.monotonic()


class TensorBoard(Logger):
    """Every number of a row as a curve of TensorBoard."""

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            do = "pip install tensorboard, or leave it out of train.loggers"
            raise DetkitError("tensorboard is not installed", "train.loggers", do) from error
        self._writer = SummaryWriter(str(run))

    def __call__(self, event: Event) -> None:
        """Adds the row of an epoch."""
        if isinstance(event, EpochDone):
            for name, value in event.row.items():
                self._writer.add_scalar(name, value, int(event.row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def draw_curves(path: Path, rows: Sequence[Row], scores: Sequence[str]) -> None:
    """Losses (training, validation) and ``scores`` over the epochs as an image; ``rows`` as in metrics.csv."""
    with written_figure(path, 10, 4, overwrite=True) as figure:
        panels = figure.subplots(1, 2)
        tables = (("loss", ("loss", "val_loss")), ("scores (validation)", scores))
        for axes, (title, names) in zip(panels, tables, strict=True):
            for name in names:
                points = [(row["epoch"], row[name]) for row in rows if name in row]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        panels[1].set_ylim(0, 1)


def save_first_batch(path: Path, batch: Batch, targets: Sequence[Target], classes: Sequence[str]) -> None:
    """The batch's images (up to 16) as the model sees them, with their boxes, in one image."""
    images = batch.pixels[:16].permute(0, 2, 3, 1).contiguous().cpu().numpy()
    drawn = [draw_target(image, t.numpy(), classes) for image, t in zip(images, targets, strict=False)]
    write_image(path, sheet(drawn), overwrite=True)


def data_hash(dataset: Dataset) -> str:
    """First 16 digits of the SHA-256 of the labels: classes, image ids, boxes (not of the images)."""
    truth = dataset.annotations.ground_truth()
    digest = hashlib.sha256(json.dumps([truth.classes, list(dataset.annotations.image_ids)], default=str).encode())
    for column in (truth.image, truth.label, truth.xywh, truth.crowd, truth.difficult):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def machine_record() -> dict[str, object]:
    """Versions and hardware, for run.json and the model file's header; no paths and names of the user's."""
    import torch
    import torchvision

    modules = (detkit, torch, torchvision, np)
    return {
        "versions": {"python": platform.python_version()} | {m.__name__: str(m.__version__) for m in modules},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _cpu_name() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return platform.processor()
