"""Every key that a config may hold is read by somebody: none is accepted and then ignored."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest

import detkit
from detkit import registry
from detkit.config.experiment import MODEL_KEYS, PARTS as PART_KINDS, SOURCE_KEYS, EvaluateOptions, check_data
from detkit.config.schema import Place, keys_of
from detkit.data.augment import Augment
from detkit.engine.options import TrainOptions

FILES = sorted(Path(detkit.__file__).parent.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
CHECKS = {"__post_init__", "_require"}  # these look at values without using them
PARTS = [(kind, name) for kind in ("backbone", "neck", "proposals", "head") for name in registry.own_parts(kind)]


def owner_of(node: ast.Attribute) -> str:
    """``options`` of ``self.options.lr`` and of ``options.lr``."""
    value = node.value
    return value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""


def attributes(owners: set[str]) -> set[str]:
    """Names that the package reads of a value called so."""
    nodes = (node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if owner_of(node) in owners}


def own_methods(schema: type) -> set[str]:
    """Names that a schema's own methods read, its checks apart."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name not in CHECKS]
    nodes = (node for method in methods for node in ast.walk(method) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if owner_of(node) == "self"}


@pytest.mark.parametrize(("schema", "owners"), [(TrainOptions, {"options", "train"}), (EvaluateOptions, {"evaluate"})])
def test_every_option_is_read(schema: type, owners: set[str]) -> None:
    assert not set(keys_of(schema)) - attributes(owners) - own_methods(schema)


def subscripts(*folders: str) -> set[str]:
    """Keys that these folders read of mappings."""
    trees = [tree for path, tree in TREES.items() if path.parent.name in folders]
    nodes = (node.slice for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Subscript))
    return {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


def test_every_key_of_data_and_model_is_read() -> None:
    keys = {*SOURCE_KEYS, *MODEL_KEYS, *check_data({"train": "x"}, Place())}
    # Parts are read in a loop over their kinds.
    assert not keys - subscripts("config", "detkit", "data") - {*PART_KINDS}


def words_read(folder: str) -> set[str]:
    """Names, attributes and keys that a folder's code reads: what is only declared is not among them."""
    trees = [tree for path, tree in TREES.items() if path.parent.name == folder]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    names |= {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    return names | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_argument_of_a_part_is_read(kind: str, name: str) -> None:
    part = registry.find_part(kind, name)
    folder = inspect.getmodule(part).__name__.split(".")[1]  # type: ignore[union-attr]
    read = words_read(folder) | words_read("importers") | subscripts("config")
    assert not set(keys_of(part)) - read


def test_every_argument_of_augmentation_is_read() -> None:
    assert not set(keys_of(Augment)) - words_read("data")
