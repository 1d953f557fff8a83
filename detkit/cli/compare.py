"""``detkit compare``: several runs on the same images."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli import options
from detkit.cli.common import is_config, message, print_json
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.data.dataset import Dataset

_SECONDS = 30.0  # of timing a run: some need many for an image


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run folders, or configs that were trained.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Measure on this instead; then also model files and shipped names.")
    ] = None,
    split: options.Split = None,
    images: options.Images = None,
    timed: Annotated[int, typer.Option("--timed", min=1, help="Images to take the time of, one by one.")] = 20,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=1, metavar="N", help="Draws of the images.")] = 1000,
    seed: options.Seed = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time, when not timed.")] = 8,
    device: options.Device = None,
    threads: options.Threads = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """One table of runs on the same data (their validation images, or --split test): size, AP and AP50, time of an
    image and of training, and which differences are more than noise. --out draws them.

    Runs that were trained or validated on other data are refused.
    """
    if out is not None:
        from detkit.io.figures import image_format
        from detkit.io.files import refuse_existing

        image_format(out)
        refuse_existing(out, overwrite)
    different = len({str(Path(name)) for name in runs})
    if len(runs) < 2 or different < len(runs):
        raise DetkitError(f"{len(runs)} runs, {different} different", "RUN RUN...", "name two or more")
    paths = [_folder(name, data is not None) for name in runs]
    records = [_record(path) for path in paths]
    dataset = _common_data(runs, paths, records, split) if data is None else _given_data(data, split, images)
    judged_on = _hash(dataset)
    for name, record in zip(runs, records, strict=True):
        if judged_on == record.get("data_hash"):
            message(f"detkit: {name} was trained on these very images, so its numbers flatter it")

    from detkit import api
    from detkit.data.names import explain_match
    from detkit.engine.evaluator import evaluate
    from detkit.explain.summary import facts
    from detkit.report.comparison import Candidate, draw, judge, table

    models: list[Any] = [api.load(path, device=device, threads=threads) for path in paths]
    if other := [n for n, m in zip(runs, models, strict=True) if getattr(m, "protocol", "coco") == "classify"]:
        raise DetkitError("this run classifies whole images", other[0], "compare detectors")
    seconds = _times(models, dataset, timed)
    candidates = []
    for name, model, spent, record in zip(runs, models, seconds, records, strict=True):
        message(f"detkit: {name} on {len(dataset)} images")
        for note in explain_match(model.classes, dataset.classes):
            message(f"detkit: {name}: {note}")
        _, results, _ = evaluate(model, dataset, batch=batch)
        candidates.append(Candidate(name, results, spent, record.get("minutes"), facts(model)))
    compared = judge(dataset.annotations.ground_truth(), candidates, samples=bootstrap, seed=seed)
    if out is not None:
        draw(out, compared, overwrite=overwrite)
        message(f"image: {out}")
    if as_json:
        print_json(compared)
    else:
        print("\n".join(table(compared)), flush=True)
    return 0


def _folder(name: str, any_model: bool) -> str:
    """The run folder that a word means: itself, or the newest that ``detkit train`` made of this config."""
    if Path(name).is_dir():
        return name
    if is_config(name):
        numbered = re.compile(re.escape(Path(name).stem) + "[0-9]*")
        made = [p for p in Path("runs").glob("*/best.safetensors") if numbered.fullmatch(p.parent.name)]
        made.sort(key=lambda file: file.stat().st_mtime)
        if made:
            return str(made[-1].parent)
        raise DetkitError("this config has no trained run in runs/", name, f"train it first: detkit train {name}")
    if any_model:
        return name
    raise DetkitError("there is no such run folder", name, "name folders that detkit train made, or give --data")


def _record(path: str) -> dict[str, Any]:
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


def _common_data(names: Sequence[str], paths: Sequence[str], records: Sequence[Any], split: str | None) -> Dataset:
    """The images that all runs are judged on.

    Raises:
        DetkitError: a run that was trained or validated on other data than the first, by name.
    """
    _refuse("was trained on other data than", names, [str(record.get("data_hash")) for record in records])
    sets = [_own_data(path, split) for path in paths]
    _refuse("is judged on other images or labels than", names, [_hash(one) for one in sets])
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


def _given_data(data: str, split: str | None, images: Path | None) -> Dataset:
    from detkit.data.dataset import Dataset, read

    return Dataset(read(data, split=split, images=images))


def _hash(dataset: Dataset) -> str:
    from detkit.engine.run_folder import data_hash

    return data_hash(dataset)


def _times(models: Sequence[Any], dataset: Dataset, count: int) -> list[list[float]]:
    """Seconds of each model for single images, from pixels (proposals included) to boxes; the models take turns, so
    that what else the machine does meets all of them. The first image only warms up."""
    from detkit.structures import Limits, Sample

    spent: list[list[float]] = [[] for _ in models]
    for image in islice(_images(dataset), count + 1):
        for model, own in zip(models, spent, strict=True):
            if len(own) > 3 and sum(own) > _SECONDS:
                continue
            started = time.perf_counter()
            model.predict_samples([Sample(image)], Limits.evaluation())
            own.append(time.perf_counter() - started)
    return [own[1:] or own for own in spent]


def _images(dataset: Dataset) -> Iterator[Any]:
    for i in range(len(dataset)):
        with suppress(DetkitError):  # the evaluation names those that cannot be read
            yield dataset.load(i).image
