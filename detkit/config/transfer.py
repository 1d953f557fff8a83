"""Starting from another detector's weights: what is taken from its file, what not, and what is made anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from detkit import zoo
from detkit.data.names import match_classes
from detkit.detector import Detector, read_weights
from detkit.errors import DetkitError

Layout = tuple[int, int, int]  # rows before the classes', rows of each class, rows after them


def start_from(detector: Detector, path: str | Path, *, backbone_only: bool = False) -> str:
    """Copies into ``detector`` the tensors of a model file that have the same name and shape; says what it did.

    backbone_only: the backbone's, and of the head only what is the rest of that (``backbone_trunk``).

    Where the classes differ, the head's prediction layers (its ``class_rows``) are made anew, but the rows of a class
    that both know by name, and those that belong to no class (box, objectness), are kept, if only the number of
    classes differs.

    Raises:
        DetkitError: none of the weights fits, or as ``detkit.detector.read_weights``.
    """
    weights, classes = read_weights(path), tuple(zoo.read_model_header(path)["classes"])
    own = detector.state_dict()
    if backbone_only:
        trunk = detector.head.backbone_trunk
        parts = ("backbone.",) if trunk is None else ("backbone.", "head.trunk.")
        own, weights = ({k: v for k, v in each.items() if k.startswith(parts)} for each in (own, weights))
    layouts: dict[str, Layout] = {}
    if classes != detector.classes:
        rows = detector.head.class_rows
        layouts = {key: rows[part] for key in own for part in rows if key.startswith(f"head.{part}")}
    table = match_classes(detector.classes, classes)
    taken: dict[str, Tensor] = {}
    remade = 0
    for key in own.keys() & weights.keys():
        value = weights[key]
        if (layout := layouts.get(key)) is not None:
            joined = with_rows(own[key], value, layout, table, len(classes))
            remade += joined is not None
            taken |= {} if joined is None else {key: joined}
        elif own[key].shape == value.shape:
            taken[key] = value
    if not any(key.startswith(("backbone.", "head.trunk.")) for key in taken):
        do = f"start from a model with the same backbone, or set model.{'backbone.' * backbone_only}weights: none"
        raise DetkitError("none of these weights fits the model", str(path), do)
    detector.load_state_dict(taken, strict=False)
    known = [name for name, place in zip(detector.classes, table, strict=True) if place >= 0]
    said = [f"{len(taken) - remade} of {len(own)} tensors taken as they are"]
    if remade:
        names = f" ({', '.join(known[:5])}{', ...' * (len(known) > 5)})" if known else ""
        kept = f"the rows of {len(known)} of {len(detector.classes)} classes kept{names}"
        said.append(f"{remade} made anew for other classes, {kept}")
        if len(known) == len(detector.classes):
            said.append(f"it knows them all: detkit evaluate {path} DATA says how well, without training")
    kinds = {
        "of another shape start anew": [key for key in own if key in weights and key not in taken],
        "that the file lacks start anew": [key for key in own if key not in weights],
        "of the file not used": [key for key in weights if key not in own],
    }
    for words, keys in kinds.items():
        if keys:
            said.append(f"{len(keys)} {words} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})")
    return f"{'backbone ' * backbone_only}weights from {Path(path).name}: {'; '.join(said)}"


def with_rows(own: Tensor, other: Tensor, layout: Layout, table: Sequence[int], classes: int) -> Tensor | None:
    """``own`` (rows, ...) with the rows of ``other``, a prediction layer of the same kind for other classes.

    layout: the rows of a group (an anchor, say; as many groups as there are); table: for each own class its place among
    the ``classes`` of the other, or -1; its rows then stay. None where the two differ in more than their classes.
    """
    before, each, after = layout
    size, other_size = before + len(table) * each + after, before + classes * each + after
    if own.shape[1:] != other.shape[1:] or len(own) % size or len(other) % other_size:
        return None
    if len(own) // size != len(other) // other_size:
        return None
    mine, theirs = own.clone().unflatten(0, (-1, size)), other.to(own).unflatten(0, (-1, other_size))
    mine[:, :before] = theirs[:, :before]
    mine[:, size - after :] = theirs[:, other_size - after :]
    for k, place in enumerate(table):
        if place >= 0:
            start, source = before + k * each, before + place * each
            mine[:, start : start + each] = theirs[:, source : source + each]
    return torch.flatten(mine, 0, 1)
