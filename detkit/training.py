"""``train``: from a config, or data alone, to a run folder. Heavy parts are imported when called."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from detkit.errors import DetkitError
from detkit.registry import allow

if TYPE_CHECKING:
    from detkit.config.experiment import Config
    from detkit.engine.events import DryRun, Event, TrainFinished
    from detkit.engine.trainer import Trainer

DEFAULT_RECIPE = "aligned"


def train(
    config: str | Path | None = None,
    *,
    data: str | Path | None = None,
    format: str | None = None,
    epochs: int | None = None,
    overrides: Mapping[str, object] | Sequence[str] = (),
    out: str | Path | None = None,
    name: str | None = None,
    resume: str | Path | None = None,
    dry_run: bool = False,
    strict: bool = False,
    on_event: Callable[[Event], None] | None = None,
    plugins: Sequence[str] = (),
) -> TrainFinished | DryRun:
    """Trains a detector and returns what came of it; the run folder holds everything else.

    Args:
        config: A YAML file or a shipped name; None: the default recipe.
        data: Takes the place of the config's data (its own validation part is used, or one is drawn).
        format: Of ``data``, by name or ``module:Name``; None: recognised.
        epochs: Stands for the override ``train.epochs``; with ``resume`` more than before extend a run.
        overrides: ``{"train.lr": 1e-3}`` and the like, or ``["train.lr=1e-3"]``.
        out: The run folder; None: a new one in runs/.
        name: Of the new one; a number is added where it is taken. None: the config's.
        resume: A run folder to go on with.
        dry_run: Two steps and a batch of validation, then an estimate of time and memory; leaves nothing behind, unless
            ``out`` asks for the first batch as an image.
        strict: Labels or images that are dropped while reading are an error.
        on_event: Called with each event of the engine (see ``detkit.engine.events``); None: they are shown on stderr.
        plugins: Modules whose parts the config of a run or a model file may name as ``module:Name``.

    Returns:
        The best epoch's scores and where the weights are; of a dry run the estimate.

    Raises:
        DetkitError: A mistake in config or data (code 2); a run that had to stop (code 4, 130 or 143).
        UntrustedPart: A file names a part whose module is not among ``plugins``.
    """
    from detkit.config.experiment import read_config
    from detkit.engine.events import DryRun, Notice
    from detkit.engine.options import TrainOptions
    from detkit.progress import shown

    allow(plugins)
    if name is not None and (out is not None or Path(name).name != name):
        where = "which out names already" if out is not None else "in runs/"
        raise DetkitError(f"{name!r} is no name of a new folder {where}", "--name", "give a word, such as first_try")
    if format is not None and data is None:
        raise DetkitError(
            "a format says how data is read, and no data is given",
            "--format",
            "give --data, or a source's format: in the config",
        )
    changes = _as_overrides(overrides) + ([] if epochs is None else [f"train.epochs={epochs}"])
    if resume is not None:
        config = Path(resume) / "config.yaml"
        if not config.is_file():
            raise DetkitError("this folder holds no run to go on with", str(resume), "give a folder that train made")
        changes = [*_anchors_of_run(Path(resume)), *changes]
    elif data is not None:
        # An override of a path may hold any character: JSON strings are YAML too.
        source = str(data) if format is None else {"path": str(data), "format": format}
        changes = [f"data.train={json.dumps(source)}", "data.val=null", "data.test=null", *changes]
    elif config is None:
        raise DetkitError("nothing to train on", do="give data (--data DATA), or a config that names its data")
    recipe = config or DEFAULT_RECIPE
    checked = read_config(recipe, changes, train_schema=TrainOptions, trusted=resume is None)
    if data is None:
        _refuse_missing_data(checked, recipe, resume)
    with shown() if on_event is None else nullcontext(on_event) as tell, ExitStack() as opened:
        if resume is not None or out is not None:
            run = Path(resume or out or "")
        elif dry_run:
            run = Path(opened.enter_context(TemporaryDirectory()))
        else:
            run = opened.enter_context(_new_folder(name or Path(recipe).stem))
        if config is None:
            tell(Notice(f"recipe: {DEFAULT_RECIPE} (detkit config {DEFAULT_RECIPE} shows it)"))
        trainer = _trainer(checked, run, tell, fit=config is None, resume=resume is not None, strict=strict)
        done = trainer.train(resume=resume is not None, dry_run=dry_run)
    return replace(done, run=None) if isinstance(done, DryRun) and out is None else done


def check_pretext(config: str, overrides: Sequence[str] = ()) -> None:
    """Raises DetkitError for a config whose head learns from labels, or that cannot be read."""
    from detkit.config.experiment import part_at, read_config
    from detkit.engine.options import TrainOptions

    checked = read_config(config, ["data.train=.", *overrides], train_schema=TrainOptions)
    head, place = checked.model["head"]["name"], ("model", "head", "name")
    if getattr(part_at("head", head, checked.place, place), "protocol", "") != "pretext":
        do = "choose rotation, simclr or frame_order, or train with labels: detkit train"
        raise DetkitError(f"the head {head} learns from labels", checked.place.at(place), do)


def _trainer(
    checked: Config, run: Path, tell: Callable[[Event], None], *, fit: bool, resume: bool, strict: bool
) -> Trainer:
    """Reads the data and builds what trains; ``fit``: the recipe to the data."""
    import torch

    from detkit.config.anchors import anchors_for
    from detkit.config.build import build_detector
    from detkit.config.datasets import train_val_datasets
    from detkit.config.recipe import fitted
    from detkit.data.augment import Augment
    from detkit.data.summary import summarise
    from detkit.engine.events import DataRead, Notice
    from detkit.engine.trainer import Trainer
    from detkit.io.decoded import DecodedImages

    train_set, val_set, notes = train_val_datasets(checked)
    summary = summarise({"train": train_set.annotations, "val": val_set.annotations}, missing=True)
    tell(DataRead(summary))
    if strict:
        summary.refuse_drops()
        train_set, val_set = replace(train_set, strict=True), replace(val_set, strict=True)
    if fit:
        checked, chosen = fitted(checked, train_set.annotations)
        notes = [*notes, *chosen]
    if room := checked.train.cache_images:
        decoded = DecodedImages(room, (checked.train.workers or 1) * int(os.environ.get("WORLD_SIZE", "1")))
        train_set = replace(train_set, decoded=decoded)
        notes = [*notes, f"decoded images of this and other runs, {room:g} GB at most, are kept in {decoded.folder}"]
    for note in notes:
        tell(Notice(note))
    torch.manual_seed(checked.train.seed)
    anchors = anchors_for(checked, train_set, lambda text: tell(Notice(text)))
    detector = build_detector(checked, train_set.classes, class_ids=train_set.class_ids, anchors=anchors)
    if "started" in detector.record and not resume:
        tell(Notice(detector.record["started"]))
    _name_from_anywhere(checked)
    return Trainer(
        detector,
        train_set,
        val_set,
        checked.train,
        augment=Augment(**checked.augment),
        run=run,
        config=checked.to_yaml(),
        limits=checked.evaluate.limits(),
        summary=summary,
        on_event=tell,
    )


def _as_overrides(given: Mapping[str, object] | Sequence[str]) -> list[str]:
    if isinstance(given, Mapping):  # JSON is YAML too
        return [f"{key}={json.dumps(value, default=str)}" for key, value in given.items()]
    return [given] if isinstance(given, str) else list(given)


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """A new run folder, which vanishes with the block where nothing was written to it."""
    from detkit.io.files import numbered_folder

    folder = numbered_folder("runs", name)
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def _name_from_anywhere(checked: Config) -> None:
    """Makes paths of data and weights absolute, so that the run's config finds them from any folder."""
    sources = [source for part in ("train", "val", "test") for source in checked.data[part] or ()]
    places = [(source, key) for source in sources for key in ("path", "images", "split")]
    for section, key in [*places, (checked.model, "weights"), (checked.model["backbone"], "weights")]:
        value = section.get(key)
        if value not in (None, "none", "imagenet"):
            path = Path(value)
            if path.is_file() or (path.is_dir() and key != "split"):
                section[key] = str(path.absolute())


def _refuse_missing_data(checked: Config, recipe: str | Path, resume: str | Path | None) -> None:
    """A config names where its data was on another machine, or in another folder: says what to do about it."""
    from detkit.data.dataset import format_of

    for part in ("train", "val", "test"):
        for source in checked.data[part] or ():
            if not Path(source["path"]).exists():
                try:
                    format_of(source["path"], source["format"])
                except DetkitError:
                    what = f"the data that this config names is not here: {Path(source['path']).absolute()}"
                    do = f"lay it there, or train on other data: detkit train {recipe} --data DATA"
                    if resume is not None:
                        do = f"lay it there, or say where it is: detkit train --resume {resume} data.{part}=DATA"
                    raise DetkitError(what, checked.place.at(("data", part)), do) from None


def _anchors_of_run(run: Path) -> list[str]:
    """The override that gives a run that goes on the anchors it has, whatever they would be chosen from today."""
    from detkit import zoo

    file = run / "last.safetensors"
    head = zoo.read_model_header(file)["config"]["model"]["head"] if file.is_file() else {}
    return [f"model.head.anchors={json.dumps(head['anchors'])}"] if "anchors" in head else []
