"""Every format holds what was found; what is stopped keeps its whole frames."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from defusedxml import ElementTree

from detkit.errors import DetkitError
from detkit.interfaces import Writer
from detkit.io.detections import WRITERS, open_writer
from detkit.io.sources import Frame
from detkit.structures import Detections

CLASSES = ("cat", "Straßenbahn & <Zug>")
IDS = (17, 90)
BOXES = np.asarray([[10, 20, 30, 60], [-0.4, 0, 200, 100]], np.float32)
FOUND = Detections(BOXES, [0.9, 0.25], [0, 1], CLASSES, {"masks": np.ones((2, 100, 200), bool)})
NONE = Detections.empty(CLASSES)


def frame(source: str = "photos/000000000139.jpg", index: int | None = None) -> Frame:
    return Frame(np.zeros((100, 200, 3), np.uint8), source, index)


def written(kind: str, path: Path, pairs: list[tuple[Frame, Detections]], **options: object) -> Path:
    with open_writer(kind, path, CLASSES, IDS, **options) as writer:  # type: ignore[arg-type]
        for one, found in pairs:
            writer.write(one, found)
    return path


@pytest.mark.parametrize("kind", WRITERS)
def test_what_exists_is_not_overwritten_unless_asked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new" / "out"
    written(kind, path, [(frame(), FOUND)])
    with pytest.raises(DetkitError) as caught:
        written(kind, path, [])
    assert caught.value.code == 2
    written(kind, path, [(frame(), NONE)], overwrite=True)
    assert [p.name for p in path.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, BrokenPipeError, ValueError, OSError])
@pytest.mark.parametrize("frames", [0, 2])
@pytest.mark.filterwarnings("ignore:what was written before the error is kept")
def test_a_stopped_output_is_that_of_the_whole_frames(
    tmp_path: Path, kind: str, stop: type[BaseException], frames: int
) -> None:
    pairs = [(frame("a.jpg"), FOUND), (frame("b.jpg"), FOUND)][:frames]
    path = tmp_path / "new" / "out"

    def stopped() -> None:
        with open_writer(kind, path, CLASSES, IDS) as writer:
            for one in pairs:
                writer.write(*one)
            if hasattr(writer, "_file"):  # half of the next frame is on the disk
                writer._file.seek(writer._whole)
                writer._file.write(b'{"half": ')
            raise stop

    with pytest.raises(DetkitError if stop is OSError else stop):
        stopped()
    kept = path if stop in (KeyboardInterrupt, BrokenPipeError) else path.with_name("out.partial")
    assert list(path.parent.iterdir()) == [kept] * (frames > 0)
    if frames:
        whole = written(kind, tmp_path / "whole", pairs)
        files = [one for one in (whole, *whole.rglob("*")) if one.is_file()]
        other = [kept / one.relative_to(whole) for one in files]
        assert [one.read_bytes() for one in other] == [one.read_bytes() for one in files]


KILLED = """
import os, signal, sys
import numpy as np
from detkit.io.detections import open_writer
from detkit.io.sources import Frame
from detkit.structures import Detections
with open_writer(sys.argv[1], sys.argv[2], ("cat",)) as writer:
    for i in range(3):
        writer.write(Frame(np.zeros((9, 9, 3), np.uint8), f"{i}.jpg"), Detections([[1, 2, 3, 4]], [0.5], [0], ("cat",)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_leaves_whole_frames_under_a_name_that_says_partial(tmp_path: Path) -> None:
    (tmp_path / "a.partial.jsonl").write_text("of an earlier run")
    jobs = [
        subprocess.Popen([sys.executable, "-c", KILLED, kind, str(tmp_path / name)])
        for kind, name in (("jsonl", "a.jsonl"), ("coco", "a.json"), ("csv", "a.csv"), ("yolo", "a"))
    ]
    assert [job.wait() for job in jobs] == [-9] * 4
    left = {p.name: p for p in tmp_path.iterdir()}
    assert set(left) == {"a.partial.jsonl", "a.partial-2.jsonl", "a.partial.json", "a.partial.csv", "a.partial"}
    lines = left["a.partial-2.jsonl"].read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [found["file_name"] for found in json.loads(left["a.partial.json"].read_text())] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
    ]
    assert len(left["a.partial.csv"].read_text().splitlines()) == 4
    assert sorted(p.name for p in left["a.partial"].iterdir()) == ["0.txt", "1.txt", "2.txt", "classes.txt"]


@pytest.mark.parametrize("kind", WRITERS)
def test_no_frame_at_all_is_a_valid_output(tmp_path: Path, kind: str) -> None:
    path = written(kind, tmp_path / "out", [])
    assert path.exists()
    if kind == "coco":
        assert json.loads(path.read_text()) == []


def test_json_lines(tmp_path: Path) -> None:
    pairs = [(frame(), FOUND), (frame("ü 猫.mp4", 3), NONE), (frame("bad\udcff.jpg"), NONE)]
    path = written("jsonl", tmp_path / "a.jsonl", pairs)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "source": "photos/000000000139.jpg",
        "frame": None,
        "width": 200,
        "height": 100,
        "detections": [
            {"label": "cat", "label_id": 0, "score": 0.9, "box": [10, 20, 30, 60]},
            {"label": CLASSES[1], "label_id": 1, "score": 0.25, "box": [-0.4, 0, 200, 100]},
        ],
    }
    assert (lines[1]["source"], lines[1]["frame"], lines[1]["detections"]) == ("ü 猫.mp4", 3, [])
    assert lines[2]["source"] == "bad\udcff.jpg"


def test_coco(tmp_path: Path) -> None:
    known = {"photos/x.jpg": 5, "y.jpg": "six"}
    sources = [frame(), frame("photos/x.jpg"), frame("other/y.jpg"), frame("2007_000027.jpg")]
    sources += [frame("000005.jpg"), frame("film.mp4", 7)]  # VOC's own id is the word 000005
    path = written("coco", tmp_path / "a.json", [(s, FOUND) for s in sources] + [(frame(), NONE)], image_ids=known)
    records = json.loads(path.read_text())
    assert [r["image_id"] for r in records[::2]] == [139, 5, "six", "2007_000027", "000005", "film_000007"]
    assert records[0] == {
        "image_id": 139,
        "category_id": 17,
        "bbox": [10, 20, 20, 40],
        "score": 0.9,
        "category_name": "cat",
        "file_name": "000000000139.jpg",
    }
    assert records[1]["category_id"] == 90
    assert records[-1]["frame"] == 7


def test_pycocotools_reads_it(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    path = written("coco", tmp_path / "a.json", [(frame(), FOUND)])
    truth = COCO()
    truth.dataset = {"images": [{"id": 139}], "categories": [{"id": 17}, {"id": 90}], "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes(str(path)).anns) == 2


def test_csv(tmp_path: Path) -> None:
    path = written("csv", tmp_path / "a.csv", [(frame('a,"b".jpg'), FOUND), (frame("film.mp4", 3), FOUND[0])])
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["source"], r["frame"], r["label"]) for r in rows] == [
        ('a,"b".jpg', "", "cat"),
        ('a,"b".jpg', "", CLASSES[1]),
        ("film.mp4", "3", "cat"),
    ]
    assert [rows[0][k] for k in ("width", "height", "score", "x1", "y1", "x2", "y2")] == [
        "200", "100", "0.9", "10.0", "20.0", "30.0", "60.0"
    ]  # fmt: skip


def test_yolo(tmp_path: Path) -> None:
    pairs = [(frame("a/1.jpg"), FOUND), (frame("b/1.JPG"), NONE), (frame("film.mp4", 3), FOUND[0]), (frame("-"), NONE)]
    path = written("yolo", tmp_path / "labels", pairs)
    assert sorted(p.name for p in path.iterdir()) == [
        "1-2.txt", "1.txt", "classes.txt", "film_000003.txt", "stdin.txt"
    ]  # fmt: skip
    rows = [[float(v) for v in line.split()] for line in (path / "1.txt").read_text().splitlines()]
    assert rows[0] == [0, 0.1, 0.4, 0.1, 0.4, 0.9]
    assert rows[1] == pytest.approx([1, 0.499, 0.5, 1.002, 1, 0.25], abs=1e-6)
    assert (path / "1-2.txt").read_text() == ""
    assert (path / "classes.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)


def test_voc_counts_from_one(tmp_path: Path) -> None:
    path = written("voc", tmp_path / "xml", [(frame("ü\x01.jpg"), FOUND)])
    root = ElementTree.parse(next(path.iterdir())).getroot()
    assert (root.findtext("size/width"), root.findtext("size/height")) == ("200", "100")
    objects = root.findall("object")
    assert [o.findtext("name") for o in objects] == list(CLASSES)
    corners = [[int(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    assert corners == [[11, 21, 30, 60], [1, 1, 200, 100]]
    assert objects[1].findtext("confidence") == "0.25"


def test_an_unknown_format() -> None:
    with pytest.raises(DetkitError, match="there is no writer 'xlsx'"):
        open_writer("xlsx", "a.xlsx", CLASSES)


class NameWriter(Writer):
    """A writer from outside: the names that were found, one per line."""

    def __enter__(self) -> NameWriter:
        self.names: list[str] = []
        return self

    def write(self, frame: Frame, detections: Detections) -> None:
        self.names += detections.names

    def __exit__(self, *_: object) -> None:
        self.path.write_text("\n".join(self.names), encoding="utf-8")


def test_a_writer_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outside", SimpleNamespace(NameWriter=NameWriter))
    path = written("outside:NameWriter", tmp_path / "a.txt", [(frame(), FOUND)])
    assert path.read_text(encoding="utf-8").splitlines() == list(CLASSES)
