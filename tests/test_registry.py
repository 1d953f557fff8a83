"""Parts by name: detkit's own, installed ones, and ``module:Name``, which a file may not import by itself."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import detkit
from detkit import registry
from detkit.errors import DetkitError
from detkit.registry import UntrustedPart, find_part

HEAD = """from torch import nn
from detkit.interfaces import Head
class Partial(Head, nn.Module):
    def raw(self, features, proposals=None): ...
    def loss(self, raw, targets, sizes): ...
class Mine(Partial):
    def predict(self, raw, sizes, limits): ...
class NoNetwork(Head): ...
class Other: ...
something = 3
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that notes that it was imported."""
    (tmp_path / "outside_parts.py").write_text(HEAD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_allowed", set())
    monkeypatch.delitem(sys.modules, "outside_parts", raising=False)
    return "outside_parts"


@pytest.mark.parametrize("kind", ["backbone", "neck", "head", "proposals", "format", "metric", "logger", "writer"])
def test_every_part_of_every_table_is_there(kind: str) -> None:
    assert registry.own_parts(kind)
    for name in registry.own_parts(kind):
        assert find_part(kind, name, trusted=False) is not None


def test_only_modules_that_are_there_are_allowed(outside: str) -> None:
    registry.allow(outside)
    with pytest.raises(DetkitError, match="there is no module nowhere_at_all") as caught:
        detkit.load(plugins=["nowhere_at_all"])
    assert caught.value.where == "plugins"
    with pytest.raises(DetkitError) as caught:
        detkit.train(data="toy", plugins=f"./{outside}.py")
    assert caught.value.do == f"write {outside}"


def test_a_part_is_made_of_what_it_takes() -> None:
    def part(channels: int, strides: int, mine: int, *, ratio: float = 1.0) -> tuple[float, ...]:
        return channels, strides, mine, ratio

    assert registry.make(part, "", 1, 2, 3, ratio=4) == (1, 2, 3, 4)
    for wired, named in (((1, 2), {}), ((1, 2, 3, 4), {}), ((1, 2, 3), {"other": 1})):
        with pytest.raises(DetkitError, match="part cannot be made") as caught:
            registry.make(part, "mine.yaml, line 3", *wired, **named)
        assert caught.value.where == "mine.yaml, line 3"
        assert "docs/parts.md" in caught.value.do


def test_an_unknown_name_points_at_the_nearest() -> None:
    with pytest.raises(DetkitError) as caught:
        find_part("head", "yollo", where="mine.yaml, line 3, model.head.name")
    assert caught.value.what == "there is no head 'yollo'"
    assert caught.value.where == "mine.yaml, line 3, model.head.name"
    assert caught.value.do == "did you mean yolo?"


def test_a_person_may_name_a_module(outside: str) -> None:
    assert find_part("head", f"{outside}:Mine").__name__ == "Mine"


def test_a_file_may_not(outside: str) -> None:
    with pytest.raises(UntrustedPart, match="may not import") as caught:
        find_part("head", f"{outside}:Mine", trusted=False)
    assert caught.value.module == outside
    assert f"--plugin {outside}" in caught.value.do
    assert outside not in sys.modules


@pytest.mark.parametrize(
    ("allowed", "works"), [("outside_parts", True), ("outside", False), ("outside_parts.sub", False)]
)
def test_until_the_module_is_allowed(outside: str, allowed: str, works: bool) -> None:
    registry._allowed.add(allowed)
    if works:
        assert find_part("head", f"{outside}:Mine", trusted=False).__name__ == "Mine"
    else:
        with pytest.raises(UntrustedPart):
            find_part("head", f"{outside}:Mine", trusted=False)


@pytest.mark.parametrize("name", ["no_such_module_here:Mine", "outside_parts:Missing", "outside_parts:", ":Mine"])
def test_what_cannot_be_imported_is_a_persons_to_mend(outside: str, name: str) -> None:
    with pytest.raises(DetkitError, match="cannot be imported") as caught:
        find_part("head", name, where="mine.yaml")
    assert caught.value.where == "mine.yaml"


def test_installed_parts_come_after_detkits_own_and_a_file_may_name_them(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {name: EntryPoint(name, f"{outside}:Mine", "detkit.heads") for name in ("yolo", "theirs")}
    monkeypatch.setattr(registry, "_entry_points", lambda group: points if group == "detkit.heads" else {})
    assert find_part("head", "yolo").__name__ == "YOLO"
    assert outside not in sys.modules
    assert find_part("head", "theirs", trusted=False).__name__ == "Mine"
    with pytest.raises(DetkitError) as caught:
        find_part("head", "their")
    assert caught.value.do == "did you mean theirs?"


def test_installed_parts_are_not_read_for_a_name_of_detkits_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(group: str) -> dict[str, EntryPoint]:
        raise AssertionError(f"{group} was read")

    monkeypatch.setattr(registry, "_entry_points", read)
    assert find_part("neck", "fpn").__name__ == "FPN"


@pytest.mark.parametrize(
    ("kind", "name", "what", "do"),
    [
        ("head", "Other", "is no head", "write class Other(Head, nn.Module)"),
        ("head", "NoNetwork", "is no head", "write class NoNetwork(Head, nn.Module)"),
        ("head", "something", "is no head", "write class something(Head, nn.Module)"),
        ("head", "Partial", "has no predict", "write it, see docs/parts.md"),
        ("metric", "Mine", "is no metric", "write class Mine(Metric)"),
    ],
)
def test_a_part_from_outside_has_what_its_kind_asks_for(outside: str, kind: str, name: str, what: str, do: str) -> None:
    with pytest.raises(DetkitError) as caught:
        find_part(kind, f"{outside}:{name}", where="mine.yaml")
    assert caught.value.what == f"{outside}:{name} {what}"
    assert caught.value.where == "mine.yaml"
    assert do in caught.value.do


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_detkits_own_parts_pass_the_check_for_those_from_outside(kind: str) -> None:
    for place in registry.own_parts(kind).values():
        assert registry._checked(kind, place, "") is not None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import not_here_at_all", "outside_parts imports not_here_at_all, which is not there"),
        ("\n\n1 / 0", "error in outside_parts.py, line 3: ZeroDivisionError: division by zero"),
        ("x = (", "error in {folder}/outside_parts.py, line 1: '(' was never closed"),
        ("from torch import no_such_name", "error in outside_parts.py, line 1: ImportError: cannot import name"),
    ],
)
def test_why_a_module_cannot_be_imported(
    outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside_parts.py").write_text(text, encoding="utf-8")
    with pytest.raises(DetkitError) as caught:
        find_part("head", f"{outside}:Mine")
    assert caught.value.what.startswith(f"outside_parts:Mine cannot be imported: {what.format(folder=tmp_path)}")


def test_a_module_in_the_working_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DetkitError, match="there is no module lying_here") as caught:
        find_part("head", "lying_here.head:Mine")
    assert "PYTHONPATH" not in caught.value.do
    (tmp_path / "lying_here").mkdir()
    with pytest.raises(DetkitError, match="there is no module lying_here") as caught:
        find_part("head", "lying_here.head:Mine")
    assert "set PYTHONPATH=. or install it" in caught.value.do


def test_dots_without_a_colon() -> None:
    with pytest.raises(DetkitError, match=r"there is no head 'mine\.head\.TinyHead'") as caught:
        find_part("head", "mine.head.TinyHead")
    assert caught.value.do.endswith("or package.module:Name")


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("outside_parts:Mine", "write outside_parts"),
        ("./mine/head.py", "write mine.head"),
        ("no_such_module_here", "install its package"),
        ("outside_parts.head", "correct the name"),
    ],
)
def test_what_is_no_module_is_refused(outside: str, name: str, do: str) -> None:
    registry.check_module(outside, "--plugin")
    with pytest.raises(DetkitError) as caught:
        registry.check_module(name, "--plugin")
    assert caught.value.where == "--plugin"
    assert do in caught.value.do
