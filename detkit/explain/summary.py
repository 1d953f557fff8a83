"""What a network is made of: shapes, parameters, multiply-adds, receptive fields and strides, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from detkit import registry
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.prediction.torchvision import TorchvisionDetector
from detkit.predictor import Predictor

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One call of a layer.

    A layer that reads the whole map is a cell with the map's field. The gates of squeeze-and-excitation are left out of
    receptive fields: through them every cell sees a little of the whole image.

    Attributes:
        name: Of the module.
        kind: Its class, kernel/stride and groups.
        output: Shape without the batch, (H, W, C) of a map.
        parameters: 0 in a layer's later calls.
        multiply_adds: Of this call.
        receptive_field: Of an output cell in input pixels, along the longer side.
        stride: The same.
        first_centre: Of cell 0, in input pixels.
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
    """A network's layers and what they come to.

    Attributes:
        input: (H, W, C).
        layers: Those that have weights, or change the shape or the receptive field.
        total: parameters, multiply_adds, layers (those with weights, without normalisation), depth (convolutions and
            matrix products on the longest path); of a detector with proposals also regions (the most per image, 0: no
            limit) and region_multiply_adds, of one of them: ``layers`` shows one, multiply_adds counts all (one where
            there is no limit).
    """

    input: tuple[int, int, int]
    layers: list[LayerSummary]
    total: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table, then the totals."""
        rows = [["layer", "kind", "output", "size", "parameters", "multiply-adds", "field", "stride"]]
        rows.append(["input", "", "x".join(map(str, self.input)), f"{math.prod(self.input):,}", "", "", "1", "1"])
        for layer in self.layers:
            shape, counts = "x".join(map(str, layer.output)), (layer.parameters, layer.multiply_adds)
            numbers = [f"{count:,}" for count in (math.prod(layer.output), *counts)]
            field = f"{layer.receptive_field:g}", f"{layer.stride:g}"
            rows.append([layer.name, layer.kind, shape, *numbers, *field])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = ([*map(str.ljust, row[:3], widths), *map(str.rjust, row[3:], widths[3:])] for row in rows)
        lines = ["  ".join(words).rstrip() for words in padded]
        total = self.total
        lines += ["", f"{total['parameters']:,} parameters, {total['multiply_adds']:,} multiply-adds"]
        if "regions" in total:
            count = f"at most {total['regions']:,}" if total["regions"] else "any number of"
            each = f"{total['region_multiply_adds']:,}"
            lines.append(f"of which {each} for each of {count} regions; the table shows one")
        depth = "convolutions and matrix products on the longest path"
        return [*lines, f"{total['layers']} layers with weights, {total['depth']} {depth}"]


class Field(NamedTuple):
    """What a cell sees.

    Attributes:
        size: In input pixels.
        stride: In input pixels.
        centre: Of cell 0.
        depth: Layers on the longest path.
    """

    size: float = 1.0
    stride: float = 1.0
    centre: float = 0.5
    depth: int = 0

    def window(self, kernel: float, step: float = 1.0, padding: float = 0.0) -> Field:
        """After a window of ``kernel`` cells that moves by ``step``, ``padding`` cells before the first."""
        shift = ((kernel - 1) / 2 - padding) * self.stride
        return Field(self.size + (kernel - 1) * self.stride, self.stride * step, self.centre + shift, self.depth)


Run = Callable[[Tensor], object]


def summarise_network(network: nn.Module, size: tuple[int, int], run: Run | None = None) -> Summary:
    """The layers that are called for one image; works on the meta device, where nothing is computed.

    Args:
        network: Whose layers these are.
        size: Of the image, height and width.
        run: What calls them with pixels (1, 3, H, W); None: the network itself.

    Raises:
        DetkitError: An image too small for it.
    """
    network.eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = torch.zeros((1, 3, *size), device=device)
    tracer = Tracer(pixels)
    leaves = [(name, module) for name, module in network.named_modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(partial(tracer.after, name)) for name, module in leaves]
    handles += [module.register_forward_pre_hook(tracer.before) for _, module in leaves]
    try:
        with torch.no_grad(), tracer:
            (run or network)(pixels)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        what = f"the network does not take an image of {size[0]} x {size[1]} pixels: {reason}"
        raise DetkitError(what, "--input", "give a larger one, such as 224x224x3") from None
    finally:
        for handle in handles:
            handle.remove()
    weighted = [module for _, module in leaves if _own(module) and not isinstance(module, _NORMS)]
    total = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": tracer.multiply_adds,
        "layers": len(weighted),
        "depth": tracer.depth,
    }
    return Summary((*size, 3), tracer.layers, total)


def summarise_backbone(name: str, size: tuple[int, int] | None = None, num_classes: int | None = None) -> Summary:
    """The classifier on a backbone, as published where size or number of classes are not given.

    Raises:
        DetkitError: No such backbone, or an image too small for it.
    """
    with torch.device("meta"):
        network = registry.find_part("backbone", name)(num_classes or 0)
    return summarise_network(network, size or (network.backbone.size,) * 2)


def summarise_config(path_or_name: str, size: tuple[int, int] | None = None, num_classes: int | None = None) -> Summary:
    """The detector of a config, whose data need not be there.

    Args:
        path_or_name: Of the config.
        size: Of the image; None: its own input's.
        num_classes: None: as many as ``data.classes`` names, or 80.

    Raises:
        DetkitError: As ``detkit.config.experiment.read_config``; an image too small for it.
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
    with torch.device("cpu" if model["proposals"] else "meta"):  # regions are cut out of real maps
        detector = build_detector(config, classes, anchors=[[8.0, 8.0]] * count)
    return summarise_detector(detector, size)


def summarise_file(path: str, size: tuple[int, int] | None = None) -> Summary:
    """The detector in a model file or run folder.

    Raises:
        DetkitError: As ``detkit.load``; an image too small for it.
    """
    from detkit.config.build import load_detector

    detector = load_detector(path)
    return summarise_detector(detector.to("cpu" if detector.proposals else "meta"), size)


def summarise_detector(detector: Detector, size: tuple[int, int] | None = None) -> Summary:
    """A detector for an image of ``size``, by default its own input's.

    Raises:
        DetkitError: An image too small for it.
    """
    source = detector.proposals

    def run(pixels: Tensor) -> None:
        features, regions = detector.features(pixels), None
        if source is not None:
            if isinstance(source, nn.Module):
                source(features)
            height, width = pixels.shape[-2:]
            regions = [pixels.new_tensor([[0, 0, width, height]])]
        detector.head.raw(features, regions)

    summary = summarise_network(detector, size or detector.resize.input_size, run)
    if source is not None:
        each = sum(layer.multiply_adds for layer in summary.layers if layer.name.startswith("head."))
        summary.total.update(regions=source.max_proposals, region_multiply_adds=each)
        summary.total["multiply_adds"] += max(source.max_proposals - 1, 0) * each
    return summary


def predictor_facts(predictor: Predictor) -> dict[str, int | str]:
    """A predictor's classes (their number), parameters, device and threads; a Detector's input and multiply_adds."""
    found: dict[str, int | str] = {"classes": len(predictor.classes)}
    network = predictor.model if isinstance(predictor, TorchvisionDetector) else predictor
    if isinstance(network, nn.Module):
        found["parameters"] = sum(p.numel() for p in network.parameters())
        found |= {"device": str(next(network.parameters()).device), "threads": torch.get_num_threads()}
    if isinstance(predictor, Detector):
        height, width = predictor.resize.input_size
        total = summarise_detector(predictor).total
        found |= {"input": f"{width} x {height}", "multiply_adds": total["multiply_adds"]}
    return found


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


class Tracer(TorchDispatchMode):
    """Follows every operation: counts its multiply-adds, and carries the field of its inputs to its outputs,
    beginning at an image (1, 3, H, W)."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.fields = WeakTensorKeyDictionary({image: Field()})
        self.layers: list[LayerSummary] = []
        self.multiply_adds = self.depth = 0
        self._began: list[tuple[int, Field, int]] = []
        self._counted: set[nn.Module] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what torch does by default imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
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

    def merged(self, values: object) -> tuple[Field, Tensor | None]:
        """The field of the largest maps among ``values``, and the first of them; gates of 1 x 1 are smaller."""
        known = [v for v in tree_leaves(values) if isinstance(v, Tensor) and v in self.fields]
        if not known:
            return Field(), None
        cells = max(map(_cells, known))
        largest = [v for v in known if _cells(v) == cells]
        fields = [self.fields[v] for v in largest]
        # Of maps that are joined the widest field; their strides and centres agree.
        size, depth = max(f.size for f in fields), max(f.depth for f in fields)
        return fields[0]._replace(size=size, depth=depth), largest[0]

    def before(self, module: nn.Module, inputs: object) -> None:
        """A hook before a layer."""
        field, source = self.merged(inputs)
        self._began.append((self.multiply_adds, field, 0 if source is None else source.numel()))

    def after(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        """A hook behind the layer ``name``, that notes it."""
        begun, field_before, numbers = self._began.pop()
        field, tensor = self.merged(output)
        if tensor is None:
            return
        parameters = 0 if module in self._counted else _own(module)
        self._counted.add(module)
        added = self.multiply_adds - begun
        if _own(module) or added or tensor.numel() != numbers or field.size != field_before.size:
            shape = tuple(tensor.shape[1:])
            shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
            self.layers.append(LayerSummary(name, _kind(module), shape, parameters, added, *field[:3]))


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
        _, weight, _, stride, padding, dilation, transposed = args[:7]
        if transposed:
            reach = math.ceil(weight.shape[-1] / stride[-1]) - 1
            return field._replace(size=field.size + reach * field.stride, stride=field.stride / stride[-1])
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
