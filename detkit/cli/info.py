"""``detkit info``: what a weights file holds, read from its header alone."""

from __future__ import annotations

from typing import Annotated

import typer

from detkit.cli.common import JsonOption, print_json


def info(
    file: Annotated[str, typer.Argument(metavar="FILE|NAME", help="Weights file, run folder or shipped name.")],
    as_json: JsonOption = False,
) -> int:
    """Show classes, input geometry, scores and training record of a weights file (no torch, nothing executed)."""
    from detkit.zoo import read_header, resolve

    path = resolve(file)
    header = read_header(path)
    tensors = header["tensors"]
    parameters = sum(tensor["count"] for tensor in tensors.values())
    facts = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "format": header["format"],
        "parameters": parameters,
        "classes": header["classes"],
        "resize": header["resize"],
        "threshold": header["threshold"],
        "record": header["record"],
        "model": header["config"].get("model", {}),
    }
    if as_json:
        print_json(facts)
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key:<14} {_short(item)}")
        else:
            print(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _short(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
