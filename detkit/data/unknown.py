"""What lies where no data set was recognised, and what a person can do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from detkit.data.listing import files_in, of_suffix
from detkit.data.yolo_layout import is_label

_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"}
_RECORDS = {".tfrecord", ".record", ".parquet", ".arrow"}
_EXPORT = "export it as COCO's json, VOC's xml or YOLO's text files"
_HEAD = 1 << 14
# What tells the exports of tools that have better ones.
_TOOLS = {
    "Datumaro's own json": ("dm_format_version",),
    "Label Studio's own csv": ("original_width", "rotation"),
    "VoTT's own json": ('"visitedTags"',),
}


def contents(folder: Path) -> str:
    """How many files of which ending lie in a folder: "24 .jpg, 1 .json"."""
    endings = Counter(PurePosixPath(file).suffix.lower() or "without an ending" for file in files_in(folder))
    return ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5)) or "it is empty"


def advice(path: Path) -> str:
    """What to do with a file or folder that no format recognises; "" where nothing tells."""
    root, files = (path, list(files_in(path))) if path.is_dir() else (path.parent, [path.name])
    if of_suffix(files, _RECORDS):
        return f"records in binary files are not read: {_EXPORT}"
    images = of_suffix(files)
    if archives := of_suffix(files, _ARCHIVES):
        return "" if images else f"unpack {archives[0]}, and give the folder"
    for file in of_suffix(files, {".json", ".csv"})[:5]:
        with open(root / file, encoding="utf-8", errors="replace") as text:
            head = text.read(_HEAD)
        for tool, words in _TOOLS.items():
            if all(word in head for word in words):
                return f"{file} is {tool}, which is not read: {_EXPORT}"
    return _of_texts(root, of_suffix(files, {".txt"}), images)


def _of_texts(root: Path, texts: Sequence[str], images: Sequence[str]) -> str:
    stems = {PurePosixPath(image).stem for image in images}
    beside = next((text for text in texts if PurePosixPath(text).stem in stems), None)
    if beside is not None:
        with open(root / beside, encoding="utf-8", errors="replace") as lines:
            first = next((line.strip() for line in lines if line.strip()), "")
        return f"{beside} begins with {first[:60]!r}; a line of YOLO's is a class's number and four fractions"
    if not images and any(is_label(root / text) for text in texts):
        return "these are YOLO's labels without their images: put images/ beside labels/, and a classes.txt"
    if images and (root.parent / "labels").is_dir():
        return f"these are images, with their labels beside this folder: give {root.parent}"
    if {PurePosixPath(image).parts[0] for image in images} == {"images", "masks"}:
        return "are these masks of pixels? write classes.txt: the name of number 0, of 1 and so on, a line each"
    if images and len(images) > 1 and not texts:
        return "these are images without labels (detkit label makes some), or for class folders one class only"
    return ""
