"""Whatever a user may name - image, folder, pattern, video, camera, stdin, array - as one stream of frames.

One frame is in memory at a time. What cannot be read becomes a Failure in the stream and costs nothing else.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from detkit.errors import DetkitError
from detkit.io.images import IMAGE_SUFFIXES, as_rgb, paths_in, read_error, read_header, read_image
from detkit.io.video import VIDEO_SUFFIXES, VideoReader

Source = str | Path | bytes | np.ndarray | Any


@dataclass(slots=True, frozen=True, eq=False)
class Frame:
    """One image of a stream: uint8 (H, W, 3) RGB.

    source: path, "camera 0", "-" (stdin) or "array 0"; index: number of the frame from 0 in a video or camera, None for
    an image; fps and frames_total of the video (None where unknown).
    """

    image: np.ndarray
    source: str
    index: int | None = None
    fps: float | None = None
    frames_total: int | None = None

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        return int(self.image.shape[0])


@dataclass(slots=True, frozen=True)
class Failure:
    """A source, or the rest of one, that could not be read: what happened and what to do about it."""

    source: str
    what: str
    do: str = ""


def open_sources(
    sources: Sequence[Source] | Source,
    *,
    stdin: BinaryIO | None = None,
    camera: Callable[[int], Any] | None = None,
) -> Iterator[Frame | Failure]:
    """The frames of all sources in turn, lazily.

    A source is an image or video file, a folder (its own images by name; sub-folders by the pattern
    ``folder/**/*.jpg``), a glob pattern, a camera's number (0 or "0"), "-" (the bytes of one image on stdin), bytes,
    an array (uint8, RGB) or a Pillow image. ``stdin`` and ``camera`` (number -> a ``cv2.VideoCapture`` or its like)
    take the place of the real ones. A video cut short gives its good frames, then a Failure.
    """
    if isinstance(sources, (str, Path, bytes, np.ndarray)) or not isinstance(sources, Sequence):
        sources = [sources]
    for number, source in enumerate(sources):
        name = _name(source, number)
        try:
            yield from _open_one(source, name, stdin, camera)
        except DetkitError as error:
            yield Failure(error.where or name, error.what, error.do)


def _name(source: Source, number: int) -> str:
    if isinstance(source, (str, Path, int)):
        return str(source)
    return f"{'bytes' if isinstance(source, bytes) else 'array'} {number}"


def _open_one(
    source: Source, name: str, stdin: BinaryIO | None, camera: Callable[[int], Any] | None
) -> Iterator[Frame | Failure]:
    if isinstance(source, bytes):
        yield _image(source, name)
    elif not isinstance(source, (str, Path, int)):
        try:
            image = as_rgb(source)
        except TypeError as error:
            raise DetkitError(str(error), name, "convert it, for example with image.astype('uint8')") from error
        yield Frame(image, name)
    elif name == "-":
        yield _image(_all_bytes(stdin), name)
    elif isinstance(source, int) or (name.isascii() and name.isdecimal() and not Path(name).exists()):
        yield from _video(int(name), camera)
    else:
        yield from _files(Path(source), name)


def _all_bytes(stdin: BinaryIO | None) -> bytes:
    data = (stdin or sys.stdin.buffer).read()
    if not data:
        raise DetkitError("nothing came in on stdin", "-", "pipe the bytes of one image in: detkit detect - < a.jpg")
    return data


def _files(path: Path, name: str) -> Iterator[Frame | Failure]:
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise read_error(error, name) from error
    if is_folder:
        try:
            paths = paths_in(path)
        except OSError as error:
            raise read_error(error, name) from error
        if not paths:
            raise DetkitError(
                "no image lies in this folder", name, f"for those in its sub-folders give '{path / '**' / '*.jpg'}'"
            )
    elif exists or not glob.has_magic(name):
        paths = [path]
    else:
        matches = sorted(glob.glob(name, recursive=True))
        paths = [Path(match) for match in matches if not Path(match).is_dir()]
        if not paths:
            raise DetkitError("no file matches this pattern", name, "check it; quote it so that the shell leaves it")
    for file in paths:
        try:
            if _is_video(file):
                yield from _video(file, None)
            else:
                yield _image(file, str(file))
        except DetkitError as error:
            yield Failure(str(file), error.what, error.do)


def _is_video(path: Path) -> bool:
    """By suffix; a file with an unknown one is a video if it is no image but opens as a video."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES or not path.is_file():
        return suffix in VIDEO_SUFFIXES
    try:
        read_header(path)
        return False
    except DetkitError:
        pass
    try:
        VideoReader(path).close()
        return True
    except DetkitError:
        return False


def _image(source: Path | bytes, name: str) -> Frame:
    try:
        return Frame(read_image(source), name)
    except DetkitError as error:
        raise DetkitError(error.what, name, error.do) from error


def _video(source: Path | int, capture: Callable[[Any], Any] | None) -> Iterator[Frame | Failure]:
    with VideoReader(source, capture=capture) as reader:
        index = 0
        while (image := reader.read()) is not None:
            frame = Frame(image, reader.where, index, reader.fps, reader.frames_total)
            del image
            yield frame
            del frame  # the consumer's reference is the only one while the next frame is decoded
            index += 1
        if isinstance(source, int):
            yield Failure(reader.where, f"the camera stopped after {index} frames", "check its cable")
        elif index == 0:
            yield Failure(reader.where, "no frame of the video can be decoded", "convert it to mp4")
        elif reader.cut_short:
            what = f"the video is cut short: {index} of {reader.frames_total} frames could be read"
            yield Failure(reader.where, what, "fetch or copy it again; the frames before that were used")
