"""YAML with the line of every key, and the scalars of YAML 1.2 (core schema).

PyYAML follows YAML 1.1, where ``1e-3`` is a word, ``no`` is false and ``010`` is eight; here ``1e-3`` is a number,
``no`` a word and ``010`` ten.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from detkit.errors import DetkitError
from detkit.io.files import refuse_deep_nesting

Path_ = tuple[str | int, ...]
Section = dict[str, Any]  # keys and values of a mapping; what these are is checked at run time
Lines = dict[Path_, int]

_SCALARS = {
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    "tag:yaml.org,2002:int": r"[-+]?[0-9]{1,999}|0o[0-7]+|0x[0-9a-fA-F]+",
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
_RESOLVERS: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {
    None: [(tag, re.compile(rf"^(?:{pattern})$")) for tag, pattern in _SCALARS.items()]
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS  # type: ignore[assignment]


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS  # type: ignore[assignment]

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(list, lambda dumper, v: dumper.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))


def parse(text: str, source: str) -> tuple[Any, Lines]:
    """Reads one document.

    Args:
        text: YAML.
        source: Its file, for errors.

    Returns:
        Plain values, and the line (from 1) of every key and list item by its path.

    Raises:
        DetkitError: Not YAML, a key given twice, an alias; with ``source`` and the line.
    """
    refuse_deep_nesting(text, source)
    lines: Lines = {}
    try:
        node = _compose(text)
        return (None if node is None else _value(node, (), lines, source)), lines
    except RecursionError:
        raise DetkitError("this YAML is nested too deep", source, "give a sound file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise DetkitError(f"this is not YAML: {error.problem}", f"{source}{line}", "mend that line") from None
    except yaml.YAMLError as error:
        raise DetkitError(f"this is not YAML: {str(error).splitlines()[0]}", source, "give a text file") from None


def dump(values: object) -> str:
    """``values`` as YAML that ``parse`` reads back: one line per key, lists in brackets."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def _compose(text: str) -> yaml.Node | None:
    # An alias would let a small file grow without bound, and one experiment needs none.
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=f"alias *{event.anchor} is not supported", problem_mark=mark)
    return yaml.compose(text, Loader=_Loader)


def _value(node: yaml.Node, path: Path_, lines: Lines, source: str) -> object:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), lines, source) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: Section = {}
        for key_node, item in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in values:
                first = lines[(*path, key)]
                raise DetkitError(f"{key} is given twice", f"{source}, line {line}", f"keep this one or line {first}")
            lines[(*path, key)] = line
            values[key] = _value(item, (*path, key), lines, source)
        return values
    return _scalar(node.tag.rsplit(":", 1)[-1], node.value)


def _scalar(kind: str, text: str) -> object:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" and len(text) <= 4000:  # Python reads no longer ones
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float":
        return float(text.replace(".", "", 1) if text.lower().lstrip("+-") in (".inf", ".nan") else text)
    return text
