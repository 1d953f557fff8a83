"""Experiments: YAML and overrides, checked, and what is built from them. One file is one complete experiment.

Names are imported when they are first used: reading YAML needs no torch, building does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "Config": "detkit.config.experiment",
    "EvaluateOptions": "detkit.config.experiment",
    "read_config": "detkit.config.experiment",
    "shipped": "detkit.config.experiment",
    "shipped_configs": "detkit.config.experiment",
    "build_dataset": "detkit.config.datasets",
    "train_val_datasets": "detkit.config.datasets",
    "anchors_for": "detkit.config.anchors",
    "build_detector": "detkit.config.build",
    "load_detector": "detkit.config.build",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from detkit.config.anchors import anchors_for as anchors_for
    from detkit.config.build import build_detector as build_detector
    from detkit.config.build import load_detector as load_detector
    from detkit.config.datasets import build_dataset as build_dataset
    from detkit.config.datasets import train_val_datasets as train_val_datasets
    from detkit.config.experiment import Config as Config
    from detkit.config.experiment import EvaluateOptions as EvaluateOptions
    from detkit.config.experiment import read_config as read_config
    from detkit.config.experiment import shipped as shipped
    from detkit.config.experiment import shipped_configs as shipped_configs


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'detkit.config' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
