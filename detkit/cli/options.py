"""The options and arguments that several verbs have, each with one name and one meaning everywhere.

A dataclass holds options that go together: a verb has one argument of it, see ``detkit.cli.common.printed``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from detkit import registry
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.predictor import Predictor


def _allow(modules: list[str] | None) -> None:
    registry.allow(modules or (), "--plugin")


Data = Annotated[str, Argument(metavar="DATA", help="COCO json, VOC or YOLO folder, csv, labelme, ... (docs/data.md).")]
SplitName = Annotated[str | None, Option("--split", help="Which part of DATA (train, val, ...).")]
Images = Annotated[
    str | None,
    Option(metavar="PATH", help="Folder of the images, if not where the format puts them; s3://... of COCO's."),
]
Format = Annotated[
    str | None, Option("--format", metavar="NAME", help="Format of DATA, or module:Name (default: recognised).")
]
ModelNames = Annotated[
    list[str] | None,
    Option("--model", "-m", help="Weights file, .onnx, run folder, shipped name or torchvision/NAME; see --ensemble."),
]
Plugins = Annotated[
    list[str] | None,
    Option(
        "--plugin",
        metavar="MODULE",
        callback=_allow,
        help="A Python module whose parts a model file or run may use (repeat it for several).",
    ),
]
Size = Annotated[int | None, Option(min=1, help="Input size in pixels (default: the model's).")]
Iou = Annotated[
    float | None, Option(help="The model's NMS drops boxes that overlap more than this (default: its own).")
]
Classes = Annotated[str | None, Option(help="Only these, by name: cat,dog.")]
BatchSize = Annotated[int, Option(min=1, help="Images at a time.")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1 or 1, mps (default: the best).")]
Threads = Annotated[int | None, Option(help="CPU threads (default: torch's choice).")]
Seed = Annotated[int, Option(min=0, help="Seed of every random choice.")]
Out = Annotated[Path | None, Option("--out", "-o", help="Write to exactly this path.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace outputs that exist.")]
Strict = Annotated[bool, Option("--strict", help="A label or image that is dropped while reading is an error.")]
KeepDegenerate = Annotated[
    bool, Option("--keep-degenerate", help="Keep COCO boxes without area or outside, which pycocotools counts.")
]
Json = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of DATA, and how it is read."""

    split: SplitName = None
    images: Images = None
    format: Format = None


@dataclass(frozen=True, kw_only=True)
class LabelledData(Part):
    """DATA, and which part of it."""

    data: Data

    def read(self, *, refuse: bool = True) -> Annotations:
        """The labels; see ``detkit.data.dataset.read``."""
        from detkit.data.dataset import read

        return read(self.data, split=self.split, images=self.images, format=self.format, refuse=refuse)

    def parts(self, whole: str) -> dict[str, LabelledData]:
        """Each part of the data set, or the one asked for, by name; one that is one piece is called ``whole``."""
        from detkit.data.dataset import splits

        names = [self.split] if self.split is not None else splits(self.data, format=self.format)
        if {"train", "val", "trainval"} <= set(names):
            names.remove("trainval")  # the two others joined
        return {Path(name).stem: replace(self, split=name) for name in names} or {whole: self}


@dataclass(frozen=True)
class Answers:
    """How models, together or one alone, are asked."""

    tta: Annotated[
        str | None, Option(help="Look again: flip (mirrored), scales (resized); a classifier: crops; by commas.")
    ] = None
    ensemble: Annotated[
        bool, Option("--ensemble", help="Fuse the answers of two or more models (their weights are never averaged).")
    ] = False
    device: Device = None
    precision: Annotated[str, Option(help="fp32, bf16 (faster where the hardware has it, coarser) or auto.")] = "fp32"
    threads: Threads = None
    engine: Annotated[
        str, Option(help="torch, onnxruntime or openvino (docs/export.md; auto: torch, or what an .onnx file needs).")
    ] = "auto"
    layout: Annotated[
        str | None,
        Option(help="Of another program's .onnx: yolox, nanodet, picodet, yolov8, detr, ssd (default: told)."),
    ] = None
    names: Annotated[Path | None, Option(help="File of its class names, one a line.")] = None
    tile: Annotated[
        str | None,
        Option(
            "--slice",
            metavar="auto|640|640x480",
            help="Look at large images in tiles of so many pixels (auto: where objects would be too small).",
        ),
    ] = None
    overlap: Annotated[
        float | None, Option(help="With --slice: share of a tile that the next one sees too (default: as objects are).")
    ] = None
    budget: Annotated[
        float | None, Option(metavar="SECONDS", help="With --slice: tiles grow until an image takes no longer.")
    ] = None

    def predictor(
        self, models: list[str], size: int | None = None, *, quick: bool = False, streams: int = 1
    ) -> Predictor:
        """What these options make of models (files, run folders or names; none: the shipped default).

        ``quick``: the exported form of a model in its place, where the cache holds it and nothing else is asked for.
        ``streams``: batches of a stream at a time, of one model without views or tiles.

        Raises:
            DetkitError: Several models without ``--ensemble`` or one with it, options of ``--slice`` without it, and
                all that ``detkit.load`` and ``Sliced`` raise.
        """
        for name in ("overlap", "budget"):
            if self.tile is None and getattr(self, name) is not None:
                raise DetkitError(f"--{name} goes with --slice", do=f"add --slice auto, or leave out --{name}")
        if len(models) > 1 and not self.ensemble:
            what = f"{len(models)} models without --ensemble: {', '.join(models)}"
            raise DetkitError(what, do="add --ensemble to fuse their answers, or name one model at a time")
        if self.ensemble and len(models) < 2:
            raise DetkitError("an ensemble needs two or more models", "--ensemble", "name another one")
        from detkit import api
        from detkit.cli.common import note
        from detkit.ops.compiled import thread_count

        plain = (self.tta, size, self.device, self.precision, self.engine) == (None, None, None, "fp32", "auto")
        name = models[0] if models else "default"
        if quick and plain and len(models) < 2 and not (name.startswith("torchvision/") or name.endswith(".onnx")):
            from detkit.exporting.cached import kept_export

            kept = kept_export(name, note)
            models = models if kept is None else [str(kept)]
        cores = self.threads or thread_count()
        views = [] if self.tta is None else names_in(self.tta) or [self.tta]
        loaded = api.load(
            models or None,
            device=self.device,
            threads=self.threads,
            size=size,
            precision=self.precision,
            engine=self.engine,
            layout=self.layout,
            names=self.names,
            tta=views,
            streams=1 if views or len(models) > 1 or self.tile is not None else min(streams, cores),
        )
        if self.tile is None:
            return loaded
        from detkit.prediction.slicing import Sliced

        return Sliced(loaded, self.tile, overlap=self.overlap, budget=self.budget, tell=note)


def names_in(text: str) -> list[str]:
    """The names of a list such as ``cat, dog``."""
    return [name.strip() for name in text.split(",") if name.strip()]
