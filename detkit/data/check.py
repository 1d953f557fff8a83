"""What is wrong in a data set: the reader's findings, and those that need the images or all labels together."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from detkit.data.annotations import Annotations, Finding, Findings
from detkit.errors import DetkitError

TINY = 2.0  # pixels: the shorter side of a box that no detector can learn from
WHOLE = 0.98  # share of the image in both directions


def check(annotations: Annotations, *, decode: bool = True, threads: int = 2) -> list[Finding]:
    """The findings of the reader, then of the labels, then of the images.

    decode: read every image whole, which also finds those that are cut off; else only their headers.
    """
    findings = Findings(annotations.findings)
    _check_labels(annotations, findings)
    _check_images(annotations, findings, decode, threads)
    return findings.as_list()


def _check_labels(a: Annotations, findings: Findings) -> None:
    image = a.image_index

    def where(row: int) -> str:
        box = ", ".join(f"{v:g}" for v in a.xywh[row])
        return f"{a.files[image[row]]}: {a.classes[a.labels[row]]} at [{box}] (object {a.ids[row]})"

    ordinary = ~a.crowd
    tiny = ordinary & (a.xywh[:, 2:].min(axis=1, initial=np.inf) < TINY)
    findings.add_rows(f"tiny box (a side below {TINY:g} pixels)", np.flatnonzero(tiny), where)
    size = a.sizes[image][:, ::-1]
    whole = ordinary & (size > 0).all(axis=1) & (a.xywh[:, 2:] >= WHOLE * size).all(axis=1)
    if not a.labelled:  # there it is what says that the label is the image's
        findings.add_rows("box over the whole image", np.flatnonzero(whole), where)
    key = np.concatenate([image[:, None], a.labels[:, None], a.xywh], axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    twice = np.setdiff1d(np.arange(len(key)), first)
    findings.add_rows("same box and class twice in an image", twice, where)
    for name, count in zip(a.classes, a.class_counts(), strict=True):
        if count == 0:
            findings.add("class without boxes", name)
    first_of: dict[str, str] = {}
    for name in a.classes:
        other = first_of.setdefault("".join(name.casefold().split()), name)
        if other != name:
            findings.add("class names that differ only in case or spaces", f"{other!r}, {name!r}")
    if not len(a):
        findings.add("the data set holds no images")
    elif not len(a.labels):
        findings.add("no image has an object", a.files[0], count=len(a))


def _check_images(a: Annotations, findings: Findings, decode: bool, threads: int) -> None:
    def look(i: int) -> tuple[str, str] | None:
        return _look(a.files[i], a.sizes[i], decode)

    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        for result in pool.map(look, range(len(a)), chunksize=16):
            if result is not None:
                findings.add(result[0], result[1])
    for name, files in (("same file listed twice", _listed_twice(a)), ("same image twice", _copies(a))):
        findings.add(name, *files, count=len(files))


def _look(file: str, size: np.ndarray, decode: bool) -> tuple[str, str] | None:
    from detkit.io.images import image_size, read_image

    if not os.path.isfile(file):
        return "missing image", file
    try:
        width, height = image_size(file)
        if decode:
            read_image(file)
    except (DetkitError, OSError) as error:
        return "broken image", f"{file}: {getattr(error, 'what', error)}"
    if size.all() and (height, width) != (int(size[0]), int(size[1])):
        kind = "image is turned (by EXIF) against its labels" if (width, height) == tuple(size) else (
            "image's size is not the one in the labels")  # fmt: skip
        return kind, f"{file}: {width} x {height}, labels say {size[1]} x {size[0]}"
    return None


def _listed_twice(a: Annotations) -> list[str]:
    seen: set[str] = set()
    return [f for f in a.files if f in seen or seen.add(f)]  # type: ignore[func-returns-value]


def _copies(a: Annotations) -> list[str]:
    """Images whose bytes are those of an earlier one; only files of equal length are read."""
    by_length: dict[int, list[str]] = {}
    for file in dict.fromkeys(a.files):
        if os.path.isfile(file):
            by_length.setdefault(os.path.getsize(file), []).append(file)
    found = []
    for files in by_length.values():
        if len(files) == 1:
            continue
        seen: dict[bytes, str] = {}
        for file in files:
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
            if digest in seen:
                found.append(f"{file} = {seen[digest]}")
            else:
                seen[digest] = file
    return found
