"""``detkit compress``: a detector with smaller fully connected layers, as a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.errors import DetkitError
from detkit.printed import Printed


def compress(
    model: Annotated[str, Argument(metavar="MODEL", help="Weights file, run folder or shipped name.")],
    ranks: Annotated[str, Option("--ranks", metavar="N,N", help="Rank of each layer, first one first.")],
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Make a region-based detector quicker. Truncated SVD splits its fully connected layers (Fast R-CNN, section 3.1):
    fewer multiplications for a little accuracy. Default --out: MODEL's name, ending in -svd.safetensors, here."""
    from detkit.config.build import load_detector
    from detkit.heads.trunk import compress_detector
    from detkit.io.files import refuse_existing

    words = [word.strip() for word in ranks.split(",")]
    if not all(word.isdecimal() for word in words):
        raise DetkitError(f"ranks are whole numbers, got {ranks!r}", "--ranks", "give a number a layer, as 1024,256")
    path = out or Path(f"{Path(model).resolve().stem}-svd.safetensors")
    refuse_existing(path, overwrite)
    detector = load_detector(model)
    before = sum(p.numel() for p in detector.parameters())
    layers = compress_detector(detector, [int(word) for word in words])
    detector.save(path, overwrite=overwrite)
    after, written = sum(p.numel() for p in detector.parameters()), path.stat().st_size
    rows = [{**layer._asdict(), "error": round(layer.error, 6)} for layer in layers]
    lines = [
        f"{path}: {after:,} weights instead of {before:,}, {written / 1e6:.1f} MB",
        *(f"  {layer}" for layer in layers),
        "what it costs in accuracy: detkit evaluate MODEL DATA, of both files",
    ]
    return Printed({"out": path, "bytes": written, "before": before, "parameters": after, "layers": rows}, lines)
