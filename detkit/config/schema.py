"""Checks values against the signature of what they are for: a constructor's keyword-only arguments are its schema."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from detkit import registry
from detkit.config.yaml_file import Path_, Section
from detkit.errors import DetkitError, nearest
from detkit.options import keyword_only

REQUIRED = inspect.Parameter.empty


@dataclass(slots=True, frozen=True)
class Place:
    """Where values came from, for errors.

    Attributes:
        source: The file.
        lines: Of its keys, by their paths.
        overrides: The overrides that replaced values, by their paths.
        trusted: False for a model file and for the config.yaml of a run folder, which may not import code.
    """

    source: str = ""
    lines: Mapping[Path_, int] = field(default_factory=dict)
    overrides: Mapping[Path_, str] = field(default_factory=dict)
    trusted: bool = True

    def trusts(self, path: Path_) -> bool:
        """True if a person said the value at ``path``, not a file that may be a stranger's."""
        return self.trusted or self.overridden(path)

    def overridden(self, path: Path_) -> bool:
        """True if an override gave the value at ``path``, or a section that holds it."""
        return any(path[:end] in self.overrides for end in range(1, len(path) + 1))

    def at(self, path: Path_) -> str:
        """The file and line of ``path``, or of the nearest enclosing key that has one, or the override."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return f"override {self.overrides[path[:end]]}"
        for changed, override in self.overrides.items():
            if changed[: len(path)] == path and path not in self.lines:
                return f"override {override}"
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.source}, line {self.lines[path[:end]]}, {dotted(path)}"
        return f"{self.source}, {dotted(path)}" if self.source else dotted(path)


@dataclass(slots=True, frozen=True)
class Key:
    """One key: its type and its default (``REQUIRED`` if there is none)."""

    type: object
    default: object = REQUIRED


def dotted(path: Path_) -> str:
    """``("model", "head", "ratio")`` as model.head.ratio."""
    return ".".join(str(part) for part in path)


def keys_of(constructor: Callable[..., object]) -> dict[str, Key]:
    """The keys that ``constructor`` takes: its keyword-only arguments, or all fields of a dataclass.

    Raises:
        DetkitError: A type that is not there at run time, or an argument without one.
    """
    where = str(getattr(constructor, "__name__", constructor))
    what = f"the types of {where}'s arguments cannot be read"
    try:
        arguments = keyword_only(constructor)
    except NameError as error:
        do = "import the types of its arguments at run time, not under TYPE_CHECKING"
        raise DetkitError(f"{what}: {error}", where, do) from None
    for name, argument in arguments.items():
        if argument.annotation is inspect.Parameter.empty:
            raise DetkitError(f"{what}: {name} has no type", where, f"write {name}: float, say")
    return {name: Key(argument.annotation, argument.default) for name, argument in arguments.items()}


def check(values: object, keys: Mapping[str, Key], place: Place, path: Path_) -> Section:
    """Checks every key and fills in the defaults.

    Args:
        values: A mapping, or None for an empty one.
        keys: What it may hold.
        place: Where it came from.
        path: Its own path there.

    Returns:
        All of ``keys``, in their order.

    Raises:
        DetkitError: Not a mapping, an unknown key (with the nearest name), a missing one, or a value of a wrong type.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        what = f"{dotted(path) or 'the config'} must hold keys, got {values!r}"
        raise DetkitError(what, place.at(path), f"its keys are {', '.join(keys)}")
    for name in values:
        if name not in keys:
            raise DetkitError(f"unknown key {name!r}", place.at((*path, name)), nearest(name, keys))
    checked = {}
    for name, key in keys.items():
        if name in values:
            checked[name] = check_value(values[name], key.type, place, (*path, name))
        elif key.default is REQUIRED:
            raise DetkitError(f"{name} is missing", place.at(path), f"add {dotted((*path, name))}")
        else:
            checked[name] = key.default
    return checked


def check_value(value: object, type_: Any, place: Place, path: Path_) -> Any:
    """``value`` as ``type_``: whole numbers may stand for numbers and lists for tuples, nothing else is converted."""
    adapter = TypeAdapter(type_, config=ConfigDict(strict=True))
    try:
        # By way of JSON, where a strict check still takes a list for a tuple.
        return adapter.validate_json(json.dumps(value))
    except ValidationError:
        words = _words(type_)
        if isinstance(value, str) and registry.RENAMED.get(value) in words:
            return registry.renamed(value)
        do = nearest(value, words) if isinstance(value, str) and len(words) > 1 else f"give {_describe(type_)}"
        what = f"{dotted(path)} must be {_describe(type_)}; got {json.dumps(value, ensure_ascii=False)}"
        raise DetkitError(what, place.at(path), do) from None


@contextmanager
def located(place: Place, path: Path_, names: Iterable[str]) -> Iterator[None]:
    """Gives errors of the code inside the file and line of the key under ``path`` that they name."""
    try:
        yield
    except DetkitError as error:
        name = error.where.rsplit(".", 1)[-1] if error.where else _named(names, error.what)
        if name not in names or not re.fullmatch(r"[\w.]*", error.where):
            raise  # it names a place of its own, such as a file
        raise DetkitError(error.what, place.at((*path, name)), error.do, code=error.code) from None
    except ValueError as error:
        name = _named(names, str(error))
        raise DetkitError(str(error), place.at((*path, name) if name else path), "change that value") from None


def _named(names: Iterable[str], text: str) -> str:
    """That of ``names`` which ``text`` mentions first, or ""."""
    found = [(told.start(), name) for name in names if (told := re.search(rf"\b{re.escape(name)}\b", text))]
    return min(found)[1] if found else ""


def _is_union(type_: object) -> bool:
    return get_origin(type_) in (Union, types.UnionType)


def _words(type_: object) -> list[str]:
    """The words that a type lists by name."""
    if _is_union(type_):
        return [word for part in get_args(type_) for word in _words(part)]
    return [str(word) for word in get_args(type_)] if get_origin(type_) is Literal else []


def _describe(type_: object) -> str:
    """A type in a person's words."""
    names: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        Any: "a value",
    }
    if type_ in names:
        return names[type_]
    if _is_union(type_):
        return " or ".join(_describe(part) for part in get_args(type_))
    origin, args = get_origin(type_), get_args(type_)
    if origin is Literal:
        return f"one of {', '.join(str(word) for word in args)}" if len(args) > 1 else str(args[0])
    if origin is tuple and args and args[-1] is not ...:
        return f"[{', '.join(_describe(part) for part in args)}]"
    if origin in (list, tuple) and args:
        return f"a list, each item {_describe(args[0])}"
    return "keys and values" if origin is dict else "a list" if type_ in (list, tuple) else str(type_)
