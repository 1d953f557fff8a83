"""Backbones: images in, feature maps of several strides out.

An entry returns a ``detkit.backbones.base.Backbone``; its keyword-only arguments are its keys in a config file.
"""

from __future__ import annotations

# A family's module has its name, if it is not one of those below.
FAMILIES: dict[str, tuple[str, ...]] = {
    "efficientnet_lite": ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    "mobilenet": ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    "shufflenet": ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    "resnet": (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),  # for small images
    ),
    "densenet": ("densenet121", "densenet169", "densenet201"),
    "googlenet": ("googlenet",),
    "vgg": ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    "darknet": ("darknet19", "darknet53", "darknet"),
    "csp_darknet": ("csp_darknet",),
    "nin": ("nin", "nin_cifar"),
    "alexnet": ("alexnet", "alexnet_2012"),
    "lenet": ("lenet5", "lenet5_1998", "lenet_textbook"),
    "identity": ("identity",),
}

_MODULES = {
    **dict.fromkeys(("mobilenet", "densenet", "vgg", "alexnet"), "detkit.backbones.torchvision"),
    "darknet": "detkit.importers.darknet_backbone",  # from Darknet's files, so it lies with their importer
}
BACKBONES = {
    name: f"{_MODULES.get(family, f'detkit.backbones.{family}')}:{name}"
    for family, names in FAMILIES.items()
    for name in names
}
