"""The one reader and the one writer of images.

Pillow reads the header (format, size, EXIF orientation) and GIFs; OpenCV decodes the others. Every image comes out as
uint8 (H, W, 3) RGB: EXIF orientation applied, grey and palette expanded, CMYK converted, more than 8 bits cut to the
upper 8 of those in use, floating-point pixels scaled, transparent pixels laid over white. Of an animated file the first
frame is read.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from detkit.errors import DetkitError, InputNote
from detkit.io.files import reading, write_bytes
from detkit.io.repair import late_exif, repaired
from detkit.io.stored import bytes_of, opened

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2",
    ".ppm", ".pgm", ".pbm", *((".heic", ".heif") if find_spec("pi_heif") else ()),
))  # fmt: skip
MAX_PIXELS = 178_956_970  # a 0.5 GB RGB image; larger ones are refused before a pixel is decoded

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
_HEIC = (b"heic", b"heix", b"mif1", b"msf1", b"hevc")  # brands of HEIF that phones write
_ORIENTATION = 0x0112  # EXIF and TIFF tag: 1 upright, 2..8 mirrored and turned
_SWAPPED = (5, 6, 7, 8)  # orientations that exchange width and height
_QUALITY = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}

NARROW = "16-bit pixels that use 14, 12, 10 or 8 bits only are read as such"
FLOATING = "floating-point pixels: 0 to 1, 0 to 255, or else their own range, becomes black to white"

ImageSource = str | Path | bytes | np.ndarray | Image.Image


class ImageHeader(NamedTuple):
    """What an image's header tells: format, (width, height) after the EXIF orientation, that orientation, alpha, its
    own length in bytes (of a JPEG: all before the coded pixels), and the values of black and white if it tells them."""

    format: str
    size: tuple[int, int]
    orientation: int
    alpha: bool
    length: int
    range: tuple[float, float] | None = None
    floating: bool = False


def read_image(
    source: str | Path | bytes, *, max_pixels: int | None = MAX_PIXELS, reduce_to: int | None = None
) -> np.ndarray:
    """Reads an image as uint8 (H, W, 3) RGB.

    Args:
        source: A path, or the bytes of the file.
        max_pixels: Larger images are refused before decoding; None: no limit.
        reduce_to: A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 (rounded up), as long as its longer
            side stays at least this many pixels; other formats come whole.

    Raises:
        DetkitError: Missing, empty, not an image, cut off, too large.
    """
    return read_sized(source, max_pixels, reduce_to)[0]


def read_sized(
    source: str | Path | bytes, max_pixels: int | None = MAX_PIXELS, reduce_to: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """``read_image``, and the (width, height) of the image as it is stored."""
    where = _where(source)
    with reading(where):
        if not isinstance(source, bytes) and Path(source).is_char_device():
            raise DetkitError("this is a device, an image file was expected", where, "give a file")
        data = source if isinstance(source, bytes) else bytes_of(str(source))
    head = _read_header(io.BytesIO(data), where)
    _refuse_large(*head.size, where, max_pixels)
    # Some versions of OpenCV fill what is missing with grey and call it an image.
    data, notes = repaired(data, head.format, head.length, where)
    for text in notes:
        warnings.warn(InputNote(text, where), stacklevel=1)
    if head.format == "GIF":  # which OpenCV reads from 4.11 on only
        with suppress(OSError, EOFError, ValueError):
            return _from_pillow(Image.open(io.BytesIO(data))), head.size
    image = None if head.format == "GIF" else _decode(data, head, reduce_to)
    if image is None or 0 in image.shape or image.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise DetkitError("the image cannot be decoded", where, "it is damaged or cut off: fetch it again")
    eight = image.dtype == np.uint8
    image = _to_8_bits(image, where, head.range)
    # libtiff hands 8-bit pixels out already multiplied by their alpha.
    image = _to_rgb(image, premultiplied=head.format == "TIFF" and eight)
    # OpenCV turns a TIFF by itself, whatever its flags say.
    return image if head.format == "TIFF" else orient(image, head.orientation), head.size


def as_rgb(source: ImageSource, *, bgr: bool = False) -> np.ndarray:
    """Whatever holds one image as uint8 (H, W, 3) RGB: the one door for images.

    Args:
        source: A path or a file's bytes (see ``read_image``), a Pillow image (treated as its file would be), or a uint8
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with alpha, which is laid over white.
        bgr: Arrays have OpenCV's order of channels, not RGB's.

    Raises:
        DetkitError: None of these, or an image that cannot be read.
    """
    if isinstance(source, (str, Path, bytes)):
        return read_image(source)
    if isinstance(source, Image.Image):
        return _from_pillow(source)
    if not isinstance(source, np.ndarray) or source.dtype != np.uint8:
        kind = f"{source.dtype} {source.shape}" if isinstance(source, np.ndarray) else type(source).__name__
        what = f"an image is a path, bytes, a Pillow image or a uint8 array (H, W, 3), got {kind}"
        raise DetkitError(what, do="scale an array to 0..255 and convert it with .astype('uint8')")
    if source.ndim not in (2, 3) or 0 in source.shape or source.shape[2:] not in ((), (1,), (3,), (4,)):
        what = f"an image has 1, 3 or 4 channels and at least one pixel, got shape {source.shape}"
        raise DetkitError(what, do="give (H, W), (H, W, 3) or (H, W, 4)")
    if source.ndim == 3 and source.shape[2] == 3:
        return np.ascontiguousarray(source[..., ::-1] if bgr else source)
    image = _to_rgb(source)  # reads channels as OpenCV orders them
    return image if bgr else np.ascontiguousarray(image[..., ::-1])


def _from_pillow(image: Image.Image) -> np.ndarray:
    _refuse_large(*image.size, "a Pillow image", MAX_PIXELS)
    image.load()  # turns a TIFF, whose orientation is gone then
    orientation = _exif_orientation(image)
    if image.mode[0] in "IF":  # 16 bits of grey, or floating-point
        grey = np.asarray(image) if image.mode == "F" else np.asarray(image).clip(0, 65535).astype(np.uint16)
        return orient(_to_rgb(_to_8_bits(grey, "a Pillow image")), orientation)
    return orient(as_rgb(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))), orientation)


def image_size(path: str | Path | bytes) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header alone; DetkitError as ``read_image``."""
    return read_header(path).size


def read_header(source: str | Path | bytes) -> ImageHeader:
    """What the header of an image says, without decoding it; DetkitError as ``read_image``."""
    where = _where(source)
    with reading(where), io.BytesIO(source) if isinstance(source, bytes) else opened(str(source)) as file:
        return _read_header(file, where)


def write_image(path: str | Path, rgb: np.ndarray, *, overwrite: bool = False, quality: int = 92) -> None:
    """Writes an image atomically, in the format that the suffix says.

    Args:
        path: The file.
        rgb: uint8 (H, W, 3) RGB or (H, W) grey.
        overwrite: Replace the file if it exists.
        quality: Of JPEG and WebP, 1..100.

    Raises:
        DetkitError: Unknown suffix, a file that exists, a full disk.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*_QUALITY, ".png", ".bmp", ".tif", ".tiff"):
        what = f"no image format is known by the suffix {suffix!r}"
        raise DetkitError(what, str(path), "use .jpg, .png, .webp, .bmp or .tif")
    if rgb.dtype != np.uint8 or not (rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 3)):
        raise ValueError(f"write_image: image must be uint8 (H, W, 3) RGB or (H, W), got {rgb.dtype} {rgb.shape}")
    try:
        data = image_bytes(rgb, suffix, quality)
    except cv2.error:
        what = f"an image of {rgb.shape[1]} x {rgb.shape[0]} pixels cannot be stored as {suffix}"
        raise DetkitError(what, str(path), "use .png, say") from None
    write_bytes(path, data, overwrite=overwrite)


def image_bytes(rgb: np.ndarray, suffix: str, quality: int) -> bytes:
    """uint8 (H, W, 3) RGB or (H, W) as the bytes of a file with this suffix (see ``write_image``).

    Raises:
        cv2.error: A size that the format cannot have.
    """
    pixels = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, pixels, [_QUALITY[suffix], quality] if suffix in _QUALITY else [])
    if not done:
        raise cv2.error("not encoded")
    return bytes(data)


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


# OpenCV moved this in 4.13; before, it lies at the top. Level 0 is silent, and what is returned is the level before.
_set_log_level = getattr(cv2.utils, "logging", cv2).setLogLevel


class _Quiet:
    """Silences OpenCV while at least one thread is inside."""

    def __init__(self) -> None:
        self._lock, self._depth, self._level = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._level = _set_log_level(0)
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                _set_log_level(self._level)


quiet_opencv = _Quiet()  # keeps OpenCV's own log lines off stderr; what matters is said in detkit's errors


def _where(source: str | Path | bytes) -> str:
    return "bytes of an image" if isinstance(source, bytes) else str(source)


def _refuse_large(width: int, height: int, where: str, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        what = f"the image is too large: {width} x {height} pixels, the limit is {max_pixels / 1e6:.0f} million"
        do = "make it smaller; if you trust its origin, detkit.io.images.read_image(path, max_pixels=None) reads it"
        raise DetkitError(what, where, do)


def _read_header(file: BinaryIO, where: str) -> ImageHeader:
    prefix = file.read(16)
    if not prefix:
        raise DetkitError("the file is empty", where, "fetch or copy it again")
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC:
        heic = _open_heic(file, where)
        return ImageHeader("HEIC", heic.size, 1, heic.mode.endswith("A"), 0)
    image = _open_header(file, prefix, where)
    length = file.tell()  # a preview inside EXIF has an end marker of its own
    if image.format == "PNG" and "exif" not in image.info and (late := late_exif(file)):
        image.info["exif"] = late
    (width, height), orientation = image.size, _exif_orientation(image)
    if isinstance(image, TiffImageFile):
        # Pillow tells the size of some turned TIFFs as stored, of others as shown.
        tags = image.tag_v2
        width, height, orientation = int(tags[256]), int(tags[257]), tags.get(_ORIENTATION, 1)
    size = (height, width) if orientation in _SWAPPED else (width, height)
    known = (str(image.format), size, orientation, image.has_transparency_data, length)
    return ImageHeader(*known, _range(image, file, length), isinstance(image, TiffImageFile) and image.mode == "F")


def _range(image: Image.Image, file: BinaryIO, length: int) -> tuple[float, float] | None:
    """The values of black and white, if the header tells them."""
    if isinstance(image, TiffImageFile):  # SMinSampleValue and SMaxSampleValue, or MaxSampleValue
        least, most = image.tag_v2.get(340, 0), image.tag_v2.get(341, image.tag_v2.get(281, 0))
        low, high = (float(max(v) if isinstance(v, tuple) else v) for v in (least, most))
        return (low, high) if high > low and (image.mode == "F" or image.tag_v2.get(258, (0,))[0] == 16) else None
    if image.format not in ("PNG", "PPM"):
        return None
    file.seek(0)
    start = file.read(length)
    if image.format == "PPM":
        found = re.match(rb"P[56](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)", start)
        return (0.0, float(found[1])) if found and int(found[1]) else None
    at = start.find(b"sBIT")
    if at < 0 or start[24] != 16:
        return None
    return 0.0, 2.0 ** max(start[at + 4 : at + 4 + int.from_bytes(start[at - 4 : at], "big")]) - 1


def _open_header(file: BinaryIO, prefix: bytes, where: str) -> Image.Image:
    # Image.open would warn and fail by its own, global limit of pixels and would try dozens of rare formats.
    Image.preinit()
    for name in _FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        file.seek(0)
        try:
            return JpegImageFile(file) if name == "JPEG" else factory(file, "")  # "JPEG" gives MPO, too
        except Exception as error:  # plugins raise a dozen kinds on damaged headers
            what = f"the header of this {name} image is damaged or cut off"
            raise DetkitError(what, where, "fetch or copy it again") from error
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in prefix)
    what = "this is a text file, not an image" if text else "the file is not an image of a known format"
    known = "known: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PNM, HEIC with detkit[heif]"
    raise DetkitError(what, where, known)


def _open_heic(file: BinaryIO, where: str) -> Any:
    """A HEIC image, not decoded yet, upright."""
    try:
        import pi_heif
    except ImportError:
        do = 'pip install "detkit[heif]", or save it as JPEG or PNG'
        raise DetkitError("HEIC images need a reader of their own", where, do) from None
    file.seek(0)
    try:
        return pi_heif.open_heif(file)
    except Exception as error:  # the library raises several kinds on damaged files
        raise DetkitError("the header of this HEIC image is damaged or cut off", where, "fetch it again") from error


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))  # a PNG's own would decode it
    except Exception:  # damaged EXIF must not cost the image; viewers ignore it too
        return 1


def _decode(data: bytes, head: ImageHeader, reduce_to: int | None) -> np.ndarray | None:
    if head.format == "HEIC":
        try:
            # RGB or RGBA, in OpenCV's order below; by way of PIL, since an array of HeifFile outlives its memory.
            pixels = np.asarray(_open_heic(io.BytesIO(data), "").to_pillow())
        except Exception:  # as in _open_heic
            return None
        return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    if head.alpha or head.floating:
        flags = cv2.IMREAD_UNCHANGED
    elif head.format in ("PNG", "TIFF", "PPM", "JPEG2000"):
        flags |= cv2.IMREAD_ANYDEPTH
    if head.format == "JPEG" and reduce_to is not None:
        reduced = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
        fits = [k for k in reduced if max(head.size) >= k * reduce_to]
        if fits:
            flags = reduced[fits[0]] | cv2.IMREAD_IGNORE_ORIENTATION
    with quiet_opencv:
        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            return None


def _to_8_bits(image: np.ndarray, where: str, known: tuple[float, float] | None = None) -> np.ndarray:
    """Pixels of any kind as uint8; without a known range that of floating-point values and of 10, 12, 14 bits shows."""
    if image.dtype == np.uint8 and (known is None or known[1] >= 255 or image.max() > known[1]):
        return image
    if image.dtype.kind == "f":
        warnings.warn(InputNote(FLOATING, where), stacklevel=1)
        finite = image[np.isfinite(image)]
        low, high = known or (float(finite.min(initial=0)), float(finite.max(initial=0)))
        if known is None and low == 0 and high <= 255:  # none is negative
            high = 1.0 if high <= 1 else 255.0
        shares = (np.nan_to_num(image.astype(np.float64), nan=low) - low) / (high - low)
        return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    most = int(image.max())
    if known is None or known[1] >= 65535 or most > known[1]:  # the most that 16 bits hold says nothing
        top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if most < 2**bits)
        if top < 65535:
            warnings.warn(InputNote(NARROW, where), stacklevel=1)
    else:
        top = int(known[1])
    values = np.arange(top + 1)
    return (values * 256 // (top + 1) if top >= 255 else (values * 255 + top // 2) // top).astype(np.uint8)[image]


def _to_rgb(image: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """OpenCV's grey, BGR or BGRA, uint8, to RGB; alpha is laid over white."""
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
