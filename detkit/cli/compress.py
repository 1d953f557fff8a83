"""``detkit compress``: a detector with smaller fully connected layers, as a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detkit.cli import options
from detkit.cli.common import print_json


def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Weights file, run folder or shipped name.")],
    ranks: Annotated[str, typer.Option("--ranks", metavar="N,N", help="Rank of each layer, first one first.")],
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Split the fully connected layers of a region-based detector by truncated SVD (Fast R-CNN, section 3.1): fewer
    multiplications for a little accuracy. Default --out: MODEL's name, ending in -svd.safetensors, here."""
    from detkit.config.build import load_detector
    from detkit.errors import DetkitError
    from detkit.heads.roi import compress as split
    from detkit.io.files import refuse_existing

    words = [word.strip() for word in ranks.split(",")]
    if not all(word.isdecimal() for word in words):
        raise DetkitError(f"ranks are whole numbers, got {ranks!r}", "--ranks", "give a number a layer, as 1024,256")
    path = out or Path(f"{Path(model).resolve().stem}-svd.safetensors")
    refuse_existing(path, overwrite)
    detector = load_detector(model)
    before = sum(p.numel() for p in detector.parameters())
    layers = split(detector, [int(word) for word in words])
    detector.save(path, overwrite=overwrite)
    after = sum(p.numel() for p in detector.parameters())
    if as_json:
        rows = [{**layer._asdict(), "error": round(layer.error, 6)} for layer in layers]
        print_json({"out": path, "bytes": path.stat().st_size, "before": before, "parameters": after, "layers": rows})
        return 0
    print(f"{path}: {after:,} weights instead of {before:,}, {path.stat().st_size / 1e6:.1f} MB")
    for layer in layers:
        fewer = layer.inputs * layer.outputs / (layer.rank * (layer.inputs + layer.outputs))
        print(
            f"  {layer.inputs} x {layer.outputs} at rank {layer.rank}: {fewer:.1f} times fewer multiplications, "
            f"weights off by {layer.error:.1%}"
        )
    print("what it costs in accuracy: detkit evaluate MODEL DATA, of both files")
    return 0
