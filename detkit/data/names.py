"""COCO's class names with its own ids, and other spellings of the same things."""

from __future__ import annotations

from collections.abc import Sequence

from detkit.errors import DetkitError, some
from detkit.tables import canonical

_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - "
    "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
# COCO's ids begin at 1 and leave out eleven numbers.
COCO_IDS = {name.replace("_", " "): i for i, name in enumerate(_NAMES.split(), 1) if name != "-"}
COCO_CLASSES = tuple(COCO_IDS)


def ids_of(names: Sequence[str]) -> tuple[int, ...]:
    """COCO's ids where these are COCO's classes in COCO's order, else 0, 1, 2, ..."""
    if tuple(canonical(name) for name in names) == COCO_CLASSES:
        return tuple(COCO_IDS.values())
    return tuple(range(len(names)))


def match_classes(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """For each of ``names`` the place of the same class in ``wanted``, by name or another spelling of it; -1: none."""
    spelt = {canonical(name): i for i, name in reversed(list(enumerate(wanted)))}
    exact = {name: i for i, name in reversed(list(enumerate(wanted)))}
    return [exact.get(name, spelt.get(canonical(name), -1)) for name in names]


def match_some(who: str, names: Sequence[str], others: str, wanted: Sequence[str], where: str, do: str) -> list[int]:
    """``match_classes(names, wanted)``; DetkitError where there are classes, and none in common.

    Args:
        who: Who has ``names``, with the verb: "the model knows".
        names: Class names.
        others: Who has ``wanted``: "the data".
        wanted: Class names.
        where: As ``DetkitError``'s.
        do: As ``DetkitError``'s.
    """
    table = match_classes(names, wanted)
    if max(table, default=-1) < 0:
        raise DetkitError(f"{who} {some(names)}, {others} {some(wanted)}: no class in common", where, do)
    return table


def explain_match(model: Sequence[str], data: Sequence[str]) -> list[str]:
    """Sentences on how a model's classes were matched with the data's; none where they are the same."""
    table = match_classes(model, data)
    renamed = [f"{name} as {data[i]}" for name, i in zip(model, table, strict=True) if i >= 0 and name != data[i]]
    unknown = [name for i, name in enumerate(data) if i not in table]
    extra = [name for name, i in zip(model, table, strict=True) if i < 0]
    notes = []
    if renamed:
        notes.append(f"classes matched by another spelling: {', '.join(renamed)}")
    if unknown:
        notes.append(f"the model does not know {', '.join(unknown)}: every such object counts as missed")
    if extra:
        notes.append(f"left out, since the data does not have them: {some(extra)}")
    return notes
