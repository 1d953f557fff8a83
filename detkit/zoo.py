"""The table of detectors that can be used by name. None is shipped yet."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from detkit.errors import DetkitError

DEFAULT = ""  # the name that "default" stands for; empty as long as none is shipped


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file: its name; file, in the weights folder, or url; sha256 (hexadecimal) and bytes of the file; licence;
    classes; score: what it reaches and on what, as shown in ``detkit models``."""

    name: str
    sha256: str
    bytes: int
    licence: str
    classes: tuple[str, ...]
    score: str
    file: str = ""
    url: str = ""


WEIGHTS: dict[str, Weights] = {}


def find(name: str) -> Weights:
    """The entry called ``name``; "default" stands for the shipped default.

    Raises:
        DetkitError: no such entry (with the nearest name), or no default is shipped.
    """
    if name == "default":
        if not DEFAULT:
            raise DetkitError("no default model is shipped", do="train one: detkit train --data DATA")
        name = DEFAULT
    if name not in WEIGHTS:
        near = get_close_matches(name, WEIGHTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(WEIGHTS) or 'none, as yet'}"
        raise DetkitError(f"there are no weights {name!r}", do=hint)
    return WEIGHTS[name]


def fetch(name: str) -> Path:
    """The local file of ``name``: from the wheel's weights folder, the checkout's, the cache, or else its url.

    Raises:
        DetkitError: no such name, the file is missing or damaged, or the download failed.
    """
    weights = find(name)
    package = Path(__file__).resolve().parent
    for folder in (package / "weights", package.parent / "weights"):
        if weights.file and (folder / weights.file).is_file():
            return folder / weights.file
    if not weights.url:
        raise DetkitError(f"the file of {name} is not installed", weights.file, "install detkit again")
    from platformdirs import user_cache_dir

    from detkit.io.download import fetch as download

    target = Path(user_cache_dir("detkit")) / weights.url.rsplit("/", 1)[1]
    if not target.is_file():
        download(weights.url, weights.sha256, target)
    return target
