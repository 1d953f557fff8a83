"""The documentation says what is true: files, names, keys, command lines, examples and costs."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from detkit import registry
from detkit.config.experiment import MODEL_KEYS, SOURCE_KEYS, EvaluateOptions, check_data
from detkit.config.schema import Place, keys_of
from detkit.data.augment import Augment
from detkit.engine.options import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = {page.stem: page for page in sorted((ROOT / "docs").glob("*.md"))} | {"README": ROOT / "README.md"}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
FAMILIES = {
    "sliding-window": "sliding_window",
    "rcnn": "rcnn",
    "fast-rcnn": "fast_rcnn",
    "faster-rcnn": "faster_rcnn",
    "yolo": "yolo",
    "aligned": "aligned",
}
PARTS = ("backbone", "neck", "proposals", "head")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@EVERY_PAGE
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    for link in links:
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, link
    named = re.findall(r"\b(?:detkit|configs|tools|tests|docs|weights)/[\w/-]+\.\w+", text)
    assert not [path for path in named if not (ROOT / path).exists()]


@EVERY_PAGE
def test_names_of_the_code_exist(page: Path) -> None:
    """In lists of what to read, the words in code after a file are its own."""
    text = page.read_text(encoding="utf-8").partition("## How to read")[2]
    for file, words in re.findall(r"\]\(\.\./(detkit/[\w/]+)\.py\)((?:(?!\]\(|\n\d\.).)*)", text, re.DOTALL):
        module = import_module(file.replace("/", "."))
        for name in re.findall(r"`(\w+(?:\.\w+)*)`", words):
            assert reduce(lambda found, part: getattr(found, part, None), name.split("."), module), f"{file}: {name}"


@pytest.fixture(autouse=True)
def example_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pages name as ``--plugin`` can be found."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")


def command_lines(page: Path) -> Iterator[list[str]]:
    for _, text in blocks(page):
        for line in text.splitlines():
            if (at := re.search(r"(?:^|&& )detkit ", line)) is not None:
                yield shlex.split(line[at.end() :], comments=True)
    for line in re.findall(r"^- `detkit ([^`]+)`", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield shlex.split(line)


@EVERY_PAGE
def test_command_lines_are_understood(page: Path) -> None:
    from detkit.cli.app import app_of

    for words in command_lines(page):
        command: Any = typer.main.get_command(app_of())
        context = command.make_context("detkit", list(words))
        while hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
            context = command.make_context(command.name, list(words), parent=context)


def test_a_wrong_command_line_is_noticed(tmp_path: Path) -> None:
    for line in ("detect --no-such-option", "dettect photo.jpg", "data chek DATA"):
        for text in (f"```\ndetkit {line}\n```\n", f"- `detkit {line}`: as in a list.\n"):
            page = tmp_path / "page.md"
            page.write_text(text)
            with pytest.raises(Exception, match=r"no-such|dettect|chek"):
                test_command_lines_are_understood(page)


@EVERY_PAGE
def test_examples_give_what_they_show(page: Path) -> None:
    text = "\n".join(text for language, text in blocks(page) if language == "python" and ">>>" in text)
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield ".".join(path)


OTHERS = [("yolo", "yolo_textbook"), ("yolo", "yolo_nine"), ("aligned", "aligned_nine")]


@pytest.mark.parametrize(("page", "name"), [*FAMILIES.items(), *OTHERS])
def test_every_key_of_a_config_is_explained(page: str, name: str) -> None:
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    explained = PAGES[page].read_text(encoding="utf-8")
    assert not [key for key in leaves(config.pop("model")) if f"`{key}`" not in explained]
    common = PAGES["families"].read_text(encoding="utf-8")
    assert not [key for key in leaves(config) if f"`{key}`" not in common]


@EVERY_PAGE
def test_keys_that_are_explained_exist(page: Path) -> None:
    known = {f"data.{part}.{key}" for part in ("train", "val", "test") for key in SOURCE_KEYS}
    known |= {f"data.{key}" for key in check_data({"train": "x"}, Place())} | {*MODEL_KEYS}
    schemas = {"augment": Augment, "train": TrainOptions, "evaluate": EvaluateOptions}
    known |= {f"{section}.{key}" for section, schema in schemas.items() for key in keys_of(schema)}
    for kind in PARTS:
        parts = (registry.find_part(kind, name) for name in registry.own_parts(kind))
        known |= {f"{kind}.name"} | {f"{kind}.{key}" for part in parts for key in keys_of(part)}
    sections = "|".join((*PARTS, "data", "augment", "train", "evaluate"))
    named = re.findall(rf"`((?:{sections})\.[\w.]+)[`:=]", page.read_text(encoding="utf-8"))
    assert not {name for name in named if not re.search(r"\.(py|json|yaml)$", name)} - known


@pytest.mark.parametrize("page", ["configuration", "command_line"])
def test_every_key_and_option_of_the_reference_has_a_meaning(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "tools")
    rows = re.findall(r"^\| `(.+?)` \| (.*?) \|", getattr(import_module("site_pages"), page)(), re.MULTILINE)
    assert len(rows) > 200
    assert not [name for name, meaning in rows if not meaning.strip()]


@pytest.mark.parametrize("page", FAMILIES)
def test_costs_are_those_of_the_config(page: str) -> None:
    from detkit.explain.summary import summarise_config

    config = ROOT / f"configs/{FAMILIES[page]}.yaml"
    total = summarise_config(str(config), num_classes=9).total
    region, regions = total.get("region_multiply_adds", 0), total.get("regions", 0)
    image = total["multiply_adds"] - regions * region
    text = f"{total['parameters'] / 1e6:.2f} M parameters; {image / 1e9:.2f} G multiply-adds an image"
    text += f" and {region / 1e6:.1f} M a region." * bool(regions)
    assert text in PAGES[page].read_text(encoding="utf-8"), f"write: {text}"
