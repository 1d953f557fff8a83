"""Every error that detkit raises has a page, and the page that it gets is the right one."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import detkit
from detkit.cli import main
from detkit.errors import DetkitError, error_pages

PACKAGE = Path(detkit.__file__).parent


def texts(node: ast.expr, known: dict[str, list[str]]) -> list[str]:
    """What an expression may be, with X for what is only known when it runs."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else "X" for part in parts)]
        case ast.BinOp(left=left, right=right):
            return [a + b for a in texts(left, known) for b in texts(right, known)]
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, known) + texts(orelse, known)
        case ast.Name(id=name):
            return known.get(name, ["X"])
        case ast.Dict(keys=keys):  # of a table of faults, its messages
            return [text for key in keys if key is not None for text in texts(key, known)]
    return ["X"]


@cache
def raised() -> list[tuple[str, str]]:
    """(where, what) of the errors in the code."""
    return list(found())


def found() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for scope in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            known: dict[str, list[str]] = {}
            for node in ast.walk(scope):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    known.setdefault(node.targets[0].id, []).extend(texts(node.value, {}))
            for node in ast.walk(scope):
                match node:
                    case ast.For(
                        target=ast.Tuple(elts=[ast.Name(id=what), *_]),
                        iter=ast.Call(func=ast.Attribute(value=ast.Name(id=table), attr="items")),
                    ):
                        known.setdefault(what, []).extend(known.get(table, ["X"]))
            for node in ast.walk(scope):
                match node:
                    case ast.Call(func=ast.Name(id="DetkitError" | "Refused" | "UntrustedPart"), args=[what, *_]):
                        yield from ((f"{path.relative_to(PACKAGE)}:{node.lineno}", text) for text in texts(what, known))


def test_every_error_has_a_page() -> None:
    said = [(where, text) for where, text in raised() if len(re.sub(r"X|\W", "", text)) > 5]
    assert len(said) > 400
    assert not [(where, text) for where, text in said if not DetkitError(text).number]


def test_every_message_of_a_page_is_one_of_an_error() -> None:
    said = {form for _, text in raised() for form in (text, text.replace("X", "module:Name"))}
    for page in error_pages().values():
        for message in page.messages:
            pattern = re.compile(".*?".join(map(re.escape, message.split("…"))), re.DOTALL)
            assert any(map(pattern.fullmatch, said)), f"{page.number}: {message}"


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("the image is cut off: about 30% of it is missing", "E020"),
        ("there is no such data set", "E004"),
        ("there is no backbone lenet6", "E008"),
        ("train.lr must be above 0, got -1", "E009"),
        ("the models of an ensemble must know the same classes", "E080"),  # not E009: more of its words are told
        ("the detections file is empty", "E071"),
        ("words of another package", ""),
    ],
)
def test_the_page_is_the_one_that_tells_most_of_the_message(what: str, number: str) -> None:
    assert DetkitError(what).number == number
    assert pickle.loads(pickle.dumps(DetkitError(what))).number == number


def test_help_prints_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "e020"]) == 0
    assert capsys.readouterr().out.startswith("E020 A damaged image\n\nThe file ends too early")
    assert main(["help", "the image is cut off: about 30% of it is missing"]) == 0
    assert capsys.readouterr().out.startswith("E020")
    assert main(["help"]) == 0
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == list(error_pages())
    for words in ("20", "E20", "[E020]"):
        assert main(["help", words]) == 0
        assert capsys.readouterr().out.startswith("E020")
    for words in ("E999", "train"):
        assert main(["help", words]) == 2
        said = capsys.readouterr().err
        assert f"there is no error {words} [E008]" in said
        assert f"detkit help lists them all, {min(error_pages())} to {max(error_pages())}" in said
