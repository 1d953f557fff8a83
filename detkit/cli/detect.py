"""``detkit detect``: images, folders, videos, cameras or stdin in; boxes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit import registry
from detkit.cli import options
from detkit.cli.common import load_predictor, message, names_in
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.io.sources import Frame
    from detkit.structures import Detections

_FORMATS = {".jsonl": "jsonl", ".json": "coco", ".csv": "csv"}


def detect(
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Image, folder, glob, video, camera or - (stdin)."),
    ],
    model: options.Models = None,
    conf: options.Conf = None,
    iou: options.Iou = 0.5,
    max_detections: Annotated[int, typer.Option("--max-detections", help="Most boxes an image.")] = 100,
    classes: options.Classes = None,
    size: options.Size = None,
    tta: options.Tta = None,
    ensemble: options.Ensemble = False,
    batch: options.Batch = 1,
    device: options.Device = None,
    precision: options.Precision = "fp32",
    threads: options.Threads = None,
    out: options.Out = None,
    form: Annotated[
        str | None, typer.Option("--format", help="Of --out: jsonl, coco, csv (by its ending), yolo or voc (a folder).")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Annotated copies in a new folder runs/detect-N.")] = False,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Detect objects. Prints a line an image; with --json, one JSON line an image or frame."""
    kind = _format_of(out, form)
    from detkit.io.detections import open_writer
    from detkit.io.sources import Failure, open_sources

    frames = open_sources(source)
    failures: list[Failure] = []
    done = 0
    # Up to the first image, before a model is loaded for nothing.
    for first in frames:
        if not isinstance(first, Failure):
            frames = chain([first], frames)
            break
        failures.append(first)
    else:
        return _finish(done, failures)
    detector = load_predictor(
        model, ensemble=ensemble, tta=tta, device=device, precision=precision, threads=threads, size=size
    )
    limits = detector.limits(conf, iou, max_detections, None if classes is None else names_in(classes) or [classes])
    with ExitStack() as stack:
        writer = (
            stack.enter_context(open_writer(kind, out, detector.classes, detector.class_ids, overwrite=overwrite))
            if out is not None and kind
            else None
        )
        pictures = stack.enter_context(_Annotated()) if save else None
        for frame, found in detector.detect_frames(_progress(frames), limits, batch):
            if isinstance(frame, Failure):
                failures.append(frame)
                continue
            done += 1
            _print(frame, found, as_json)
            if writer:
                writer.write(frame, found)
            if pictures:
                pictures.write(frame, found)
    return _finish(done, failures)


def _format_of(out: Path | None, form: str | None) -> str | None:
    if form is not None:
        registry.find_part("writer", form, where="--format")
    if out is None:
        if form is not None:
            raise DetkitError("--format needs --out", do="add --out FILE")
        return None
    kind = form or _FORMATS.get(out.suffix.lower())
    if kind is None:
        raise DetkitError(
            f"cannot tell the format of --out {out}",
            do="end it in .jsonl, .json or .csv, or name a folder and --format yolo|voc; for images use --save",
        )
    return kind


def _print(frame: Frame, found: Detections, as_json: bool) -> None:
    from detkit.io.detections import record_of

    if as_json:
        print(json.dumps(record_of(frame, found), ensure_ascii=False), flush=True)
        return
    name = frame.source if frame.index is None else f"{frame.source} frame {frame.index}"
    counts: dict[str, int] = {}
    for label in found.names:
        counts[label] = counts.get(label, 0) + 1
    print(f"{name}: {', '.join(f'{n} {label}' for label, n in counts.items()) or 'nothing found'}", flush=True)
    if frame.index is None:
        for r in found.to_records():
            print(f"  {r['label']:<16} {r['score']:.3f}  {' '.join(f'{round(v):5d}' for v in r['box'])}", flush=True)


def _progress(frames: Iterator[Any]) -> Iterator[Any]:
    """The same frames, with a count on stderr when a person is watching and results go elsewhere."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from frames
        return
    count = 0
    for count, frame in enumerate(frames, 1):
        print(f"\r{count} read", end="", file=sys.stderr, flush=True)
        yield frame
    print(f"\r{count} read, done", file=sys.stderr)


class _Annotated:
    """Annotated copies in a new numbered folder: images as images, frames of one video as one video."""

    def __init__(self) -> None:
        from detkit.io.files import numbered_folder

        self.folder = numbered_folder(Path("runs"), "detect")
        self._videos = ExitStack()
        self._video: Any = None
        self._source = ""
        self._used: set[str] = set()

    def __enter__(self) -> _Annotated:
        return self

    def __exit__(self, *error: Any) -> None:
        self._videos.__exit__(*error)
        if self._video is not None and self._video.notice:
            message(self._video.notice)
        message(f"annotated copies: {self.folder}")

    def write(self, frame: Frame, found: Detections) -> None:
        from detkit.io.draw import draw_detections
        from detkit.io.images import write_image
        from detkit.io.video import VideoWriter

        drawn = draw_detections(frame.image, found)
        if frame.index is None:
            write_image(self.folder / self._name(frame.source, ".jpg"), drawn)
            return
        if frame.source != self._source:
            self._videos.close()
            path = self.folder / self._name(frame.source, ".mp4")
            self._video = self._videos.enter_context(VideoWriter(path, fps=frame.fps or 25))
            self._source = frame.source
        self._video.write(drawn)

    def _name(self, source: str, ending: str) -> str:
        stem = "stdin" if source == "-" else Path(source).stem
        name, copy = f"{stem}{ending}", 1
        while name in self._used:  # a/1.jpg and b/1.jpg go into one folder
            copy += 1
            name = f"{stem}-{copy}{ending}"
        self._used.add(name)
        return name


def _finish(done: int, failures: list[Any]) -> int:
    for failure in failures:
        message(f"detkit: {failure.source}: {failure.what}" + (f"\n  {failure.do}" if failure.do else ""))
    if failures:
        message(f"{done} done, {len(failures)} failed")
    if not done:
        if not failures:
            raise DetkitError("no image was found", do="name images, a folder that holds some, a video or -")
        return 2
    return 3 if failures else 0
