"""A hook of mkdocs: pages made from the code, and the files of the project that pages link to.

The command line comes from the application itself, the configuration from the signatures that are its schema, Python
from the docstrings; nothing of it is committed, so nothing of it can go stale.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from griffe import Docstring, DocstringSectionKind
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Pages that lie outside docs/, and what they are called on the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "weights/README.md": "model-card.md",
    "detkit/errors.md": "errors.md",
}
_LINK = re.compile(r"(\]\(|src=\")([^)#\s\"]+)(#[^)\s\"]*)?(?=[)\"])")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}
_linked: set[str] = set()  # files of the project that pages link to, each of which becomes a page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    made = {page: (ROOT / place).read_text(encoding="utf-8") for place, page in ELSEWHERE.items()}
    made["index.md"] = f"---\nhide: [navigation]\n---\n\n{made['index.md']}"  # it would name this page alone
    made |= {
        "reference/command-line.md": command_line(),
        "reference/configuration.md": configuration(),
        "reference/python.md": python(),
    }
    _linked.clear()
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / place for place in ELSEWHERE)]:
        for link in _LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / link[2]).resolve()
            if not link[2].startswith("http") and target.is_file() and not target.is_relative_to(ROOT / "docs"):
                _linked.add(target.relative_to(ROOT).as_posix())
    for place in sorted(_linked - ELSEWHERE.keys()):
        text = (ROOT / place).read_text(encoding="utf-8")
        language = _LANGUAGES.get(Path(place).suffix, "text")
        made[f"source/{place}.md"] = f'# {place}\n\n````{language} linenums="1"\n{text}\n````\n'
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links into the project become links to their pages on the site."""
    here = page.file.src_uri
    home = next((Path(place).parent for place, name in ELSEWHERE.items() if name == here), Path("docs"))

    def moved(link: re.Match[str]) -> str:
        target = (ROOT / home / link[2]).resolve()
        if link[2].startswith("http") or not target.is_relative_to(ROOT) or here.startswith(("reference/", "source/")):
            return link[0]
        place = target.relative_to(ROOT).as_posix()
        named = ELSEWHERE.get(place) or (
            place.removeprefix("docs/") if place.startswith("docs/") else f"source/{place}.md"
        )
        return f"{link[1]}{posixpath.relpath(named, posixpath.dirname(here) or '.')}{link[3] or ''}"

    return _LINK.sub(moved, markdown)


def command_line() -> str:
    """Every verb: its help, its arguments and options, its examples."""
    from detkit.cli.app import VERBS, app_of, name_of

    group: Any = typer.main.get_command(app_of())
    parts = ["# Command line", "`detkit VERB --help` shows the same. Results go to stdout, messages to stderr."]
    for heading, places in VERBS.items():
        parts.append(f"## {heading}")
        for name in map(name_of, places):
            verb = group.commands[name]
            inner = getattr(verb, "commands", None)
            if inner is None:
                parts += _verb(f"detkit {name}", verb)
            else:
                for below in inner:
                    parts += _verb(f"detkit {name} {below}", inner[below])
    return "\n\n".join(parts)


def _verb(line: str, verb: Any) -> list[str]:
    summary = inspect.cleandoc(verb.help or "").replace("\b\n", "")
    usage = " ".join(_argument(one) for one in verb.params if one.param_type_name == "argument")
    parts = [f"### {line}", summary, f"```text\n{line} [OPTIONS] {usage}\n```".replace(" \n", "\n")]
    rows = []
    for one in verb.params:
        named = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        if one.param_type_name == "argument":
            named = f"`{_argument(one)}`"
        text = " ".join((getattr(one, "help", None) or "").split())
        default = one.default if one.default not in (None, False, (), []) and not callable(one.default) else ""
        rows.append((named, text, f"`{default}`" if default != "" else ""))
    parts.append(_table(("option", "meaning", "default"), rows))
    if verb.epilog:
        parts.append("```text\n" + inspect.cleandoc(verb.epilog).replace("\b\n", "") + "\n```")
    return parts


def _argument(one: Any) -> str:
    name = one.metavar or one.name.upper()
    return name if one.required or name.startswith("[") else f"[{name}]"


def configuration() -> str:
    """Every section of a configuration and every part, with its keys."""
    from detkit import registry
    from detkit.config.experiment import EvaluateOptions
    from detkit.data.augment import Augment
    from detkit.engine.options import TrainOptions

    parts = [
        "# Configuration",
        "A configuration is one YAML file; `detkit config NAME` prints a shipped one, `KEY=VALUE` on the command line "
        "changes it. Its keys are the keyword arguments of what it builds: this page is made from their signatures.",
    ]
    for section, schema in (("train", TrainOptions), ("augment", Augment), ("evaluate", EvaluateOptions)):
        parts += [f"## {section}:", *_keys(schema)]
    for kind in ("backbone", "neck", "proposals", "head"):
        parts.append(f"## model.{kind}:")
        for name in sorted(registry.own_parts(kind)):
            parts += [f"### {kind}: {name}", *_keys(registry.find_part(kind, name))]
    return "\n\n".join(parts)


def _keys(schema: Any) -> list[str]:
    from detkit.config.schema import REQUIRED, keys_of

    meanings: dict[str, str] = {}
    first = ""
    for section in _described(schema):
        if section.kind is DocstringSectionKind.text and not first:
            first = section.value
        if section.kind in (DocstringSectionKind.parameters, DocstringSectionKind.attributes):
            meanings = {item.name: " ".join(item.description.split()) for item in section.value} | meanings
    rows = [
        (
            f"`{name}`",
            meanings.get(name, ""),
            _typed(key.type),
            "required" if key.default is REQUIRED else f"`{_plain(key.default)}`",
        )
        for name, key in keys_of(schema).items()
    ]
    return [first, _table(("key", "meaning", "type", "default"), rows)] if rows else [first, "No keys."]


def _described(schema: Any) -> Iterator[Any]:
    """The sections of its docstring, and of those whose options it takes."""
    owners = (
        [one for base in schema.__mro__[:-1] for one in (base, base.__init__)] if isinstance(schema, type) else [schema]
    )
    for one in owners:
        yield from Docstring(inspect.getdoc(one) or "").parse("google", warnings=False)
    for one in owners:
        for other in getattr(one, "__takes__", ()):
            yield from _described(other)


def _plain(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if isinstance(value, (bool, type(None)))
        else str(value)
    )


def _typed(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{one}`" for one in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(_typed, typing.get_args(kind)))
    if kind is type(None):
        return "`null`"
    plain = isinstance(kind, type) and not typing.get_args(kind)
    return f"`{kind.__name__ if plain else str(kind).replace('typing.', '')}`"


def python() -> str:
    """The names of ``detkit``, each with its docstring."""
    import detkit

    parts = ["# Python", "What `import detkit` offers. Names are imported when they are first used."]
    for module, names in detkit._PLACES.items():
        parts += [f"::: detkit{module}.{name}" for name in names]
    return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
