"""Parts by name: detkit's own, installed ones, and ``module:Name``, which a file may not import by itself."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from detkit import registry
from detkit.errors import DetkitError
from detkit.registry import UntrustedPart, find_part


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that notes that it was imported."""
    (tmp_path / "outside_parts.py").write_text("class Mine:\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_allowed", set())
    monkeypatch.delitem(sys.modules, "outside_parts", raising=False)
    return "outside_parts"


@pytest.mark.parametrize("kind", ["backbone", "neck", "head", "proposals", "format", "metric", "logger", "writer"])
def test_every_part_of_every_table_is_there(kind: str) -> None:
    assert registry.own_parts(kind)
    for name in registry.own_parts(kind):
        assert find_part(kind, name, trusted=False) is not None


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
    registry.allow([allowed])
    if works:
        assert find_part("head", f"{outside}:Mine", trusted=False).__name__ == "Mine"
    else:
        with pytest.raises(UntrustedPart):
            find_part("head", f"{outside}:Mine", trusted=False)


@pytest.mark.parametrize("name", ["no_such_module_here:Mine", "outside_parts:Other", "outside_parts:", ":Mine"])
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
