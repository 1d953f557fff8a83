"""Small Darknet nets of every kind: a cfg, and a weights file whose numbers never change."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detkit.importers.darknet import untrained
from detkit.importers.darknet_backbone import _darknet19, _darknet53

NAMES = ("cat", "dog", "ant")


def conv(filters: int, size: int = 3, stride: int = 1, activation: str = "leaky", **more: int) -> str:
    keys = {"filters": filters, "size": size, "stride": stride, "pad": 1, **more, "activation": activation}
    return "convolutional batch_normalize=1 " + " ".join(f"{key}={value}" for key, value in keys.items())


def predict(anchors: int, activation: str = "linear") -> str:
    return f"convolutional filters={anchors * 8} size=1 stride=1 pad=1 activation={activation}"


def yolo(mask: str, more: str = "") -> str:
    return f"yolo mask={mask} anchors=8,9,20,12,15,30,40,25,33,60,70,50 classes=3 num=6 ignore_thresh=.7 {more}"


# The passthrough of YOLOv2 (reorg), and its region layer.
V2 = [
    *(conv(8), "maxpool size=2 stride=2", conv(16), "maxpool size=2 stride=2", conv(16), "maxpool size=2 stride=2"),
    *(conv(24), "route layers=-3", conv(4, 1), "reorg stride=2", "route layers=-1,-4", conv(24), predict(2)),
    "region anchors=0.6,0.7,1.9,2.1 classes=3 coords=4 num=2 softmax=1 rescore=1 thresh=.6 bias_match=1 absolute=1",
]
# Residual blocks and two levels joined by an upsampled route; "head" of v3.
V3 = [
    *(conv(8), conv(12, stride=2), conv(6, 1), conv(12), "shortcut from=-3 activation=linear"),
    *(conv(16, stride=2), conv(8, 1), conv(16), "shortcut from=-3 activation=linear"),
    *(conv(24, stride=2), conv(12, 1), conv(24), "shortcut from=-3 activation=leaky", conv(12, 1), conv(20)),
    *(predict(3), yolo("3,4,5"), "route layers=-4", conv(8, 1), "upsample stride=2", "route layers=-1,8"),
    *(conv(16), predict(3), yolo("0,1,2")),
]
# The pool of size 2 and stride 1, and two levels that share an anchor.
V3_TINY = [
    *(conv(8), "maxpool size=2 stride=2", conv(12), "maxpool size=2 stride=2", conv(16), "maxpool size=2 stride=2"),
    *(conv(24), "maxpool size=2 stride=1", conv(24), conv(12, 1), conv(24), predict(3), yolo("3,4,5")),
    *("route layers=-4", conv(8, 1), "upsample stride=2", "route layers=-1,4", conv(16), predict(3), yolo("1,2,3")),
]
# Mish, CSP, SPP and a path back down: three levels, finest first, each with its own scale_x_y.
V4 = [
    *(conv(8, activation="mish"), conv(12, stride=2, activation="mish"), conv(6, 1, activation="mish")),
    *("route layers=-2", conv(6, 1, activation="mish"), conv(6, activation="mish"), "shortcut from=-2"),
    *("route layers=-1,-5", conv(12, 1, activation="mish"), conv(16, stride=2), conv(20, stride=2), conv(10, 1)),
    *("maxpool stride=1 size=5", "route layers=-2", "maxpool stride=1 size=9", "route layers=-4"),
    *("maxpool stride=1 size=13", "route layers=-1,-3,-5,-6", conv(10, 1), conv(8, 1), "upsample stride=2"),
    *("route layers=9", conv(8, 1), "route layers=-1,-3", conv(10, 1), conv(8, 1), "upsample stride=2"),
    *(
        "route layers=8",
        conv(8, 1),
        "route layers=-1,-3",
        conv(10),
        predict(2),
        yolo("0,1", "scale_x_y=1.2 iou_loss=ciou"),
    ),
    *("route layers=-3", conv(10, stride=2), "route layers=-1,24", conv(12), predict(2), yolo("2,3", "scale_x_y=1.1")),
    *("route layers=-3", conv(10, stride=2), "route layers=-1,18", conv(12), predict(2), yolo("4,5", "scale_x_y=1.05")),
]
# Half of the channels routed on, groups in a convolution, relu and swish.
V4_TINY = [
    *(conv(8, stride=2), conv(16, stride=2, activation="relu"), conv(16), "route layers=-1 groups=2 group_id=1"),
    *(conv(8, activation="swish"), conv(8), "route layers=-1,-2", conv(16, 1), "route layers=-6,-1"),
    *(
        "maxpool size=2 stride=2",
        conv(32, groups=4),
        "dropout probability=.3",
        predict(3),
        yolo("3,4,5", "scale_x_y=1.05"),
    ),
    *(
        "route layers=-3",
        conv(8, 1),
        "upsample stride=2",
        "route layers=-1,-9",
        predict(3),
        yolo("1,2,3", "scale_x_y=1.05"),
    ),
]
# The newer code of boxes: the convolution is logistic.
NEW_COORDS = [
    *(conv(8, stride=2, activation="swish"), conv(16, stride=2, activation="mish"), predict(3, "logistic")),
    yolo("0,1,2", "new_coords=1 scale_x_y=2.0 label_smooth_eps=0.1"),
]
NETS = {"v2": V2, "v3": V3, "v3_tiny": V3_TINY, "v4": V4, "v4_tiny": V4_TINY, "new_coords": NEW_COORDS}


def _predict80(anchors: int) -> str:
    return f"convolutional filters={anchors * 85} size=1 stride=1 pad=1 activation=linear"


def _yolo80(mask: str, count: int = 9) -> str:
    return f"yolo mask={mask} anchors={','.join(str(i + 5) for i in range(2 * count))} classes=80 num={count}"


def _block(filters: int, times: int) -> list[str]:
    """1 x 1 and 3 x 3 in turn, beginning with the first."""
    return [conv(filters, 1) if i % 2 == 0 else conv(2 * filters) for i in range(times)]


def _yolov2() -> list[str]:
    passthrough = ["route layers=-9", conv(64, 1), "reorg stride=2", "route layers=-1,-4", conv(1024)]
    end = "region anchors=1,1,2,2,3,3,4,4,5,5 classes=80 coords=4 num=5 softmax=1"
    return [*_darknet19(), conv(1024), conv(1024), *passthrough, _predict80(5), end]


def _yolov3() -> list[str]:
    lines = [*_darknet53()]
    for filters, route, mask in ((512, 61, "6,7,8"), (256, 36, "3,4,5"), (128, 0, "0,1,2")):
        lines += [*_block(filters, 6), _predict80(3), _yolo80(mask)]
        if route:
            lines += ["route layers=-4", conv(filters // 2, 1), "upsample stride=2", f"route layers=-1,{route}"]
    return lines


def _yolov3_tiny() -> list[str]:
    lines = [line for filters in (16, 32, 64, 128, 256) for line in (conv(filters), "maxpool size=2 stride=2")]
    lines += [
        conv(512),
        "maxpool size=2 stride=1",
        conv(1024),
        conv(256, 1),
        conv(512),
        _predict80(3),
        _yolo80("3,4,5", 6),
    ]
    lines += ["route layers=-4", conv(128, 1), "upsample stride=2", "route layers=-1,8", conv(256), _predict80(3)]
    return [*lines, _yolo80("1,2,3", 6)]


def _yolov4_tiny() -> list[str]:
    lines = [conv(32, stride=2), conv(64, stride=2)]
    for filters in (64, 128, 256):
        lines += [conv(filters), "route layers=-1 groups=2 group_id=1", conv(filters // 2), conv(filters // 2)]
        lines += ["route layers=-1,-2", conv(filters, 1), "route layers=-6,-1", "maxpool size=2 stride=2"]
    lines += [conv(512), conv(256, 1), conv(512), _predict80(3), _yolo80("3,4,5", 6), "route layers=-4", conv(128, 1)]
    return [*lines, "upsample stride=2", "route layers=-1,23", conv(256), _predict80(3), _yolo80("1,2,3", 6)]


def _yolov4() -> list[str]:
    def mish(filters: int, size: int = 3, stride: int = 1) -> str:
        return conv(filters, size, stride, "mish")

    lines = [mish(32), mish(64, stride=2), mish(64, 1), "route layers=-2", mish(64, 1), mish(32, 1), mish(64)]
    lines += ["shortcut from=-3", mish(64, 1), "route layers=-1,-7", mish(64, 1)]
    for filters, times in ((64, 2), (128, 8), (256, 8), (512, 4)):
        lines += [mish(2 * filters, stride=2), mish(filters, 1), "route layers=-2", mish(filters, 1)]
        lines += [mish(filters, 1), mish(filters), "shortcut from=-3"] * times
        lines += [mish(filters, 1), f"route layers=-1,-{4 + 3 * times}", mish(2 * filters, 1)]
    pools = [
        word
        for i, size in enumerate((5, 9, 13))
        for word in (f"maxpool stride=1 size={size}", f"route layers=-{2 * i + 2}")
    ]
    lines += [*_block(512, 3), *pools[:-1], "route layers=-1,-3,-5,-6", *_block(512, 3)]
    for filters, route in ((256, 85), (128, 54)):
        lines += [
            conv(filters, 1),
            "upsample stride=2",
            f"route layers={route}",
            conv(filters, 1),
            "route layers=-1,-3",
        ]
        lines += _block(filters, 5)
    lines += [conv(256), _predict80(3), _yolo80("0,1,2")]
    for filters, back, mask in ((256, 16, "3,4,5"), (512, 37, "6,7,8")):
        lines += ["route layers=-4", conv(filters, stride=2), f"route layers=-1,-{back}", *_block(filters, 6)]
        lines += [_predict80(3), _yolo80(mask)]
    return lines


_PUBLISHED = {
    "yolov2": _yolov2,
    "yolov3": _yolov3,
    "yolov3_tiny": _yolov3_tiny,
    "yolov4": _yolov4,
    "yolov4_tiny": _yolov4_tiny,
}


def cfg_text(lines: list[str], net: str = "width=96 height=64 channels=3") -> str:
    return "\n\n".join("\n".join([f"[{kind}]", *words]) for kind, *words in (x.split() for x in (f"net {net}", *lines)))


def write_weights(cfg: Path, names: Path, path: Path, header: bytes = struct.pack("<3iQ", 0, 2, 5, 1234)) -> np.ndarray:
    """Weights in Darknet's order: per convolution biases, scales, means, variances, weights."""
    rng = np.random.RandomState(0)
    parts = []
    for _, (layer, norm) in sorted(untrained(cfg, names)[1].items()):
        parts.append(0.1 * rng.randn(layer.out_channels))
        if norm is not None:
            parts += [1 + 0.1 * rng.randn(layer.out_channels), 0.1 * rng.randn(layer.out_channels)]
            parts.append(0.5 + rng.rand(layer.out_channels))
        parts.append(rng.randn(layer.weight.numel()) * (2 / layer.weight[0].numel()) ** 0.5)
    values = np.concatenate(parts).astype("<f4")
    path.write_bytes(header + values.tobytes())
    return values


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], tuple[Path, Path, Path]]:
    """The cfg, weights and names of one of ``NETS``."""

    def write(name: str) -> tuple[Path, Path, Path]:
        cfg, weights, names = tmp_path / f"{name}.cfg", tmp_path / f"{name}.weights", tmp_path / "names.txt"
        cfg.write_text(cfg_text(NETS[name]))
        names.write_text("\n".join(NAMES) + "\n")
        write_weights(cfg, names, weights)
        return cfg, weights, names

    return write


@pytest.fixture
def published(tmp_path: Path) -> Callable[[str], Path]:
    """The cfg of a published net in its full size, as its paper and its file's length tell it."""

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.cfg"
        path.write_text(cfg_text(_PUBLISHED[name](), "width=416 height=416 channels=3"))
        return path

    return write
