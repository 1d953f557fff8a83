"""``detkit detect``: images, folders, videos, cameras or stdin in; boxes out."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from detkit import registry
from detkit.cli import options
from detkit.cli.common import emit, message, note, progress
from detkit.cli.options import names_in
from detkit.errors import DetkitError
from detkit.printed import counted

if TYPE_CHECKING:
    import numpy as np

    from detkit.io.sources import Failure, Frame
    from detkit.structures import Detections

    Sink = Callable[[Frame, Detections], object]
    Draw = Callable[[Frame, Detections], np.ndarray]

_FORMATS = {".jsonl": "jsonl", ".json": "coco", ".csv": "csv"}


@dataclass(frozen=True)
class _Sharding:
    """Very many images."""

    shards: Annotated[
        str | None, Option("--shards", metavar="OUT", help="Very many images: Parquet files in this folder, resumable.")
    ] = None
    shard_size: Annotated[int, Option(min=1, help="Images per shard.")] = 5000
    part: Annotated[str, Option(metavar="K/N", help="Only the K-th of N parts of the shards, as 3/8.")] = "1/1"
    workers: Annotated[str, Option(metavar="N|ray", help="Processes, or ray[://HOST:PORT].")] = "1"

    def part_of(self) -> tuple[int, int]:
        """K and N of ``--part``."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise DetkitError(f"a part is K/N with K from 1 to N, got {self.part}", "--part", "write --part 3/8, say")
        return int(found[1]), int(found[2])

    def number_of_workers(self) -> int | str:
        """Processes, or Ray's address."""
        if self.workers == "ray" or self.workers.startswith("ray://"):
            return self.workers
        if not self.workers.isdecimal() or int(self.workers) < 1:
            raise DetkitError(f"workers are a number or ray, got {self.workers}", "--workers", "write --workers 4, say")
        return int(self.workers)


def detect(
    source: Annotated[
        list[str] | None,
        Argument(metavar="SOURCE...", help="Image, folder, glob, video, camera, http(s):// or rtsp://, - (stdin)."),
    ] = None,
    listed: Annotated[
        str | None, Option("--list", metavar="FILE", help="A file of more sources, one a line; -: stdin.")
    ] = None,
    model: options.ModelNames = None,
    conf: Annotated[float | None, Option(help="Lowest score (default: the model's own).")] = None,
    iou: options.Iou = None,
    max_detections: Annotated[int, Option(help="Most boxes per image.")] = 100,
    classes: options.Classes = None,
    size: options.Size = None,
    answers: options.Answers = options.Answers(),
    batch: options.BatchSize = 1,
    out: options.Out = None,
    form: Annotated[
        str | None,
        Option("--format", help="Of --out: jsonl, coco, csv (by its ending), yolo, voc or masks (a folder)."),
    ] = None,
    save: Annotated[bool, Option("--save", help="Annotated copies in runs/detect, detect2 ...")] = False,
    overwrite: options.Overwrite = False,
    sharding: _Sharding = _Sharding(),
    as_json: bool = False,
) -> int:
    """Detect objects. Prints a line an image; with --json, one JSON line an image or frame."""
    from detkit.io.detections import open_writer
    from detkit.io.prefetch import prefetched

    if source is None and listed is None:
        raise DetkitError("nothing to look at was named", "SOURCE", "name an image, a folder, a video or --list FILE")
    kind = check_format(out, form, None, _FORMATS)
    chosen = None if classes is None else names_in(classes) or [classes]
    asked: dict[str, Any] = {"conf": conf, "iou": iou, "max_detections": max_detections, "classes": chosen}
    if sharding.shards is not None:
        if out is not None or save:
            raise DetkitError("shards are the output", "--shards", "leave out --out and --save")
        return _sharded(source or [], listed, model or [], size, answers, asked, batch, sharding, overwrite, as_json)
    if sharding != _Sharding():
        raise DetkitError("this says how shards are made", "--shard-size, --part, --workers", "add --shards OUT")
    failures: list[Failure] = []
    side_by_side = listed is None and on_disk(source or ())
    frames = _frames(chain(source or (), _lines(listed)), failures)
    frames = prefetched(frames) if side_by_side else frames
    done, last, first = 0, "", list(islice(frames, 2 if side_by_side else 1))
    if first:  # else a model would be loaded for nothing
        detector = answers.predictor(model or [], size, quick=True, streams=len(first))
        if detector.protocol.startswith("match"):
            what = "this model makes vectors of images, and finds nothing in them"
            raise DetkitError(what, ", ".join(model or []), "compare images with it: detkit match")
        limits = detector.limits(**asked)
        try:
            with ExitStack() as stack:
                sinks: list[Sink] = [print_json if as_json else _print]
                if out is not None and kind is not None:
                    writer = open_writer(kind, out, detector.classes, detector.class_ids, overwrite)
                    sinks.append(stack.enter_context(writer).write)
                if save:
                    sinks.append(stack.enter_context(annotated_copies()))
                looked = detector.detect_frames(chain(first, frames), limits, batch)
                for frame, found in prefetched(looked) if side_by_side else looked:
                    for sink in sinks:
                        sink(frame, found)
                    done, last = done + 1, _name(frame)
        except BaseException as stop:
            if done and not isinstance(stop, BrokenPipeError):  # which ends quietly
                where = "" if out is None or isinstance(stop, Exception) else f"; results: {out}"
                note(f"{counted(done, 'image')} done, up to {last}{where}")
            raise
    if not failures and not done:
        raise DetkitError("no image was found", do="name images, a folder that holds some, a video or -")
    return tell_failures(failures, done)


def _sharded(
    source: list[str],
    listed: str | None,
    model: list[str],
    size: int | None,
    answers: options.Answers,
    limits: dict[str, Any],
    batch: int,
    sharding: _Sharding,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Detections of very many images as Parquet files; the exit code."""
    from detkit.sharding import Job, detect_shards

    workers = sharding.number_of_workers()
    if answers.threads is None and isinstance(workers, int) and workers > 1:
        answers = replace(answers, threads=max(1, (os.cpu_count() or 1) // workers))
    plain = ("tta", "ensemble", "precision", "engine", "layout", "overlap", "budget")
    how = {name: getattr(answers, name) for name in plain} | {"slice": answers.tile}
    files = {"names": answers.names, "the list": None if listed == "-" else listed}
    how |= {name: file and _digest(Path(file)) for name, file in files.items()}
    settings = {"model": list(map(_fingerprint, model or ["default"])), **limits, "size": size, **how}
    job = Job(out=str(sharding.shards), load=partial(answers.predictor, model, size), limits=limits, batch=batch)
    result = detect_shards(
        chain(source, _lines(listed)),
        job,
        names=[*source, *(["--list " + listed] if listed else [])],
        settings=settings,
        size=sharding.shard_size,
        part=sharding.part_of(),
        workers=workers,
        overwrite=overwrite,
        devices=float((answers.device or "").startswith("cuda")),
        tell=note,
        on_progress=lambda done, total: progress(done, total, "shards"),
    )
    emit(result, as_json)
    return 3 if result.facts["failed"] or result.facts["new"] else 0


def _fingerprint(model: str) -> str:
    """What tells a model from another of the same name."""
    from detkit.zoo import model_file

    return model if model.startswith("torchvision/") else f"{model} {_digest(model_file(model))}"


def _digest(file: Path) -> str:
    from detkit.io.download import sha256_of
    from detkit.io.files import reading

    with reading(str(file)):
        return sha256_of(file)[:16]


def tell_failures(failures: list[Failure], done: int) -> int:
    """Says what could not be read; the exit code."""
    for failure in failures:
        number = DetkitError(failure.what).number
        text = f"detkit: {failure.source}: {failure.what}" + f" [{number}]" * bool(number)
        message(text + (f"\n  {failure.do}" if failure.do else ""))
    if failures:
        message(f"{done} done, {len(failures)} failed")
        return 3 if done else 2
    return 0


def _lines(file: str | None) -> Iterator[str]:
    """The lines of a file or of stdin as they come, without empty ones."""
    from detkit.io.files import reading

    if file is not None:
        name, own = (0, False) if file == "-" else (file, True)
        with reading(file), open(name, encoding="utf-8", errors="surrogateescape", closefd=own) as lines:
            yield from filter(None, (line.rstrip("\r\n") for line in lines))


def _frames(source: Iterable[str], failures: list[Failure]) -> Iterator[Frame]:
    """What can be read; the rest goes into ``failures``."""
    from detkit.io.sources import Frame

    for frame in read_frames(source):
        if isinstance(frame, Frame):
            yield frame
        else:
            failures.append(frame)


def on_disk(source: Iterable[str]) -> bool:
    """True of files and folders, which never keep one waiting, as a camera, a stream or stdin may."""
    return all(os.path.isfile(one) or os.path.isdir(one) for one in source)  # unlike Path's, of any text


def read_frames(source: Iterable[str]) -> Iterator[Frame | Failure]:
    """All that is there, counted where a person watches and results go elsewhere."""
    from detkit.io.sources import open_sources

    watched = sys.stderr.isatty() and not sys.stdout.isatty()
    number = 0
    for number, frame in enumerate(open_sources(map(_telling_skipped, source)), 1):
        if watched:
            print(f"\r{number} read", end="", file=sys.stderr, flush=True)
        yield frame
    if watched:
        print(f"\r{number} read, done", file=sys.stderr)


def _telling_skipped(source: str) -> str:
    """The source; says what a folder leaves out."""
    from detkit.io.sources import skipped_in

    if Path(source).is_dir() and (rest := skipped_in(source)):
        message(f"{source}: skipped {rest}")
    return source


def check_format(
    out: Path | None, form: str | None, among: Collection[str] | None, endings: Mapping[str, str]
) -> str | None:
    """The format of --out, by its name or the file's ending; ``among``: those that this verb has, None: all."""
    if form is not None:
        registry.find_part("writer", form, where="--format")
        if out is None:
            raise DetkitError("--format needs --out", do="add --out FILE")
    kind = form or endings.get("" if out is None else out.suffix.lower())
    if among is not None and kind is not None and kind not in among:
        raise DetkitError(f"{kind} has no place for tracks", "--format", f"choose one of {', '.join(among)}")
    if out is not None and kind is None:
        more = "" if among else ", or name a folder and --format yolo|voc"
        do = f"end it in {', '.join(endings)}{more}; for images use --save"
        raise DetkitError(f"cannot tell the format of --out {out}", do=do)
    return kind


def print_json(frame: Frame, found: Detections) -> None:
    """A JSON line on stdout."""
    from detkit.io.detections import record_of

    print(json.dumps(record_of(frame, found), ensure_ascii=False), flush=True)


def _name(frame: Frame) -> str:
    return frame.source if frame.index is None else f"{frame.source} frame {frame.index}"


def _print(frame: Frame, found: Detections) -> None:
    counts = ", ".join(f"{count} {label}" for label, count in Counter(found.names).items())
    print(f"{_name(frame)}: {counts or 'nothing found'}", flush=True)
    if frame.index is None:
        for r in found.to_records():
            print(f"  {r['label']:<16} {r['score']:.3f}  {' '.join(f'{round(v):5d}' for v in r['box'])}", flush=True)


@contextmanager
def annotated_copies(verb: str = "detect", draw: Draw | None = None) -> Iterator[Sink]:
    """Writes annotated copies into a new numbered folder: images as images, frames of one video as one video.

    Args:
        verb: What the folder is called.
        draw: Makes the copy of a frame; None: boxes with names and scores.
    """
    from detkit.io.draw import draw_detections
    from detkit.io.files import numbered_folder
    from detkit.io.images import write_image
    from detkit.io.video import VideoWriter

    folder = numbered_folder("runs", verb)
    videos: dict[tuple[str, int, int], VideoWriter] = {}  # the one being written, by its source and its frames' size

    def new_name(source: str, ending: str) -> Path:
        stem = "stdin" if source == "-" else Path(source).stem
        names = chain([f"{stem}{ending}"], (f"{stem}-{copy}{ending}" for copy in count(2)))
        return next(folder / name for name in names if not (folder / name).exists())  # there may be a/1.jpg and b/1.jpg

    def finish() -> None:
        for video in videos.values():
            if video.notice:
                message(video.notice)
        videos.clear()

    def write(frame: Frame, found: Detections) -> None:
        drawn = draw_detections(frame.image, found) if draw is None else draw(frame, found)
        if frame.index is None:
            write_image(new_name(frame.source, ".jpg"), drawn)
            return
        key = (frame.source, frame.width, frame.height)  # a stream may come back in another size
        if key not in videos:
            stack.close()
            finish()
            videos[key] = stack.enter_context(VideoWriter(new_name(frame.source, ".mp4"), frame.fps))
        videos[key].write(drawn)

    try:
        with ExitStack() as stack:
            yield write
    finally:
        finish()
        message(f"annotated copies: {folder}")
