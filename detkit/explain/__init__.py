"""What a network looks at and is made of: filters, maps, patches, Grad-CAM, edges, and its layers as a table.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib

_PLACES = {
    "drawings": ("Drawing", "draw_cam", "draw_edges", "draw_filters", "draw_maps", "draw_patches"),
    "edges": ("EDGE_FILTERS", "filter_response", "learn_filter"),
    "features": ("cut_patches", "find_peaks", "first_filters", "stage_maps", "stages_of"),
    "gradcam": ("grad_cam",),
    "describe": ("Description", "describe_model"),
    "published": ("published_network",),
    "summary": ("Summary", "summarise_backbone", "summarise_config", "summarise_detector", "summarise_file"),
}
__all__ = [name for names in _PLACES.values() for name in names]


def __getattr__(name: str) -> object:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"detkit.explain.{module}"), name)
    raise AttributeError(f"module 'detkit.explain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
