"""Public names that are imported when they are first used, so that importing a package costs almost nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType


def lazy_names(
    package: str, places: Mapping[str, Sequence[str]], modules: Mapping[str, str] = MappingProxyType({})
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: Its ``__name__``.
        places: Modules, as ".boxes", and the names that come from each.
        modules: Names that stand for a whole module.
    """
    names = {name: module for module, found in places.items() for name in found}
    homes = {**names, **modules}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = import_module(homes[name], package)
        if name in names:
            value = getattr(value, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)
