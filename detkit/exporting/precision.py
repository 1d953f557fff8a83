"""A file of ``detkit export`` in fewer bits: fp16, or convolutions in int8. What is decoded stays in float32."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detkit.data.dataset import Dataset
from detkit.exporting.engines import read_onnx
from detkit.exporting.predictor import load_exported

Precision = Literal["fp32", "fp16", "int8"]
CALIBRATED = 32  # images at most, evenly chosen
_DRAWN = 2000  # values per tensor and image
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the range of all values, at each of its ends
_LAYERS = ("Conv", "Gemm")
_PLACES = {"RoiAlign": 1, "MaxRoiPool": 1}  # inputs that say where, which the network's numbers do not flow through


def reduce_precision(path: Path, precision: Precision, dataset: Dataset) -> None:
    """Rewrites a file of ``detkit export``.

    Args:
        path: ONNX in float32.
        precision: "fp16" or "int8".
        dataset: Its images say which ranges int8 has to cover.
    """
    if precision == "fp16":
        _to_half(path)
    else:
        _to_int8(path, dataset)


def _to_half(path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = read_onnx(path)
    _, inside = _network(model)
    exact = [node.name for node in model.graph.node if node.name not in inside]
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=exact), str(path))


def _to_int8(path: Path, dataset: Dataset) -> None:
    """Layers with weights and inputs in int8. Their outputs are rounded only where they are the next one's input, after
    the activation: one rounding and not two, which OpenVINO computes in one pass."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        model = read_onnx(ready)
    layers, _ = _network(model)
    chosen = [node for node in model.graph.node if not layers.get(node.name, True)]
    given = TensorsData(CalibrationMethod.MinMax, _ranges(path, model, {node.input[0] for node in chosen}, dataset))
    logging.getLogger().setLevel(logging.ERROR)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=given,
        nodes_to_quantize=[node.name for node in chosen],
        nodes_to_exclude=[],
        op_types_to_quantize=list(_LAYERS),
        extra_options={"OpTypesToExcludeOutputQuantization": list(_LAYERS)},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path), False)


def _ranges(path: Path, model: Any, names: set[str], dataset: Dataset) -> dict[str, tuple[np.float32, np.float32]]:
    """What of each tensor's values eight bits cover best, on some of the images."""
    import onnx
    import onnxruntime

    seen, draw = defaultdict(list), np.random.default_rng(0)
    watched = copy.deepcopy(model)
    wanted = sorted(names)
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in wanted)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for given in _inputs(path, dataset):
        for name, values in zip(wanted, session.run(wanted, given), strict=True):
            seen[name].append(draw.choice(values.ravel(), _DRAWN))
    return {name: _best_range(np.concatenate(values)) for name, values in seen.items()}


def _best_range(values: np.ndarray) -> tuple[np.float32, np.float32]:
    """The range, from zero or below to zero or above, in which eight bits have the least mean squared error."""

    def error(low: float, high: float) -> float:
        step = max(high - low, 1e-9) / 255
        zero = round(-low / step)
        rounded = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
        return float(np.square(rounded - values).mean())

    ends = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    low, high = min(((ends[0] * a, ends[1] * b) for a, b in product(_SHARES, _SHARES)), key=lambda pair: error(*pair))
    return np.float32(low), np.float32(high)


def _inputs(path: Path, dataset: Dataset) -> Iterator[Mapping[str, np.ndarray]]:
    """Of some of the images, one at a time."""
    exported = load_exported(path, "onnxruntime")
    chosen = range(0, len(dataset), max(len(dataset) // CALIBRATED, 1))
    for _, sample in islice(dataset.readable(chosen, []), CALIBRATED):
        arrays = exported.feed(exported.input_of([sample]))
        yield {port.name: array for port, array in zip(exported.engine.inputs, arrays, strict=True)}


def _network(model: Any) -> tuple[dict[str, bool], set[str]]:
    """The names of the layers, each with whether no other comes before or after it; and of all nodes from the first to
    the last layers, these included. Only numbers lead from one to the next: neither indices, as of the map that suits a
    region, nor places."""
    import onnx

    nodes, known = list(model.graph.node), onnx.shape_inference.infer_shapes(model).graph.value_info
    numbers = {one.name for one in known if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    inputs = {
        node.name: [name for i, name in enumerate(node.input) if name in numbers and i != _PLACES.get(node.op_type)]
        for node in nodes
    }
    after: set[str] = set()
    first = set()
    for node in nodes:
        follows, layer = not after.isdisjoint(inputs[node.name]), node.op_type in _LAYERS
        if follows or layer:
            after.update(node.output)
        if layer and not follows:
            first.add(node.name)
    before: set[str] = set()
    ends, inside = {}, set()
    for node in reversed(nodes):
        leads, layer = not before.isdisjoint(node.output), node.op_type in _LAYERS
        if layer:
            ends[node.name] = not leads or node.name in first
        if leads or layer:
            before.update(inputs[node.name])
            if not after.isdisjoint(node.output):
                inside.add(node.name)
    return ends, inside
