"""Writers of detections: JSON lines, COCO results, YOLO txt, VOC xml, CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self
from xml.sax.saxutils import escape

from detkit.interfaces import Writer
from detkit.io.detections import record_of
from detkit.io.files import growing
from detkit.io.sources import Frame

if TYPE_CHECKING:
    from detkit.structures import Detections


class _GrowingWriter(Writer):
    """Output that takes its name when the block ends or is stopped; errors of the disk in a person's words."""

    def _output(self) -> AbstractContextManager[None]:
        """The output, open as long as the block."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._open = self._output()
        self._open.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


class FileWriter(_GrowingWriter):
    """A writer of one text file, which is valid after each frame: its end is written over by the next."""

    head: str = ""
    between: ClassVar[str] = ""
    end: ClassVar[str] = ""

    @contextmanager
    def _output(self) -> Iterator[None]:
        self._whole = 0  # bytes of whole frames
        with growing(self.path, self.overwrite) as path, path.open("r+b", buffering=0) as self._file:
            try:
                yield
                if not self._whole:
                    self._append(self.head)
            except BaseException:
                self._put(self.end if self._whole else "")  # in place of what was half written
                self._file.truncate()
                raise

    def write(self, frame: Frame, detections: Detections) -> None:
        """Adds the detections of one frame, in its pixels."""
        text = self._text(frame, detections)
        if not self._whole:
            self._append(self.head + text)
        elif text:
            self._append(self.between * (self._whole > len(self.head)) + text)

    def _append(self, text: str) -> None:
        # A name that is no UTF-8 becomes \\udcXX, which is how JSON spells it.
        size = len(text.encode("utf-8", "backslashreplace"))
        self._put(text + self.end)
        self._whole += size

    def _put(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        self._file.seek(self._whole)
        while data:  # a full disk takes a part, and then refuses
            data = data[self._file.write(data) or 0 :]

    def _text(self, frame: Frame, detections: Detections) -> str:
        raise NotImplementedError


class JsonLinesWriter(FileWriter):
    """One JSON object per line and frame: the lines of ``detect --json``."""

    def _text(self, frame: Frame, detections: Detections) -> str:
        return json.dumps(record_of(frame, detections), ensure_ascii=False) + "\n"


class CocoWriter(FileWriter):
    """COCO results: a list of image_id, category_id, bbox [x, y, width, height], score; names, frame of a video.

    image_id is looked up in ``image_ids``; else it is the file name without its ending (and the number of the frame),
    as a number where it has twelve digits, as COCO names its images (000000000139.jpg: 139).
    """

    head, between, end = "[\n", ",\n", "\n]\n"

    def _text(self, frame: Frame, detections: Detections) -> str:
        image = self._image_id(frame)
        more = {"file_name": Path(frame.source).name} | ({} if frame.index is None else {"frame": frame.index})
        records = []
        for (x1, y1, x2, y2), score, label in _rows(detections):
            box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            record = {"image_id": image, "category_id": self.class_ids[label], "bbox": box, "score": round(score, 6)}
            named = {"category_name": detections.classes[label]}
            records.append(json.dumps(record | named | more, ensure_ascii=False))
        return self.between.join(records)

    def _image_id(self, frame: Frame) -> int | str:
        path = Path(frame.source)
        for key in (frame.source, path.name):
            if key in self.image_ids:
                return self.image_ids[key]
        if frame.index is not None:
            return f"{path.stem}_{frame.index:06d}"
        return int(path.stem) if re.fullmatch("[0-9]{12}", path.stem) else path.stem


class CsvWriter(FileWriter):
    """One row per detection, box as xyxy in pixels, of tracks their number too; an image without any has none."""

    head = "source,frame,width,height,label,label_id,score,x1,y1,x2,y2\n"

    def _text(self, frame: Frame, detections: Detections) -> str:
        if not self._whole and "track_id" in detections.extra:
            self.head = self.head.replace("\n", ",track_id\n")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        head = (frame.source, "" if frame.index is None else frame.index, frame.width, frame.height)
        for found in detections.to_records():
            more = (found["track_id"],) if "track_id" in self.head else ()
            table.writerow((*head, found["label"], found["label_id"], found["score"], *found["box"], *more))
        return text.getvalue()


class FolderWriter(_GrowingWriter):
    """A writer of a folder with one small file per frame, also for frames without detections.

    With ``overwrite`` files go into a folder that exists, replacing only those of the same name.
    """

    suffix: ClassVar[str]
    unlisted: ClassVar[tuple[str, ...] | None] = None  # names before the classes' in classes.txt; None: no such file

    @contextmanager
    def _output(self) -> Iterator[None]:
        self._used = {"classes"} if self.suffix == ".txt" else set()
        with growing(self.path, self.overwrite, folder=True) as self._folder:
            yield

    def write(self, frame: Frame, detections: Detections) -> None:
        """Adds the detections of one frame, in its pixels."""
        stem = "stdin" if frame.source == "-" else Path(frame.source).stem
        if frame.index is not None:
            stem = f"{stem}_{frame.index:06d}"
        name, copy = stem, 1
        while name.casefold() in self._used:  # a/1.jpg and b/1.jpg go into one folder
            copy += 1
            name = f"{stem}-{copy}"
        self._put(f"{name}{self.suffix}", self._text(frame, detections))
        self._used.add(name.casefold())
        if self.unlisted is not None and not (self._folder / "classes.txt").exists():
            self._put("classes.txt", "".join(f"{name}\n" for name in (*self.unlisted, *self.classes)))

    def _put(self, name: str, content: str | bytes) -> None:
        try:
            (self._folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        except BaseException:
            (self._folder / name).unlink(missing_ok=True)
            raise

    def _text(self, frame: Frame, detections: Detections) -> str | bytes:
        raise NotImplementedError


class YoloWriter(FolderWriter):
    """YOLO txt: ``label cx cy w h score`` per line, as fractions of the image; the names stand in classes.txt."""

    suffix, unlisted = ".txt", ()

    def _text(self, frame: Frame, detections: Detections) -> str:
        text, w, h = "", frame.width, frame.height
        for (x1, y1, x2, y2), score, label in _rows(detections):
            values = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h, score)
            text += f"{label} " + " ".join(f"{v:.6f}" for v in values) + "\n"
        return text


class VocWriter(FolderWriter):
    """PASCAL VOC xml: whole, one-based pixels, xmax and ymax inclusive; the score is in <confidence>."""

    suffix = ".xml"

    def _text(self, frame: Frame, detections: Detections) -> str:
        objects = []
        for found in detections.to_records():
            x1, y1, x2, y2 = (round(v) for v in found["box"])
            # One-based inclusive corners differ from zero-based exclusive ones in xmin and ymin only.
            xmin, ymin = min(max(x1, 0) + 1, frame.width), min(max(y1, 0) + 1, frame.height)
            xmax, ymax = max(xmin, min(x2, frame.width)), max(ymin, min(y2, frame.height))
            fields = {"name": found["label"], "difficult": 0, "confidence": found["score"]}
            objects.append((fields, (xmin, ymin, xmax, ymax)))
        return voc_xml(Path(frame.source).name, frame.width, frame.height, objects)


def voc_xml(
    name: str, width: int, height: int, objects: Iterable[tuple[Mapping[str, object], Sequence[object]]]
) -> str:
    """PASCAL VOC's annotation file of one image.

    Args:
        name: The image's file name.
        width: In pixels.
        height: In pixels.
        objects: Of each, its elements and then its corners xmin, ymin, xmax, ymax.
    """
    lines = ["<annotation>", f"  <filename>{_xml(name)}</filename>"]
    lines.append(f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for elements, (xmin, ymin, xmax, ymax) in objects:
        box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
        lines.append("  <object>")
        lines += [f"    <{key}>{_xml(str(value))}</{key}>" for key, value in elements.items()]
        lines += [f"    <bndbox>{box}</bndbox>", "  </object>"]
    return "\n".join([*lines, "</annotation>", ""])


def _rows(detections: Detections) -> Iterator[tuple[list[float], float, int]]:
    found = detections.numpy()
    columns = (found.boxes, found.scores, found.labels)
    return zip(*(column.tolist() for column in columns), strict=True)


def _xml(text: str) -> str:
    # XML 1.0 has no way to write control characters and lone surrogates.
    return escape(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text))
