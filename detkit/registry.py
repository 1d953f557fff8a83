"""Parts by name: the package's own, then what other installed packages announce, then ``package.module:Name``.

A part announced by another package is an entry point of the group ``detkit.heads`` and so on; entry points are read
only when a name is not one of detkit's own. A name with a colon imports the module that it names, so only a person may
give it: in a YAML file, an override or Python. A model file, and the config.yaml of a run folder, may name such a part
only where its module has been allowed by ``allow``.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from detkit.errors import DetkitError, nearest

# kind: the table of detkit's own, name to "module:attribute"
TABLES = {
    "backbone": "detkit.backbones:BACKBONES",
    "neck": "detkit.necks:NECKS",
    "head": "detkit.heads:HEADS",
    "proposals": "detkit.proposals:PROPOSALS",
    "format": "detkit.data.dataset:FORMATS",
    "writer": "detkit.io.detections:WRITERS",
    "metric": "detkit.metrics:METRICS",
    "logger": "detkit.engine.run_folder:LOGGERS",
}
_GROUPS = {kind: f"detkit.{kind.rstrip('s')}s" for kind in TABLES}

# Older spellings in YAML and on the command line, and what they are called now.
RENAMED = {"course": "textbook", "lenet_course": "lenet_textbook", "yolo_course": "yolo_textbook"}

_allowed: set[str] = set()  # modules that a person has named; for the life of the process


class UntrustedPart(DetkitError):
    """A file names a part ``module:Name`` whose module nobody has allowed; ``module``: its name."""

    def __init__(self, what: str, where: str = "", do: str = "", *, code: int = 2, module: str = "") -> None:
        super().__init__(what, where, do, code=code)
        self.module = module


def allow(modules: Iterable[str]) -> None:
    """Lets model files name parts of these modules (and of modules inside them) from now on, in this process."""
    _allowed.update(modules)


def own_parts(kind: str) -> Mapping[str, str]:
    """detkit's own parts of a kind: name to "module:attribute"."""
    table: Mapping[str, str] = import_from(TABLES[kind])
    return table


def installed_parts(kind: str) -> Mapping[str, EntryPoint]:
    """Parts of a kind that other installed packages announce, by name."""
    return _entry_points(_GROUPS[kind])


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def find_part(kind: str, name: object, *, where: str = "", trusted: bool = True) -> Any:
    """The part (mostly a class) of this kind and name.

    Args:
        kind: A key of ``TABLES``.
        name: One of detkit's own, of an entry point, or ``package.module:Name``.
        where: The place of the name, for errors.
        trusted: False if a file that may be a stranger's says the name, not a person.

    Raises:
        DetkitError: No such part (with the nearest name), a module that cannot be imported or lacks the name.
        UntrustedPart: A module that a file, not a person, asks for.
    """
    if isinstance(name, str):
        name = renamed(name)
        if name in own_parts(kind):
            return import_from(own_parts(kind)[name])
        if name in installed_parts(kind):
            return _imported(installed_parts(kind)[name].value, where)
        if ":" in name:
            module = name.partition(":")[0]
            if not trusted and not any(f"{module}.".startswith(f"{known}.") for known in _allowed):
                what = f"this file asks for {kind} {name}, and a file may not import code by itself"
                do = f"if you trust it, allow the module: --plugin {module} (in Python plugins=[{module!r}])"
                raise UntrustedPart(what, where, do, module=module)
            return _imported(name, where)
    known = [*own_parts(kind), *installed_parts(kind)]
    raise DetkitError(f"there is no {kind} {name!r}", where, nearest(str(name), known))


def renamed(name: str) -> str:
    """``name``, or, with a warning, what an older spelling is called now."""
    if name in RENAMED:
        warnings.warn(f"{name} is called {RENAMED[name]} now; the older name still works", FutureWarning, stacklevel=2)
    return RENAMED.get(name, name)


def import_from(place: str) -> Any:
    """What stands at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _imported(place: str, where: str) -> Any:
    """``import_from`` for code from outside, whose errors are a person's to mend."""
    try:
        return import_from(place)
    except (ImportError, AttributeError, ValueError) as error:
        what = f"{place} cannot be imported: {error}"
        raise DetkitError(what, where, "install its package, or correct package.module:Name") from error
