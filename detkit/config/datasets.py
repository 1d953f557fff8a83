"""Data sets from the ``data`` section: sources joined, classes chosen, a validation part found or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detkit import registry, zoo
from detkit.config.experiment import Config, sources
from detkit.config.schema import Place
from detkit.config.yaml_file import Section
from detkit.data.annotations import Annotations, Findings, concat_annotations
from detkit.data.dataset import Dataset, read, splits
from detkit.data.names import match_classes, match_some
from detkit.data.split import stratify
from detkit.data.summary import refuse_nothing
from detkit.errors import DetkitError, nearest
from detkit.printed import counted

_LEAST = 4  # images of a drawn validation part, where it is no more than a third


def build_dataset(source: object, *, split: str, classes: Sequence[str] | None = None) -> Dataset:
    """Reads one part of the ``data`` section.

    Args:
        source: A path, a mapping of ``SOURCE_KEYS``, or a list of those.
        split: Which part to read ("train", "val", "test") of sources that have several and name none.
        classes: The classes to have, in this order; those that the data lacks have no objects, others are dropped.
            Other spellings of a name (``detkit.data.names``) are the same class.

    Raises:
        DetkitError: A path that is not there, a part or class that the data does not have, data without images.
    """
    found = concat_annotations([_read(item, split) for item in sources(source, Place(), ("data", split))])
    if classes is not None and found.classes:
        where, do = f"data.{split}", "give data of the same classes, or call them alike by rename"
        match_some(f"{where} has", found.classes, "the training data", classes, where, do)
    if not len(found):
        raise DetkitError("the data set holds no images", f"data.{split}", "look at it with detkit data check")
    return Dataset(found if classes is None else _with_classes(found, classes))


def train_val_datasets(config: Config) -> tuple[Dataset, Dataset, list[str]]:
    """Reads what a config trains on.

    Without ``data.val`` the sources' own validation parts are taken, or what lies beside a source under the same name
    with val for train; if one has none, ``data.val_share`` of the training images, and as a rule no fewer than can be
    judged, is drawn with ``train.seed``, the classes in balance.

    Returns:
        Training and validation data with the same classes, and sentences on what was chosen for the user.

    Raises:
        DetkitError: As ``build_dataset``; no classes, or too few images to draw from.
    """
    data = config.data
    notes: list[str] = []
    train = build_dataset(data["train"], split="train")
    listed, chosen = train.classes, data["classes"]
    if chosen is not None:
        where = config.place.at(("data", "classes"))
        _refuse_strangers(train.annotations, chosen, where)
        train = Dataset(train.annotations.select_classes(chosen, where=where))
    if not train.classes:
        raise DetkitError("the training data names no classes", config.place.at(("data", "train")), "add labels")
    refuse_nothing(train.annotations)
    if config.model["classes"] == "keep":
        train, notes = _with_models_classes(config, train)
    _check_known(config, (*listed, *train.classes))
    head = registry.find_part("head", config.model["head"]["name"])
    classes = None if head.takes_identities else train.classes
    if data["val"] is not None:
        return train, build_dataset(data["val"], split="val", classes=classes), notes
    found = [_val_of(item) for item in data["train"]]
    if all(found):
        val = build_dataset([item for item in found if item], split="val", classes=classes)
        names = ", ".join(dict.fromkeys(str(item["split"] or item["path"]) for item in found if item))
        return train, val, [*notes, f"validation: the data's own part {names}, {counted(len(val), 'image')}"]
    if len(train) < 2:
        raise DetkitError("one image is too few to draw a validation part", "data.val_share", "set data.val")
    seed = config.train.seed
    share = max(data["val_share"], min(_LEAST, len(train) // 3) / len(train))
    parts = stratify(train.annotations, {"train": 1 - share, "val": share}, seed)
    note = f"validation: {len(parts['val'])} of {len(train)} training images, drawn with seed {seed}"
    few = share > data["val_share"]
    note += f" (data.val_share={data['val_share']:g} of them are too few to judge by)" * few
    wanted = [str(beside[0]) for item in data["train"] if (beside := _siblings(item)) and not _val_of(item)]
    note += f" (a part of your own would be {wanted[0]})" if wanted else ""
    return train.subset(parts["train"]), train.subset(parts["val"]), [*notes, note]


def _read(item: Section, split: str) -> Annotations:
    wanted = item["split"] or _part(item, split)
    annotations = read(item["path"], split=wanted, images=item["images"], format=item["format"])
    if item["classes"] is not None or item["rename"] is not None:
        annotations = annotations.select_classes(item["classes"], item["rename"])
    if (known := item["known"]) is not None:
        annotations = replace(annotations, known=[None if known == "all" else frozenset(known)] * len(annotations))
    return annotations


def _refuse_strangers(annotations: Annotations, chosen: Sequence[str], where: str) -> None:
    """Refuses sources that have classes, but none of ``chosen``: they would teach nothing."""
    each = annotations.known or [frozenset(annotations.classes)]
    do = "choose classes of each source, call them alike by rename, or say classes: [], known: [] of an unlabelled one"
    for names in dict.fromkeys(filter(None, each)):
        first = annotations.files[each.index(names)]
        match_some(f"the source of {first} has", sorted(names), "data.classes", chosen, where, do)


def _check_known(config: Config, classes: Sequence[str]) -> None:
    """Refuses names in a source's ``known`` that are no class at all."""
    for source in config.data["train"]:
        names = source["known"] if isinstance(source["known"], list) else []
        for name, place in zip(names, match_classes(names, classes), strict=True):
            if place < 0:
                raise DetkitError(f"known: no class {name!r} in the data", source["path"], nearest(name, classes))


def _with_models_classes(config: Config, train: Dataset) -> tuple[Dataset, list[str]]:
    """The classes of ``model.weights``, then those of the data that it does not know; and what is said of it."""
    weights = config.model["weights"]
    if weights == "none":
        what, do = "there is no model whose classes could be kept", "give model.weights, or set model.classes: data"
        raise DetkitError(what, config.place.at(("model", "classes")), do)
    file = zoo.model_file(weights)
    header = zoo.read_model_header(file)
    own = dict(zip(header["classes"], header["class_ids"], strict=True))
    pairs = list(zip(train.classes, match_classes(train.classes, tuple(own)), strict=True))
    named = [f"{name} as {header['classes'][place]}" for name, place in pairs if name not in own and place >= 0]
    added = [name for name, place in pairs if place < 0]
    annotations = _with_classes(train.annotations, (*own, *added))
    # The model's own ids stay; another's must not be one of them.
    ids = [
        own.get(name, name if number in own.values() else number)
        for name, number in zip(annotations.classes, annotations.class_ids, strict=True)
    ]
    note = f"classes: the {len(own)} of {file.name} are kept; the data has {len(pairs) - len(added)} of them"
    note += f" ({', '.join(named)})" * bool(named) + f", and adds {', '.join(added)}" * bool(added)
    return Dataset(replace(annotations, class_ids=tuple(ids))), [note]


def _part(item: Section, split: str) -> str | None:
    """The data's part that ``split`` means: the same name, or the only one that begins so (train2017); None if whole.

    Raises:
        DetkitError: the data has parts, but none such.
    """
    names = splits(item["path"], format=item["format"])
    if not names or split in names:
        return split if names else None
    alike = [name for name in names if name.startswith(split)]
    if len(alike) != 1:
        raise DetkitError(f"the data has no part {split!r}", item["path"], f"set split to one of {', '.join(names)}")
    return alike[0]


def _val_of(item: Section) -> Section | None:
    """The source of the validation part beside a training source; None if there is none, or if it may overlap."""
    names = splits(item["path"], format=item["format"])
    used = item["split"] or (_part(item, "train") if names else None)
    found = [name for name in names if name.startswith("val")]
    if used is None:
        beside = next((path for path in _siblings(item) if path.exists()), None)
        return None if beside is None else {**item, "path": str(beside)}
    if used in found or "val" in used or len(found) != 1:
        return None
    return {**item, "split": found[0]}


def _siblings(item: Section) -> list[Path]:
    """What the validation part of a source that is one piece would be called: its own name with val for train."""
    path = Path(item["path"])
    before, train, after = path.stem.rpartition("train")
    if train and path.suffix.lower() not in (".yaml", ".yml", ".data"):  # these name their parts themselves
        return [path.with_name(f"{before}{word}{after}{path.suffix}") for word in ("val", "valid", "validation")]
    if path.parent.name == "train" and path.is_file():  # Roboflow's train/_annotations.coco.json
        return [path.parent.with_name(word) / path.name for word in ("val", "valid", "validation")]
    return []


def _with_classes(annotations: Annotations, classes: Sequence[str]) -> Annotations:
    """Exactly these classes in this order, whether the data has objects of them or not; others are counted.

    Labelled, and so known, are those that the data has.
    """
    places = match_classes(annotations.classes, classes)
    findings = Findings(annotations.findings)
    for name, count, place in zip(annotations.classes, annotations.class_counts().tolist(), places, strict=True):
        if place < 0:
            findings.add(f"box of a class that is not trained (left out): {name}", count=count)
    ids = {classes[k]: number for k, number in zip(places, annotations.class_ids, strict=True) if k >= 0}
    known = annotations.known or [frozenset(annotations.classes)] * len(annotations)
    spelt = {
        names: names and frozenset(classes[k] for k in match_classes(list(names), classes) if k >= 0)
        for names in set(known)
    }
    known = [spelt[names] for names in known]
    return replace(
        annotations.relabelled(places, classes, [ids.get(name, name) for name in classes]),
        findings=findings.as_list(),
        known=None if all(names == set(classes) for names in known) else known,
    )
