"""The one reader and the one writer of images.

Pillow reads the header (format, size, EXIF orientation); OpenCV decodes. Every image comes out as uint8 (H, W, 3)
RGB: EXIF orientation applied, grey and palette expanded, CMYK converted, 16 bits cut to the upper 8, transparent
pixels laid over white. Of an animated file the first frame is read.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image

from detkit.errors import DetkitError
from detkit.io.files import write_bytes

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2",
    ".ppm", ".pgm", ".pbm",
))  # fmt: skip
MAX_PIXELS = 178_956_970  # a 0.5 GB RGB image; larger ones are refused before a pixel is decoded

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
_ORIENTATION = 0x0112  # EXIF and TIFF tag: 1 upright, 2..8 mirrored and turned
_SWAPPED = (5, 6, 7, 8)  # orientations that exchange width and height


class _Quiet:
    """How many threads want OpenCV silent now, and the level to go back to."""

    lock = threading.Lock()
    depth = 0
    level: Any = None


class Header(NamedTuple):
    """What an image's header tells: format, width and height as stored (pixels), EXIF orientation 1..8, alpha."""

    format: str
    width: int
    height: int
    orientation: int
    alpha: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) after the EXIF orientation."""
        return (self.height, self.width) if self.orientation in _SWAPPED else (self.width, self.height)


def read_image(
    source: str | Path | bytes, *, max_pixels: int | None = MAX_PIXELS, reduce_to: int | None = None
) -> np.ndarray:
    """Reads an image from a path or from its bytes as uint8 (H, W, 3) RGB.

    reduce_to: a JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 (rounded up), as long as its longer side
    stays at least this many pixels; other formats come whole. max_pixels: larger images are refused before decoding
    (None: no limit). Raises DetkitError (code 2): missing, empty, not an image, cut off, too large.
    """
    where = _where(source)
    data = _read_bytes(source)
    head = _read_header(io.BytesIO(data), where, max_pixels)
    if not _is_complete(data, head.format):
        raise _cut_off(where)
    image = _decode(data, head, reduce_to)
    if image is None or 0 in image.shape or image.dtype not in (np.uint8, np.uint16):
        raise DetkitError("the image cannot be decoded", where, "it is damaged or cut off: fetch it again")
    # libtiff hands 8-bit pixels out already multiplied by their alpha.
    image = _to_rgb(image, premultiplied=head.format == "TIFF" and image.dtype == np.uint8)
    # OpenCV turns a TIFF by itself, whatever its flags say.
    return image if head.format == "TIFF" else orient(image, head.orientation)


def image_size(path: str | Path | bytes) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header alone; DetkitError as :func:`read_image`."""
    return read_header(path).size


def read_header(source: str | Path | bytes) -> Header:
    """What the header of an image says, without decoding it; DetkitError as :func:`read_image`."""
    where = _where(source)
    if isinstance(source, bytes):
        return _read_header(io.BytesIO(source), where, None)
    try:
        with open(source, "rb") as file:
            return _read_header(file, where, None)
    except OSError as error:
        raise read_error(error, where) from error


def write_image(path: str | Path, rgb: np.ndarray, *, overwrite: bool = False, quality: int = 92) -> None:
    """Writes uint8 (H, W, 3) RGB or (H, W) grey to ``path``, format by suffix, atomically.

    quality: of JPEG and WebP, 1..100. Raises DetkitError: unknown suffix, exists (without ``overwrite``), disk full.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    options = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}
    if suffix not in (*options, ".png", ".bmp", ".tif", ".tiff"):
        raise DetkitError(
            f"no image format is known by the suffix {suffix!r}", str(path), "use .jpg, .png, .webp, .bmp or .tif"
        )
    if rgb.dtype != np.uint8 or not (rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 3)):
        raise ValueError(f"write_image: image must be uint8 (H, W, 3) RGB or (H, W), got {rgb.dtype} {rgb.shape}")
    pixels = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    settings = [options[suffix], quality] if suffix in options else []
    try:
        done, encoded = cv2.imencode(suffix, pixels, settings)
    except cv2.error:
        done = False
    if not done:
        height, width = rgb.shape[:2]
        raise DetkitError(
            f"an image of {width} x {height} pixels cannot be stored as {suffix}", str(path), "use .png, say"
        )
    write_bytes(path, encoded.tobytes(), overwrite=overwrite)


def scaled_to(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` (H, W, 3) with ``side`` pixels along its longer side."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def jpeg_bytes(rgb: np.ndarray, quality: int = 82) -> bytes:
    """uint8 (H, W, 3) RGB as a JPEG file's bytes; quality 1..100."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return bytes(encoded.tobytes())


def as_rgb(image: Any, *, bgr: bool = False) -> np.ndarray:
    """An array or Pillow image as uint8 (H, W, 3) RGB; a path or bytes are read.

    Arrays are uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4: with alpha, laid over white) in RGB order, or OpenCV's
    BGR order with ``bgr``. Raises TypeError for anything else.
    """
    if isinstance(image, (str, Path, bytes)):
        return read_image(image)
    if isinstance(image, Image.Image):
        orientation = image.getexif().get(_ORIENTATION, 1)
        image = orient(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")), orientation)
        bgr = False
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"an image must be a uint8 array (H, W, 3) in RGB order, a path or a Pillow image, got {kind}")
    if 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise TypeError(f"an image must have 1, 3 or 4 channels and at least one pixel, got shape {image.shape}")
    if image.ndim == 3 and image.shape[2] == 3:
        return np.ascontiguousarray(image[..., ::-1] if bgr else image)
    image = _to_rgb(image)  # reads channels as OpenCV orders them
    return image if bgr else np.ascontiguousarray(image[..., ::-1])


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns (H, W, C) pixels upright by EXIF's orientation tag (CIPA DC-008, 4.6.4); unknown values change nothing."""
    if orientation not in range(2, 9):
        return image
    if orientation in _SWAPPED:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keeps OpenCV's own log lines off stderr; what matters is said in detkit's errors."""
    logging: Any = cv2.utils.logging
    with _Quiet.lock:
        if _Quiet.depth == 0:
            _Quiet.level = logging.getLogLevel()
            logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        _Quiet.depth += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.depth -= 1
            if _Quiet.depth == 0:
                logging.setLogLevel(_Quiet.level)


def read_error(error: OSError, where: str) -> DetkitError:
    """The error to show when a file cannot be opened for reading."""
    if isinstance(error, FileNotFoundError):
        return DetkitError("no such file", where, "check the path")
    if isinstance(error, IsADirectoryError):
        return DetkitError("this is a folder, a file was expected", where, "name a file in it")
    if isinstance(error, PermissionError):
        return DetkitError("the file may not be read", where, "check its permissions")
    return DetkitError(f"the file cannot be read ({error.strerror or error})", where, "check the disk")


def _where(source: str | Path | bytes) -> str:
    return "bytes of an image" if isinstance(source, bytes) else str(source)


def _read_bytes(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise read_error(error, str(source)) from error


def _cut_off(where: str) -> DetkitError:
    return DetkitError("the image is cut off: its end is missing", where, "fetch or copy it again")


def _read_header(file: BinaryIO, where: str, max_pixels: int | None) -> Header:
    prefix = file.read(16)
    if not prefix:
        raise DetkitError("the file is empty", where, "fetch or copy it again")
    if prefix[4:8] == b"ftyp" and prefix[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        raise DetkitError("HEIC images are not read", where, "save it as JPEG or PNG")
    image = _open_header(file, prefix, where)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    if name == "TIFF":
        # Pillow tells the size of some turned TIFFs as stored, of others as shown.
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        width, height, orientation = int(tags[256]), int(tags[257]), tags.get(_ORIENTATION, 1)
    else:
        (width, height), orientation = image.size, _exif_orientation(image)
    if max_pixels is not None and width * height > max_pixels:
        raise DetkitError(
            f"the image is too large: {width} x {height} pixels, the limit is {max_pixels / 1e6:.0f} million",
            where,
            "make it smaller; if you trust its origin, detkit.io.images.read_image(path, max_pixels=None) reads it",
        )
    return Header(name, width, height, orientation if orientation in range(1, 9) else 1, image.has_transparency_data)


def _open_header(file: BinaryIO, prefix: bytes, where: str) -> Image.Image:
    # Image.open would warn and fail by its own, global limit of pixels and would try dozens of rare formats.
    Image.preinit()
    for name in _FORMATS:
        if name not in Image.OPEN and not Image.init():
            continue
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except Exception as error:  # plugins raise a dozen kinds on damaged headers
            raise DetkitError(
                f"the header of this {name} image is damaged or cut off", where, "fetch or copy it again"
            ) from error
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in prefix)
    what = "this is a text file, not an image" if text else "the file is not an image of a known format"
    raise DetkitError(what, where, "known: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PNM")


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF must not cost the image; viewers ignore it too
        return 1


def _is_complete(data: bytes, name: str) -> bool:
    """False if a JPEG or PNG lacks its end: some versions of OpenCV fill the rest with grey and call it an image."""
    if name == "PNG":
        return data.rfind(b"IEND") > 0
    if name != "JPEG":
        return True
    scan = _first_scan(data)
    return scan > 0 and data.find(b"\xff\xd9", scan) > 0


def _first_scan(data: bytes) -> int:
    """Offset of a JPEG's first start-of-scan marker; a preview inside EXIF has an end marker of its own. 0 if none."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return 0
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        padding = marker == 0xFF
        at += 1 if padding else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _decode(data: bytes, head: Header, reduce_to: int | None) -> np.ndarray | None:
    flags = cv2.IMREAD_UNCHANGED if head.alpha else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    if head.format == "JPEG" and reduce_to is not None:
        reduced = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
        fits = [k for k in reduced if max(head.width, head.height) >= k * reduce_to]
        if fits:
            flags = reduced[fits[0]] | cv2.IMREAD_IGNORE_ORIENTATION
    with quiet_opencv():
        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            return None


def _to_rgb(image: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """OpenCV's grey, BGR or BGRA, 8 or 16 bits, to uint8 RGB; alpha is laid over white."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.uint16)
        colour = image[..., 2::-1].astype(np.uint16)
        if not premultiplied:
            colour = (colour * alpha + 127) // 255
        return np.minimum(colour + (255 - alpha), 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)  # in place: fresh memory costs more than the swap


def paths_in(folder: str | Path) -> list[Path]:
    """The images directly in ``folder`` (not in its sub-folders), sorted by name; hidden files are skipped."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES]
        return sorted(Path(entry.path) for entry in found if not entry.name.startswith(".") and entry.is_file())
