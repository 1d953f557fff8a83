"""The one reader: every orientation, every kind of pixel, every kind of damage."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from detkit.errors import DetkitError, InputNote
from detkit.io.images import NARROW, as_rgb, image_size, orient, read_header, read_image, write_image
from detkit.io.repair import ENDLESS, STRAY
from detkit.io.sources import Frame, open_sources

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def corner_image() -> Image.Image:
    """60 x 40, black, its upper left quarter red: every orientation looks different."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = RED
    return Image.fromarray(pixels)


def photo() -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    return np.dstack([x, y, 255 - x]).astype(np.uint8)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(corner_image(), form, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = read_image(data)
    assert image.shape == np.asarray(shown).shape
    assert image_size(data) == shown.size
    assert np.abs(image.astype(int) - np.asarray(shown)).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_jpegs_are_turned_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(corner_image(), "JPEG", exif=exif)
    small = read_image(data, reduce_to=30)
    whole = read_image(data)
    assert small.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 3)
    assert np.abs(small.astype(int) - cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)).mean() < 5


@pytest.mark.parametrize("late", [False, True])
def test_a_pngs_header_is_read_without_its_pixels(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its EXIF may stand behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(corner_image(), exif=exif)
    before, after = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    assert before < after
    if late:
        end = data.index(b"IEND") - 4
        data = data[:before] + data[after:end] + data[before:after] + data[end:]
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("the pixels are decoded"))
    for whole in (data, data[:after] + data[-12:]):
        assert read_header(whole).orientation == (6 if whole is data or not late else 1)
    turned = read_image(data)
    assert turned.shape == (60, 40, 3)
    assert tuple(turned[5, 35]) == RED


def test_orient_follows_the_standard() -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    shown = {
        1: [[0, 1, 2], [3, 4, 5]],
        3: [[5, 4, 3], [2, 1, 0]],
        6: [[3, 0], [4, 1], [5, 2]],
        8: [[2, 5], [1, 4], [0, 3]],
    }
    for orientation, rows in shown.items():
        assert orient(stored, orientation)[..., 0].tolist() == rows
    assert orient(stored, 99) is stored


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000"])
def test_formats_give_rgb(form: str) -> None:
    image = read_image(encoded(Image.fromarray(photo()), form))
    assert image.dtype == np.uint8
    assert image.shape == (48, 64, 3)
    assert np.abs(image.astype(int) - photo()).mean() < 12
    assert image.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("mode", "form", "tolerance"),
    [
        ("L", "PNG", 1),
        ("L", "JPEG", 3),
        ("1", "PNG", 1),
        ("P", "PNG", 1),
        ("P", "GIF", 1),
        ("P", "BMP", 1),
        ("LA", "PNG", 1),
        ("CMYK", "JPEG", 6),
        ("CMYK", "TIFF", 3),
        ("RGBA", "TIFF", 1),
    ],
)
def test_modes(mode: str, form: str, tolerance: int) -> None:
    image = Image.fromarray(photo()).convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_image(encoded(image, form)).astype(int) - expected).mean() < tolerance


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_upper_eight(suffix: str) -> None:
    grey = (photo()[..., 0].astype(np.uint16) << 8) + 77
    for stored in (grey, np.dstack([grey] * 3), np.dstack([grey] * 3 + [np.full_like(grey, 65535)])):
        done, data = cv2.imencode(suffix, stored)
        assert done
        assert np.abs(read_image(data.tobytes())[..., 1].astype(int) - photo()[..., 0]).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_over_white(form: str) -> None:
    pixels = np.zeros((8, 12, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, 4:8, 3] = 128
    pixels[:, 8:, 3] = 255
    image = read_image(encoded(Image.fromarray(pixels), form, lossless=True))
    assert image[4, 1].tolist() == list(WHITE)
    assert np.abs(image[4, 5].astype(int) - (227, 127, 127)).max() <= 2
    assert np.abs(image[4, 10].astype(int) - (200, 0, 0)).max() <= 2


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    data = encoded(image, "PNG", transparency=0)
    assert read_image(data)[0, 0].tolist() == list(WHITE)
    assert read_image(data)[1, 1].tolist() == [10, 20, 30]


def test_paths_beyond_ascii(tmp_path: Path) -> None:
    path = tmp_path / "Straße 猫" / "größe ☂.jpg"
    write_image(path, photo())
    assert read_image(path).shape == (48, 64, 3)
    assert read_image(str(path)).shape == (48, 64, 3)
    assert image_size(path) == (64, 48)


def test_reduction_keeps_at_least_what_is_asked() -> None:
    data = encoded(Image.fromarray(np.zeros((500, 1001, 3), np.uint8)), "JPEG")
    for reduce_to, width in ((2000, 1001), (501, 1001), (500, 501), (250, 251), (100, 126), (1, 126)):
        assert read_image(data, reduce_to=reduce_to).shape[1] == width
    png = encoded(Image.fromarray(np.zeros((500, 1001, 3), np.uint8)), "PNG")
    assert read_image(png, reduce_to=100).shape[1] == 1001


def jpeg_with_preview() -> bytes:
    """A JPEG whose EXIF holds a whole small JPEG, end marker included."""
    preview = encoded(Image.new("RGB", (16, 16)), "JPEG")
    segment = b"Exif\0\0" + preview
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def bomb_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.97])
def test_cut_off_images_are_errors(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(DetkitError) as caught:
        read_image(data[: int(len(data) * share)])
    assert caught.value.code == 2
    assert caught.value.do


def test_a_preview_does_not_hide_a_cut(tmp_path: Path) -> None:
    whole = jpeg_with_preview()
    assert read_image(whole).shape == (99, 99, 3)
    for lost in (3, 500, 3000):
        with pytest.raises(DetkitError, match="cut off"):
            read_image(whole[:-lost])
        # A copy that stopped half-way may have its full length, with zeros.
        with pytest.raises(DetkitError, match="cut off"):
            read_image(whole[:-lost] + bytes(lost))
    with pytest.warns(InputNote, match="end marker"):
        assert np.array_equal(read_image(whole[:-2]), read_image(whole))


def noise(form: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), form, **options)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "optimize": True}])
def test_what_other_programs_read_is_read_and_said(
    options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, path = noise("JPEG", **options), tmp_path / "a.jpg"
    tables, scan = whole.find(b"\xff\xdb"), whole.find(b"\xff\xda")
    stray = [whole[:at] + junk + whole[at:] for at in (tables, scan) for junk in (b"\0\0", b"abc")]
    endless = [whole[:-2], whole[:-1], whole[:-2] + bytes(2), whole[:-2] + bytes(5000)]
    for data in (*stray, *endless, stray[0][:-2]):
        path.write_bytes(data)
        with pytest.warns(InputNote) as told:
            assert np.array_equal(read_image(path), read_image(whole))
        texts = [STRAY] * (data not in endless) + [ENDLESS] * (data not in stray)
        assert [str(one.message) for one in told] == texts
        assert {one.message.where for one in told} == {str(path)}  # type: ignore[union-attr]
    assert capfd.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (whole, whole + bytes(5000), whole[:2] + b"\xff\xff" + whole[2:]):
            assert np.array_equal(read_image(data), read_image(whole))


def test_a_png_without_its_end_is_whole_if_its_pixels_are() -> None:
    whole = noise("PNG")
    for lost in (1, 12):
        with pytest.warns(InputNote, match="end marker"):
            assert np.array_equal(read_image(whole[:-lost]), read_image(whole))
    with pytest.raises(DetkitError, match="cut off"):
        read_image(whole[:-20])


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {"mode": "RGBA"})]
)
def test_the_share_that_is_missing_is_said(form: str, options: dict[str, Any]) -> None:
    mode = dict(options).pop("mode", "RGB")
    pixels = np.random.default_rng(0).integers(0, 255, (320, 320, 3), dtype=np.uint8)
    kept = {key: value for key, value in options.items() if key != "mode"}
    data = encoded(Image.fromarray(pixels).convert(mode), form, **kept)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(DetkitError, match=r"about \d+% of it is missing") as caught:
            read_image(data[: int(len(data) * share)])
        told = int(re.findall(r"\d+", caught.value.what)[0])
        assert abs(told - 100 * (1 - share)) <= (99 if options.get("progressive") else 6)


@pytest.mark.parametrize("form", [".png", ".tif", ".pgm", ".jp2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_16_are_read_as_such(form: str, bits: int) -> None:
    grey = photo()[..., 0]
    done, data = cv2.imencode(form, grey.astype(np.uint16) << (bits - 8))
    assert done
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        image = read_image(data.tobytes())
    assert np.abs(image[..., 0].astype(int) - grey).max() <= (form == ".jp2")  # which is lossy
    assert [str(one.message) for one in told] == [NARROW] * (bits < 16)


def test_the_header_tells_the_range() -> None:
    grey = np.full((4, 4), 400, np.uint16)
    done, png = cv2.imencode(".png", grey)
    assert done
    bits = b"sBIT\x0c"
    chunk = struct.pack(">I", 1) + bits + struct.pack(">I", zlib.crc32(bits))
    twelve = [
        png.tobytes()[:33] + chunk + png.tobytes()[33:],
        b"P5 4 4\n# a comment\n4095\n" + grey.astype(">u2").tobytes(),
        encoded(Image.fromarray(grey), "TIFF", tiffinfo={281: 4095}),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in twelve:
            assert (read_image(data) == 400 // 16).all()
        assert read_image(b"P5\n3 1\n10\n\0\5\n")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("scale", "shift"), [(1 / 255, 0), (1, 0), (10, -500), (0, 0)])
def test_floating_point_tiffs(scale: float, shift: float) -> None:
    grey = photo()[..., 0].astype(np.float64)
    data = encoded(Image.fromarray((grey * scale + shift).astype(np.float32)), "TIFF")
    with pytest.warns(InputNote, match="floating-point"):
        image = read_image(data)
    assert np.array_equal(image[..., 0], grey if scale else np.zeros_like(grey))
    with pytest.warns(InputNote, match="floating-point"):
        assert np.array_equal(as_rgb(Image.open(io.BytesIO(data))), image)
    grey = np.asarray([[np.nan, 0, 2], [np.inf, -np.inf, 1]])
    known = encoded(Image.fromarray(grey.astype(np.float32)), "TIFF", tiffinfo={340: 0.0, 341: 4.0})
    with pytest.warns(InputNote):
        assert read_image(known)[..., 0].tolist() == [[0, 0, 128], [255, 0, 64]]


def test_bytes_after_the_end_do_no_harm() -> None:
    for form in ("JPEG", "PNG"):
        assert read_image(encoded(corner_image(), form) + b"more" * 50).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("missing.jpg", None, "no such file"),
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"this is a note, not an image", "text file"),
        ("web.jpg", b"<!DOCTYPE html><html>404</html>", "text file"),
        ("binary.png", bytes(range(200)), "not an image"),
        ("phone.heic", b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        ("header.jpg", b"\xff\xd8\xff\xe0", "damaged or cut off"),
        ("bomb.png", bomb_png(60000, 60000), "too large: 60000 x 60000"),
    ],
)
def test_what_is_no_image_is_said_in_three_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, data: bytes | None, what: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DetkitError, match=what) as caught:
        read_image(path)
    assert caught.value.where == str(path)
    assert caught.value.do
    assert len(str(caught.value).splitlines()) == 3
    assert capfd.readouterr().err == ""


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    for read in (read_image, image_size):
        with pytest.raises(DetkitError):
            read(tmp_path)


def test_the_limit_of_pixels_can_be_moved() -> None:
    data = encoded(corner_image())
    with pytest.raises(DetkitError, match="too large"):
        read_image(data, max_pixels=2399)
    assert read_image(data, max_pixels=2400).shape == (40, 60, 3)
    assert read_header(bomb_png(20000, 20000)).size == (20000, 20000)


@pytest.mark.parametrize(("suffix", "lossless"), [(".png", True), (".bmp", True), (".jpg", False), (".webp", False)])
def test_written_images_come_back(tmp_path: Path, suffix: str, lossless: bool) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, photo())
    difference = np.abs(read_image(path).astype(int) - photo())
    assert difference.max() == 0 if lossless else difference.mean() < 6
    with pytest.raises(DetkitError, match="exists"):
        write_image(path, photo())
    write_image(path, photo()[..., 0], overwrite=True)
    assert np.ptp(read_image(path).astype(int), axis=2).max() <= 3


def test_unknown_suffix_and_wrong_arrays(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="suffix"):
        write_image(tmp_path / "a.xyz", photo())
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "a.png", photo().astype(np.float32))
    assert list(tmp_path.iterdir()) == []


def test_as_rgb() -> None:
    image = photo()
    assert np.array_equal(as_rgb(image), image)
    assert np.array_equal(as_rgb(image, bgr=True), image[..., ::-1])
    assert np.array_equal(as_rgb(image[..., 0]), np.dstack([image[..., 0]] * 3))
    assert np.array_equal(as_rgb(image[..., :1]), np.dstack([image[..., 0]] * 3))
    assert np.array_equal(as_rgb(Image.fromarray(image)), image)
    clear = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    assert np.array_equal(as_rgb(clear), image)
    assert np.array_equal(as_rgb(clear[..., [2, 1, 0, 3]], bgr=True), image)
    assert (as_rgb(np.dstack([image, np.zeros(image.shape[:2], np.uint8)])) == 255).all()
    for wrong in (image.astype(float), image[None], np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), 3.5):
        with pytest.raises(DetkitError, match="image"):
            as_rgb(wrong)


@pytest.mark.parametrize(
    ("mode", "form"),
    [(mode, "PNG") for mode in ("L", "LA", "1", "P", "transparent P", "RGB", "RGBA", "I;16")]
    + [(mode, "TIFF") for mode in ("L", "RGB", "RGBA", "I;16")],
)
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_every_kind_of_source_is_the_same_image(tmp_path: Path, mode: str, form: str, orientation: int) -> None:
    pixels = np.dstack([photo(), photo()[..., 0] // 128 * 255])
    image = Image.fromarray(photo() if mode == "P" else pixels)
    image = image.convert({"transparent P": "P", "I;16": "L"}.get(mode, mode))
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image).astype(np.uint16) << 8) + 77)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{form.lower()}"
    image.save(path, form, exif=exif, **({"transparency": 3} if mode == "transparent P" else {}))
    (frame,) = open_sources(path)
    assert isinstance(frame, Frame)
    assert frame.image.shape == ((48, 64, 3) if orientation == 1 else (64, 48, 3))
    # From bytes: Pillow turns a grey TIFF that it maps from its file twice.
    for source in (path, str(path), path.read_bytes(), Image.open(io.BytesIO(path.read_bytes()))):
        assert np.array_equal(as_rgb(source), frame.image)
        (other,) = open_sources([source])
        assert np.array_equal(other.image, frame.image)  # type: ignore[union-attr]


@settings(max_examples=40)
@given(
    st.sampled_from([(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)]).flatmap(lambda shape: arrays(np.uint8, shape)),
    st.sampled_from(range(1, 9)),
)
def test_arrays_and_pillow_images_of_all_kinds(array: np.ndarray, orientation: int) -> None:
    (frame,) = open_sources([array])
    assert np.array_equal(as_rgb(array), frame.image)  # type: ignore[union-attr]
    image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    image.getexif()[0x0112] = orientation
    (turned,) = open_sources([image])
    assert np.array_equal(as_rgb(image), turned.image)  # type: ignore[union-attr]
    assert np.array_equal(as_rgb(image), orient(as_rgb(array), orientation))
    assert np.array_equal(as_rgb(encoded(image, exif=image.getexif())), turned.image)  # type: ignore[union-attr]


@pytest.mark.shared_data
def test_real_photos(shared_data: Path) -> None:
    for path in sorted((shared_data / "voc" / "JPEGImages").glob("*.jpg"))[:40]:
        image = read_image(path)
        assert image_size(path) == image.shape[1::-1]
        with Image.open(path) as reference:
            assert np.abs(image.astype(int) - np.asarray(reference.convert("RGB"))).mean() < 2
