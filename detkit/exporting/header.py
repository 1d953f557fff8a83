"""What an exported file says of itself, in ONNX's metadata; no torch is needed here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from detkit.arrays import plain
from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.printed import Printed, aligned
from detkit.zoo import header_in, header_metadata

_AGAIN = "export it again: detkit export MODEL -o FILE.onnx"


@dataclass(frozen=True, kw_only=True)
class Header:
    """How an exported detector is fed and read.

    Attributes:
        classes: Names by label.
        class_ids: The training data's own ids of them.
        resize: How an image becomes an input.
        threshold: The score below which ``predict`` shows nothing.
        iou: Of NMS.
        protocol: Of ``detkit.metrics.METRICS``.
        flip_pairs: See ``detkit.predictor.Predictor``.
        shares: Boxes are in shares of the image's part of the input, else in input pixels.
        masks: The output is the logits of each pixel's class, see ``detkit.exporting.graph.PixelGraph``.
        ranks_all: See ``detkit.heads.image.ImageHead``.
        candidates: (box, class) pairs per image that enter NMS at most; None: all of them.
        detections: NMS, at ``iou``, is in the graph, which gives so many per image at most; 0: it is not.
        dynamic: The input's sides may be any multiples of the stride.
        precision: "fp32", "fp16" or "int8".
        proposals: The source (``detkit.proposals.PROPOSALS``) of the regions that are an input, and its options.
        mean: Of the pixels, RGB in 0..255; the graph subtracts it itself.
        std: What it divides by then.
        objects: Sizes of the training's, see ``detkit.geometry.UsualSizes``.
        weights: SHA-256 of the model file.
        versions: Of the packages that wrote it.
        proof: How its answers differ from the model's, see ``detkit.exporting.proof``.
    """

    classes: tuple[str, ...]
    class_ids: tuple[int | str, ...]
    resize: Resize
    threshold: float = 0.25
    iou: float = 0.5
    protocol: str = "coco"
    flip_pairs: tuple[tuple[int, int], ...] = ()
    shares: bool = False
    masks: bool = False
    ranks_all: bool = False
    candidates: int | None = 3000
    detections: int = 0
    dynamic: bool = False
    precision: str = "fp32"
    proposals: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    objects: Mapping[str, float] = field(default_factory=dict)
    weights: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """For the file."""
        facts = {part.name: getattr(self, part.name) for part in fields(self)}
        return header_metadata(plain({**facts, "resize": self.resize.to_dict()}))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> Header:
        """The inverse of ``to_metadata``.

        Raises:
            DetkitError: Of another program, of a newer format, or damaged.
        """
        facts = header_in(metadata, "ONNX file", where, _AGAIN)
        try:
            header = msgspec.convert(facts, cls)
            whole = header.candidates is None or header.candidates >= 1
            whole = whole and header.detections >= 0 and len(header.classes) == len(header.class_ids) > 0
            if whole and 0 <= header.threshold <= 1 and 0 <= header.iou <= 1:
                return header
        except (ValueError, msgspec.ValidationError):
            pass
        raise DetkitError("what the ONNX file says of itself is damaged", where, _AGAIN)


def proof_lines(proof: Mapping[str, Any]) -> list[str]:
    """The table of a ``detkit.exporting.proof.Proof`` that was made a dict."""
    rows, most = proof["differences"], proof["tolerance"]
    if "pixels" in rows[0]:
        allowed = f"allowed: {most['pixels']:g} of the pixels, {most['score']:g} of a logit"
    else:
        what = f"{most['box']:g} px of the input, {most['score']:g} of a score"
        allowed = f"allowed: {what}; scores from {proof['lowest']:.3f}"
    text = [[f"{value:.6f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [*aligned([list(rows[0]), *text]), allowed]
    for name, (ours, theirs) in proof["scores"].items():
        lines.append(f"{name} on the data: {ours:.4f} of the model, {theirs:.4f} of the exported one")
    if proof["loss"] is not None:
        lines.append(f"allowed to lose: {proof['loss']:g}")
    return lines


def describe_export(path: Path) -> tuple[dict[str, Any], Printed]:
    """The header of an exported file and its size, and the proof, as ``detkit info`` shows them; nothing is run.

    Raises:
        DetkitError: onnx is not installed, or no whole file of ``detkit export``.
    """
    from detkit.exporting.engines import read_onnx

    header = Header.from_metadata({entry.key: entry.value for entry in read_onnx(path).metadata_props}, str(path))
    facts = {part.name: getattr(header, part.name) for part in fields(header)}
    facts |= {"classes": list(header.classes), "resize": header.resize.to_dict()}
    proof, lines = facts.pop("proof"), ["proof: of another version, see --json"]
    with suppress(AttributeError, LookupError, TypeError, ValueError):
        lines = ["proof:", *(f"  {line}" for line in proof_lines(proof))]
    return {"file": str(path), "bytes": path.stat().st_size, **facts}, Printed({"proof": proof}, lines)
