"""Training from what the frozen stages made once: the same run as without, on any backbone, resumed, or refused."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.augment import Augment
from detkit.data.crops import write_crops
from detkit.data.dataset import Dataset, read
from detkit.data.loader import Loader
from detkit.data.sampler import EpochSampler
from detkit.data.toy import CLASSES, write_toy_data
from detkit.detector import Detector
from detkit.engine import feature_cache as module, run_folder, trainer
from detkit.engine.errors import Interrupted
from detkit.engine.events import BatchDone, BatchValidated, EpochDone, EpochStarted, Notice
from detkit.engine.feature_cache import CachedLoader, FrozenStages
from detkit.engine.options import TrainOptions
from detkit.engine.runtime import Runtime
from detkit.engine.trainer import Trainer
from detkit.errors import DetkitError
from detkit.io.cache import cache_size, clear_cache

OPTIONS = TrainOptions(
    epochs=3, batch=4, workers=0, device="cpu", precision="fp32", close_mosaic=0, ema=0.9, warmup_steps=2, lr=1e-3
)
CACHED = replace(OPTIONS, cache_features=True)
LENET = {"name": "lenet5", "taps": [1]}
AUGMENT = Augment.off(mirror=0.5, shift=20.0)
HEAD = {"name": "yolo", "anchors": [[10.0, 10.0], [20.0, 20.0], [30.0, 30.0], [40.0, 40.0]], "anchors_per_level": 2}
GRAPH = [
    f"convolutional filters={width} size=3 stride=2 pad=1 batch_normalize=1 activation=leaky"
    for width in (8, 12, 16, 24)
]


def train(*parts: Any, resume: bool = False, dry_run: bool = False, **more: Any) -> Any:
    return Trainer(*parts, **more).train(resume=resume, dry_run=dry_run)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_folder, "draw_curves", lambda *arguments: None)  # what a short run spends its time on
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toys") / "toy", train=10, val=5, size=64)


@pytest.fixture(scope="module")
def objects(toys: Path) -> Path:
    """The toys' objects as a folder of class folders."""
    parts = {part: read(toys, split=part) for part in ("train", "val")}
    write_crops(parts, toys.parent / "crops", min_size=8)
    return toys.parent / "crops"


def sets(toys: Path) -> tuple[Dataset, Dataset]:
    return Dataset(read(toys, split="train")), Dataset(read(toys, split="val"))


def detector(frozen: int | str = 3, **parts: Any) -> Detector:
    torch.manual_seed(0)
    backbone = {"name": "darknet", "graph": GRAPH, "taps": [2, 3], "frozen": frozen}
    model = {"size": 64, "backbone": backbone, "head": HEAD, **parts}
    return build_detector(Config({}, check_model(model, Place()), {}, TrainOptions(), EvaluateOptions()), CLASSES)


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "state.pt", weights_only=True)["model"]
    return found


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("frozen", "parts", "options"),
    [
        pytest.param(4, {}, {}, id="all frozen, two maps"),
        pytest.param(3, {}, {"accumulate": 2}, id="a tapped stage and what follows it"),
        pytest.param(
            0,
            {"backbone": {**LENET, "frozen": "all"}, "head": {"name": "classify", "hidden": [8]}},
            {},
            id="a classifier",
        ),
        pytest.param(
            0,
            {
                "backbone": {**LENET, "frozen": 1},
                "proposals": {"name": "windows", "windows": [24], "max": 9},
                "head": {"name": "roi", "layers": "mlp"},
            },
            {},
            id="proposals and the head's own random numbers",
        ),
    ],
)
def test_the_run_is_the_same_as_without(
    tmp_path: Path, toys: Path, objects: Path, frozen: int | str, parts: dict[str, Any], options: dict[str, Any]
) -> None:
    one, other = tmp_path / "computed", tmp_path / "cached"
    given = sets(objects if parts.get("head", {}).get("name") == "classify" else toys)
    # Adam's steps do not shrink with the gradient: they would enlarge the rounding of the smallest ones.
    chosen = replace(OPTIONS, optimizer="sgd", lr=1e-2, **options)
    train(detector(frozen, **parts), *given, chosen, run=one)
    train(detector(frozen, **parts), *given, replace(chosen, cache_features=True), run=other)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=2e-3, atol=2e-3)
    for a, b in zip(rows(one), rows(other), strict=True):
        assert {name: b[name] for name in a if "loss" in name} == pytest.approx(
            {name: a[name] for name in a if "loss" in name}, rel=2e-3, abs=2e-3
        )


def test_everything_is_computed_once(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    train(detector(), *sets(toys), CACHED, run=tmp_path / "first", on_event=said.append)
    notices = [str(event) for event in said if isinstance(event, Notice)]
    assert "output of the frozen stages for 15 images: about 0." in notices[0]
    assert notices[1].startswith("the frozen stages looked at 15 images")
    assert cache_size()[0] == 15
    assert (tmp_path / "first" / "first_batch.jpg").stat().st_size > 1000

    started = [type(event) for event in said].index(EpochStarted)
    assert sum(isinstance(event, BatchValidated) for event in said[:started]) == 5

    again, heard = detector(), list[str]()
    whole = again.frozen_maps

    def only_zeros(pixels: torch.Tensor) -> list[torch.Tensor]:
        assert not pixels.any()
        return whole(pixels)

    monkeypatch.setattr(again, "frozen_maps", only_zeros)
    train(again, *sets(toys), CACHED, run=tmp_path / "second", on_event=lambda event: heard.append(str(event)))
    assert any("looked at 0 images" in text and "15 were in the cache" in text for text in heard)
    assert rows(tmp_path / "first") == rows(tmp_path / "second")


def test_an_entry_is_of_one_network_one_way_to_prepare_pixels_and_one_image(tmp_path: Path, toys: Path) -> None:
    counts = []

    def once(model: Detector, data: Dataset | None = None, **options: Any) -> None:
        run = tmp_path / str(len(counts))
        train(model, data or sets(toys)[0], None, replace(CACHED, epochs=1, **options), run=run)
        counts.append(cache_size()[0])

    once(detector())
    once(detector())
    changed = detector()
    next(changed.backbone.stages[1].parameters()).data[0] += 1e-4
    once(changed)
    moved = detector()
    moved.mean += 1
    once(moved)
    once(detector(size=32))
    once(detector(), precision="bf16")
    later = detector()
    next(later.backbone.stages[3].parameters()).data[0] += 1  # not frozen
    once(later)
    data = sets(Path(shutil.copytree(toys, tmp_path / "copy")))[0]
    shutil.copy(data.annotations.files[1], data.annotations.files[0])  # one image is another now
    shutil.copy(sets(toys)[1].annotations.files[0], data.annotations.files[1])
    once(detector(), data)
    assert counts == [10, 10, 20, 30, 40, 50, 50, 51]


def test_damaged_entries_are_computed_again_and_that_is_said(tmp_path: Path, toys: Path, place: Path) -> None:
    train(detector(), *sets(toys), CACHED, run=tmp_path / "first")
    files = sorted(place.rglob("*.npy"))
    whole = [file.read_bytes() for file in files[:3]]
    files[0].write_bytes(whole[0][:-10])
    files[1].write_bytes(whole[1][:-2] + b"xx")
    files[2].write_bytes(b"")
    heard: list[str] = []
    train(detector(), *sets(toys), CACHED, run=tmp_path / "second", on_event=lambda event: heard.append(str(event)))
    assert sum("damaged; it is computed again" in text for text in heard) == 3
    assert any("looked at 3 images" in text and "12 were in the cache" in text for text in heard)
    assert [len(file.read_bytes()) for file in files[:3]] == [len(text) for text in whole]
    for a, b in zip(rows(tmp_path / "first"), rows(tmp_path / "second"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)  # computed in another batch: rounded otherwise


@pytest.mark.parametrize(("kind", "count"), [(BatchValidated, 2), (BatchValidated, 5), (EpochDone, 1)])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, toys: Path, kind: type, count: int) -> None:
    options = replace(CACHED, cache_views=2)
    train(detector(), *sets(toys), options, run=tmp_path / "whole", augment=AUGMENT)
    clear_cache()
    left = [count]

    def stop(event: Any) -> None:
        if isinstance(event, kind):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(detector(), *sets(toys), options, run=tmp_path / "parts", augment=AUGMENT, on_event=stop)
    torch.manual_seed(99)
    train(detector(), *sets(toys), options, run=tmp_path / "parts", augment=AUGMENT, resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert all(
        torch.equal(a, b) for a, b in zip(*(weights(tmp_path / n).values() for n in ("parts", "whole")), strict=True)
    )


def test_views_are_the_augmented_images_in_turn(tmp_path: Path, toys: Path) -> None:
    """Two views, seen in one epoch each, are what two epochs in the data's order show without the cache."""
    data, model = sets(toys)[0], detector().eval()
    runtime = Runtime("cpu", "fp32")
    cached = CachedLoader(FrozenStages(model, runtime, print), data, EpochSampler(len(data), batch=4), views=2)
    pixels: dict[tuple[int, int], torch.Tensor] = {}
    boxes: dict[tuple[int, int], torch.Tensor] = {}
    for view in range(2):
        with Loader(data, resize=model.resize, batch=3, augment=AUGMENT) as loader:
            for batch, targets in loader.epoch(view, mosaic=False):
                for one, target in zip(batch.pixels, targets, strict=True):
                    index = sum(key[0] == view for key in pixels)
                    pixels[view, index], boxes[view, index] = one, target.boxes
    with Loader(data, resize=model.resize, batch=3, augment=AUGMENT) as loader:
        assert sum(len(batch) for batch, _ in cached.fill(loader)) == 2 * len(data)
    assert not torch.equal(pixels[0, 0], pixels[1, 0])
    for epoch in range(3):
        index = 0
        for batch, targets in cached.epoch(epoch):
            assert batch.cached is not None
            for row, target in enumerate(targets):
                place = (epoch + index) % 2, index
                assert torch.equal(target.boxes, boxes[place])
                with torch.no_grad():
                    wanted = model.frozen_maps(pixels[place][None])
                for maps, want in zip(batch.cached, wanted, strict=True):
                    torch.testing.assert_close(maps[row], want[0], rtol=1e-3, atol=1e-3)
                index += 1
        assert index == len(data)


def test_images_that_cannot_be_read_are_replaced_in_training_and_missing_in_validation(
    tmp_path: Path, toys: Path
) -> None:
    copy = Path(shutil.copytree(toys, tmp_path / "copy"))
    data, val = sets(copy)
    for path in (data.annotations.files[3], data.annotations.files[4], val.annotations.files[0]):
        Path(path).write_bytes(b"no image")
    one, other, heard = tmp_path / "computed", tmp_path / "cached", list[str]()
    options = replace(OPTIONS, optimizer="sgd", lr=1e-2)
    train(detector(), data, val, options, run=one)
    train(
        detector(), data, val, replace(options, cache_features=True), run=other, on_event=lambda e: heard.append(str(e))
    )
    assert sum("left out" in text for text in heard) == 3
    for a, b in zip(rows(one), rows(other), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=2e-3)
    for path in data.annotations.files:
        Path(path).write_bytes(b"no image")
    with pytest.raises(DetkitError, match="image"):
        train(detector(), data, None, CACHED, run=tmp_path / "none")


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e4))
    with pytest.raises(DetkitError, match=r"15 images: about 0\.\d\d MB, but the disk has 0\.01 MB") as caught:
        train(detector(), *sets(toys), CACHED, run=tmp_path / "run")
    assert caught.value.code == 4
    assert "DETKIT_CACHE" in caught.value.do
    assert cache_size()[0] == 0


def test_without_a_place_to_write_the_maps_stay_in_memory(tmp_path: Path, toys: Path, place: Path) -> None:
    place.write_text("a file where the folder should be")
    heard: list[str] = []
    train(detector(), *sets(toys), CACHED, run=tmp_path / "run", on_event=lambda event: heard.append(str(event)))
    assert sum("nothing is cached" in text for text in heard) == 1
    assert len(rows(tmp_path / "run")) == 3


def test_the_time_left_is_that_of_epochs_alone(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps, left, looking = [0.0], [0], list[float](), [True]
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def tick(event: Any) -> None:
        looking[0] &= not isinstance(event, EpochStarted)
        now[0] += 1000 if looking[0] and isinstance(event, BatchValidated) else isinstance(event, BatchDone)
        steps[0] += isinstance(event, BatchDone)
        if isinstance(event, EpochDone):
            left.append(event.remaining)
            if len(left) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(detector(), *sets(toys), CACHED, run=tmp_path / "run", on_event=tick)
    looking[0] = True
    train(detector(), *sets(toys), CACHED, run=tmp_path / "run", on_event=tick, resume=True)
    each = steps[0] / 3
    assert left == pytest.approx([2 * each, each, 0])


def test_an_entry_that_vanishes_in_training_stops_the_run(tmp_path: Path, toys: Path) -> None:
    def clear(event: Any) -> None:
        if isinstance(event, EpochDone) and event.epoch == 0:
            clear_cache()

    with pytest.raises(DetkitError, match="gone") as caught:
        train(detector(), *sets(toys), CACHED, run=tmp_path / "run", on_event=clear)
    assert caught.value.code == 4
    train(detector(), *sets(toys), CACHED, run=tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("frozen", "options", "augment", "where", "do"),
    [
        (0, {}, None, "train.cache_features", "model.backbone.frozen"),
        (3, {"unfreeze": (2,)}, None, "train.unfreeze", "leave out"),
        (3, {}, Augment.off(mirror=0.5), "train.cache_features", "train.cache_views=8 on"),
        (3, {}, Augment.off(mosaic=0.5), "train.cache_features", "train.cache_views=8 augment.mosaic=0 on"),
        (3, {"cache_views": 4}, Augment.off(mirror=0.5, mosaic=0.5), "augment.mosaic", "augment.mosaic=0"),
        (3, {"cache_views": 4}, Augment.off(mirror=0.5, mixup=0.5), "augment.mixup", "augment.mixup=0"),
        (3, {"cache_views": 4}, Augment.off(), "train.cache_views", "set it to 1"),
        (3, {"cache_views": 4}, None, "train.cache_views", "set it to 1"),
    ],
)
def test_what_does_not_go_together_names_the_key(
    tmp_path: Path, toys: Path, frozen: int, options: dict[str, Any], augment: Augment | None, where: str, do: str
) -> None:
    with pytest.raises(DetkitError) as caught:
        train(detector(frozen), *sets(toys), replace(CACHED, **options), run=tmp_path / "run", augment=augment)
    assert caught.value.code == 2
    assert caught.value.where == where
    assert do in caught.value.do
    assert not (tmp_path / "run").exists()


def test_augmentation_that_changes_nothing_is_none(tmp_path: Path, toys: Path) -> None:
    train(detector(), *sets(toys), CACHED, run=tmp_path / "none")
    train(detector(), *sets(toys), CACHED, run=tmp_path / "off", augment=Augment.off())
    strong = Augment(mosaic=1.0)
    train(detector(), *sets(toys), replace(CACHED, cache_views=1), run=tmp_path / "left out", augment=strong)
    assert rows(tmp_path / "none") == rows(tmp_path / "off") == rows(tmp_path / "left out")
    assert cache_size()[0] == 15


@pytest.mark.parametrize("options", [{"cache_views": 2}, {"cache_features": True, "cache_views": 0}])
def test_a_number_of_views_needs_cached_features(options: dict[str, Any]) -> None:
    with pytest.raises(DetkitError, match="cache_views"):
        TrainOptions(**options)


def test_a_dry_run_fills_no_cache(tmp_path: Path, toys: Path) -> None:
    heard: list[str] = []
    train(
        detector(),
        *sets(toys),
        CACHED,
        run=tmp_path / "r",
        dry_run=True,
        on_event=lambda event: heard.append(str(event)),
    )
    assert any("cached" in text for text in heard)
    assert cache_size()[0] == 0
