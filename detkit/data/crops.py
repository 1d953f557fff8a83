"""Objects cut out of a detection set: a folder of class folders, to train a classifier on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations, Findings
from detkit.errors import DetkitError
from detkit.io.files import atomic_folder
from detkit.io.images import read_image, write_image
from detkit.printed import Printed, counted

BACKGROUND = "background"
UNREADABLE = "image that cannot be read (its objects are left out)"
_QUALITY = 95  # of the JPEGs
_TRIES = 100  # draws of an image and a window for a crop without objects


def write_crops(
    parts: Mapping[str, Annotations],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    background: int = 0,
    min_size: int = 48,
    seed: int = 0,
    overwrite: bool = False,
) -> Printed:
    """Writes each object of the parts as OUT/PART/CLASS/IMAGE_N.jpg.

    Left out, and counted, are small objects, crowds and difficult ones.

    Args:
        parts: Name to labels; "": no sub-folder.
        out: Folder to write.
        classes: Only these; None: all of them.
        background: Crops per part, in the class ``background``, that touch no object; their sizes are drawn from the
            objects'.
        min_size: Objects with a side below so many pixels are left out.
        seed: Of the background's places.
        overwrite: Replace files of the same names.

    Returns:
        As facts: out, parts (by part and class, how many), left_out (findings), failed (images that cannot be read).

    Raises:
        DetkitError: A part without an object of these classes that is large enough, no image that can be read, the
            data has a class called background, two classes whose folders would be one, or OUT cannot be written.
    """
    counts: dict[str, dict[str, int]] = {}
    findings = Findings()
    with atomic_folder(out, overwrite) as folder:
        for number, (part, annotations) in enumerate(parts.items()):
            if background and BACKGROUND in annotations.classes:
                raise DetkitError(f"the data has a class {BACKGROUND!r} of its own", "--background", "leave it out")
            rng = np.random.default_rng([seed, number])
            names = annotations.select_classes(classes).classes  # an unknown one is an error
            _refuse_one_folder_for_two(names)
            counts[part] = _cut(annotations, names, folder / part, background, min_size, rng, findings)
        failed = findings.get(UNREADABLE)
        if failed and not any(sum(table.values()) for table in counts.values()):
            do = "give --images the folder of the images"
            raise DetkitError("none of the images could be read", failed.examples[0], do)
    said = []
    for part, table in counts.items():
        said.append(f"{out / part}: {counted(sum(table.values()), 'crop')}")
        said += [f"  {name}: {count}" for name, count in table.items()]
    facts = {"out": out, "parts": counts, "left_out": findings.as_list(), "failed": failed.count if failed else 0}
    return Printed(facts, said + findings.lines())


def _cut(
    a: Annotations,
    names: Sequence[str],
    folder: Path,
    background: int,
    min_size: int,
    rng: np.random.Generator,
    findings: Findings,
) -> dict[str, int]:
    chosen = np.isin(a.labels, [a.classes.index(name) for name in names])
    ignored = chosen & (a.crowd | a.difficult)
    small = chosen & ~ignored & (a.xywh[:, 2:] < min_size).any(axis=1)
    findings.add("crowd or difficult (left out)", count=int(ignored.sum()))
    findings.add(f"a side below {min_size} pixels (left out)", count=int(small.sum()))
    wanted = np.flatnonzero(chosen & ~(ignored | small))
    if not len(wanted):
        where = f"{a.source.path} {a.source.split or ''}".strip() if a.source else ""
        if not chosen.any():
            raise DetkitError("no object of these classes", where, "name other --classes, or one --split")
        raise DetkitError(f"no object has sides of {min_size} pixels", where, "give a smaller --min-size")
    windows: dict[int, list[tuple[str, int, np.ndarray]]] = {}  # by image: class, number, xywh
    image_index = a.image_index
    for row in wanted.tolist():
        windows.setdefault(int(image_index[row]), []).append((a.classes[a.labels[row]], row, a.xywh[row]))
    empty = _empty_windows(a, background, a.xywh[wanted, 2:], rng)
    findings.add("background crops that found no room", count=background - len(empty))
    for number, (image, xywh) in enumerate(empty):
        windows.setdefault(image, []).append((BACKGROUND, number, xywh))
    counts = dict.fromkeys((*names, *([BACKGROUND] if background else [])), 0)
    for image, group in sorted(windows.items()):  # each image is read once
        try:
            pixels = read_image(a.files[image])
        except DetkitError as error:
            findings.add(UNREADABLE, f"{error.where}: {error.what}")
            continue
        height, width = pixels.shape[:2]
        for name, number, xywh in group:
            x1, y1 = np.clip(np.floor(xywh[:2] + 1e-6), 0, (width - 1, height - 1)).astype(int)
            x2, y2 = np.clip(np.ceil(xywh[:2] + xywh[2:] - 1e-6), (x1 + 1, y1 + 1), (width, height)).astype(int)
            path = folder / _folder_name(name) / f"{Path(a.files[image]).stem}_{number}.jpg"
            write_image(path, np.ascontiguousarray(pixels[y1:y2, x1:x2]), quality=_QUALITY)
            counts[name] += 1
    return counts


def _empty_windows(
    a: Annotations, count: int, sizes: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Up to ``count`` windows (image, xywh) that touch no object, not even an ignored one; sizes drawn of (N, 2)."""
    found: list[tuple[int, np.ndarray]] = []
    for _ in range(count):
        for _ in range(_TRIES):
            image, wh = int(rng.integers(len(a))), np.rint(sizes[rng.integers(len(sizes))])
            height, width = a.sizes[image]
            if wh[0] > width or wh[1] > height:
                continue
            corner = rng.integers((width - wh[0] + 1, height - wh[1] + 1))
            boxes = a.xywh[a.offsets[image] : a.offsets[image + 1]]
            apart = (corner >= boxes[:, :2] + boxes[:, 2:]) | (corner + wh <= boxes[:, :2])
            if apart.any(axis=1).all():
                found.append((image, np.concatenate([corner, wh]).astype(np.float64)))
                break
    return found


def _refuse_one_folder_for_two(names: Sequence[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(_folder_name(name), name)
        if other != name:
            what = f"the classes {other!r} and {name!r} would share the folder {_folder_name(name)}"
            raise DetkitError(what, "--classes", "name one of them, or rename it in the data")


def _folder_name(name: str) -> str:
    """A class's name as a folder's: what no file system takes becomes an underscore."""
    clean = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip(" .")
    return clean or "_"
