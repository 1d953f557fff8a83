"""What the default recipe reads off the labels: how long to train and how fast, and whether mosaics are made."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from detkit import zoo
from detkit.config.experiment import Config
from detkit.data.anchors import object_sizes
from detkit.data.annotations import Annotations
from detkit.data.names import match_classes
from detkit.printed import counted

_STEPS, _PASSES = 350, 6  # at least
_MANY = 1000  # images, from which on a step takes 16
_SMALL = 1 / 8  # of the image's side
_GENTLE = 1e-4  # rate where no class is new


def fitted(config: Config, annotations: Annotations) -> tuple[Config, list[str]]:
    """The default recipe with what these labels ask for; what an override gives stays.

    A few images need steps, not passes. A mosaic halves all objects: it is made where they are small anyhow; where they
    are large, it shows what never occurs. Classes that the detector knows need only be adjusted, at a low rate.

    Args:
        config: The recipe, with the user's overrides.
        annotations: Of the training set.

    Returns:
        The config, and a sentence on what was chosen and why; none where training starts from no detector.
    """
    if config.model["weights"] == "none":
        return config, []
    chosen: dict[str, dict[str, object]] = {"train": {}, "augment": {}}

    def take(section: str, key: str, value: Any) -> Any:
        if config.place.overridden((section, key)):
            return config.to_dict()[section][key]
        chosen[section][key] = value
        return value

    known = zoo.read_model_header(zoo.model_file(config.model["weights"]))["classes"]
    new = match_classes(annotations.classes, known).count(-1)
    if not new:
        take("train", "lr", _GENTLE)
        take("train", "backbone_lr", _GENTLE)
    images = min(config.train.limit or len(annotations.files), len(annotations.files))
    batch = take("train", "batch", 8 if images < _MANY else 16)
    steps = max(images // (batch * config.train.accumulate), 1)
    epochs = take("train", "epochs", max(math.ceil(_STEPS / steps), _PASSES))
    take("train", "validate_every", math.ceil(epochs / 10))
    sizes = object_sizes(annotations)
    side = float(np.median(np.sqrt((sizes.wh / sizes.side).prod(axis=1))))
    take("augment", "mosaic", 0.5 if side < _SMALL else 0.0)
    values = [f"{section}.{key}={value}" for section, keys in chosen.items() for key, value in keys.items()]
    size = f"objects of {side:.0%} of the side (median)"
    why = f"{counted(images, 'image')}, {counted(new, 'new class')}, {size}, {counted(epochs * steps, 'step')}"
    config = replace(config, train=replace(config.train, **chosen["train"]), augment=config.augment | chosen["augment"])
    return config, [f"chosen for {why}: {' '.join(values)}"] if values else []
