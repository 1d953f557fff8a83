from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from detkit.config.experiment import check_config
from detkit.config.schema import Place
from detkit.data.resize import Resize
from detkit.detector import Detector
from detkit.engine import events, trainer
from detkit.engine.errors import Interrupted
from detkit.engine.evaluator import detect_dataset
from detkit.engine.options import TrainOptions
from detkit.engine.trainer import Trainer
from detkit.errors import DetkitError
from detkit.geometry import UsualSizes
from detkit.interfaces import Backbone, Head, Logger
from detkit.metrics import evaluate_results
from detkit.metrics.coco import Coco
from detkit.registry import UntrustedPart
from detkit.structures import Batch, Detections, Loss, Sample, Target
from detkit.tables import GroundTruth

SIZE = 32
OPTIONS = TrainOptions(epochs=4, batch=4, lr=0.01, workers=0, precision="fp32", device="cpu", close_mosaic=0)


def train(*parts: Any, resume: bool = False, dry_run: bool = False, **more: Any) -> Any:
    return Trainer(*parts, **more).train(resume=resume, dry_run=dry_run)


class Images:
    """Noise with one bright square each; the dataset's interface, all in memory."""

    classes = ("square",)
    class_ids = (1,)
    strict = False

    def __init__(self, count: int = 12, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 80, (count, SIZE, SIZE, 3), dtype=np.uint8)
        corner = rng.integers(0, SIZE - 10, (count, 2))
        self.boxes = np.concatenate([corner, corner + 10], axis=1).astype(np.float32)
        for image, (x1, y1, x2, y2) in zip(self.images, self.boxes.astype(int), strict=True):
            image[y1:y2, x1:x2] = 255
        self.broken: set[int] = set()
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).astype(np.float64)
        truth = GroundTruth(
            images=count,
            image=np.arange(count),
            label=np.zeros(count, np.int64),
            xywh=xywh,
            area=xywh[:, 2] * xywh[:, 3],
            crowd=np.zeros(count, bool),
            difficult=np.zeros(count, bool),
            ids=np.arange(1, count + 1),
            classes=self.classes,
        )
        files = [f"image{i}.png" for i in range(count)]
        self.annotations = SimpleNamespace(
            image_ids=list(range(count)),
            files=files,
            ground_truth=lambda: truth,
            classes=self.classes,
            labelled=False,
            points=None,
            sizes=np.full((count, 2), SIZE),
            image_index=truth.image,
            xywh=xywh,
            crowd=truth.crowd,
        )

    def __len__(self) -> int:
        return len(self.images)

    def load(self, i: int, reduce_to: int | None = None) -> Sample:
        if i in self.broken:
            raise DetkitError("the image is broken", f"image{i}.png")
        target = Target(self.boxes[i : i + 1], np.zeros(1, np.int64))
        return Sample(self.images[i], target, image_id=i, path=f"image{i}.png")

    def subset(self, images: Any) -> Images:
        return Images(len(images))


class ToyBackbone(Backbone, nn.Sequential):
    """Stages that are not to be frozen."""

    stages = ()
    forward = nn.Sequential.forward


class ToyHead(Head, nn.Linear):
    """One box per image."""

    forward = nn.Linear.forward


class Toy(Detector):
    """The smallest detector: one box an image, from a convolution with BatchNorm; random noise as dropout has it."""

    def __init__(self, noise: float = 0.0, frozen: bool = False) -> None:
        torch.manual_seed(1)
        backbone = ToyBackbone(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        parts = backbone, nn.Identity(), ToyHead(8 * 16, 5)
        super().__init__(*parts, classes=("square",), resize=Resize(SIZE), config={})
        self.noise, self.frozen = noise, frozen
        self.generator = torch.Generator().manual_seed(3)

    def train(self, mode: bool = True) -> Toy:
        super().train(mode)
        if self.frozen:
            self.backbone[1].eval()
        return self

    def forward(
        self, batch: Batch, targets: list[Target] | None = None, *, limits: Any = None, detections: bool = False
    ) -> Any:
        raw = self.head(self.backbone(batch.pixels.float() / 255).flatten(1)).float()
        if self.noise and self.training:
            raw = raw + self.noise * (torch.randn(raw.shape) + torch.randn(raw.shape, generator=self.generator))
        boxes = raw[:, :4] * SIZE
        losses = {}
        if targets is not None:
            wanted = torch.cat([t.boxes for t in targets])
            # An uneven count an image, so that dividing batch by batch would differ from dividing by the window's.
            weight = torch.tensor([1.0 + (i % 3) for i in batch.image_ids])
            error = (raw[:, :4] - wanted / SIZE).square().sum(1) * weight
            losses["box"] = Loss(error.sum(), weight.sum())
            score = nn.functional.binary_cross_entropy_with_logits(raw[:, 4], torch.ones(len(raw)), reduction="sum")
            losses["score"] = Loss(score, torch.tensor(float(len(raw))))
            if not detections:
                return losses
        ordered = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].clamp(min=1)], dim=1).clamp(0, 1000)
        ordered = torch.cat([ordered[:, :2], ordered[:, 2:].maximum(ordered[:, :2] + 1)], dim=1)
        labels = torch.zeros(1, dtype=torch.int64)
        score = raw[:, 4].sigmoid()
        found = [Detections(ordered[i : i + 1], score[i : i + 1], labels, self.classes) for i in range(len(raw))]
        return found if targets is None else (losses, found)

    def save(self, path: Path, *, half: bool = False, overwrite: bool = True) -> None:
        from safetensors.torch import save

        from detkit.io.files import write_bytes

        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_bytes(path, save(state, {"threshold": str(self.threshold)}), overwrite=overwrite)


def run_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]], bytes]:
    """State, rows without the clock, and the averaged weights of a run."""
    state = torch.load(folder / "state.pt", weights_only=True)
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]
    return state, rows, (folder / "last.safetensors").read_bytes()


def assert_same_run(one: Path, other: Path) -> None:
    (a, rows_a, weights_a), (b, rows_b, weights_b) = run_of(one), run_of(other)
    assert rows_a == rows_b
    assert weights_a == weights_b
    for part in ("model", "average"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    moments = [
        (x[k], y[k]) for i, x in a["optimizer"]["state"].items() for y in [b["optimizer"]["state"][i]] for k in x
    ]
    assert moments
    assert all(torch.equal(x, y) for x, y in moments)
    assert torch.equal(a["random"]["cpu"], b["random"]["cpu"])


def test_trains_and_leaves_the_run_folder(tmp_path: Path) -> None:
    heard: list[events.Event] = []
    options = replace(OPTIONS, epochs=6, tensorboard=True)
    result = train(
        Toy(), Images(), Images(6, 1), options, run=tmp_path / "r", config="train: {}\n", on_event=heard.append
    )
    names = {path.name for path in (tmp_path / "r").iterdir()}
    wanted = {"config.yaml", "metrics.csv", "curves.png", "log.txt", "run.json", "first_batch.jpg", "state.pt"}
    assert wanted | {"best.safetensors", "last.safetensors"} <= names
    assert any(name.startswith("events.out") for name in names)
    _, rows, _ = run_of(tmp_path / "r")
    assert len(rows) == 6
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {"val_loss", "loss_box", "val_loss_box", "AP", "AP50", "lr"} <= rows[0].keys()
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert record["minutes"] >= 0
    assert str(tmp_path) not in json.dumps(record)
    assert {"data_hash", "machine", "metrics"} <= record.keys()
    assert UsualSizes.read(record["objects"]) == UsualSizes(10, 10, 10, 1)
    assert isinstance(result, events.TrainFinished)
    assert result.to_dict()["best_epoch"] == record["best_epoch"]
    kinds = [type(event).__name__ for event in heard]
    assert kinds[0] == "TrainStarted"
    assert kinds[-1] == "TrainFinished"
    assert kinds.count("BatchDone") == 18
    assert kinds.count("EpochDone") == 6


class Stopper:
    """Sends a signal to this process at one event."""

    def __init__(self, kind: type, count: int, number: int = signal.SIGINT) -> None:
        self.kind, self.left, self.number = kind, count, number

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, self.kind):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("kind", "count", "number", "code"),
    [
        pytest.param(events.EpochDone, 2, signal.SIGINT, 130, id="after two of four epochs"),
        pytest.param(events.BatchDone, 5, signal.SIGTERM, 143, id="in the middle of an epoch"),
        pytest.param(events.BatchDone, 6, signal.SIGINT, 130, id="after an epoch's last step"),
        pytest.param(events.BatchValidated, 3, signal.SIGINT, 130, id="in the middle of a validation"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_is_bit_equal(
    tmp_path: Path, kind: type, count: int, number: int, code: int, accumulate: int
) -> None:
    options = replace(OPTIONS, accumulate=accumulate)
    sets = Images(), Images(6, 1)
    train(Toy(0.1), *sets, options, run=tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train(Toy(0.1), *sets, options, run=tmp_path / "parts", on_event=Stopper(kind, count, number))
    assert stopped.value.code == code
    assert "--resume" in stopped.value.do
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    torch.manual_seed(99)
    train(Toy(0.1), *sets, options, run=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    train(Toy(frozen=True), Images(), None, OPTIONS, run=tmp_path / "large")
    train(Toy(frozen=True), Images(), None, replace(OPTIONS, batch=2, accumulate=2), run=tmp_path / "small")
    large, small = (run_of(tmp_path / name)[0]["model"] for name in ("large", "small"))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compiled_parts_learn_the_same(tmp_path: Path) -> None:
    plain, compiled = Toy(), Toy()
    train(plain, Images(), None, replace(OPTIONS, epochs=1), run=tmp_path / "plain")
    train(compiled, Images(), None, replace(OPTIONS, epochs=1, compile=True), run=tmp_path / "compiled")
    assert compiled.backbone._compiled_call_impl is not None
    wanted, found = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "compiled"))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_optimizer_learns(tmp_path: Path, optimizer: Any, precision: Any) -> None:
    options = replace(OPTIONS, optimizer=optimizer, precision=precision, epochs=8, lr=3e-3, schedule="step", ema=0.9)
    train(Toy(), Images(), None, options, run=tmp_path / "r")
    _, rows, _ = run_of(tmp_path / "r")
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_loss_that_is_no_number_names_the_images_and_keeps_the_state(tmp_path: Path) -> None:
    class Breaks(Toy):
        steps = 0

        def forward(self, batch: Batch, targets: Any = None, **more: Any) -> Any:
            out = super().forward(batch, targets, **more)
            self.steps += self.training
            if self.steps == 8 and self.training:
                out["box"] = Loss(out["box"].sum * float("nan"), out["box"].count)
            return out

    with pytest.raises(DetkitError, match="loss is not a number") as error:
        train(Breaks(), Images(), None, OPTIONS, run=tmp_path / "r")
    assert error.value.code == 4
    assert error.value.where.count("image") == 4
    state = torch.load(tmp_path / "r" / "state.pt", weights_only=True)
    assert state["progress"]["epoch"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (OSError(28, "No space left on device"), "no room left"),
    ],
)
def test_a_run_that_must_stop_says_what_to_do(tmp_path: Path, error: Exception, what: str) -> None:
    class Breaks(Toy):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise error

    with pytest.raises(DetkitError, match=what) as stopped:
        train(Breaks(), Images(), None, OPTIONS, run=tmp_path / "r")
    assert stopped.value.code == 4
    assert stopped.value.do


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    class Breaks(Toy):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        train(Breaks(), Images(), None, OPTIONS, run=tmp_path / "r")


def test_early_stop_holds_after_a_resume(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=20, lr=1e-9, patience=2)
    heard: list[events.Event] = []
    train(Toy(), Images(), Images(6, 1), options, run=tmp_path / "r", on_event=heard.append)
    assert any(isinstance(event, events.Notice) and "stopped early" in event.text for event in heard)
    _, rows, _ = run_of(tmp_path / "r")
    assert len(rows) == 3
    train(Toy(), Images(), Images(6, 1), options, run=tmp_path / "r", resume=True)
    assert len(run_of(tmp_path / "r")[1]) == 3


def test_dry_run_builds_everything_and_writes_only_the_image(tmp_path: Path, monkeypatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count(0, 3).__next__)  # three seconds from look to look
    monkeypatch.setattr(trainer, "time", clock)
    result = train(Toy(), Images(), Images(6, 1), OPTIONS, run=tmp_path / "r", dry_run=True)
    assert isinstance(result, events.DryRun)
    assert result.steps == 3
    assert result.memory > 0
    assert result.step_seconds == 3
    assert result.epoch_seconds == 3 * 3 + 2 * 3 / 3  # three steps, two batches of validation at a third of a step
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["first_batch.jpg"]
    assert len(result.lines()) == 3
    assert json.dumps(result.to_dict())


@pytest.mark.parametrize("validated", [True, False])
def test_dry_run_finds_what_cannot_predict(tmp_path: Path, validated: bool) -> None:
    class Silent(Toy):
        def forward(self, batch: Batch, targets: Any = None, *, limits: Any = None, detections: bool = False) -> Any:
            if targets is None or detections:
                raise DetkitError("this head predicts nothing")
            return super().forward(batch, targets, limits=limits)

    val = Images(6, 1) if validated else None
    with pytest.raises(DetkitError, match="predicts nothing"):
        train(Silent(), Images(), val, OPTIONS, run=tmp_path / "r", dry_run=True)
    assert train(Toy(), Images(), val, OPTIONS, run=tmp_path / "r", dry_run=True).lines()


def test_dry_run_finds_what_cannot_score(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Coco, "scores", ("AP", "share"))
    with pytest.raises(DetkitError, match="the metric coco has the score share, but its evaluate returns AP, AP50"):
        train(Toy(), Images(), Images(6, 1), OPTIONS, run=tmp_path / "r", dry_run=True)


def test_resume_refuses_what_is_not_the_same_run(tmp_path: Path) -> None:
    run = tmp_path / "r"
    with pytest.raises(DetkitError, match="no state"):
        train(Toy(), Images(), None, OPTIONS, run=run, resume=True)
    train(Toy(), Images(), None, replace(OPTIONS, epochs=1), run=run)
    with pytest.raises(DetkitError, match="another run"):
        train(Toy(), Images(), None, OPTIONS, run=run)
    with pytest.raises(DetkitError, match=r"train\.lr"):
        train(Toy(), Images(), None, replace(OPTIONS, epochs=1, lr=0.5), run=run, resume=True)
    with pytest.raises(DetkitError, match="data changed"):
        train(Toy(), Images(8), None, replace(OPTIONS, epochs=1), run=run, resume=True)
    whole = (run / "state.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a state"):
        (run / "state.pt").write_bytes(damaged)
        with pytest.raises(DetkitError, match="damaged"):
            train(Toy(), Images(), None, replace(OPTIONS, epochs=1), run=run, resume=True)


def test_a_finished_run_is_extended(tmp_path: Path) -> None:
    run, said = tmp_path / "r", list[events.Event]()
    sets, long = (Images(), Images(6, 1)), replace(OPTIONS, warmup=0, warmup_steps=0)
    short = replace(long, epochs=2)
    train(Toy(), *sets, short, run=run, config="first")
    train(Toy(), *sets, short, run=run, config="other", resume=True, on_event=said.append)
    assert f"this run is done, 2 of 2 epochs; to go on: detkit train --resume {run} train.epochs=4" in map(str, said)
    assert not any("going on at epoch" in str(event) for event in said)
    assert (run / "config.yaml").read_text() == "first"
    long = replace(long, patience=9)
    done = train(Toy(), *sets, long, run=run, config="longer", resume=True, on_event=said.append)
    text = next(text for text in map(str, said) if "4 epochs instead of 2" in text)
    assert text.endswith("from here the learning rate is that of such a run: 0.505 of train.lr, not 0.01")
    assert [row["epoch"] for row in run_of(run)[1]] == ["1", "2", "3", "4"]
    assert done.row["epoch"] <= 4
    assert (run / "config.yaml").read_text() == "longer"
    with pytest.raises(DetkitError, match="4 epochs behind it, not 3 as asked for"):
        train(Toy(), *sets, replace(long, epochs=3), run=run, resume=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_measures_what_evaluation_does(tmp_path: Path, precision: Any) -> None:
    sets, model = (Images(), Images(6, 1)), Toy()
    options = replace(OPTIONS, precision=precision, ema=0.5)
    row = train(model, *sets, options, run=tmp_path / "r").row
    model.load_state_dict(load_file(tmp_path / "r" / "best.safetensors"))
    truth, results, _ = detect_dataset(model, sets[1], batch=5)
    again = evaluate_results(truth, results).metrics
    assert {name: row[name] for name in again} == pytest.approx(again, abs=1e-9)


def test_a_broken_image_costs_that_image(tmp_path: Path) -> None:
    pictures, val = Images(), Images(6, 1)
    pictures.broken, val.broken = {3}, {2}
    heard: list[events.Event] = []
    train(Toy(), pictures, val, replace(OPTIONS, epochs=2), run=tmp_path / "r", on_event=heard.append)
    notices = [event.text for event in heard if isinstance(event, events.Notice)]
    assert sum("image3.png" in text for text in notices) == 1
    assert sum("image2.png" in text for text in notices) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_full_disk_keeps_the_old_files(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: dict[str, bytes] = {}

    def fill(event: events.Event) -> None:
        if isinstance(event, events.EpochDone) and event.epoch == 1:
            kept.update({name: (tmp_path / "r" / name).read_bytes() for name in ("state.pt", "last.safetensors")})
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))

    try:
        with pytest.raises(DetkitError, match="no room left") as error:
            train(Toy(), Images(), None, OPTIONS, run=tmp_path / "r", on_event=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.code == 4
    assert kept == {name: (tmp_path / "r" / name).read_bytes() for name in kept}
    train(Toy(), Images(), None, OPTIONS, run=tmp_path / "r", resume=True)


class Heard(Logger):
    """Keeps what it is told."""

    told: ClassVar[list[Any]] = []

    def __init__(self, run: Path) -> None:
        self.told.append(run)

    def __call__(self, event: events.Event) -> None:
        self.told.append(event)

    def close(self) -> None:
        self.told.append("closed")


def test_loggers_are_named_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "somewhere", SimpleNamespace(Heard=Heard))
    options = replace(OPTIONS, epochs=1, loggers=("somewhere:Heard",))
    train(Toy(), Images(), None, options, run=tmp_path / "r")
    run, started, *_, finished, end = Heard.told
    assert run == tmp_path / "r"
    assert isinstance(started, events.TrainStarted)
    assert isinstance(finished, events.TrainFinished)
    assert end == "closed"
    assert not list(run.glob("events.out*"))
    train(Toy(), Images(), None, replace(options, loggers=()), run=run, resume=True)  # who listens may change
    with pytest.raises(DetkitError, match="no logger 'tensorbord'") as error:
        train(Toy(), Images(), None, replace(OPTIONS, loggers=("tensorbord",)), run=tmp_path / "s")
    assert "tensorboard" in error.value.do
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_file_imports_no_logger_by_itself(trusted: bool) -> None:
    values = {
        "data": {"train": "x"},
        "model": {"size": 64, "backbone": "lenet5", "head": "classify"},
        "augment": {"mosaic": 0.0},
        "train": {"loggers": ["detkit.engine.run_folder:TensorBoard"]},
    }
    if trusted:
        assert check_config(values, Place(), TrainOptions).train.loggers == ("detkit.engine.run_folder:TensorBoard",)
    else:
        with pytest.raises(UntrustedPart):
            check_config(values, Place(trusted=False), TrainOptions)
