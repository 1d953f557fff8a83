"""``compare``: several runs on the same images."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit import api
from detkit.config.experiment import is_config
from detkit.errors import DetkitError
from detkit.registry import allow

if TYPE_CHECKING:
    from detkit.data.dataset import Dataset
    from detkit.predictor import Predictor
    from detkit.report.comparison import Comparison

_SECONDS = 30.0  # of timing a run: some need many for an image


def compare(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    split: str | None = None,
    images: str | Path | None = None,
    timed: int = 20,
    bootstrap: int = 1000,
    seed: int = 0,
    batch: int = 8,
    device: str | None = None,
    threads: int | None = None,
    plugins: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Several detectors on the same images: size, AP and AP50, time, and which differences are more than noise.

    Args:
        runs: Two or more run folders, or configs, which stand for their newest run; with ``data`` also model files and
            shipped names.
        data: What to measure on; None: the validation images of the runs' configs.
        split: One part of the data; "test" takes the configs' test images.
        images: Folder of the images of a COCO json.
        timed: Images to take the time of, one by one.
        bootstrap: Draws of the images.
        seed: Of the draws.
        batch: Images at a time, when not timed.
        device: As ``detkit.load``.
        threads: As ``detkit.load``.
        plugins: Modules whose parts a model file may name as ``module:Name``.
        tell: Called with what a person should know: progress, and what flatters a run.

    Raises:
        DetkitError: Fewer than two different runs; without ``data``, one that was trained or validated on other data
            than the first; a classifier; whatever loading and reading raise.
    """
    from detkit.data.dataset import Dataset, read
    from detkit.data.names import explain_match
    from detkit.engine.evaluator import detect_dataset
    from detkit.engine.run_folder import data_hash
    from detkit.explain.summary import predictor_facts
    from detkit.report.comparison import Candidate, compare_results

    allow(plugins)
    names = [str(run) for run in runs]
    different = len({str(Path(name)) for name in names})
    if len(names) < 2 or different < len(names):
        raise DetkitError(f"{len(names)} runs, {different} different", "RUN RUN...", "name two or more")
    paths = [_folder(name, data is not None) for name in names]
    records = [_record(path) for path in paths]
    if data is None:
        dataset = _common_data(names, paths, records, split)
    else:
        dataset = Dataset(read(data, split=split, images=images))
    judged_on = data_hash(dataset)
    for name, record in zip(names, records, strict=True):
        if judged_on == record.get("data_hash"):
            tell(f"{name} was trained on these very images, so its numbers flatter it")
    models = [api.load(path, device=device, threads=threads) for path in paths]
    if other := [name for name, model in zip(names, models, strict=True) if model.protocol == "classify"]:
        raise DetkitError("this run classifies whole images", other[0], "compare detectors")
    seconds = _times(models, dataset, timed)
    candidates = []
    for name, model, spent, record in zip(names, models, seconds, records, strict=True):
        tell(f"{name} on {len(dataset)} images")
        for note in explain_match(model.classes, dataset.classes):
            tell(f"{name}: {note}")
        _, results, _ = detect_dataset(model, dataset, batch=batch)
        candidates.append(Candidate(name, results, spent, record.get("minutes"), predictor_facts(model)))
    return compare_results(dataset.annotations.ground_truth(), candidates, samples=bootstrap, seed=seed)


def _folder(name: str, any_model: bool) -> str:
    """The run folder that a word means: itself, or the newest that ``detkit train`` made of this config."""
    if Path(name).is_dir():
        return name
    if is_config(name):
        numbered = re.compile(re.escape(Path(name).stem) + "[0-9]*")
        made = [p for p in Path("runs").glob("*/best.safetensors") if numbered.fullmatch(p.parent.name)]
        if made:
            return str(max(made, key=lambda file: file.stat().st_mtime).parent)
        raise DetkitError("this config has no trained run in runs/", name, f"train it first: detkit train {name}")
    if any_model:
        return name
    raise DetkitError("there is no such run folder", name, "name folders that detkit train made, or give --data")


def _record(path: str) -> Mapping[str, Any]:
    """What run.json says, or the model file's header; nothing for other models."""
    folder = Path(path)
    if folder.is_file() and folder.suffix == ".safetensors":
        from detkit.zoo import read_model_header

        return dict(read_model_header(folder)["record"])
    if not folder.is_dir():
        return {}
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        what = "run.json of this folder is missing or damaged"
        raise DetkitError(what, path, "name a folder that detkit train made") from None
    return record if isinstance(record, dict) else {}


def _common_data(
    names: Sequence[str], paths: Sequence[str], records: Sequence[Mapping[str, Any]], split: str | None
) -> Dataset:
    """The images that all runs are judged on; DetkitError names a run that knows other data than the first."""
    from detkit.engine.run_folder import data_hash

    _refuse("was trained on other data than", names, [str(record.get("data_hash")) for record in records])
    sets = [_own_data(path, split) for path in paths]
    _refuse("is judged on other images or labels than", names, [data_hash(one) for one in sets])
    return sets[0]


def _refuse(verb: str, names: Sequence[str], hashes: Sequence[str]) -> None:
    for name, value in zip(names, hashes, strict=True):
        if value != hashes[0]:
            do = "compare runs of one config's data, or measure all on one set with --data DATA"
            raise DetkitError(f"{name} {verb} {names[0]}", f"data {value} against {hashes[0]}", do)


def _own_data(path: str, split: str | None) -> Dataset:
    from detkit.config.datasets import build_dataset, train_val_datasets
    from detkit.config.experiment import read_config
    from detkit.engine.options import TrainOptions

    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise DetkitError("this folder holds no config.yaml", path, "name a folder that detkit train made")
    config = read_config(file, train_schema=TrainOptions)
    train, val, _ = train_val_datasets(config)
    if split in (None, "val"):
        return val
    if split != "test" or config.data["test"] is None:
        raise DetkitError(f"this run's config names no {split} data", str(file), "leave out --split, or give --data")
    return build_dataset(config.data["test"], split="test", classes=train.classes)


def _times(models: Sequence[Predictor], dataset: Dataset, count: int) -> list[list[float]]:
    """Seconds of each model for single images, from pixels (proposals included) to boxes.

    The models take turns, so that what else the machine does meets all of them. The first image only warms up.
    """
    from detkit.structures import Limits, Sample

    spent: list[list[float]] = [[] for _ in models]
    images = []
    for i in range(len(dataset)):
        with suppress(DetkitError):  # the evaluation names those that cannot be read
            images.append(dataset.load(i).image)
        if len(images) > count:
            break
    for image in images:
        for model, own in zip(models, spent, strict=True):
            if len(own) > 3 and sum(own) > _SECONDS:
                continue
            started = time.perf_counter()
            model.predict_samples([Sample(image)], Limits.evaluation())
            own.append(time.perf_counter() - started)
    return [own[1:] or own for own in spent]
