"""``detkit info``: what a model file says of itself, and what a network is made of, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli import options
from detkit.cli.common import print_json
from detkit.errors import DetkitError
from detkit.registry import renamed

if TYPE_CHECKING:
    from detkit.explain.summary import Summary


def info(
    name: Annotated[
        str,
        typer.Argument(metavar="FILE|NAME", help="Model file, run folder, config, or a shipped name or backbone's."),
    ],
    layers: Annotated[bool, typer.Option("--layers", help="Of a model file too, the table of its layers.")] = False,
    size: Annotated[
        str | None,
        typer.Option("--input", metavar="HxWx3", help="Image that the layers see (default: the network's)."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=1, help="Of a backbone's classifier or a config's detector.")
    ] = None,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Show a model file's classes, input geometry, scores and training record (no torch, nothing executed), or a
    network's layers: shapes, parameters, multiply-adds, receptive field and stride in pixels of the input."""
    from detkit.backbones import BACKBONES
    from detkit.config.experiment import is_config

    name, facts, summary = renamed(name), {}, None
    pixels = None if size is None else _pixels(size)
    if name in BACKBONES or is_config(name):
        from detkit.explain import summary as made_of

        of = made_of.of_backbone if name in BACKBONES else made_of.of_config
        summary = of(name, pixels, num_classes)
    else:
        facts = _header(name)
        if num_classes is not None:
            raise DetkitError("a model file has classes of its own", "--num-classes", "leave it out")
        if layers or pixels:
            from detkit.explain.summary import of_file

            summary = of_file(facts["file"], pixels)
    if as_json:
        print_json(facts | (summary.to_dict() if summary else {}))
        return 0
    _print_facts(facts)
    if summary:
        _print_layers(summary)
    return 0


def _pixels(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) == 2:
        parts.append("3")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts) or parts[2] != "3":
        raise DetkitError(f"no size of an image: {text}", "--input", "give height x width x 3 channels, as 224x224x3")
    return int(parts[0]), int(parts[1])


def _header(name: str) -> dict[str, Any]:
    from detkit.backbones import BACKBONES
    from detkit.config.experiment import shipped_configs
    from detkit.config.schema import nearest
    from detkit.zoo import WEIGHTS, model_file, read_model_header

    try:
        path = model_file(name)
    except DetkitError as error:
        names = [*WEIGHTS, *shipped_configs(), *BACKBONES]
        hint = nearest(name, names)
        raise DetkitError(error.what, error.where, hint if hint.startswith("did") else error.do) from None
    header = read_model_header(path)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "format": header["format"],
        "parameters": sum(tensor["count"] for tensor in header["tensors"].values()),
        "classes": header["classes"],
        "resize": header["resize"],
        "threshold": header["threshold"],
        "record": header["record"],
        "model": header["config"].get("model", {}),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key:<14} {_short(item)}")
        else:
            print(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")


def _short(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _print_layers(summary: Summary) -> None:
    from math import prod

    rows = [("layer", "kind", "output", "size", "parameters", "multiply-adds", "field", "stride")]
    rows.append(("input", "", _shape(summary.input), f"{prod(summary.input):,}", "", "", "1", "1"))
    for layer in summary.layers:
        counts = (f"{n:,}" for n in (prod(layer.output), layer.parameters, layer.multiply_adds))
        sees = (f"{n:g}" for n in (layer.receptive_field, layer.stride))
        rows.append((layer.name, layer.kind, _shape(layer.output), *counts, *sees))  # type: ignore[arg-type]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(cells).rstrip())
    total = summary.total
    print(f"\n{total['parameters']:,} parameters, {total['multiply_adds']:,} multiply-adds")
    if "regions" in total:
        count = f"at most {total['regions']:,}" if total["regions"] else "any number of"
        print(f"of which {total['region_multiply_adds']:,} for each of {count} regions; the table shows one")
    depth = "convolutions and matrix products on the longest path"
    print(f"{total['layers']} layers with weights, {total['depth']} {depth}")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
