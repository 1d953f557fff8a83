"""Heads: from features to losses and detections. A new one is its own file and a line here."""

from __future__ import annotations

HEADS = {"yolo": "detkit.heads.yolo:YOLO"}
