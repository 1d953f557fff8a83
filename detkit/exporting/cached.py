"""What runs a model without torch: an .onnx file, or the exported form of a model of detkit, which is made once on a
machine and kept in the cache, as compiled kernels are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detkit
from detkit import zoo
from detkit.errors import DetkitError, nearest
from detkit.exporting.engines import ENGINES
from detkit.io.cache import cache_folder
from detkit.io.download import sha256_of

if TYPE_CHECKING:
    from detkit.exporting.predictor import ExportedDetector


def _place(file: Path) -> Path:
    return cache_folder() / "exported" / f"{sha256_of(file)}-{detkit.__version__}.onnx"


def kept_export(model: str | Path, tell: Callable[[str], None] | None = None) -> Path | None:
    """The exported form, where it is there and the fastest here; torch is not imported.

    Args:
        model: Model file, run folder or shipped name.
        tell: Told, once on a machine, how the shipped model's would be made.
    """
    # Torch would know of GPUs, on which it is faster, but importing it is what this saves.
    gpu = sys.platform == "darwin" or Path("/dev/nvidiactl").exists()
    if gpu or not any(map(find_spec, ENGINES)):
        return None
    place = _place(zoo.model_file(model))
    if place.is_file():
        return place
    if tell and model in ("default", zoo.DEFAULT):
        with suppress(OSError):  # the mark is there already, or cannot be kept
            place.parent.mkdir(parents=True, exist_ok=True)
            place.with_suffix(".told").touch(exist_ok=False)
            tell("detkit doctor --warm makes a file with which a photo takes a fifth of this time (said once)")
    return None


def make_export(model: str | Path, tell: Callable[[str], None] = lambda text: None) -> Path:
    """The exported form, which is made where it is not there.

    Args:
        model: Model file, run folder or shipped name.
        tell: Called with a line where it takes a while.

    Raises:
        DetkitError: As ``detkit.export``; or the exported form answers otherwise than the model.
    """
    file = zoo.model_file(model)
    place = _place(file)
    if not place.is_file():
        from detkit.exporting.onnx_file import export

        tell(f"exporting {file.name}, once on this machine")
        if export(file, place, overwrite=True, tell=tell).path is None:
            raise DetkitError("this model's exported form answers otherwise", str(model), "leave out --engine")
    return place


def exported_model(name: str, engine: str, device: str | int | None, **options: Any) -> ExportedDetector | None:
    """The model on one of ``ENGINES``; None where torch is to run it.

    Args:
        name: An .onnx file, model file, run folder or shipped name.
        engine: "torch", "auto" (torch, but for an .onnx file) or one of ``ENGINES``, for which a model of detkit is
            exported into the cache.
        device: As it was asked for.
        options: Of ``load_exported``.

    Raises:
        DetkitError: An unknown engine, another device, options that are for .onnx files, and what ``load_exported`` and
            ``make_export`` raise.
    """
    outside = Path(name).suffix == ".onnx"
    if engine not in ("auto", "torch", *ENGINES):
        do = nearest(engine, ("auto", "torch", *ENGINES))
        raise DetkitError(f"there is no engine {engine!r}", "--engine", do)
    if engine not in ENGINES and not outside:
        given = [option for option in ("layout", "names") if options.pop(option) is not None]
        if given:
            raise DetkitError(f"{name} is no .onnx file", f"--{given[0]}", "leave it out")
        return None
    if device not in (None, "cpu"):
        other = "" if outside else ", or take --engine torch"
        raise DetkitError("ONNX files run on the CPU here", "--device", f"leave it out{other}")
    from detkit.exporting.predictor import load_exported

    if not outside:
        name = str(make_export(name, lambda text: warnings.warn(text, stacklevel=2)))
    if options["precision"] == "auto":
        options["precision"] = "fp32"
    return load_exported(name, engine, **options)
