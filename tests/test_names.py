"""A name means one thing: what is public is defined once in the package, and is no module's name beside it."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import detkit
from detkit.backbones import BACKBONES

PACKAGE = Path(detkit.__file__).parent
# The command line's functions are named as their verbs, which are the public functions that they call.
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "cli"]


def public_names(path: Path) -> list[str]:
    """Functions and classes at the top of a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    # Overloads of one function share its name.
    return sorted({node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")})


def test_a_public_name_is_defined_once() -> None:
    places = defaultdict(list)
    for path in MODULES:
        for name in public_names(path):
            places[name].append(str(path.relative_to(PACKAGE)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_no_public_name_is_that_of_a_module_of_its_package() -> None:
    clashes = []
    for path in MODULES:
        beside = {other.stem for other in path.parent.iterdir() if other.suffix == ".py" or other.is_dir()}
        # A part is imported by its table, from the module that the table names.
        found = {name for name in public_names(path) if name in beside and name not in BACKBONES}
        clashes += [f"{path.relative_to(PACKAGE)}: {name}" for name in found]
    assert not clashes
    assert not set(detkit.__all__) & {path.stem for path in PACKAGE.iterdir()}
