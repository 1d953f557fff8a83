"""Backbones: pictures in, feature maps of several strides out.

An entry returns a ``detkit.backbones.base.Backbone``; its keyword-only arguments are its keys in a config file.
"""

from __future__ import annotations

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_MOBILENETS = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")

BACKBONES = {
    "efficientnet_lite0": "detkit.backbones.efficientnet_lite:efficientnet_lite0",
    **{name: f"detkit.backbones.resnet:{name}" for name in _RESNETS},
    **{name: f"detkit.backbones.mobilenet:{name}" for name in _MOBILENETS},
}
