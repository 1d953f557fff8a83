"""``train``: from a config, or data alone, to a run folder. Heavy parts are imported when called."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.errors import DetkitError
from detkit.registry import allow

if TYPE_CHECKING:
    from detkit.config.experiment import Config
    from detkit.engine.events import DryRun, Event, TrainFinished

DEFAULT_RECIPE = "yolo"


def train(
    config: str | Path | None = None,
    *,
    data: str | Path | None = None,
    format: str | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    dry_run: bool = False,
    strict: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    plugins: Sequence[str] = (),
) -> TrainFinished | DryRun:
    """Trains a detector and returns what came of it; the run folder holds everything else.

    Args:
        config: A YAML file or a shipped name; None: the default recipe.
        data: Takes the place of the config's data (its own validation part is used, or one is drawn).
        format: Of ``data``, by name or ``module:Name``; None: recognised.
        overrides: "train.epochs=20" and the like.
        out: The run folder; None: a new numbered one in runs/.
        resume: A run folder to go on with.
        dry_run: Two steps and a batch of validation, then an estimate of time and memory.
        strict: Labels or images that are dropped while reading are an error.
        on_event: Called with each event of the engine (see ``detkit.engine.events``).
        plugins: Modules whose parts the config of a run or a model file may name as ``module:Name``.

    Returns:
        The best epoch's scores and where the weights are; of a dry run the estimate.

    Raises:
        DetkitError: A mistake in config or data (code 2); a run that had to stop (code 4, 130 or 143).
        UntrustedPart: A file names a part whose module is not among ``plugins``.
    """
    import torch

    from detkit.config.anchors import anchors_for
    from detkit.config.build import build_detector
    from detkit.config.datasets import train_val_datasets
    from detkit.config.experiment import read_config
    from detkit.data.augment import Augment
    from detkit.data.summary import summarise
    from detkit.engine.events import DataRead, Notice
    from detkit.engine.options import TrainOptions
    from detkit.engine.trainer import Trainer
    from detkit.io.files import numbered_folder

    allow(plugins)
    if format is not None and data is None:
        raise DetkitError(
            "a format says how data is read, and no data is given",
            "--format",
            "give --data, or a source's format: in the config",
        )
    changes = list(overrides)
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
        raise DetkitError("nothing to train on", do="give data=, or a config that names its data")
    recipe = config or DEFAULT_RECIPE
    checked = read_config(recipe, changes, train_schema=TrainOptions, trusted=resume is None)
    if data is None and resume is None:
        _refuse_missing_data(checked, recipe)
    train_set, val_set, notes = train_val_datasets(checked)
    if config is None:
        notes.insert(0, f"recipe: {DEFAULT_RECIPE} (detkit config {DEFAULT_RECIPE} shows it)")
    summary = summarise({"train": train_set.annotations, "val": val_set.annotations}, missing=True)
    on_event(DataRead(summary))
    if strict:
        summary.refuse_drops()
    for note in notes:
        on_event(Notice(note))
    torch.manual_seed(checked.train.seed)
    anchors = anchors_for(checked, train_set, lambda text: on_event(Notice(text)))
    detector = build_detector(checked, train_set.classes, class_ids=train_set.class_ids, anchors=anchors)
    if "started" in detector.record and resume is None:
        on_event(Notice(detector.record["started"]))
    trainer = Trainer(
        detector,
        train_set,
        val_set,
        checked.train,
        augment=Augment(**checked.augment),
        run=Path(resume or out or numbered_folder("runs", Path(recipe).stem)),
        config=checked.to_yaml(),
        limits=checked.evaluate.limits(),
        summary=summary,
        on_event=on_event,
    )
    return trainer.train(resume=resume is not None, dry_run=dry_run)


def _refuse_missing_data(checked: Config, recipe: str | Path) -> None:
    """A config names where its data was on another machine: says what to do about it."""
    from detkit.data.dataset import format_of

    for part in ("train", "val", "test"):
        for source in checked.data[part] or ():
            if not Path(source["path"]).exists():
                try:
                    format_of(source["path"], source["format"])
                except DetkitError:
                    what = f"the data that this config names is not here: {source['path']}"
                    do = f"lay it there, or train on other data: detkit train {recipe} --data DATA"
                    raise DetkitError(what, checked.place.at(("data", part)), do) from None


def _anchors_of_run(run: Path) -> list[str]:
    """The override that gives a run that goes on the anchors it has, whatever they would be chosen from today."""
    from detkit import zoo

    file = run / "last.safetensors"
    head = zoo.read_model_header(file)["config"]["model"]["head"] if file.is_file() else {}
    return [f"model.head.anchors={json.dumps(head['anchors'])}"] if "anchors" in head else []
