"""A file of ``detkit export`` in fewer bits: fp16, or convolutions in int8. What is decoded stays in float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detkit.data.dataset import Dataset
from detkit.exporting.engines import read_onnx
from detkit.exporting.predictor import load_exported

Precision = Literal["fp32", "fp16", "int8"]
CALIBRATED = 64  # images at most, evenly chosen
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
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        given = _inputs(path, dataset)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.given, None)

    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        layers, _ = _network(read_onnx(ready))
        logging.getLogger().setLevel(logging.ERROR)
        quantize_static(
            str(ready),
            str(path),
            Images(),
            per_channel=True,
            op_types_to_quantize=list(_LAYERS),
            nodes_to_exclude=[name for name, at_end in layers.items() if at_end],
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": 99.99},
        )


def _inputs(path: Path, dataset: Dataset) -> Iterator[Mapping[str, np.ndarray]]:
    """Of some of the images, one at a time."""
    exported = load_exported(path, "onnxruntime")
    chosen = range(0, len(dataset), max(len(dataset) // CALIBRATED, 1))
    for _, sample in islice(dataset.readable(chosen, []), CALIBRATED):
        arrays = exported.feed(exported.input_of([sample]))
        yield {port.name: array for port, array in zip(exported.engine.inputs, arrays, strict=True)}


def _network(model: Any) -> tuple[dict[str, bool], set[str]]:
    """The names of the layers, each with whether no other comes before or after it; and of all nodes from the first to
    the last layers, these included."""
    nodes = list(model.graph.node)
    inputs = {
        node.name: [name for i, name in enumerate(node.input) if i != _PLACES.get(node.op_type)] for node in nodes
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
