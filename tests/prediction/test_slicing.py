"""Large images in tiles: where these lie, when there are any, and how what they hold becomes one set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from detkit.cli import main
from detkit.errors import DetkitError
from detkit.exporting.header import Header
from detkit.geometry import UsualSizes
from detkit.io.images import write_image
from detkit.prediction import slicing
from detkit.prediction.slicing import Sliced, SlicePlan, cut_boxes, merge_windows, tile_grid
from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample


class Blocks(Predictor):
    """Finds every bright block, the brighter the surer, and notes what it was shown."""

    classes = ("block",)

    def __init__(self, seen: tuple[int, int] | None = (100, 100), sizes: UsualSizes | None = None) -> None:
        self.seen, self.sizes, self.batches = seen, sizes, list[list[tuple[int, int]]]()

    @property
    def input_size(self) -> tuple[int, int] | None:
        return self.seen

    @property
    def usual_sizes(self) -> UsualSizes | None:
        return self.sizes

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.batches.append([sample.image.shape[:2] for sample in samples])
        return [self.one(sample.image[..., 0]) for sample in samples]

    def one(self, grey: np.ndarray) -> Detections:
        _, _, rows, _ = cv2.connectedComponentsWithStats((grey > 0).astype(np.uint8), connectivity=4)
        x, y, wide, high = rows[1:, :4].T
        boxes = np.stack([x, y, x + wide, y + high], axis=1).astype(np.float32)
        scores = [grey[int(b[1]) : int(b[3]), int(b[0]) : int(b[2])].max() / 255 for b in boxes]
        return Detections(boxes, scores, np.zeros(len(boxes)), self.classes)


def scene(height: int, width: int, boxes: Any) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 200
    return image


def test_tiles_are_of_one_size_and_spread_evenly() -> None:
    # Steps of at most 300: 0, 300, 600 across and 0, 300 down.
    found = tile_grid(700, 1000, (400, 400), 0.25)
    assert found[:, :2].tolist() == [[0, 0], [300, 0], [600, 0], [0, 300], [300, 300], [600, 300]]
    assert (found[:, 2:] - found[:, :2] == 400).all()
    # 10 pixels too wide for two tiles without an overlap: three, each 45 inwards; the height is less than a tile.
    assert tile_grid(50, 210, (100, 100), 0.0).tolist() == [[0, 0, 100, 50], [55, 0, 155, 50], [110, 0, 210, 50]]
    assert tile_grid(80, 80, (100, 200), 0.2).tolist() == [[0, 0, 80, 80]]


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(8, 400), st.integers(8, 400)),
    st.floats(0, 0.8),
)
def test_tiles_cover_the_image_and_overlap_enough(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> None:
    found = tile_grid(*size, tile, overlap)
    for axis, (side, length) in enumerate(zip(size[::-1], tile[::-1], strict=True)):
        starts, length = np.unique(found[:, axis]), min(side, length)
        assert (found[:, axis + 2] - found[:, axis] == length).all()
        assert starts[0] == 0
        assert starts[-1] + length == side
        assert (np.diff(starts) <= max(1, int(length * (1 - overlap)))).all()
        assert len(starts) < 3 or np.ptp(np.diff(starts)) <= 1


TWO = np.array([[0, 0, 100, 100], [60, 0, 160, 100]])  # 40 pixels in common


@pytest.mark.parametrize(
    ("in_first", "in_second", "scores", "labels", "lost"),
    [
        # The block 70..110: the first tile sees 70..100 of it, all that it can.
        ([70, 10, 100, 50], [70, 10, 110, 50], (0.9, 0.6), (0, 0), [True, False]),
        ([85, 10, 100, 50], [85, 10, 145, 50], (0.9, 0.6), (0, 0), [True, False]),  # a quarter: no NMS would do it
        ([85, 10, 100, 50], [85, 10, 145, 50], (0.9, 0.2), (0, 0), [False, False]),  # the whole one is a poor guess
        ([85, 10, 100, 50], [85, 10, 145, 50], (0.9, 0.6), (0, 1), [False, False]),  # a part of another class
        ([70, 10, 100, 50], [100, 10, 130, 50], (0.9, 0.6), (0, 0), [False, False]),  # neighbours that touch
        ([30, 10, 60, 50], [60, 10, 160, 50], (0.9, 0.6), (0, 0), [False, False]),  # and on the other border
        ([40, 10, 100, 90], [60, 10, 120, 90], (0.9, 0.6), (0, 0), [False, False]),  # two parts of one size: NMS's
        ([40, 10, 62, 50], [60, 10, 62, 50], (0.6, 0.9), (0, 0), [False, True]),  # the second tile cuts
        # A large one behind: what the first tile would see of it, 60..100 x 0..100, is not this block.
        ([80, 40, 100, 60], [60, 0, 150, 100], (0.5, 0.9), (0, 0), [False, False]),
    ],
)
def test_what_a_tile_cuts_loses_to_what_is_whole(
    in_first: list[float], in_second: list[float], scores: tuple[float, ...], labels: tuple[int, ...], lost: list[bool]
) -> None:
    found = Detections([in_first, in_second], scores, labels)
    assert cut_boxes(found, np.array([0, 1]), TWO).tolist() == lost
    mirrored = found.boxes[:, [1, 0, 3, 2]]  # the same downwards
    down = Detections(mirrored, scores, labels)
    assert cut_boxes(down, np.array([0, 1]), TWO[:, [1, 0, 3, 2]]).tolist() == lost


def test_the_whole_image_adds_what_is_larger_than_half_a_tile() -> None:
    parts = [
        Detections([[10, 10, 100, 90]], [0.9], [0]),  # 10..130 x 10..90, of which each tile sees a part
        Detections([[0, 10, 70, 90]], [0.8], [0]),
        Detections([[10, 10, 130, 90], [20, 20, 50, 60]], [0.7, 0.9], [0, 0]),  # 30 x 40 is for the tiles
    ]
    found = merge_windows(parts, SlicePlan(TWO, True, ""), 0.5)
    assert found.boxes.tolist() == [[10, 10, 130, 90]]
    assert not found.extra


def test_points_move_with_their_tile() -> None:
    points = np.array([[[5, 6, 1]]], np.float32)
    parts = [Detections.empty(), Detections([[0, 0, 10, 10]], [0.9], [0], extra={"points": points})]
    found = merge_windows(parts, SlicePlan(TWO, False, ""), 0.5)
    assert found.boxes.tolist() == [[60, 0, 70, 10]]
    assert found.extra["points"].tolist() == [[[65, 6, 1]]]
    assert points.tolist() == [[[5, 6, 1]]]


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(4, 24)] * 2), min_size=30, max_size=30), st.integers(0, 999))
def test_objects_smaller_than_the_overlap_are_found_as_in_the_whole_image(
    sides: list[tuple[int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.permutation(100)[: len(sides)]
    corners = [(30 * (c % 10) + rng.integers(0, 5), 30 * (c // 10) + rng.integers(0, 5)) for c in cells]
    image = scene(300, 300, [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sides, strict=True)])
    plain, sliced = Blocks(), Sliced(Blocks(), (110, 90), overlap=0.3)
    one, other = plain.predict(image), sliced.predict(image)
    assert sorted(other.boxes.tolist()) == sorted(one.boxes.tolist())


def test_a_grid_of_touching_objects_is_neither_glued_nor_doubled() -> None:
    boxes = np.array([[x, y, x + 40, y + 25] for x in range(0, 400, 40) for y in range(0, 300, 25)], np.float32)
    windows = tile_grid(300, 400, (128, 128), 0.35)
    rng = np.random.default_rng(0)
    parts = []
    for x1, y1, x2, y2 in windows:
        seen = boxes.clip([x1, y1, x1, y1], [x2, y2, x2, y2]) - np.array([x1, y1, x1, y1], np.float32)
        seen = seen[(np.prod(seen[:, 2:] - seen[:, :2], axis=1) > 200)]
        parts.append(Detections(seen, rng.uniform(0.5, 1, len(seen)), np.zeros(len(seen))))
    found = merge_windows(parts, SlicePlan(windows, False, ""), 0.5)
    assert sorted(found.boxes.tolist()) == sorted(boxes.tolist())


def test_windows_are_looked_at_in_batches_and_images_one_by_one() -> None:
    model = Blocks()
    image = scene(250, 250, [(90, 90, 130, 130)])
    found = Sliced(model, 100, overlap=0.2, batch=4).predict([image, image[:100, :90]])
    assert [one.boxes.tolist() for one in found] == [[[90, 90, 130, 130]], []]
    assert [len(batch) for batch in model.batches] == [4, 4, 2, 1]
    assert model.batches[2] == [(100, 100), (250, 250)]


SIZES = UsualSizes(small=8, typical=30, large=60, zoom=0.5)


def test_auto_slices_large_images_with_small_objects_only() -> None:
    # The input of 100 x 100 held 200 x 200 pixels of a training image; typical objects had 60 of these.
    sliced = Sliced(Blocks(sizes=SIZES))
    assert sliced.plan(140, 150).text == "150 x 140: not sliced, a tile has 200 x 200 pixels"
    said = "700 x 300: not sliced, typical objects keep 9 pixels in the input of 100 x 100"
    assert sliced.plan(300, 700).text == said
    plan = sliced.plan(300, 800)  # 60 pixels would become 7.5
    # They overlap by 60 pixels, 0.3 of a tile: 800 = 200 + 5 x 120, and 300 = 200 + 100.
    assert plan.text == "800 x 300: 12 tiles of 200 x 200 and the whole image"
    assert np.unique(plan.windows[:, 0]).tolist() == [0, 120, 240, 360, 480, 600]
    close = Sliced(Blocks(sizes=SIZES._replace(zoom=2.0))).plan(120, 140)
    assert close.text == "140 x 120: not sliced, it is at most 1.5 times the input of 100 x 100"


def test_what_is_known_of_objects_decides_on_overlap_and_the_whole_image() -> None:
    # Without sizes typical objects are 20 of 100 pixels, and large ones 60 % of an image.
    assumed = Sliced(Blocks(), 100).plan(100, 180)
    assert (len(assumed.windows), assumed.whole) == (2, True)
    small = UsualSizes(small=2, typical=5, large=8, zoom=1.0)
    aerial = Sliced(Blocks(sizes=small), 100).plan(100, 190)  # at least a tenth: 190 = 100 + 90
    assert (len(aerial.windows), aerial.whole) == (2, False)
    assert Sliced(Blocks(sizes=small), 100).plan(700, 700).whole  # 8 % of 700 are 56
    assert UsualSizes.read(small._asdict()) == small
    for broken in (None, {}, {**small._asdict(), "zoom": 0}, {**small._asdict(), "small": "x"}, {"small": 1.0}):
        assert UsualSizes.read(broken) is None


def test_a_budget_makes_tiles_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock, told = Blocks(), [0.0], list[str]()
    inner = model.predict_samples

    def slowly(samples: list[Sample], limits: Limits) -> list[Detections]:
        clock[0] += 1.0 * len(samples)
        return inner(samples, limits)

    monkeypatch.setattr(model, "predict_samples", slowly)
    monkeypatch.setattr(slicing.time, "perf_counter", lambda: clock[0])
    sliced = Sliced(model, 100, overlap=0.0, budget=10, tell=told.append)
    image = scene(500, 500, [(90, 90, 130, 130)])
    assert len(sliced.plan(500, 500).windows) == 25
    assert len(sliced.predict(image)) == 1
    assert clock[0] <= 11  # a look that does not count, one to know what it takes, and what is then left
    began = clock[0]
    sliced.predict(image)
    assert 5 <= clock[0] - began <= 10
    assert told[0].startswith("500 x 500: 4 tiles of")
    assert "within the budget" in told[1]
    sliced.budget = 1.5
    assert sliced.predict(image).boxes.tolist() == [[90, 90, 130, 130]]
    assert told[2] == "500 x 500: not sliced, the budget allows one look"


def test_what_is_done_is_told_once_and_what_is_left_out_too() -> None:
    told: list[str] = []
    sliced = Sliced(Blocks(), 100, tell=told.append)
    image = scene(300, 300, [(x, y, x + 9, y + 9) for x in range(0, 300, 20) for y in range(0, 300, 20)])
    assert len(sliced.predict(image, max_detections=225)) == 225
    assert len(sliced.predict([image, image])[1]) == 100
    assert told == [
        "300 x 300: 16 tiles of 100 x 100 and the whole image (typical objects are taken to have 20 pixels)",
        "more than 100 objects were found; --max-detections keeps more",
    ]


def test_many_boxes_take_little_memory() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    windows = tile_grid(6000, 8000, (400, 400), 0.2)
    corners = rng.uniform(0, 380, (len(windows), 40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 40, corners.shape)], axis=2).clip(0, 400)
    parts = [Detections(b, rng.uniform(0.1, 1, 40), rng.integers(0, 3, 40)) for b in boxes]
    merge_windows(parts[:2], SlicePlan(windows[:2], False, ""), 0.5)  # compiles
    tracemalloc.start()
    found = merge_windows(parts, SlicePlan(windows, False, ""), 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < len(found) < 40 * len(windows)
    assert peak < 40e6


def test_the_header_of_an_export_keeps_the_sizes() -> None:
    from detkit.data.resize import Resize

    header = Header(classes=("a",), class_ids=(0,), resize=Resize(64), objects=SIZES._asdict())
    assert UsualSizes.read(Header.from_metadata(header.to_metadata(), "x").objects) == SIZES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detkit.api.load", lambda *_, **__: Blocks())
    boxes = [(90, 90, 110, 110), (300, 20, 312, 33)]
    write_image("images/a.png", scene(400, 700, boxes))
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 700, "height": 400}],
        "categories": [{"id": 1, "name": "block"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [x, y, u - x, v - y], "area": 1.0 * (u - x) * (v - y)}
            for i, (x, y, u, v) in enumerate(boxes, 1)
        ],
    }
    Path("data.json").write_text(json.dumps(data))
    return tmp_path


def test_detect_and_evaluate_slice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "images/a.png", "--slice", "100x120", "--json"]) == 0
    out, said = capsys.readouterr()
    assert sorted(one["box"] for one in json.loads(out)["detections"]) == [[90, 90, 110, 110], [300, 20, 312, 33]]
    guess = "(typical objects are taken to have 20 pixels)"
    assert said == f"detkit: 700 x 400: 36 tiles of 100 x 120 and the whole image {guess}\n"
    assert main(["evaluate", "any", "data.json", "--images", "images", "--slice", "auto", "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["metrics"]["AP"] == pytest.approx(1)
    assert "700 x 400: 45 tiles of 100 x 100 and the whole image" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slice", "large"], "'large' is no size of a tile"),
        (["--slice", "640x"], "'640x' is no size of a tile"),
        (["--slice", "1x2x3"], "'1x2x3' is no size of a tile"),
        (["--slice", "-640"], "'-640' is no size of a tile"),
        (["--slice", "640x8"], "a tile of 640 x 8 pixels is too small"),
        (["--slice", "0"], "a tile of 0 x 0 pixels is too small"),
        (["--slice", "auto", "--overlap", "20"], "a share of a tile from 0 to 0.8, got 20"),
        (["--slice", "auto", "--overlap", "nan"], "a share of a tile from 0 to 0.8, got nan"),
        (["--slice", "auto", "--budget", "0"], "a number of seconds above 0, got 0"),
        (["--slice", "auto", "--budget", "inf"], "a number of seconds above 0, got inf"),
        (["--overlap", "0.2"], "--overlap goes with --slice"),
        (["--budget", "2"], "--budget goes with --slice"),
    ],
)
def test_wrong_inputs(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["detect", "images/a.png", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 3


def test_predictors_that_cannot_be_sliced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Classifies(Blocks):
        protocol = "classify"

    with pytest.raises(DetkitError, match="looks at whole images"):
        Sliced(Classifies(), 640)
    with pytest.raises(DetkitError, match="input size of this model is not known"):
        Sliced(Blocks(seen=None))
    assert Sliced(Blocks(seen=None), 100).plan(100, 180).windows.shape == (2, 4)
    assert main(["evaluate", "--predictions", "x.json", "data.json", "--slice", "640"]) == 2
    assert "give a model or --predictions, not both (--slice)" in capsys.readouterr().err
