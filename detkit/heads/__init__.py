"""Heads: from features to losses and detections. A new one is its own file and a line here."""

from __future__ import annotations

HEADS = {
    "aligned": "detkit.heads.aligned:Aligned",
    "classify": "detkit.heads.image:Classify",
    "embed": "detkit.heads.embed:Embed",
    "frame_order": "detkit.heads.pretext:FrameOrder",
    "localize": "detkit.heads.image:Localize",
    "roi": "detkit.heads.roi:RoIHead",
    "rotation": "detkit.heads.pretext:Rotation",
    "simclr": "detkit.heads.pretext:SimCLR",
    "segment": "detkit.heads.segment:Segment",
    "sliding_window": "detkit.heads.sliding_window:SlidingWindow",
    "yolo": "detkit.heads.yolo:YOLO",
}
