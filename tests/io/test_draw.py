"""Boxes, names and points lie where they belong, and inside the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from detkit.io import draw
from detkit.io.draw import PALETTE, colour_of, draw_detections, draw_target
from detkit.structures import Detections, Target

CLASSES = ("person", "Straßenbahn", "кошка")


def found(boxes: list[list[float]], **extra: np.ndarray) -> Detections:
    n = len(boxes)
    return Detections(np.asarray(boxes, np.float32), np.linspace(0.9, 0.5, n), np.arange(n) % 3, CLASSES, extra)


def test_a_copy_is_drawn_on() -> None:
    image = np.full((120, 160, 3), 90, np.uint8)
    drawn = draw_detections(image, found([[20, 40, 100, 110]]))
    assert (image == 90).all()
    assert drawn.shape == image.shape
    assert drawn[109, 60].tolist() == list(colour_of(0))
    assert drawn[60, 20].tolist() == list(colour_of(0))
    assert drawn[60, 99].tolist() == list(colour_of(0))
    assert (drawn[75, 50:70] == 90).all()
    assert (drawn[111:] == 90).all()
    assert (drawn[:, 101:] == 90)[60:].all()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (150, 200), (3000, 4000)])
@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 20, 20],
        [0, 0, 1e9, 1e9],
        [5, 5, 5, 5],
        [-9, -9, -1, -1],
        [1e6, 0, 2e6, 10],
        [np.nan, 0, 1, 1],
        [0, 0, np.inf, 3],
        [9, 9, 2, 2],
    ],
)
def test_boxes_of_any_kind_and_images_of_any_size(size: tuple[int, int], box: list[float]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert draw_detections(image, found([box])).shape == image.shape
    assert draw_target(image, Target(np.asarray([box]), [0], crowd=[True]), CLASSES).shape == image.shape


def test_labels_stay_inside() -> None:
    """The tab has the same pixels in every corner, so nothing of it was cut."""
    image = np.zeros((200, 400, 3), np.uint8)
    tab = draw._tab("person 0.90", draw._font_size(image), colour_of(0))
    for x, y in ((0, 0), (390, 0), (0, 190), (390, 190), (200, 100)):
        drawn = draw_detections(image, found([[x, y, x + 10, y + 10]]))
        height, width = tab.shape[:2]
        rows = range(200 - height + 1)
        columns = range(400 - width + 1)
        assert any(np.array_equal(drawn[t : t + height, c : c + width], tab) for t in rows for c in columns)


@pytest.mark.parametrize("colour", PALETTE)
def test_text_stands_out(colour: tuple[int, int, int]) -> None:
    """Contrast of at least 3 : 1 (WCAG 2, large text) between the letters and their ground."""

    def luminance(rgb: np.ndarray) -> float:
        c = rgb / 255
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))

    tab = draw._tab("MMMM", 40, colour)
    pixels = tab.reshape(-1, 3).astype(float)
    ink = pixels[np.abs(pixels - colour).sum(axis=1).argmax()]
    light, dark = sorted((luminance(ink), luminance(np.asarray(colour, float))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_letters_beyond_ascii_are_drawn() -> None:
    font = draw._base_font(20)
    assert draw._has_letters(font, "Straßenbahn кошка größe É")
    assert not draw._has_letters(font, "\U0010ffff")
    assert draw._tab("ß", 20, (0, 0, 0)).shape[1] > 0


def glyph(*corners: tuple[int, int]) -> object:
    pen = TTGlyphPen(None)
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system with two fonts: of the letter 猫 (a full square), of क and ् (lower halves); neither has others."""
    square = glyph((0, 0), (0, 800), (800, 800), (800, 0))
    low = glyph((0, 0), (0, 400), (800, 400), (800, 0))
    for name, letters in (("a.ttf", {"猫": square}), ("b.otf", {"क": low, "\u094d": low})):
        shapes = {".notdef": glyph((0, 0), (400, 800), (800, 0)), **{f"u{ord(key)}": letters[key] for key in letters}}
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(list(shapes))
        builder.setupCharacterMap({ord(key): f"u{ord(key)}" for key in letters})
        builder.setupGlyf(shapes)
        builder.setupHorizontalMetrics(dict.fromkeys(shapes, (800, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": name, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / name)
    caches = (draw._font_files, draw._font_file, draw._tab)
    for one in caches:
        one.cache_clear()
    monkeypatch.setattr(draw, "_FONT_FOLDERS", (str(tmp_path), str(tmp_path / "missing")))
    yield
    for one in caches:
        one.cache_clear()


def test_letters_of_any_script_are_drawn_with_a_font_that_has_them(
    fonts: None, recwarn: pytest.WarningsRecorder
) -> None:
    parts = [(part, Path(str(font.path)).name) for part, font in draw._runs("猫 क\u094d\u200dक 0.9", 20)]
    assert parts == [("猫 ", "a.ttf"), ("क\u094d\u200dक ", "b.otf"), ("0.9", "DejaVuSans.ttf")]
    white = (draw._tab("猫", 20, (0, 0, 0)) > 127).all(axis=2)
    assert white.sum() == pytest.approx(16 * 16, abs=32)  # the square: 0.8 of 20 pixels
    assert not recwarn
    for _ in range(2):
        assert [part for part, _ in draw._runs("cat ไทย", 20)] == ["cat ", "?"]
    assert ["ไทย" in str(one.message) for one in recwarn] == [True]
    assert np.array_equal(draw._tab("ไทย", 20, (0, 0, 0)), draw._tab("?", 20, (0, 0, 0)))


def test_answers_that_share_a_box_stand_below_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[draw.Corners] = []
    place = draw._place
    monkeypatch.setattr(draw, "_place", lambda *args: placed.append(place(*args)) or placed[-1])
    image = np.zeros((120, 200, 3), np.uint8)
    draw_detections(image, found([[0, 0, 200, 120]] * 4))
    height = draw._tab("person 0.90", draw._font_size(image), colour_of(0)).shape[0]
    rows = sorted(place[1] for place in placed)
    assert len(rows) == 4
    assert min(np.diff(rows)) >= height
    assert rows[-1] + height <= 120


def test_a_sheet_of_images() -> None:
    images = [np.full((10 + k, 20, 3), 50 * k, np.uint8) for k in range(3)]
    plain = draw.sheet(images, columns=2)
    assert plain.shape == (2 * (12 + draw.GAP) + draw.GAP, 2 * (20 + draw.GAP) + draw.GAP, 3)
    assert (plain[draw.GAP : draw.GAP + 10, draw.GAP : draw.GAP + 20] == 0).all()
    assert (plain[-draw.GAP - 12 : -draw.GAP, draw.GAP : draw.GAP + 20] == 100).all()
    named = draw.sheet(images, ["a", "b", "a name that is longer than its image is wide"], columns=3)
    assert named.shape[0] > plain.shape[0] / 2
    assert (named[:, -30:] < 128).any()  # its end
    assert (named == 100).all(2).sum() == 12 * 20


def test_points() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    points = np.asarray([[[30, 70, 1], [60, 70, 0], [np.nan, 3, 1]]], np.float32)
    drawn = draw_detections(image, found([[10, 40, 90, 95]], points=points))
    assert drawn[70, 30].tolist() == list(colour_of(0))
    assert drawn[70, 60].tolist() == [0, 0, 0]
    assert draw_detections(image, found([[10, 40, 90, 95]], points=points[..., :2])).any()


def test_crowd_and_difficult_look_different() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    boxes = [[20, 50, 180, 180]]
    plain, crowd, difficult = (
        draw_target(image, Target(boxes, [1], crowd=[c], difficult=[d]), CLASSES)
        for c, d in ((False, False), (True, False), (False, True))
    )
    edge = slice(30, 170)
    assert (plain[179, edge] != 0).any(axis=1).all()
    assert 0.3 < (difficult[179, edge] != 0).any(axis=1).mean() < 0.9
    assert crowd[80:150, 40:160].any()
    assert not plain[80:150, 40:160].any()
    assert draw_target(image, Target(boxes, [7]), CLASSES).any()


def test_nothing_to_draw_and_wrong_images() -> None:
    image = np.full((10, 10, 3), 7, np.uint8)
    assert np.array_equal(draw_detections(image, Detections.empty()), image)
    assert np.array_equal(draw_target(image, Target.empty()), image)
    for wrong in (image.astype(float), image[..., 0]):
        with pytest.raises(ValueError, match="uint8"):
            draw_detections(wrong, Detections.empty())


def test_many_captions_are_small() -> None:
    canvas = np.zeros((3000, 4000, 3), np.uint8)
    assert [draw._font_size(canvas, count) for count in (0, 1, 30, 600, 9000)] == [84, 84, 84, 20, 10]
