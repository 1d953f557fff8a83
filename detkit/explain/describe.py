"""What a model file says of itself, and what a network is made of: without torch, as far as that goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detkit.backbones import BACKBONES
from detkit.config.experiment import is_config, shipped_configs
from detkit.errors import DetkitError, nearest
from detkit.printed import Printed
from detkit.registry import renamed
from detkit.zoo import WEIGHTS, model_file, read_model_header

if TYPE_CHECKING:
    from detkit.explain.summary import Summary


def describe_model(
    name: str, *, layers: bool = False, size: tuple[int, int] | None = None, num_classes: int | None = None
) -> Printed:
    """A model file's classes, input geometry, scores and training record, or a network's layers.

    Of a file only the header is read (no torch, nothing executed), unless its layers are asked for.

    Args:
        name: A model file, run folder, config, or the name of a shipped model or a backbone.
        layers: Of a model file too, the layers.
        size: Of the image that the layers see, height and width; None: the network's own.
        num_classes: Of a backbone's classifier or a config's detector; None: its own.

    Raises:
        DetkitError: No such file or name, a damaged file, an image too small, or a number of classes for a model file.
    """
    name = renamed(name)
    if name in BACKBONES or is_config(name):
        from detkit.explain.summary import summarise_backbone, summarise_config

        summarise = summarise_backbone if name in BACKBONES else summarise_config
        return _described({}, summarise(name, size, num_classes))
    try:
        path = model_file(name)
    except DetkitError as error:
        do = nearest(name, [*WEIGHTS, *shipped_configs(), *BACKBONES], otherwise=error.do)
        raise DetkitError(error.what, error.where, do) from None
    if path.suffix == ".onnx":
        from detkit.exporting.header import describe_export

        if layers or size is not None or num_classes is not None:
            what = "the layers of an ONNX file are not listed here"
            raise DetkitError(what, name, "leave out --layers, --input and --num-classes")
        return _described(*describe_export(path))
    header = read_model_header(path)
    facts = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "format": header["format"],
        "parameters": sum(tensor["count"] for tensor in header["tensors"].values()),
        **{key: header[key] for key in ("classes", "resize", "threshold", "record")},
        "model": header["config"].get("model", {}),
    }
    if num_classes is not None:
        raise DetkitError("a model file has classes of its own", "--num-classes", "leave it out")
    if not layers and size is None:
        return _described(facts)
    from detkit.explain.summary import summarise_file

    return _described(facts, summarise_file(facts["file"], size))


def _described(facts: dict[str, Any], more: Summary | Printed | None = None) -> Printed:
    """The facts, then a table: of the layers, or of an export's proof."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key:<14} {_short(item)}" for key, item in value.items())]
        else:
            lines.append(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")
    if more is not None:
        facts, lines = {**facts, **more.to_dict()}, [*lines, *more.lines()]
    return Printed(facts, lines)


def _short(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
