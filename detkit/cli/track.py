"""``detkit track``: objects of a video followed, counted, drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from detkit.cli import options
from detkit.cli.detect import annotated_copies, check_format, on_disk, print_json, read_frames, tell_failures
from detkit.cli.options import names_in
from detkit.errors import DetkitError
from detkit.printed import counted

if TYPE_CHECKING:
    from detkit.io.sources import Failure, Frame
    from detkit.structures import Detections


@dataclass(frozen=True)
class _Following:
    """How detections become tracks."""

    fps: Annotated[float | None, Option(help="Frames a second (default: the video's; else 30).")] = None
    lost: Annotated[str, Option(metavar="2s", help="How long a track outlives its last detection.")] = "2s"
    two_stage: Annotated[bool, Option(help="Doubtful detections too continue tracks (ByteTrack).")] = True
    re_update: Annotated[bool, Option(help="A track found again is filtered anew over the gap (OC-SORT).")] = True
    any_class: Annotated[bool, Option("--any-class", help="A track may change its class.")] = False
    camera_motion: Annotated[bool, Option("--camera-motion", help="Allow for a camera that moves.")] = False
    appearance: Annotated[
        bool,
        Option("--appearance", help="Find lost objects again by their looks (the neck's maps), wherever they are."),
    ] = False
    looks: Annotated[
        str | None, Option(metavar="MODEL", help="The same by the vectors of a model with head embed.")
    ] = None


_LIKE = 0.5  # of two looks of one object; those of two objects are near 0


def track(
    source: Annotated[str | None, Argument(metavar="VIDEO", help="Video, camera, stream, folder of frames.")] = None,
    predictions: Annotated[
        Path | None, Option(help="Track these (detect --json, MOT txt), with or without VIDEO; no model runs.")
    ] = None,
    model: options.ModelNames = None,
    conf: Annotated[float | None, Option(help="From this score on tracks begin (default: the model's; 0.5).")] = None,
    iou: options.Iou = None,
    max_detections: Annotated[int, Option(help="Most boxes per frame.")] = 100,
    classes: options.Classes = None,
    size: options.Size = None,
    answers: options.Answers = options.Answers(),
    following: _Following = _Following(),
    count: Annotated[
        list[str] | None,
        Option("--count", metavar="AREA", help="line:x1,y1,x2,y2 or zone:x1,y1,x2,y2,...: count what crosses it."),
    ] = None,
    batch: options.BatchSize = 1,
    out: options.Out = None,
    form: Annotated[str | None, Option("--format", help="Of --out: jsonl, csv, mot (by its ending .txt).")] = None,
    save: Annotated[bool, Option("--save", help="The video with tracks drawn, in runs/track, track2 ...")] = False,
    overwrite: options.Overwrite = False,
    as_json: bool = False,
) -> int:
    """Follow objects through a video. Prints how many there were, and what crossed each line and zone; with --json, one
    JSON line per frame and one with the totals."""
    from detkit.io.detections import open_writer
    from detkit.io.prefetch import prefetched
    from detkit.structures import Limits
    from detkit.tracking.counting import Area
    from detkit.tracking.tracker import Tracker

    if source is None and predictions is None:
        raise DetkitError("no video was named", "VIDEO", "name a video, camera, folder of frames or --predictions FILE")
    if save and source is None:
        raise DetkitError("without a video there is nothing to draw on", "--save", "name the video too")
    if following.camera_motion and source is None:
        raise DetkitError("without a video the camera's motion is unknown", "--camera-motion", "name the video too")
    by_looks = following.appearance or following.looks is not None
    if by_looks and predictions is not None:
        raise DetkitError("a file of detections has no looks", "--appearance, --looks", "let a model detect")
    if predictions is not None and (model or answers.ensemble or answers.tta):
        raise DetkitError("give a model or --predictions, not both", do="leave one of them out")
    kind = check_format(out, form, ("jsonl", "csv", "mot"), {".jsonl": "jsonl", ".csv": "csv", ".txt": "mot"})
    lost, areas = _seconds(following.lost), [Area(text) for text in count or ()]
    failures: list[Failure] = []
    wanted = None if classes is None else names_in(classes) or [classes]
    if predictions is not None:
        frames, known = _from_file(source, predictions, following.fps, failures)
        high = Limits(0.5 if conf is None else conf).conf
        if wanted and (unknown := [name for name in wanted if name not in known]):
            raise DetkitError(f"the file has no class {unknown[0]!r}", str(predictions), f"it has {', '.join(known)}")
        ids: tuple[int | str, ...] = tuple(range(len(known)))
        frames = ((frame, found.filter(classes=wanted)) for frame, found in frames)
    else:
        assert source is not None
        side_by_side = on_disk([source])
        streams = 2 if side_by_side and not by_looks else 1
        detector = answers.predictor(model or [], size, quick=not following.appearance, streams=streams)
        if detector.protocol == "classify":
            raise DetkitError("a classifier finds no boxes to follow", "--model", "name a detector")
        if by_looks:
            from detkit.config.build import load_detector
            from detkit.prediction.appearance import WithAppearance

            detector = WithAppearance(detector, load_detector(following.looks) if following.looks else None)
        limits = detector.limits(conf, iou, max_detections, wanted)
        high = limits.conf
        limits = replace(limits, conf=min(0.1, high) if following.two_stage else high)
        known, ids = detector.classes, detector.class_ids
        images = _video(source, following.fps, failures)
        frames = detector.detect_frames(prefetched(images) if side_by_side else images, limits, batch)
        frames = prefetched(frames) if side_by_side else frames
    tracker: Tracker | None = None
    totals: dict[str, set[int]] = {}
    done = 0
    with ExitStack() as stack:
        if out is not None and kind is not None:
            writer = stack.enter_context(open_writer(kind, out, known, ids, overwrite))
        for frame, found in frames:
            if tracker is None:
                ways = {"two_stage": following.two_stage, "re_update": following.re_update}
                ways |= {"by_class": not following.any_class, "camera": following.camera_motion}
                rate, like = frame.fps if following.fps is None else following.fps, _LIKE if by_looks else None
                tracker = Tracker(fps=rate, high=high, low=min(0.1, high), lost=lost, appearance=like, **ways)
                for area in areas if frame.width else ():
                    area.check(frame.width, frame.height)
                if save:
                    from detkit.tracking.drawing import TrackDrawing

                    draw = stack.enter_context(annotated_copies("track", TrackDrawing(tracker.fps, areas)))
            before = tracker.frame
            tracked = tracker.update(found, frame=frame.index, image=frame.image)
            for area in areas:
                area.update(tracked, (tracker.frame - before) / tracker.fps if done else 0.0, tracker.living.tolist())
            for name, number in zip(tracked.names, tracked.extra["track_id"].tolist(), strict=True):
                totals.setdefault(name, set()).add(number)
            if as_json:
                print_json(frame, tracked)
            if out is not None:
                writer.write(frame, tracked)
            if save:
                draw(frame, tracked)
            done += 1
    if not done and not failures:
        raise DetkitError("no frame was found", do="name a video, a camera or a folder that holds images")
    if as_json:
        facts = {"frames": done, "tracks": {name: len(numbers) for name, numbers in totals.items()}}
        print(json.dumps({**facts, "counts": [area.to_dict() for area in areas]}, ensure_ascii=False), flush=True)
    elif done:
        seen = ", ".join(f"{len(numbers)} {name}" for name, numbers in sorted(totals.items()))
        print(f"{counted(done, 'frame')}: {seen or 'nothing was tracked'}", flush=True)
        for area in areas:
            print(*area.lines(), sep="\n", flush=True)
    return tell_failures(failures, done)


def _video(source: str, fps: float | None, failures: list[Failure]) -> Iterator[Frame]:
    from detkit.tracking.frames import numbered

    return numbered(read_frames([source]), source, fps, failures)


def _from_file(
    source: str | None, path: Path, fps: float | None, failures: list[Failure]
) -> tuple[Iterator[tuple[Frame, Detections]], tuple[str, ...]]:
    """Frames with the detections of a file, and the names of its classes."""
    from detkit.tracking.frames import read_found, with_video

    found = read_found(path)
    classes = found[0][1].classes
    return iter(found) if source is None else with_video(_video(source, fps, failures), found, path), classes


def _seconds(text: str) -> float:
    """The seconds of "2s", "0.5 s" or "2"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*s?", text.strip())
    if match is None:
        raise DetkitError(f"{text!r} is no time", "--lost", "write seconds: --lost 2s")
    return float(match[1])
