"""Parts by name: the package's own, then what other installed packages announce, then ``package.module:Name``.

A part announced by another package is an entry point of the group ``detkit.heads`` and so on; entry points are read
only when a name is not one of detkit's own. A name with a colon imports the module that it names, so only a person may
give it: in a YAML file, an override or Python. A model file, and the config.yaml of a run folder, may name such a part
only where its module has been allowed by ``allow``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detkit.errors import DetkitError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class _Kind(NamedTuple):
    """A kind of part."""

    table: str  # of detkit's own, "module:attribute": name to "module:attribute"
    base: str  # in detkit.interfaces
    required: tuple[str, ...]  # members that a part from outside must have of its own


KINDS = {
    "backbone": _Kind("detkit.backbones:BACKBONES", "Backbone", ("forward",)),
    "neck": _Kind("detkit.necks:NECKS", "Neck", ("forward",)),
    "head": _Kind("detkit.heads:HEADS", "Head", ("raw", "loss", "predict")),
    "proposals": _Kind("detkit.proposals:PROPOSALS", "ProposalSource", ()),
    "format": _Kind("detkit.data.dataset:FORMATS", "DatasetFormat", ("looked_for", "recognises", "read")),
    "writer": _Kind("detkit.io.detections:WRITERS", "Writer", ("write",)),
    "metric": _Kind("detkit.metrics:METRICS", "Metric", ("scores", "rules", "evaluate")),
    "logger": _Kind("detkit.engine.run_folder:LOGGERS", "Logger", ("__call__",)),
}

# Older spellings in YAML and on the command line, and what they are called now.
RENAMED = {"course": "textbook", "lenet_course": "lenet_textbook", "yolo_course": "yolo_textbook"}

_allowed: set[str] = set()  # modules that a person has named; for the life of the process
_outside: set[str] = set()  # top-level packages that parts from outside were imported from


class UntrustedPart(DetkitError):
    """A file names a part ``module:Name`` whose module nobody has allowed; ``module``: its name."""

    def __init__(self, what: str, where: str = "", do: str = "", *, code: int = 2, module: str = "") -> None:
        super().__init__(what, where, do, code=code)
        self.module = module


def allow(modules: str | Iterable[str], where: str = "plugins") -> None:
    """Lets model files name parts of these modules (and of modules inside them) from now on, in this process.

    Args:
        modules: Their names; one may stand by itself.
        where: The place of the names, for errors.

    Raises:
        DetkitError: One is not the name of a module that can be found, with what to write instead.
    """
    named = [modules] if isinstance(modules, str) else list(modules)
    for module in named:
        check_module(module, where)
    _allowed.update(named)


def own_parts(kind: str) -> Mapping[str, str]:
    """detkit's own parts of a kind: name to "module:attribute"."""
    table: Mapping[str, str] = import_from(KINDS[kind].table)
    return table


def installed_parts(kind: str) -> Mapping[str, EntryPoint]:
    """Parts of a kind that other installed packages announce, by name."""
    return _entry_points(f"detkit.{kind.rstrip('s')}s")


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group)}


def find_part(kind: str, name: object, *, where: str = "", trusted: bool = True, others: Sequence[str] = ()) -> Any:
    """The part (mostly a class) of this kind and name.

    Args:
        kind: A key of ``KINDS``.
        name: One of detkit's own, of an entry point, or ``package.module:Name``.
        where: The place of the name, for errors.
        trusted: False if a file that may be a stranger's says the name, not a person.
        others: Names that the caller knows besides, for errors.

    Raises:
        DetkitError: No such part (with the nearest name), a module that cannot be imported or lacks the name, or a
            part that lacks what ``KINDS`` asks for.
        UntrustedPart: A module that a file, not a person, asks for.
    """
    if isinstance(name, str):
        name = renamed(name)
        if name in own_parts(kind):
            return import_from(own_parts(kind)[name])
        if name in installed_parts(kind):
            return _checked(kind, installed_parts(kind)[name].value, where)
        if ":" in name:
            module = name.partition(":")[0]
            if not trusted and not any(f"{module}.".startswith(f"{known}.") for known in _allowed):
                what = f"this file asks for {kind} {name}, and a file may not import code by itself"
                package = module.partition(".")[0]
                do = f"if you trust it, allow the package: --plugin {package} (in Python plugins=[{package!r}])"
                raise UntrustedPart(what, where, do, module=package)
            return _checked(kind, name, where)
    do = nearest(str(name), [*own_parts(kind), *installed_parts(kind), *others])
    if "." in str(name):
        do += " or package.module:Name"
    raise DetkitError(f"there is no {kind} {name!r}", where, do)


def make(part: Callable[..., Any], where: str, *wired: object, **keys: object) -> Any:
    """``part(*wired, **keys)``, once its signature takes these.

    Raises:
        DetkitError: It does not: ``where`` names the part's place.
    """
    try:
        signature(part).bind(*wired, **keys)
    except TypeError as error:
        what = f"{part.__module__}:{part.__qualname__} cannot be made: {error}"
        do = f"it is given {len(wired)} arguments in order, then keys by name: give all others a default"
        raise DetkitError(what, where, f"{do}, see docs/parts.md") from None
    return part(*wired, **keys)


def renamed(name: str) -> str:
    """``name``, or, with a warning, what an older spelling is called now."""
    if name in RENAMED:
        warnings.warn(f"{name} is called {RENAMED[name]} now; the older name still works", FutureWarning, stacklevel=2)
    return RENAMED.get(name, name)


def import_from(place: str) -> Any:
    """What stands at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def check_module(module: str, where: str) -> None:
    """Refuses what is not the name of a module that can be found.

    Raises:
        DetkitError: With what to write instead.
    """
    words = module.partition(":")[0].removesuffix(".py").strip("./").replace("/", ".")
    if words != module:
        raise DetkitError(f"{module} is not the name of a module", where, f"write {words}")
    try:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
    except Exception as error:
        raise _import_error(module, module, where, error) from error


def outside_line(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line in an error's traceback that is neither detkit's nor a library's; parts are no library."""
    found = None
    own, standard = Path(__file__).parent, sysconfig.get_path("stdlib")
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        part = str(frame.f_globals.get("__name__")).partition(".")[0] in _outside
        library = path.is_relative_to(standard) or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        if path.is_file() and not path.is_relative_to(own) and (part or not library):
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            found = traceback.FrameSummary(str(shown), line, frame.f_code.co_name)
    return found


def _checked(kind: str, place: str, where: str) -> Any:
    """The part from outside at "module:attribute", if it has what its kind asks for; a function may make anything."""
    part = _imported(place, where)
    if callable(part) and not isinstance(part, type):
        return part
    _, base_name, required = KINDS[kind]
    base = import_from(f"detkit.interfaces:{base_name}")
    network, see = kind in ("backbone", "neck", "head"), "see docs/parts.md (detkit/interfaces.py)"
    if not isinstance(part, type) or not issubclass(part, base) or (network and not hasattr(part, "state_dict")):
        bases = f"{base_name}, nn.Module" if network else base_name
        do = f"write class {place.partition(':')[2]}({bases}), {see}"
        raise DetkitError(f"{place} is no {kind}", where, do)
    for name in required:
        if getattr(part, name, None) is getattr(base, name, None):
            raise DetkitError(f"{place} has no {name}", where, f"write it, {see}")
    return part


def _imported(place: str, where: str) -> Any:
    """``import_from`` for code from outside, whose errors are a person's to mend."""
    module, _, attribute = place.partition(":")
    _outside.add(module.partition(".")[0])
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise _import_error(place, module, where, error) from error
    if not hasattr(found, attribute):
        what = f"{place} cannot be imported: {module} has no {attribute or 'empty name'}"
        raise DetkitError(what, where, nearest(attribute, vars(found), otherwise="correct package.module:Name"))
    return getattr(found, attribute)


def _import_error(place: str, module: str, where: str, error: Exception) -> DetkitError:
    """Why a module from outside cannot be imported: it is not there, what it imports is not, or its code fails."""
    if isinstance(error, DetkitError):
        return error
    line, do = outside_line(error), "mend that module (--debug shows all)"
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        reason, do = f"there is no module {error.name}", "install its package, or correct the name of the module"
        if "." not in error.name and (Path(error.name).is_dir() or Path(f"{error.name}.py").is_file()):
            do = "it lies in this folder, which is not on the import path: set PYTHONPATH=. or install it"
    elif isinstance(error, ModuleNotFoundError):
        reason, do = f"{module} imports {error.name}, which is not there", f"install {error.name}"
    elif isinstance(error, SyntaxError):
        reason = f"error in {error.filename}, line {error.lineno}: {error.msg}"
    elif line is not None:
        reason = f"error in {line.filename}, line {line.lineno}: {reason}"
    return DetkitError(f"{place} cannot be imported: {reason}", where, do)
