"""``compare``: several runs on the same images."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from detkit import api
from detkit.config.datasets import build_dataset, train_val_datasets
from detkit.config.experiment import is_config, read_config
from detkit.data.dataset import Dataset, read
from detkit.data.names import explain_match
from detkit.data.summary import summarise
from detkit.engine.evaluator import detect_dataset
from detkit.engine.options import TrainOptions
from detkit.engine.run_folder import data_hash
from detkit.errors import DetkitError
from detkit.explain.summary import predictor_facts
from detkit.metrics import find_metric
from detkit.predictor import Predictor
from detkit.printed import counted
from detkit.registry import allow
from detkit.report.comparison import Candidate, Comparison, compare_results
from detkit.structures import Limits, Sample
from detkit.zoo import read_model_header

_MADE = "name a folder that detkit train made"
_SECONDS = 30.0  # of timing a run: some need many for an image


def compare(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    split: str | None = None,
    images: str | Path | None = None,
    format: str | None = None,
    strict: bool = False,
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
        images: Folder of the images, if not where the format puts them.
        format: Of the data, by name or ``module:Name``; None: recognised.
        strict: Labels or images that are dropped while reading are an error.
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
    allow(plugins)
    names = [str(run) for run in runs]
    different = len({str(Path(name)) for name in names})
    if len(names) < 2 or different < len(names):
        raise DetkitError("two different runs are compared, or more", "RUN RUN...", "name two or more")
    paths = {name: _folder(name, data is not None) for name in names}
    records = {name: _record(path) for name, path in paths.items()}
    if data is None:
        _refuse_others("was trained on other data than", {name: str(records[name].get("data_hash")) for name in names})
        sets = {name: _own_data(path, split) for name, path in paths.items()}
        _refuse_others("is judged on other images or labels than", {name: data_hash(own) for name, own in sets.items()})
        dataset = sets[names[0]]
    else:
        dataset = Dataset(read(data, split=split, images=images, format=format))
    summary = summarise({split or "data": dataset.annotations})
    for line in summary.lines(table=False):
        tell(line)
    if strict:
        summary.refuse_drops()
    judged_on = data_hash(dataset)
    for name, record in records.items():
        if judged_on == record.get("data_hash"):
            tell(f"{name} was trained on these very images, so its numbers flatter it")
    models = {name: api.load(path, device=device, threads=threads) for name, path in paths.items()}
    if other := [name for name, model in models.items() if find_metric(model.protocol).answers in ("labels", "pixels")]:
        raise DetkitError("this run classifies whole images, or pixels", other[0], "compare detectors")
    seconds = _times(models, dataset, timed)
    candidates = []
    for name, model in models.items():
        tell(f"{name} on {counted(len(dataset), 'image')}")
        for note in explain_match(model.classes, dataset.classes):
            tell(f"{name}: {note}")
        _, results, _ = detect_dataset(model, dataset, batch=batch)
        minutes = records[name].get("minutes")
        candidates.append(Candidate(name, results, seconds[name], minutes, predictor_facts(model)))
    compared = compare_results(dataset.annotations.ground_truth(), candidates, samples=bootstrap, seed=seed)
    return replace(compared, data=summary.to_dict())


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
        return dict(read_model_header(folder)["record"])
    if not folder.is_dir():
        return {}
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DetkitError("run.json of this folder is missing or damaged", path, _MADE) from None
    return record if isinstance(record, dict) else {}


def _refuse_others(verb: str, hashes: Mapping[str, str]) -> None:
    """Raises DetkitError, by name, for a run that knows other data than the first."""
    first = next(iter(hashes))
    for name, value in hashes.items():
        if value != hashes[first]:
            do = "compare runs of one config's data, or measure all on one set with --data DATA"
            raise DetkitError(f"{name} {verb} {first}", f"data {value} against {hashes[first]}", do)


def _own_data(path: str, split: str | None) -> Dataset:
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise DetkitError("this folder holds no config.yaml", path, _MADE)
    config = read_config(file, train_schema=TrainOptions)
    train, val, _ = train_val_datasets(config)
    if split in (None, "val"):
        return val
    if split != "test" or config.data["test"] is None:
        raise DetkitError(f"this run's config names no {split} data", str(file), "leave out --split, or give --data")
    return build_dataset(config.data["test"], split="test", classes=train.classes)


def _times(models: Mapping[str, Predictor], dataset: Dataset, count: int) -> dict[str, list[float]]:
    """Seconds of each model for single images, from pixels (proposals included) to boxes.

    The models take turns, so that what else the machine does meets all of them. The first image only warms up.
    """
    spent: dict[str, list[float]] = {name: [] for name in models}
    readable = dataset.readable(range(len(dataset)), [])  # the evaluation names the others
    for _, labelled in islice(readable, count + 1):
        sample = Sample(labelled.image)
        for name, model in models.items():
            if len(spent[name]) <= 3 or sum(spent[name]) <= _SECONDS:
                started = time.perf_counter()
                model.predict_samples([sample], Limits.evaluation(model.iou))
                spent[name].append(time.perf_counter() - started)
    return {name: own[1:] or own for name, own in spent.items()}
