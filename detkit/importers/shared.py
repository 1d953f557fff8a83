"""What the importers share: class names in a file, and a detector that was never trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError


def untrained_detector(
    model: Mapping[str, object], classes: Sequence[str], class_ids: Sequence[int | str], source: str
) -> Detector:
    """The detector of a config's ``model`` section; no way of training is on record, for nothing was trained here.

    Args:
        model: The section.
        classes: Names by label.
        class_ids: Of the classes.
        source: The file that the section is made of, for errors.

    Raises:
        DetkitError: Parts that do not fit together.
    """
    place = Place(source)
    config = Config({}, check_model(model, place), {}, TrainOptions(), EvaluateOptions(), place)
    detector = build_detector(config, classes, class_ids=class_ids)
    detector.config = {"model": detector.config["model"]}
    return detector


def class_names(path: str | Path, count: int, counted_in: str) -> tuple[str, ...]:
    """The class names in a file, one on each line.

    Args:
        path: The file.
        count: How many classes there are.
        counted_in: The model file that says so.

    Raises:
        DetkitError: Another number of names, a name that is there twice, or a file that cannot be read.
    """
    names = tuple(line.strip() for line in text_of(Path(path)).splitlines() if line.strip())
    if len(names) != count:
        what = f"{len(names)} names for {count} classes"
        raise DetkitError(what, str(path), f"give one name per line; the classes are counted in {counted_in}")
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise DetkitError(f"the class {twice!r} is there twice", str(path), "give each class a name of its own")
    return names


def text_of(path: Path) -> str:
    """What a text file holds.

    Raises:
        DetkitError: It cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DetkitError("this is not a text file", str(path), "the order is cfg, weights, --names FILE") from None
    except OSError as error:
        raise DetkitError(f"the file cannot be read: {error.strerror}", str(path), "check the path") from None
