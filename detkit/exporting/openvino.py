"""OpenVINO as an engine. This is the one file that imports it: it would call an analytics host."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO takes its own stub then
import openvino  # noqa: E402

from detkit.exporting.engines import Engine, Port, damaged, read_onnx  # noqa: E402


class OpenVINO(Engine):
    """OpenVINO on the CPU; its own choice of bf16, which moves boxes by pixels, is off unless asked for."""

    name = "openvino"

    def __init__(self, path: str | Path, threads: int | None, precision: str) -> None:
        settings: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.metadata = {entry.key: entry.value for entry in read_onnx(path).metadata_props}
        try:
            self._model = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise damaged(path, error) from None
        self.inputs = [_port(one) for one in self._model.inputs]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in order."""
        found = self._model.create_infer_request().infer(list(inputs), share_inputs=True)
        return [np.array(found[one]) for one in self._model.outputs]


def _port(node: openvino.ConstOutput) -> Port:
    sides = node.partial_shape
    return Port(node.any_name, tuple(side.get_length() if side.is_static else None for side in sides))
