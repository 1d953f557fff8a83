"""What is wrong in a data set: the reader's findings, and those that need the images or all labels together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import numpy as np

from detkit.data.annotations import Annotations, Findings
from detkit.data.duplicates import Pair, add_findings
from detkit.data.voc import CLASSES as VOC_CLASSES
from detkit.errors import DetkitError
from detkit.io.download import sha256_of
from detkit.io.images import image_size, read_sized
from detkit.io.stored import is_there
from detkit.printed import Printed, counted

TINY = 2.0  # pixels: the shorter side of a box that no detector can learn from
WHOLE = 0.98  # share of the image in both directions


def check_annotations(
    annotations: Annotations, *, decode: bool = True, threads: int = 2, duplicates: Sequence[Pair] | None = None
) -> Printed:
    """The findings of the reader, then of the labels, then of the images.

    Args:
        annotations: The labels.
        decode: Read every image whole, which also finds those that are cut off; else only their headers.
        threads: That read images.
        duplicates: What ``near_duplicates`` found; None: it was not asked.

    Returns:
        As facts: images and boxes, counted, findings, and the duplicates.
    """
    a = annotations
    findings = Findings(a.findings)
    _check_labels(a, findings)
    with ThreadPoolExecutor(max_workers=max(threads, 1)) as pool:
        for fault in pool.map(partial(_image_fault, decode=decode), a.files, a.sizes, chunksize=16):
            if fault is not None:
                findings.add(*fault)
    for file, count in Counter(a.files).items():
        findings.add("same file listed twice", file, count=count - 1)
    _check_copies(a, findings)
    add_findings(duplicates or (), findings)
    size = ", ".join(map(counted, (len(a), len(a.labels), len(a.classes)), ("image", "box", "class")))
    if (a.crowd | a.difficult).any():
        size += " ({crowd} crowd, {difficult} difficult: neither right nor wrong when scored)".format(**a.counts())
    found = findings.as_list()
    faults, notes = ([one for one in found if one.note is note] for note in (False, True))
    lines = [line for one in faults for line in one.lines()] or ["nothing to complain of"]
    if notes:
        lines += ["notes:", *(line for one in notes for line in one.lines())]
    facts: dict[str, object] = {"images": len(a), "boxes": len(a.labels), "findings": faults + notes}
    if duplicates is not None:
        facts["duplicates"] = [asdict(pair) for pair in duplicates]
    return Printed(facts, [size, *lines])


def _check_labels(a: Annotations, findings: Findings) -> None:
    image = a.image_index

    def where(row: int) -> str:
        box = ", ".join(f"{v:g}" for v in a.xywh[row])
        return f"{a.files[image[row]]}: {a.classes[a.labels[row]]} at [{box}] (object {a.ids[row]})"

    ordinary = ~a.crowd
    tiny = ordinary & (a.xywh[:, 2:].min(axis=1, initial=np.inf) < TINY)
    findings.add_rows(f"tiny box (a side below {TINY:g} pixels)", tiny, where, note=True)
    size = a.sizes[image][:, ::-1]
    whole = ordinary & (size > 0).all(axis=1) & (a.xywh[:, 2:] >= WHOLE * size).all(axis=1)
    if not a.image_labels:  # there it is what says that the label is the image's
        findings.add_rows("box over the whole image", whole, where, note=True)
    key = np.concatenate([image[:, None], a.labels[:, None], a.xywh], axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    findings.add_rows("same box and class twice in an image", np.setdiff1d(np.arange(len(key)), first), where)
    for name, count in zip(a.classes, a.class_counts(), strict=True):
        if count == 0 and a.classes != VOC_CLASSES:  # these are known, not said by the data
            findings.add("class without boxes", name, note=True)
    first_of: dict[str, str] = {}
    for name in a.classes:
        other = first_of.setdefault("".join(name.casefold().split()), name)
        if other != name:
            findings.add("class names that differ only in case or spaces", f"{other!r}, {name!r}", note=True)
    if not len(a):
        findings.add("the data set holds no images")
    elif not len(a.labels):
        findings.add("no image has an object", a.files[0], count=len(a))


def _image_fault(file: str, size: np.ndarray, *, decode: bool) -> tuple[str, str] | None:
    if not is_there(file):
        return "missing image", file
    try:
        width, height = read_sized(file)[1] if decode else image_size(file)
    except (DetkitError, OSError) as error:
        return "broken image", f"{file}: {getattr(error, 'what', error)}"
    if not size.all() or (height, width) == tuple(size):
        return None
    turned = "image is turned (by EXIF) against its labels"
    kind = turned if (width, height) == tuple(size) else "image's size is not the one in the labels"
    return kind, f"{file}: {width} x {height}, labels say {size[1]} x {size[0]}"


def _check_copies(a: Annotations, findings: Findings) -> None:
    """Counts images whose bytes are those of an earlier one; only files of equal length are read."""
    lengths = {file: os.path.getsize(file) for file in a.files if os.path.isfile(file)}
    alike = Counter(lengths.values())
    first_of: dict[str, str] = {}
    for file in (file for file, length in lengths.items() if alike[length] > 1):
        first = first_of.setdefault(sha256_of(file), file)
        if first != file:
            findings.add("same image twice", f"{file} = {first}", note=True)
