"""A detector made ready to detect: each BatchNorm folded into the convolution before it.

In evaluation mode a BatchNorm multiplies and adds constants, and so can the convolution: one pass over the maps instead
of two (Jacob et al. 2018, arXiv 1712.05877, section 3.2). The model itself, what is trained and what is saved, stays as
it is; a second view of it computes with the folded weights.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from detkit.data.loader import collate
from detkit.detector import Detector
from detkit.devices import keep_freed_memory
from detkit.structures import Limits, Sample


def ready(detector: Detector) -> Detector:
    """A view of ``detector``, in evaluation mode, that finds the same, to rounding, and sooner.

    It shares all but the folded weights, which are made by one look at a grey image, and anew whenever a weight, a
    statistic, a setting or a part of those layers has changed (what is written through ``tensor.data`` is not seen;
    ``train()`` drops them). Layers with hooks stay as they are. Threads may share a detector.
    """
    folding: _Folding = vars(detector).setdefault("_folding", _Folding())
    return _copy(detector, _modules=folding.parts(detector))


class _Made(NamedTuple):
    """The folded children, the layers that they take the place of, and those layers' state then."""

    parts: dict[str, nn.Module | None]
    folded: list[nn.Module]
    copied: list[nn.Module]
    state: tuple[list[Any], list[int]]


class _Folding:
    """What a detector carries with it; a copied or unpickled one starts afresh."""

    made: _Made | None = None

    def __reduce__(self) -> tuple[type[_Folding], tuple[()]]:
        return _Folding, ()

    def parts(self, detector: Detector) -> dict[str, nn.Module | None]:
        """The detector's children by name, folded."""
        if (made := self.made) is not None:
            values, numbers = _state(detector, made.folded, made.copied)
            known, same = made.state
            if numbers == same and len(values) == len(known) and all(map(operator.is_, values, known)):
                return made.parts
        new = fold(detector)
        folded = list(new)
        parts = {name: _with(child, new) for name, child in detector._modules.items()}
        copied = [module for module, other in new.items() if module is not other and module not in folded]
        self.made = _Made(parts, folded, copied, _state(detector, folded, copied))
        return parts


def _state(detector: nn.Module, folded: list[nn.Module], copied: list[nn.Module]) -> tuple[list[Any], list[int]]:
    """All that the folded parts depend on: objects, to be compared by identity, and numbers."""
    values, numbers = list[Any](detector._modules.values()), list[int]()
    for module in copied:
        values += [*vars(module).values(), *module._modules.values()]
    for module in folded:
        tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        values += [*vars(module).values(), *tensors]
        numbers += len(module._forward_hooks), len(module._forward_pre_hooks)
        for tensor in tensors:
            numbers += 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()
    return values, numbers


def _copy(module: Any, **changes: Any) -> Any:
    """A shallow copy; unlike ``copy.copy`` also of modules that refuse to be pickled."""
    made = object.__new__(type(module))
    vars(made).update(vars(module), **changes)
    return made


def _with(module: nn.Module | None, new: dict[nn.Module, nn.Module]) -> nn.Module | None:
    """``module`` with the new layers in place of the old: copies of those that hold any, itself if it holds none."""
    if module is None:
        return None
    if module not in new:
        children = {name: _with(child, new) for name, child in module._modules.items()}
        new[module] = module
        if any(child is not module._modules[name] for name, child in children.items()):
            new[module] = _copy(module, _modules=children)
    return new[module]


def fold(detector: Detector) -> dict[nn.Module, nn.Module]:
    """What takes the place of each convolution and BatchNorm that can be one: a new convolution, an identity.

    They can where nothing but the one BatchNorm reads what the convolution computes, and it reads nothing else, however
    often both are called.
    """
    if detector.device.type == "cpu":
        keep_freed_memory()
    height, width = detector.resize.input_size
    grey = np.full((height, width, 3), 114, np.uint8)
    whole = np.array([[0, 0, width, height]], np.float32)
    batch = collate([Sample(grey, proposals=whole)], detector.resize)[0].to(detector.device)
    # Folded weights that were made in inference mode could not be copied or saved outside of it.
    with torch.inference_mode(False), torch.no_grad():
        with _Reads(detector) as reads:
            _bare(detector, {})(batch, limits=Limits(conf=0.0))
        new: dict[nn.Module, nn.Module] = {}
        for conv, norm in reads.pairs():
            new[conv], new[norm] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return new


def _bare(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """The same weights in modules without hooks: a grey image is nothing that those who hung them want to see."""
    if module not in made:
        children = {name: child if child is None else _bare(child, made) for name, child in module._modules.items()}
        hooks = {name: OrderedDict[int, Any]() for name in ("_forward_hooks", "_forward_pre_hooks")}
        made[module] = _copy(module, _modules=children, **hooks)
    return made[module]


@dataclass
class _Output:
    """What one call of a convolution computed: by whom it was read, and how often."""

    conv: nn.Conv2d
    norm: nn.Module | None = None
    reads: int = 0


class _Reads(TorchDispatchMode):
    """Sees which convolution's output is read by what."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._convs, self._norms = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._open = WeakTensorKeyDictionary()
        self._outputs: list[_Output] = []
        self._sources: dict[nn.Module, set[nn.Module | None]] = {}  # what each BatchNorm has read
        for module in model.modules():
            if module.training or module._forward_hooks or module._forward_pre_hooks:
                continue
            if isinstance(module, nn.Conv2d):
                # Of several convolutions with the same weight tensor none is known.
                self._convs[module.weight] = None if module.weight in self._convs else module
            elif type(module).forward is _BatchNorm.forward and module.running_mean is not None:
                self._norms[module.running_mean] = module

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what torch does by default imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if (output := self._open.get(tensor)) is not None:
                output.reads += 1
            if (norm := self._norms.get(tensor)) is not None:
                source = self._open.get(args[0])
                self._sources.setdefault(norm, set()).add(source and source.conv)
                if source is not None:
                    source.norm = norm
        result = func(*args, **(kwargs or {}))
        conv = self._convs.get(args[1]) if func is torch.ops.aten.convolution.default else None
        if conv is not None and args[2] is conv.bias:
            self._open[result] = output = _Output(conv)
            self._outputs.append(output)
        return result

    def pairs(self) -> list[tuple[nn.Conv2d, Any]]:
        """Each convolution and BatchNorm that read only one another."""
        readers: dict[nn.Conv2d, set[nn.Module | None]] = {}
        for output in self._outputs:
            readers.setdefault(output.conv, set()).add(output.norm if output.reads == 1 else None)
        return [
            (conv, norm)
            for conv, (norm, *others) in readers.items()
            if norm is not None and not others and self._sources[norm] == {conv}
        ]
