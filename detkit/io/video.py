"""The one reader and the one writer of videos (OpenCV's FFmpeg, PyAV's encoders); sound is not kept."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import cv2
import numpy as np

from detkit.errors import DetkitError
from detkit.io.files import growing, reading
from detkit.io.images import quiet_opencv

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"))
_COUNTED = (".mp4", ".m4v", ".mov")  # containers that store the exact number of frames


class Codec(NamedTuple):
    """A four-letter code, what people call it, and whether browsers play it."""

    fourcc: str
    name: str
    plays_in_browsers: bool


# PyAV's are tried first: they can be told to hurry, which makes them about 20 times as fast as OpenCV's VP9.
_QUICK = {
    ".mp4": (Codec("avc1", "H.264", True), "libx264", {"preset": "ultrafast"}),
    ".webm": (Codec("VP90", "VP9", True), "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}
# Tried in this order. Builds of FFmpeg without H.264 (its encoder is GPL) are common; OpenCV passes no options to the
# encoder, so VP9 takes about four times as long as VP8, which only WebM can hold.
_CODECS: dict[str, tuple[Codec, ...]] = {
    ".mp4": (Codec("avc1", "H.264", True), Codec("vp09", "VP9", True), Codec("mp4v", "MPEG-4 Part 2", False)),
    ".webm": (Codec("VP80", "VP8", True), Codec("VP90", "VP9", True)),
    ".avi": (Codec("MJPG", "Motion JPEG", False),),
}
Open = Callable[[int | str], cv2.VideoCapture]
STREAMS = ("rtsp://", "rtsps://")
_PATIENCE = 10_000  # milliseconds that a stream may be silent
# Keeps FFmpeg's own messages off stderr; OpenCV takes their level from the environment only.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoReader(AbstractContextManager["VideoReader"]):
    """The frames of a video file, camera or network stream, one at a time, as uint8 (H, W, 3) RGB, turned upright.

    ``for frame in reader`` ends at the last good frame; ``cut_short`` then tells whether the file promised more.

    Args:
        source: A file, a camera's number, or the address of an RTSP stream.
        capture: In place of ``cv2.VideoCapture``.

    Attributes:
        fps: None where unknown.
        frames_total: The file's own claim; None where unknown.
        width: Pixels.
        height: Pixels.

    Raises:
        DetkitError: It cannot be opened.
    """

    def __init__(self, source: str | Path | int, *, capture: Open | None = None) -> None:
        self.source = source
        self.where = f"camera {source}" if isinstance(source, int) else without_password(str(source))
        self.frames_read = 0
        self._last_second = 0.0
        live = isinstance(source, int) or self.where.startswith(STREAMS)
        if not live and capture is None:
            with reading(self.where), open(source, "rb") as file:
                if not file.read(1):
                    raise DetkitError("the file is empty", self.where, "fetch or copy it again")
        with quiet_opencv:
            self._capture = (capture or _capture)(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            self._capture.release()
            if isinstance(source, int):
                raise DetkitError("the camera cannot be opened", self.where, "check that it is there and not in use")
            if live:
                raise DetkitError("the stream cannot be opened", self.where, "check its address, user and password")
            what = "the video cannot be opened: it is cut off, damaged or of an unknown kind"
            raise DetkitError(what, self.where, "play it in a player, or convert it to mp4")
        self.fps = self._property(cv2.CAP_PROP_FPS)
        total = self._property(cv2.CAP_PROP_FRAME_COUNT)
        self.frames_total = None if total is None or live else round(total)
        self.width = round(self._property(cv2.CAP_PROP_FRAME_WIDTH) or 0)
        self.height = round(self._property(cv2.CAP_PROP_FRAME_HEIGHT) or 0)

    def _property(self, key: int) -> float | None:
        value = float(self._capture.get(key))
        return value if math.isfinite(value) and value > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while (frame := self.read()) is not None:
            yield frame
            del frame  # the consumer's reference is the only one while the next frame is decoded

    def read(self) -> np.ndarray | None:
        """The next frame, or None after the last."""
        frame = None
        with quiet_opencv, suppress(cv2.error):
            _, frame = self._capture.read()
        if frame is None:
            return None
        self.frames_read += 1
        self._last_second = max(self._last_second, float(self._capture.get(cv2.CAP_PROP_POS_MSEC) or 0) / 1000)
        return cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB if frame.ndim == 2 else cv2.COLOR_BGR2RGB)

    @property
    def cut_short(self) -> bool:
        """After the last frame: both the number of frames and the time fall short of what the file promised."""
        if self.frames_total is None or self.fps is None:
            return False
        exact = str(self.source).lower().endswith(_COUNTED)
        # Other containers give a duration only, of the longest stream; with a varying rate the count is a guess.
        slack = 2.0 if exact else max(self.fps, 0.02 * self.frames_total)
        return max(self.frames_read, self._last_second * self.fps) < self.frames_total - slack

    def close(self) -> None:
        """Releases the file or camera."""
        self._capture.release()

    def __exit__(self, *exception: object) -> None:
        self.close()


class VideoWriter:
    """Writes uint8 (H, W, 3) RGB frames to .mp4, .webm or .avi; the file appears when the block ends or is stopped.

    Use it as a context manager. An odd width or height loses its last column or row.

    Args:
        path: The file.
        fps: Frames per second; None: 25.
        overwrite: Replace the file if it exists.

    Attributes:
        codec: The one in use; known after the first frame.
        notice: A sentence for the user if browsers will not play the file, else None.

    Raises:
        DetkitError: Unknown suffix, a file that exists, no codec, a full disk.
    """

    def __init__(self, path: str | Path, fps: float | None = None, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.fps = float(fps) if fps and math.isfinite(fps) and fps > 0 else 25.0
        self.codec: Codec | None = None
        self.notice: str | None = None
        self.frames_written = 0
        self._overwrite = overwrite
        self._size = (0, 0)
        self._stack = ExitStack()
        self._writer: cv2.VideoWriter | _QuickWriter | None = None
        if self.path.suffix.lower() not in _CODECS:
            what = f"no video format is known by the suffix {self.path.suffix!r}"
            raise DetkitError(what, str(path), f"use {', '.join(_CODECS)}")

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(growing(self.path, self._overwrite))
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame; all frames must have the first one's size (ValueError)."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"VideoWriter: frame must be uint8 (H, W, 3) RGB, got {frame.dtype} {frame.shape}")
        size = (frame.shape[1], frame.shape[0])
        writer = self._writer or self._open(size)
        if size != self._size:
            raise ValueError(f"VideoWriter: all frames must be {self._size} pixels (width, height), got {size}")
        with quiet_opencv:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames_written += 1

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter | _QuickWriter:
        suffix = self.path.suffix.lower()
        if suffix in _QUICK and find_spec("av"):
            codec, encoder, options = _QUICK[suffix]
            with suppress(ValueError):  # a build without this encoder, or a size that it lacks
                self._writer = _QuickWriter(self._temporary, suffix[1:], encoder, options, self.fps, size)
                self.codec, self._size = codec, size
                return self._writer
        for codec in _CODECS[suffix]:
            fourcc = cv2.VideoWriter.fourcc(*codec.fourcc)
            with quiet_opencv:
                writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, fourcc, self.fps, size)
            if writer.isOpened():
                self._writer, self.codec, self._size = writer, codec, size
                if not codec.plays_in_browsers:
                    self.notice = f"{self.path.name} is {codec.name}: players show it, web browsers do not"
                return writer
            writer.release()
            self._temporary.unlink(missing_ok=True)
        what = f"OpenCV has no video encoder for {self.path.suffix}"
        raise DetkitError(what, str(self.path), f"try {', '.join(_CODECS)}")

    def _check(self) -> None:
        """No encoder's writes are checked one by one: what lies on the disk is opened again."""
        if self._writer is None:
            raise DetkitError("no frame was written", str(self.path), "check that the source has readable frames")
        try:
            with VideoReader(self._temporary) as written:
                whole = (written.frames_total or 0) >= self.frames_written - 2 and written.read() is not None
        except DetkitError:
            whole = False
        if not whole:
            what = "the video could not be written whole: no room is left, or the disk failed"
            raise DetkitError(what, str(self.path), "free some space, or write to another disk", code=4)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with quiet_opencv:
                self._writer.release()
        try:
            self._check()
        except DetkitError:
            self._temporary.unlink(missing_ok=True)
            if error is None:
                with self._stack:
                    raise
        self._stack.__exit__(kind, error, trace)


class _QuickWriter:
    """``cv2.VideoWriter``, as far as it is used here, by PyAV.

    Raises:
        ValueError: There is no such encoder, or none for this size.
    """

    def __init__(
        self, path: Path, form: str, encoder: str, options: dict[str, str], fps: float, size: tuple[int, int]
    ) -> None:
        import av

        av.codec.Codec(encoder, "w")  # else a file would be begun
        self._file = cast(Any, av.open(str(path), "w", format=form))  # typed as any stream's file
        self._stream = self._file.add_stream(encoder, rate=Fraction(fps).limit_denominator(60_000), options=options)
        self._width, self._height = self._stream.width, self._stream.height = size[0] // 2 * 2, size[1] // 2 * 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.open()

    def write(self, image: np.ndarray) -> None:
        """Appends uint8 (H, W, 3) BGR."""
        import av

        self._mux(av.VideoFrame.from_ndarray(image[: self._height, : self._width], format="bgr24"))

    def release(self) -> None:
        """Finishes the file."""
        self._mux(None)
        with suppress(OSError):
            self._file.close()

    def _mux(self, frame: object) -> None:
        with suppress(OSError):  # the file is checked at the end
            self._file.mux(self._stream.encode(frame))


def _capture(source: int | str) -> cv2.VideoCapture:
    if not str(source).startswith(STREAMS):
        return cv2.VideoCapture(source)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _PATIENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _PATIENCE]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)


def without_password(address: str) -> str:
    """``rtsp://user:secret@host/x`` as ``rtsp://host/x``, for what is shown and written."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)
