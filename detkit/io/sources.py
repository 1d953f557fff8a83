"""Whatever a user may name - image, folder, pattern, video, camera, address, stdin, array - as one stream of frames.

One frame is in memory at a time. What cannot be read becomes a Failure in the stream and costs nothing else.
"""

from __future__ import annotations

import glob
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from detkit.errors import DetkitError
from detkit.io.download import fetched
from detkit.io.files import digits_in, reading
from detkit.io.images import IMAGE_SUFFIXES, ImageSource, as_rgb, paths_in, read_header
from detkit.io.remote import listed
from detkit.io.video import STREAMS, VIDEO_SUFFIXES, Open, VideoReader, without_password
from detkit.printed import counted

Source = ImageSource | int
# Of files that lie among photos; those without a reader are not taken for images, and that is said.
MEDIA = VIDEO_SUFFIXES | {".heic", ".heif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"}
READERS = dict.fromkeys((".heic", ".heif"), 'pip install "detkit[heif]"')
_WAITS = (1, 2, 4, 8, 16)  # seconds before each attempt to connect to a stream again


@dataclass(slots=True, frozen=True, eq=False)
class Frame:
    """One image of a stream.

    Args:
        image: uint8 (H, W, 3) RGB.
        source: Path, address, "camera 0", "-" (stdin) or "array 0".
        index: Number of the frame, from 0, in a video or camera; None: an image.
        fps: Of the video; None where unknown.
        frames_total: Of the video, as it claims; None where unknown.
    """

    image: np.ndarray
    source: str
    index: int | None = None
    fps: float | None = None
    frames_total: int | None = None

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.image.shape[0])


@dataclass(slots=True, frozen=True)
class Failure:
    """A source, or the rest of one, that could not be read: what happened and what to do about it."""

    source: str
    what: str
    do: str = ""


def open_sources(
    sources: Iterable[Source] | Source, *, stdin: BinaryIO | None = None, camera: Open | None = None
) -> Iterator[Frame | Failure]:
    """The frames of all sources in turn, lazily; a video cut short gives its good frames, then a Failure.

    Args:
        sources: Each an image or video file, a folder (its own images by name; sub-folders by the pattern
            ``folder/**/*.jpg``), a glob pattern, a camera's number (0 or "0"), the http(s) address of an image or video
            (at most 512 MB), an RTSP stream's (connected again when it is lost), "-" (the bytes of one image on stdin),
            bytes, an array (uint8, RGB) or a Pillow image.
        stdin: In place of the real one.
        camera: Number or stream to a ``cv2.VideoCapture`` or its like, in place of the real one.
    """
    if isinstance(sources, (str, bytes, np.ndarray)) or not isinstance(sources, Iterable):
        sources = [sources]
    for number, source in enumerate(sources):
        name = str(source) if isinstance(source, (str, Path, int)) else f"array {number}"
        name = f"bytes {number}" if isinstance(source, bytes) else name
        try:
            items = _items(source, name, stdin)
        except DetkitError as error:
            yield Failure(name, error.what, error.do)
            continue
        for title, item in items:
            try:
                yield from _frames(item, title, camera)
            except DetkitError as error:
                yield Failure(title, error.what, error.do)


def _frames(item: Source, title: str, camera: Open | None) -> Iterator[Frame | Failure]:
    if isinstance(item, str) and item.startswith(STREAMS):
        yield from _stream(item, title, camera)
    elif isinstance(item, str):
        with fetched(item) as file:
            yield from _frames(file, title, camera)
    elif isinstance(item, int) or (isinstance(item, Path) and _is_video(item)):
        yield from _video(item, title, camera if isinstance(item, int) else None)
    else:
        yield Frame(as_rgb(item), title)


def _items(source: Source, name: str, stdin: BinaryIO | None) -> list[tuple[str, Source]]:
    """What a source stands for, each with its name: images, files of either kind, a camera's number, an address."""
    if not isinstance(source, (str, Path, int)):
        return [(name, source)]
    if name == "-":
        data = (stdin or sys.stdin.buffer).read()
        if not data:
            raise DetkitError("nothing came in on stdin", do="pipe the bytes of one image in: detkit detect - < a.jpg")
        return [(name, data)]
    if isinstance(source, str) and "://" in source:
        if not source.lower().startswith(("http://", "https://", *STREAMS)):
            raise DetkitError("addresses of this kind are not opened", do="give http://, https:// or rtsp://")
        return [(without_password(source), source)]
    path = Path(name)
    if isinstance(source, int) or (digits_in(name) is not None and not path.exists()):
        return [(f"camera {int(name)}", int(name))]
    with reading(name):
        if path.is_dir():
            paths = paths_in(path)
            empty = DetkitError("no image lies in this folder", do="" if paths else _below(path))
        elif path.exists() or not glob.has_magic(name):
            return [(str(path), path)]
        else:
            found = map(Path, sorted(glob.glob(name, recursive=True)))
            paths = [match for match in found if not match.is_dir()]
            other = str(path.with_suffix(path.suffix.swapcase()))  # .jpg for .JPG
            near = glob.glob(other, recursive=True)
            do = f"did you mean '{other}'?" if near else "check it; quote it so that the shell leaves it"
            empty = DetkitError("no file matches this pattern", do=do)
    if not paths:
        raise empty
    return [(str(file), file) for file in paths]


def _below(folder: Path) -> str:
    """What to do with a folder that has no images of its own: those of its sub-folders, by their commonest suffix."""
    suffixes = Counter(
        Path(file).suffix for _, _, files in os.walk(folder) for file in files if not file.startswith(".")
    )
    images = Counter({suffix: count for suffix, count in suffixes.items() if suffix.lower() in IMAGE_SUFFIXES})
    if not images:
        return "name a folder, a file or a pattern of images"
    (suffix, most), total = images.most_common(1)[0], images.total()
    those = counted(total, "image") + f", {most} of them {suffix}" * (most < total)
    return f"its sub-folders hold {those}: give '{folder / '**' / f'*{suffix}'}'"


def image_files(source: str) -> Iterator[tuple[str, int | None]]:
    """Name and size in bytes of each image file that a source means, none of which is opened.

    Args:
        source: As ``open_sources`` takes files, folders and patterns, or an address that fsspec knows.

    Raises:
        DetkitError: Nothing is there, or it is no image file (a video, a camera).
    """
    if "://" in source and not source.startswith(STREAMS):
        yield from listed(source)
        return
    for name, item in _items(source, source, None):
        if not isinstance(item, Path) or item.suffix.lower() in VIDEO_SUFFIXES:
            raise DetkitError("only image files are cut into shards", name, "leave out --shards")
        with reading(name):
            yield name, item.stat().st_size


def skipped_in(folder: str | Path) -> str:
    """What a folder, as a source, leaves out: films, raw photos and the like by suffix, counted; empty: nothing."""
    with reading(str(folder)):
        found = Counter(path.suffix.lower() for path in Path(folder).iterdir() if not path.name.startswith("."))
    advice = dict.fromkeys(VIDEO_SUFFIXES, "name it to see it") | READERS
    rest = ((suffix, count) for suffix, count in sorted(found.items()) if suffix in MEDIA - IMAGE_SUFFIXES)
    return ", ".join(
        f"{count} {suffix}" + (f" ({advice[suffix]})" if suffix in advice else "") for suffix, count in rest
    )


def _is_video(path: Path) -> bool:
    """By suffix; a file with an unknown one is a video if it is no image but opens as a video."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES or not path.is_file():
        return suffix in VIDEO_SUFFIXES
    try:
        read_header(path)
    except DetkitError:
        with suppress(DetkitError), VideoReader(path):
            return True
    return False


def _video(source: Path | int, title: str, capture: Open | None) -> Iterator[Frame | Failure]:
    with VideoReader(source, capture=capture) as reader:
        for image in reader:
            yield Frame(image, title, reader.frames_read - 1, reader.fps, reader.frames_total)
            del image  # the consumer's reference is the only one while the next frame is decoded
        if isinstance(source, int):
            yield Failure(title, f"the camera stopped after {counted(reader.frames_read, 'frame')}", "check its cable")
        elif reader.frames_read == 0:
            yield Failure(title, "no frame of the video can be decoded", "convert it to mp4")
        elif reader.cut_short:
            what = f"the video is cut short: {reader.frames_read} of {reader.frames_total} frames could be read"
            yield Failure(title, what, "fetch or copy it again; the frames before that were used")


def _stream(address: str, title: str, capture: Open | None) -> Iterator[Frame | Failure]:
    """A live stream; it is opened again when it is lost, unless it never worked."""
    number, lost = 0, 0
    while lost <= len(_WAITS):
        try:
            with VideoReader(address, capture=capture) as reader:
                for image in reader:
                    yield Frame(image, title, number, reader.fps)
                    del image
                    number, lost = number + 1, 0
        except DetkitError:
            if number == 0:
                raise
        if lost == 0:
            warnings.warn(f"{title}: lost after {counted(number, 'frame')}, connecting again", stacklevel=1)
        if lost < len(_WAITS):
            time.sleep(_WAITS[lost])
        lost += 1
    yield Failure(title, f"the stream stopped after {counted(number, 'frame')}", "check the camera and the network")
