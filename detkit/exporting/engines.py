"""What runs an ONNX file: onnxruntime or OpenVINO behind one call; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import DetkitError, nearest
from detkit.ops.compiled import thread_count

ENGINES = {"onnxruntime": "onnx", "openvino": "openvino"}  # and the extra that installs it
_AGAIN = "copy, download or export it again"


class Port(NamedTuple):
    """An input or output: its name, and its sides, None where they may be any."""

    name: str
    shape: tuple[int | None, ...]


class Engine:
    """Runs one file; threads may share it.

    Attributes:
        name: Of ``ENGINES``.
        metadata: The file's.
        inputs: Of the graph.
        streams: Calls at a time that share its threads.
    """

    name: str
    metadata: dict[str, str]
    inputs: Sequence[Port]
    streams: int = 1

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in order."""
        raise NotImplementedError


def open_engine(
    path: str | Path, name: str = "auto", *, threads: int | None = None, precision: str = "fp32", streams: int = 1
) -> Engine:
    """An engine that has the file loaded.

    Args:
        path: ONNX.
        name: Of ``ENGINES``; "auto": the first that is installed.
        threads: CPU threads; None: the engine's choice.
        precision: Of the arithmetic, "fp32" or "bf16" (OpenVINO's only).
        streams: Calls at a time that share the threads; OpenVINO, whose threads wait less for each other, takes one.

    Raises:
        DetkitError: It is not installed, the file is absent or damaged, or a precision that the engine lacks.
    """
    if threads is not None and threads < 1:
        raise DetkitError(f"threads must be at least 1, got {threads}", "--threads", "give the number of cores to use")
    if name == "auto":
        installed = [one for one in ENGINES if find_spec(one)]
        if not installed:
            raise DetkitError("nothing that runs ONNX files is installed", str(path), _install("onnxruntime"))
        name = "openvino" if precision == "bf16" and "openvino" in installed else installed[0]
    if name not in ENGINES:
        raise DetkitError(f"{name} runs no ONNX files", "--engine", nearest(name, ENGINES))
    if not find_spec(name):
        raise DetkitError(f"{name} is not installed", "--engine", _install(name))
    if precision != "fp32" and (name, precision) != ("openvino", "bf16"):
        do = f"leave it out, or --engine openvino: {_install('openvino')}"
        raise DetkitError(f"{name} computes ONNX files in fp32", "--precision", do)
    if not Path(path).is_file():
        raise DetkitError("there is no such model file", str(path), "give an ONNX file")
    if name == "openvino":
        from detkit.exporting.openvino import OpenVINO

        return OpenVINO(path, threads, precision)
    return OnnxRuntime(path, threads, streams)


def _install(engine: str) -> str:
    return f"pip install 'detkit[{ENGINES[engine]}]'"


class OnnxRuntime(Engine):
    """onnxruntime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: str | Path, threads: int | None, streams: int = 1) -> None:
        import onnxruntime

        self.streams = streams
        if streams > 1:
            threads = max(1, (threads or thread_count()) // streams)

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # Spinning within a run makes it a quarter faster; between runs it would starve decoding and drawing.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # its errors share no class of their own
            raise damaged(path, error) from None
        self.inputs = [_port(one) for one in self._session.get_inputs()]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in order."""
        return list(self._session.run(None, {port.name: x for port, x in zip(self.inputs, inputs, strict=True)}))


def _port(node: Any) -> Port:
    return Port(node.name, tuple(side if isinstance(side, int) else None for side in node.shape))


def damaged(path: str | Path, error: Exception) -> DetkitError:
    """What to say of a file that an engine refuses."""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return DetkitError("the ONNX file cannot be used, it may be damaged", f"{path}: {reason[-1][:200]}", _AGAIN)


def onnx_package(name: str = "onnx") -> Any:
    """The module of that name, one of the extra ``onnx``.

    Raises:
        DetkitError: It is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise DetkitError(f"{name.partition('.')[0]} is not installed", do=_install("onnxruntime")) from None


def read_onnx(path: str | Path) -> Any:
    """An ``onnx.ModelProto``, without weights that lie in other files.

    Raises:
        DetkitError: onnx is not installed, or no ONNX file.
    """
    onnx = onnx_package()
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise damaged(path, error) from None
    if not model.graph.node:
        raise DetkitError("the ONNX file holds no network", str(path), _AGAIN)
    return model
