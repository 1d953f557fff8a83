"""One experiment: five sections, read from YAML and overrides, every key checked, every default filled in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar

from detkit import registry, zoo
from detkit.arrays import plain
from detkit.config.schema import Key, Place, check, dotted, keys_of, located
from detkit.config.yaml_file import Lines, Path_, Section, dump, parse
from detkit.errors import DetkitError, nearest
from detkit.interfaces import Head
from detkit.structures import Limits

Made = TypeVar("Made")

SECTIONS = ("data", "model", "augment", "train", "evaluate")
SOURCE_KEYS = {
    "path": Key(str),
    "split": Key(str | None, None),
    "images": Key(str | None, None),
    "format": Key(str | None, None),
    "classes": Key(list[str] | None, None),
    "rename": Key(dict[str, str] | None, None),
    "known": Key(Literal["all"] | list[str] | None, None),
}
MODEL_KEYS = {
    "size": Key(int | tuple[int, int], 320),
    "resize": Key(Literal["letterbox", "stretch"], "letterbox"),
    "weights": Key(str, "none"),
    "classes": Key(Literal["data", "keep"], "data"),
    "backbone": Key(Any),
    "neck": Key(Any, "identity"),
    "proposals": Key(Any, None),
    "head": Key(Any),
}
PARTS = ("backbone", "neck", "proposals", "head")
WIRED = {"backbone": 0, "neck": 2, "proposals": 2, "head": 3}  # how many first arguments the builder gives
LEFT_BY_A_RUN = ("run.json", "state.pt", "metrics.csv", "best.safetensors", "last.safetensors")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How a model is judged; scores go down to 0.001.

    Attributes:
        iou: The NMS threshold; kept in the model's file, so that it detects and is judged with it afterwards too.
        protocol: The metric, see ``detkit.metrics.METRICS``; "coco" leaves it to what the head answers.
    """

    iou: float = 0.5
    protocol: str = "coco"

    def __post_init__(self) -> None:
        self.limits()

    def metric_of(self, head: Head) -> str:
        """Name of the metric that a model with this head is judged by, in training and afterwards."""
        return head.protocol if self.protocol == "coco" else self.protocol

    def limits(self) -> Limits:
        """The limits under which AP is measured."""
        return Limits.evaluation(self.iou)


@dataclass(slots=True)
class Config:
    """A checked experiment, every value in force.

    Attributes:
        data: train, val and test (None or a list of sources, dicts of ``SOURCE_KEYS``), classes, val_share.
        model: size, resize, weights and the parts, each a dict of its name and arguments.
        augment: Arguments of ``detkit.data.augment.Augment``.
        train: An instance of the schema handed to ``read_config``.
        evaluate: How the model is judged.
        place: Where the values came from, for errors.
    """

    data: Section
    model: Section
    augment: Section
    train: Any
    evaluate: EvaluateOptions
    place: Place = field(default_factory=Place, repr=False)

    def to_dict(self) -> Section:
        """Plain values, section by section."""
        sections = {name: getattr(self, name) for name in ("data", "model", "augment")}
        return plain({**sections, "train": asdict(self.train), "evaluate": asdict(self.evaluate)})

    def to_yaml(self) -> str:
        """Every value in force as YAML that ``read_config`` reads back to the same experiment."""
        return "\n".join(dump({name: section}) for name, section in self.to_dict().items())


def read_config(
    path_or_name: str | Path, overrides: Sequence[str] = (), *, train_schema: type, trusted: bool = True
) -> Config:
    """Reads and checks one experiment.

    Args:
        path_or_name: A YAML file or a shipped name; a model file (.safetensors) or run folder stands for training on
            from its weights, with its own parts and settings.
        overrides: ``a.b=value``, each in the place of what the file says.
        train_schema: The dataclass of the ``train`` section.
        trusted: False if the file may be a stranger's, so that it may not name code to import; a model file, and what
            a run left behind, never is.

    Raises:
        DetkitError: No such file or name, bad YAML, an unknown or missing key, a value of a wrong type, with file,
            line, key and the nearest name.
        UntrustedPart: A part of a module that nobody has allowed, see ``detkit.registry``.
    """
    path = Path(path_or_name)
    if not path.is_file():
        best = path / "best.safetensors"
        path = best if best.is_file() and str(path) not in shipped_configs() else shipped(str(path_or_name))
    lines: Lines = {}
    trusted = trusted and not any((path.parent / name).exists() for name in LEFT_BY_A_RUN)
    if path.suffix == ".safetensors":
        trusted = False
        header = zoo.read_model_header(path)["config"]
        values = {**header, "model": {**header.get("model", {}), "weights": str(path)}}
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DetkitError(f"the config cannot be read: {error}", str(path), "give YAML or .safetensors") from None
        values, lines = parse(text, str(path))
    values = copy.deepcopy(values)
    if not isinstance(values, dict):
        raise DetkitError("a config holds sections", str(path), f"its sections are {', '.join(SECTIONS)}")
    changed: dict[Path_, str] = {}
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in keys_of(train_schema):
            raise DetkitError(f"unknown key {key!r}", f"override {override}", f"did you mean train.{override}?")
        changed[_override(values, override)] = override
    return check_config(values, Place(str(path), lines, changed, trusted), train_schema)


def check_config(values: Mapping[str, object], place: Place, train_schema: type) -> Config:
    """``Config`` of plain values; errors as ``read_config``'s."""
    from detkit.data.augment import Augment

    sections = check(dict(values), {name: Key(Any, None) for name in SECTIONS}, place, ())

    def section(name: str, schema: Callable[..., Made]) -> tuple[Section, Made]:
        given = check(sections[name], keys_of(schema), place, (name,))
        with located(place, (name,), given):
            return given, schema(**given)

    augment, _ = section("augment", Augment)
    _, train = section("train", train_schema)
    _, evaluate = section("evaluate", EvaluateOptions)
    part_at("metric", evaluate.protocol, place, ("evaluate", "protocol"))
    for name in getattr(train, "loggers", ()):
        part_at("logger", name, place, ("train", "loggers"))
    data, model = check_data(sections["data"], place), check_model(sections["model"], place)
    _check_joining(model, augment, place)
    return Config(data, model, augment, train, evaluate, place)


def check_data(values: object, place: Place) -> Section:
    """The ``data`` section; every part becomes a list of sources."""
    keys = {
        "train": Key(Any),
        "val": Key(Any, None),
        "test": Key(Any, None),
        "classes": Key(list[str] | None, None),
        "val_share": Key(float, 0.1),
    }
    data = check(values, keys, place, ("data",))
    if not 0 < data["val_share"] < 1:
        raise DetkitError("val_share must lie between 0 and 1", place.at(("data", "val_share")), "give 0.1, say")
    for part in ("train", "val", "test"):
        if data[part] is not None:
            data[part] = sources(data[part], place, ("data", part))
    return data


def sources(value: object, place: Place, path: Path_) -> list[Section]:
    """A path, a mapping of ``SOURCE_KEYS`` or a list of those, as a list of complete mappings."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise DetkitError(f"{dotted(path)} is empty", place.at(path), "give the path of a data set")
    found = []
    for i, item in enumerate(items):
        here = (*path, i) if isinstance(value, list) else path
        if isinstance(item, (str, Path)):
            item = {"path": str(item)}
        found.append(check(item, SOURCE_KEYS, place, here))
        found[-1]["split"] = _list_file(found[-1]["split"], place)
        if found[-1]["format"] is not None:
            part_at("format", found[-1]["format"], place, (*here, "format"))
    return found


def _list_file(split: str | None, place: Place) -> str | None:
    """A part that is a file of names may lie beside the config, wherever the command runs."""
    beside = Path(place.source).parent / (split or "")
    return str(beside) if split and not Path(split).is_file() and beside.is_file() else split


def check_model(values: object, place: Place, path: Path_ = ("model",)) -> Section:
    """The ``model`` section; every part becomes a dict of its name and all of its arguments."""
    model = check(values, MODEL_KEYS, place, path)
    for kind in PARTS:
        part, here = model[kind], (*path, kind)
        if kind == "proposals" and part is None:
            continue
        if isinstance(part, str):
            part = {"name": part}
        unnamed = not isinstance(part, dict) or "name" not in part
        if unnamed or part["name"] in ("", None):
            do = f"write {kind}: {{name: {next(iter(registry.own_parts(kind)))}}}, say"
            what = f"{dotted(here)} needs a name" if unnamed else f"{dotted(here)}.name is empty"
            raise DetkitError(what, place.at(here), do)
        name = registry.renamed(part["name"]) if isinstance(part["name"], str) else part["name"]
        constructor = part_at(kind, name, place, (*here, "name"))
        arguments = {key: value for key, value in part.items() if key != "name"}
        positional = _positional(constructor)[WIRED[kind] :]
        for key in arguments:
            if key in positional:
                what = f"{key} is an argument of {constructor.__name__}, but no keyword-only one"
                raise DetkitError(what, place.at((*here, key)), "put it after the * in its constructor")
        model[kind] = {"name": name, **check(arguments, keys_of(constructor), place, here)}
    return model


def _positional(constructor: Callable[..., object]) -> list[str]:
    """Names of the arguments of a part from outside that are not its keys."""
    if constructor.__module__.startswith("detkit."):
        return []
    return [name for name, one in signature(constructor).parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]


def _check_joining(model: Mapping[str, Any], augment: Mapping[str, Any], place: Place) -> None:
    """What is found in an original image cannot follow it into one made of several, nor can its label or domain."""
    needs_them = []
    for kind in ("proposals", "head"):
        if model[kind] is not None:
            part = part_at(kind, model[kind]["name"], place, ("model", kind, "name"))
            whole = not getattr(part, "allows_mosaic", True) or model[kind].get("align", "none") != "none"
            if whole or getattr(part, "proposals_for_image", None):
                needs_them.append(model[kind]["name"])
    for name in ("mosaic", "mixup"):
        if needs_them and augment.get(name):
            what = f"{name} joins images, and {needs_them[0]} needs them as they are"
            raise DetkitError(what, place.at(("augment", name)), f"write augment: {{{name}: 0}}")


def part_at(kind: str, name: object, place: Place, path: Path_) -> Any:
    """The constructor of a part that the value at ``path`` names; see ``detkit.registry.find_part``."""
    return registry.find_part(kind, name, where=place.at(path), trusted=place.trusts(path))


def shipped_configs() -> list[str]:
    """Names of the experiments that come with detkit."""
    return sorted(_shipped_files())


def is_config(name: str) -> bool:
    """Whether a word means a config: a YAML file, or a shipped one's name."""
    return registry.RENAMED.get(name, name) in _shipped_files() or Path(name).suffix in (".yaml", ".yml")


def shipped(name: str) -> Path:
    """The file of a shipped experiment: "yolo_voc" or "yolo_voc.yaml".

    Raises:
        DetkitError: no such name, with the nearest one; or a path to a file that is not there.
    """
    stem, files = registry.renamed(Path(name).stem if name.endswith((".yaml", ".yml")) else name), _shipped_files()
    if stem in files and Path(name).name == name:
        return files[stem]
    what, do = "there is no such config file or shipped config", nearest(stem, sorted(files))
    raise DetkitError(what, name, f"if it is data: detkit train --data {name}" if Path(name).exists() else do)


def _shipped_files() -> dict[str, Path]:
    package = Path(__file__).resolve().parents[1]  # of the wheel's folder and the checkout's only one exists
    return {path.stem: path for folder in (package, package.parent) for path in folder.glob("configs/*.yaml")}


def _override(values: Section, override: str) -> Path_:
    """Puts ``a.b=value`` into ``values`` and returns its path."""
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise DetkitError(f"{override!r} is not KEY=VALUE", f"override {override}", "write train.epochs=20, say")
    value = parse(text, f"override {override}")[0]
    inner: Any = values
    for depth, key in enumerate(path[:-1]):
        if isinstance(inner.get(key), str):  # a part given by its name alone, or a source by its path
            inner[key] = {"path" if path[0] == "data" else "name": inner[key]}
        if inner.get(key) is None:
            inner[key] = {}
        inner = inner[key]
        if not isinstance(inner, dict):
            what = f"{dotted(path[: depth + 1])} holds no keys"
            raise DetkitError(what, f"override {override}", f"give {dotted(path[: depth + 1])}=VALUE whole")
    inner[path[-1]] = value
    return path
