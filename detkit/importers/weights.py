"""Weights of other programs put into a detector: by their names, or, where each BatchNorm was folded into its
convolution, in the order of the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit.backbones.pretrained import read_state
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.io.sources import Frame, open_sources
from detkit.printed import counted
from detkit.structures import Sample

Tell = Callable[[str], None]
_MEASURED = 256  # images are enough for statistics of BatchNorm: they hardly move from 200 on


class Folded(NamedTuple):
    """A convolution as deployed: filters (out, in / groups, height, width) float32 and biases (out,), or None."""

    filters: np.ndarray
    bias: np.ndarray | None


def read_checkpoint(path: Path, *keys: str) -> dict[str, Tensor]:
    """The tensors by name in a torch file, those under the first of ``keys`` that it has; nothing is executed.

    Raises:
        DetkitError: No such file, one that cannot be read, or that holds no tensors.
    """
    if not path.is_file():
        raise DetkitError("there is no such file", str(path), "check the path")
    state: dict[str, Any] = read_state(path)
    state = next((state[key] for key in keys if isinstance(state.get(key), dict)), state)
    tensors = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DetkitError("the file holds no tensors by name", str(path), "give the file of weights as published")
    return tensors


def rename_keys(
    state: Mapping[str, Tensor], beginnings: Mapping[str, str], words: Mapping[str, str], unused: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Tensors under detkit's names.

    Args:
        state: Theirs by name.
        beginnings: What names begin with, theirs and ours; the rest of a name follows a dot.
        words: Parts of that rest, dots included, that change, one after the other.
        unused: Beginnings of what is left out.

    Returns:
        Names that begin with nothing known stay as they are.
    """
    found = {}
    for key, value in state.items():
        if key.startswith(tuple(unused)):
            continue
        begin = next((begin for begin in beginnings if key.startswith(f"{begin}.")), "")
        rest = key.removeprefix(begin)
        for theirs, ours in words.items() if begin else ():
            rest = rest.replace(theirs, ours)
        found[beginnings.get(begin, begin) + rest] = value
    return found


def fill(detector: Detector, found: Mapping[str, Tensor], path: Path, family: str) -> None:
    """Gives a detector all of its tensors but the normalisation of pixels.

    Args:
        detector: Of the published layout.
        found: Tensors by the detector's names; no others.
        path: Where they are from, for errors.
        family: Whose file it should be, for errors.

    Raises:
        DetkitError: One is missing, of another shape, not finite, or too many.
    """
    own = {name: value for name, value in detector.state_dict().items() if name not in ("mean", "std")}
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    faults = (
        ("does not hold", [name for name in needed if name not in found]),
        ("also holds", [name for name in found if name not in own]),
        ("holds in another shape", [n for n in own if n in found and own[n].shape != found[n].shape]),
        ("holds numbers that are not finite in", [n for n in needed if n in found and not found[n].isfinite().all()]),
    )
    for words, names in faults:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            what = f"this is no file of {family}: it {words} {names[0]}{more}"
            raise DetkitError(what, str(path), "give the whole file as published")
    detector.load_state_dict({**detector.state_dict(), **found})


class Layer(NamedTuple):
    """A convolution and the BatchNorm that reads it, if one does."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None


@torch.no_grad()
def layers_of(detector: Detector) -> list[Layer]:
    """The convolutions of a detector in the order in which it computes them."""
    found: list[Layer] = []
    outputs: list[Tensor] = []  # kept, so that no address is used twice
    names = {module: name for name, module in detector.named_modules()}

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            found.append(Layer(names[module], module, None))
            outputs.append(output)
        elif isinstance(module, nn.BatchNorm2d) and inputs[0] is outputs[-1]:
            found[-1] = found[-1]._replace(norm=module)

    hooks = [m.register_forward_hook(after) for m in detector.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    side = 2 * detector.resize.stride  # the smallest will do
    detector.eval().raw(torch.zeros(1, 3, side, side, device=detector.device))
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def fill_folded(detector: Detector, folded: Sequence[Folded], path: Path, family: str) -> None:
    """Gives a detector weights into which BatchNorm was folded; its own BatchNorms then only add the biases.

    Args:
        detector: Of the published layout.
        folded: In the order of computation.
        path: Where they are from, for errors.
        family: Whose file it should be, for errors.

    Raises:
        DetkitError: Another number of convolutions, another shape, or numbers that are not finite.
    """
    layers, do = layers_of(detector), "give a file as published"
    if len(layers) != len(folded):
        what = f"this is no file of {family}: {len(folded)} convolutions, not {len(layers)}"
        raise DetkitError(what, str(path), do)
    for number, (layer, (filters, bias)) in enumerate(zip(layers, folded, strict=True), 1):
        shape = tuple(layer.conv.weight.shape)
        finite = np.isfinite(filters).all() and (bias is None or np.isfinite(bias).all())
        if shape != filters.shape or not finite:
            held = f"is {filters.shape}, not {shape}" if shape != filters.shape else "holds numbers that are not finite"
            what = f"this is no file of {family}: its convolution {number} ({layer.name}) {held}"
            raise DetkitError(what, str(path), do)
        layer.conv.weight.copy_(torch.from_numpy(filters.copy()))
        shift = torch.zeros(len(filters)) if bias is None else torch.from_numpy(bias.copy())
        if layer.norm is None:
            assert layer.conv.bias is not None
            layer.conv.bias.copy_(shift)
        else:
            statistics = layer.norm.running_mean, layer.norm.running_var
            values = ((statistics[0], 0.0), (statistics[1], 1 - layer.norm.eps), (layer.norm.weight, 1.0))
            for tensor, value in values:
                assert tensor is not None
                tensor.fill_(value)
            layer.norm.bias.copy_(shift)


def restore_norms(detector: Detector, images: str | Path | None, tell: Tell) -> None:
    """Puts the BatchNorms of folded weights back: their statistics are measured on images, and what the detector
    answers stays.

    Args:
        detector: After ``fill_folded``.
        images: A folder, or what else ``detkit.io.sources`` opens; None: nothing is measured.
        tell: Told what was done.

    Raises:
        DetkitError: None of the images can be read.
    """
    if images is None:
        tell(
            "BatchNorm is folded into this file's convolutions and is put back as one that only adds: detecting is "
            "exact, but training must leave it as it is (train.freeze_norms); --images FOLDER measures its statistics"
        )
        return
    frames = list(islice(open_sources(str(images)), _MEASURED))
    good = [frame.image for frame in frames if isinstance(frame, Frame)]
    if not good:
        raise DetkitError("no image could be read to measure BatchNorm on", str(images), "give a folder of photos")
    _measure(detector, good)
    failed = f" ({len(frames) - len(good)} could not be read)" if len(good) < len(frames) else ""
    tell(f"BatchNorm is put back with statistics of {counted(len(good), 'image')}{failed}; the answers stay the same")


def tell_unused(images: str | Path | None, tell: Tell) -> None:
    """Says, where images are given, that this file needs none."""
    if images is not None:
        tell("this file has BatchNorms of its own, so --images is not looked at")


@torch.no_grad()
def _measure(detector: Detector, images: Sequence[np.ndarray], batch: int = 8) -> None:
    """With mean m and variance v of what a BatchNorm reads, and y = g (x - m0) / s0 + b before, its new numbers are

    gamma = g / s0 * sqrt(v + eps), beta = b + g / s0 * (m - m0): one pass does for all layers, since no output changes.
    """
    norms = [layer.norm for layer in layers_of(detector) if layer.norm is not None]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        var, mean = (value.double().cpu() for value in torch.var_mean(x, (0, 2, 3), correction=0))
        count = x.numel() / x.shape[1]
        sums[norm] += count * torch.stack((torch.ones_like(mean), mean, var + mean.square()))  # type: ignore[index]

    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    for start in range(0, len(images), batch):
        detector.eval().raw(detector.batch_of([Sample(image) for image in images[start : start + batch]]).pixels)
    for hook in hooks:
        hook.remove()
    for norm, (count, first, second) in sums.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = first / count
        var = (second / count - mean.square()).clamp(min=0)
        slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        norm.bias.copy_(norm.bias.double() + slope * (mean - norm.running_mean.double()))
        norm.weight.copy_(slope * (var + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
