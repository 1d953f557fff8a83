"""Necks: a list of feature maps in, a list of feature maps out.

``Neck(channels, strides, *, ...)`` has ``channels`` and ``strides`` of its own; the keyword-only arguments are its keys
in a config file.
"""

from __future__ import annotations

NECKS = {
    "identity": "detkit.necks.identity:Identity",
    "fpn": "detkit.necks.fpn:FPN",
    "ghost_pan": "detkit.necks.ghost_pan:GhostPAN",
    "pafpn": "detkit.necks.pafpn:PAFPN",
}
