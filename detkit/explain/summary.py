"""What a network is made of: shapes, parameters, multiply-adds, receptive fields and strides, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from detkit.errors import DetkitError

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a layer. name: of the module; kind: its class, kernel/stride and groups; output: without the batch,
    (H, W, C) of a map; parameters: 0 in a layer's later calls; receptive_field, stride: of an output cell in input
    pixels, along the longer side; first_centre: of cell 0, in input pixels.

    A layer that reads the whole map is a cell with the map's field. The gates of squeeze-and-excitation are left out of
    receptive fields: through them every cell sees a little of the whole image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: float
    stride: float
    first_centre: float


@dataclass(frozen=True, slots=True)
class Summary:
    """input: (H, W, C); layers: those that have weights, or change the shape or the receptive field; total: parameters,
    multiply_adds, layers (those with weights, without normalisation), depth (convolutions and matrix products on the
    longest path); of a detector with proposals also regions (the most of an image, 0: no limit) and
    region_multiply_adds, of one of them: ``layers`` shows one, multiply_adds counts all (one where there is no limit).
    """

    input: tuple[int, int, int]
    layers: list[Layer]
    total: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``detkit info --json`` prints them."""
        return asdict(self)


class Field(NamedTuple):
    """What a cell sees: size and stride in input pixels, the centre of cell 0, and the layers on the longest path."""

    size: float = 1.0
    stride: float = 1.0
    centre: float = 0.5
    depth: int = 0

    def window(self, kernel: float, step: float = 1.0, padding: float = 0.0) -> Field:
        """After a window of ``kernel`` cells that moves by ``step``, ``padding`` cells before the first."""
        shift = ((kernel - 1) / 2 - padding) * self.stride
        return Field(self.size + (kernel - 1) * self.stride, self.stride * step, self.centre + shift, self.depth)


def summarise(network: nn.Module, size: tuple[int, int], run: Callable[[Tensor], Any] | None = None) -> Summary:
    """The layers that ``run`` (the network itself by default) calls for one image of ``size`` height, width.

    Works on the meta device, where nothing is computed.
    """
    tracer = Tracer()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = torch.zeros((1, 3, *size), device=device)
    tracer.fields[pixels] = Field()
    leaves = [(name, module) for name, module in network.named_modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(tracer.after(name)) for name, module in leaves]
    handles += [module.register_forward_pre_hook(tracer.before) for _, module in leaves]
    try:
        with torch.no_grad(), tracer:
            (run or network)(pixels)
    finally:
        for handle in handles:
            handle.remove()
    weighted = [m for _, m in leaves if _own(m) and not isinstance(m, _NORMS)]
    total = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": tracer.multiply_adds,
        "layers": len(weighted),
        "depth": tracer.depth,
    }
    return Summary((*size, 3), tracer.layers, total)


def of_backbone(name: str, size: tuple[int, int] | None = None, num_classes: int | None = None) -> Summary:
    """The classifier on the backbone ``name``, as published where size or number of classes are not given.

    Raises:
        DetkitError: an image too small for it.
    """
    from detkit.backbones import BACKBONES

    module, attribute = BACKBONES[name].split(":")
    with torch.device("meta"):
        network = getattr(import_module(module), attribute)(num_classes or 0)
    return _checked(network, size or (network.backbone.size,) * 2)


def of_config(path_or_name: str, size: tuple[int, int] | None = None, num_classes: int | None = None) -> Summary:
    """The detector of a config, whose data need not be there: for ``num_classes``, or its ``data.classes``, or 80.

    Raises:
        DetkitError: as ``detkit.config.experiment.read_config``; an image too small for it.
    """
    from detkit.config.build import build_detector
    from detkit.config.experiment import read_config
    from detkit.engine.options import TrainOptions

    config = read_config(path_or_name, train_schema=TrainOptions)
    model, named = config.model, config.data["classes"]
    model["weights"] = "none"
    for part in ("backbone", "proposals"):
        if model[part] and "weights" in model[part]:
            model[part]["weights"] = "none"
    classes = [str(k) for k in range(num_classes or len(named or range(80)))]
    count = model["head"].get("anchors_per_level", 1) * len(model["backbone"]["taps"])
    with torch.device(_device(model["proposals"])):
        detector = build_detector(config, classes, anchors=[[8.0, 8.0]] * count)
    return of_detector(detector, size)


def of_file(path: str, size: tuple[int, int] | None = None) -> Summary:
    """The detector in a model file or run folder. Raises DetkitError as ``detkit.load``."""
    from detkit.config.build import load_detector

    detector = load_detector(path)
    return of_detector(detector.to(_device(detector.proposals)), size)


def facts(predictor: Any) -> dict[str, Any]:
    """A predictor's classes (their number), parameters, device and threads; a Detector's input and multiply_adds."""
    found: dict[str, Any] = {"classes": len(predictor.classes)}
    network = getattr(predictor, "model", predictor)
    if isinstance(network, nn.Module):
        found["parameters"] = sum(p.numel() for p in network.parameters())
        found |= {"device": str(next(network.parameters()).device), "threads": torch.get_num_threads()}
    if hasattr(predictor, "features"):
        height, width = predictor.resize.input_size
        total = of_detector(predictor).total
        found |= {"input": f"{width} x {height}", "multiply_adds": total["multiply_adds"]}
    return found


def of_detector(detector: Any, size: tuple[int, int] | None = None) -> Summary:
    """A detector for an image of ``size``, by default its own input's.

    Raises:
        DetkitError: an image too small for it.
    """

    def run(pixels: Tensor) -> None:
        features, regions = detector.features(pixels), None
        if detector.proposals is not None:
            if isinstance(detector.proposals, nn.Module):
                detector.proposals(features)
            height, width = pixels.shape[-2:]
            regions = [pixels.new_tensor([[0, 0, width, height]])]
        detector.head.raw(features, regions)

    summary = _checked(detector, size or detector.resize.input_size, run)
    proposals: Any = detector.proposals
    if proposals is not None:
        regions = proposals.max_proposals
        each = sum(layer.multiply_adds for layer in summary.layers if layer.name.startswith("head."))
        summary.total.update(regions=regions, region_multiply_adds=each)
        summary.total["multiply_adds"] += max(regions - 1, 0) * each
    return summary


def _device(proposals: Any) -> str:
    """Regions are cut out of real maps; everything else is only counted."""
    return "cpu" if proposals else "meta"


def _checked(network: nn.Module, size: tuple[int, int], run: Callable[[Tensor], Any] | None = None) -> Summary:
    try:
        return summarise(network.eval(), size, run)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        what = f"the network does not take an image of {size[0]} x {size[1]} pixels: {reason}"
        raise DetkitError(what, "--input", "give a larger one, such as 224x224x3") from None


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


class Tracer(TorchDispatchMode):
    """Follows every operation: counts its multiply-adds, and carries the field of its inputs to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: Any = WeakTensorKeyDictionary()
        self.layers: list[Layer] = []
        self.multiply_adds = self.depth = 0
        self._began: list[tuple[int, Field, int]] = []
        self._counted: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what torch does by default imports its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        operation = func.overloadpacket
        field, source = self.merged((args, kwargs))
        if operation in flop_registry:
            self.multiply_adds += flop_registry[operation](*args, **kwargs, out_val=out) // 2
            field = field._replace(depth=field.depth + 1)
            self.depth = max(self.depth, field.depth)
        if source is not None:
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self.fields[tensor] = _through(operation, args, field, source, tensor)
        return out

    def merged(self, values: Any) -> tuple[Field, Tensor | None]:
        """The field of the largest maps among ``values``, and the first of them; gates of 1 x 1 are smaller."""
        known = [v for v in tree_leaves(values) if isinstance(v, Tensor) and v in self.fields]
        if not known:
            return Field(), None
        cells = max(_cells(v) for v in known)
        largest = [v for v in known if _cells(v) == cells]
        fields = [self.fields[v] for v in largest]
        # Of maps that are joined the widest field; their strides and centres agree.
        size, depth = max(f.size for f in fields), max(f.depth for f in fields)
        return fields[0]._replace(size=size, depth=depth), largest[0]

    def before(self, module: nn.Module, inputs: Any) -> None:
        field, source = self.merged(inputs)
        self._began.append((self.multiply_adds, field, 0 if source is None else source.numel()))

    def after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that notes the layer ``name``."""

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            begun, field_before, numbers = self._began.pop()
            field, tensor = self.merged(output)
            if tensor is None:
                return
            parameters = 0 if id(module) in self._counted else _own(module)
            self._counted.add(id(module))
            added = self.multiply_adds - begun
            if _own(module) or added or tensor.numel() != numbers or field.size != field_before.size:
                shape = tuple(tensor.shape[1:])
                shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
                numbers_of_field = (field.size, field.stride, field.centre)
                self.layers.append(Layer(name, _kind(module), shape, parameters, added, *numbers_of_field))

        return note


def _kind(module: nn.Module) -> str:
    """The class, and of a convolution or pooling the kernel, the stride behind a slash and the groups."""
    words = [type(module).__name__]
    kernel, stride = getattr(module, "kernel_size", None), getattr(module, "stride", 1)
    if kernel is not None:
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        step = stride[-1] if isinstance(stride, tuple) else stride
        words.append(f"{high}x{wide}" + (f"/{step}" if step > 1 else ""))
    if getattr(module, "groups", 1) > 1:
        words.append(f"groups {module.groups}")
    return " ".join(words)


def _cells(tensor: Tensor) -> int:
    return math.prod(tensor.shape[-2:]) if tensor.ndim == 4 else 1


def _through(operation: Any, args: tuple[Any, ...], field: Field, x: Tensor, out: Tensor) -> Field:
    """The field after an operation on the map ``x`` (B, C, H, W); every operation unknown here leaves it alone."""
    if x.ndim != 4:
        return field
    if operation is aten.convolution:
        _, weight, _, stride, padding, dilation = args[:6]
        return field.window((weight.shape[-1] - 1) * dilation[-1] + 1, stride[-1], padding[-1])
    if operation in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        kernel, stride, padding = (*args[1:4], [], [0])[:3] if len(args) != 3 else (*args[1:3], [0])
        return field.window(kernel[-1], (stride or kernel)[-1], padding[-1])
    if operation is aten.constant_pad_nd:
        return field.window(1, 1, args[1][0])
    if operation is aten.slice and args[1] % x.ndim == 3:
        return field.window(1, args[4] if len(args) > 4 else 1)
    if operation is aten._adaptive_avg_pool2d:
        cells, wanted = max(x.shape[-2:]), max(out.shape[-2:])
        step = max(cells // wanted, 1)
        return field.window(cells - (wanted - 1) * step if cells > wanted else 1, step)
    if out.ndim == 4 and "upsample" in str(operation):
        return field._replace(stride=field.stride * x.shape[-1] / out.shape[-1])
    if (out.ndim == 2 and len(out) == len(x)) or (out.ndim == 4 and _cells(out) == 1 < _cells(x)):
        cells = max(x.shape[-2:])
        return field.window(cells, cells)
    return field
