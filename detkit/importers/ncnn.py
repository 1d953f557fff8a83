"""Reads the convolutions of an ncnn model, a ``.param`` and a ``.bin`` file (github.com/Tencent/ncnn), without ncnn.

The ``.param`` file is text: a magic number, the numbers of layers and blobs, then a layer on each line, ``type name
inputs outputs names... key=value ...``, where keys from -23300 down are arrays, ``count,value,...``. The ``.bin`` file
holds the layers' weights in that order, little endian: of a convolution a flag, its filters and, where key 5 is 1,
float32 biases.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detkit.errors import DetkitError
from detkit.importers.darknet_files import read_file, read_text
from detkit.importers.weights import Folded

_MAGIC = "7767517"
_HALF, _SINGLE = 0x01306B47, (0, 0x0002C056)  # flags: float16, padded to whole words; float32
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
_OTHERS = (
    "Deconvolution",
    "DeconvolutionDepthWise",
    "InnerProduct",
    "BatchNorm",
    "Scale",
    "PReLU",
    "MemoryData",
    "Gemm",
)
_DO = "give the .param and .bin files that were made together"


def read_ncnn(param: Path, weights: Path) -> list[Folded]:
    """Filters and biases of the convolutions, in the graph's order, as float32.

    Args:
        param: The graph.
        weights: The numbers.

    Raises:
        DetkitError: No ncnn text file, a layer whose weights are not read, or files that do not belong together.
    """
    lines = read_text(param, "the .param file is text, the .bin file is not").splitlines()
    if not lines or lines[0].strip() != _MAGIC:
        raise DetkitError("this is no ncnn graph", str(param), f"a .param file begins with {_MAGIC}")
    data, at, found = read_file(weights), 0, []

    def take(kind: str, count: int, where: str) -> np.ndarray:
        nonlocal at
        end = at + count * np.dtype(kind).itemsize
        if count < 1 or end > len(data):
            raise DetkitError(f"the weights end before this layer: {len(data):,} bytes", f"{weights}, {where}", _DO)
        at, start = -(-end // 4) * 4, at
        return np.frombuffer(data, kind, count, start)

    for number, line in enumerate(lines[2:], 3):
        if not (words := line.split()):
            continue
        where = f"{param}, line {number}: {' '.join(words[:2])}"
        if words[0] in _OTHERS:
            raise DetkitError(f"weights of the layer {words[0]} are not read", where, "only convolutions may have some")
        if words[0] not in _CONVOLUTIONS:
            continue
        try:
            begin = 4 + int(words[2]) + int(words[3])
            keys = {int(key): value for key, _, value in (word.partition("=") for word in words[begin:])}
            filters, width, total = int(keys[0]), int(keys[1]), int(keys[6])
            height, groups, biased = int(keys.get(11, width)), int(keys.get(7, 1)), int(keys.get(5, 0))
            inputs, rest = divmod(total, filters * height * width)
        except (IndexError, KeyError, ValueError, ZeroDivisionError):
            raise DetkitError("this is no convolution of ncnn", where, "the file is damaged: fetch it again") from None
        if rest or filters % groups:
            what = f"{total} weights are no {filters} filters of {height} x {width} in {groups} groups"
            raise DetkitError(what, where, "the file is damaged: fetch it again")
        flag = int(take("<u4", 1, where)[0])
        if flag != _HALF and flag not in _SINGLE:
            what = f"numbers of the kind {flag:#x} are not read"
            raise DetkitError(what, f"{weights}, {where}", f"float16 and float32 are; {_DO}")
        filters_of = take("<f2" if flag == _HALF else "<f4", total, where).reshape(filters, inputs, height, width)
        bias = take("<f4", filters, where) if biased else None
        found.append(Folded(filters_of.astype(np.float32), bias))
    if at != len(data):
        raise DetkitError(f"{len(data) - at:,} bytes follow the last layer", str(weights), _DO)
    return found
