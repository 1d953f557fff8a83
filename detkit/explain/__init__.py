"""What a network looks at and is made of: filters, maps, patches, Grad-CAM, edges, and its layers as a table.

Names are imported when they are first used.
"""

from __future__ import annotations

from detkit.lazy import lazy_names

_PLACES = {
    ".drawings": ("Drawing", "draw_cam", "draw_edges", "draw_filters", "draw_maps", "draw_patches"),
    ".edges": ("EDGE_FILTERS", "filter_response", "learn_filter"),
    ".features": ("cut_patches", "find_peaks", "first_filters", "published_network", "stage_maps", "stages_of"),
    ".gradcam": ("grad_cam",),
    ".describe": ("describe_model",),
    ".summary": ("Summary", "summarise_backbone", "summarise_config", "summarise_detector", "summarise_file"),
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
__all__ = __dir__()
