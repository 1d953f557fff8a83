"""Reading detections files: both forms, and every way they go wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.io.detections import open_writer, read_detections
from detkit.tables import Results

DATA = SimpleNamespace(
    image_ids=[3, 7, "x"],
    files=["/data/one/1.jpg", "/data/two/1.jpg", "/data/two/Zo\u00eb.jpg"],
    sizes=np.array([[10, 20], [0, 0], [10, 20]]),
    classes=("cat", "dog"),
    class_ids=(1, 9),
)
ENTRY = '{"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4.5], "score": 0.5}'
FOUND = '{"label": "dog", "label_id": 5, "score": 0.5, "box": [1, 2, 4, 6.5]}'
LINE = '{"source": "one/1.jpg", "frame": null, "width": 20, "height": 10, "detections": [FOUND]}'.replace(
    "FOUND", FOUND
)


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "detections.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("text", [f"[{ENTRY}]", f"\ufeff [\n{ENTRY}]\n", LINE, f"\n{LINE}\r\n\n", f"\ufeff{LINE}"])
def test_both_forms_give_the_same_table(tmp_path: Path, text: str) -> None:
    got, _ = read_detections(write(tmp_path, text), DATA)
    assert (got.image.tolist(), got.label.tolist(), got.score.tolist()) == ([0], [1], [0.5])
    assert got.xywh.tolist() == [[1, 2, 3, 4.5]]
    assert (got.image.dtype, got.xywh.dtype) == (np.int64, np.float64)


def test_the_csv_of_detect_is_read_as_its_lines_are(tmp_path: Path) -> None:
    found = [
        {"label": ["cat", "dog"][i % 2], "label_id": i, "score": 0.1 + i / 7, "box": [1 / 3, 2, 4 + i, 9]}
        for i in range(5)
    ]
    frames = [
        SimpleNamespace(source=name, index=None, width=20, height=10) for name in ("one/1.jpg", "two/Zo\u00eb.jpg")
    ]
    tables = []
    for kind in ("jsonl", "csv"):
        with open_writer(kind, tmp_path / f"found.{kind}", DATA.classes) as writer:
            for frame, some in zip(frames, (found[:3], found[3:]), strict=True):
                writer.write(frame, SimpleNamespace(to_records=lambda some=some: some, extra={}))
        tables.append(read_detections(tmp_path / f"found.{kind}", DATA))
    (a, notes), (b, same) = tables
    assert len(a) == 5
    for name in ("image", "label", "xywh", "score"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert [note.replace("jsonl", "csv") for note in notes] == same
    head = "source,frame,width,height,label,label_id,score,x1,y1,x2,y2\n"
    assert len(read_detections(write(tmp_path, head), DATA)[0]) == 0
    for row, words in (
        ("one/1.jpg,,20,10,cat,0,high,1,2,3,4", "line 2"),
        ("one/1.jpg,,20,10,cat,0,0.5", "wrong detections"),
        ("a.mp4,7,20,10,cat,0,0.5,1,2,3,4", "is a frame of a video"),
        ("one/1.jpg,,20,11,cat,0,0.5,1,2,3,4", "in the data it is 20 x 10"),
    ):
        with pytest.raises(DetkitError, match=words):
            read_detections(write(tmp_path, f"{head}{row}\n"), DATA)


def test_numbers_are_exact_and_in_file_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    entries = [
        {"image_id": [3, 7, "x"][i % 3], "category_id": 1, "bbox": rng.random(4).tolist(), "score": float(rng.random())}
        for i in range(50)
    ]
    got, notes = read_detections(write(tmp_path, json.dumps(entries)), DATA)
    assert got.xywh.tolist() == [entry["bbox"] for entry in entries]
    assert got.score.tolist() == [entry["score"] for entry in entries]
    assert got.image.tolist() == [i % 3 for i in range(50)]
    assert not notes


@pytest.mark.parametrize(
    "change",
    [
        ("0.5", "0.12345678901234567"),
        ("0.5", "9.999999747378752e-05"),
        ("0.5", "0.00001234567890123456789"),
        ("0.5", "0.20000000298023223876953125"),
        ("0.5", "1e-300"),
        ("0.5", "5E-1"),
        ('{"image', '{"id": 7, "area": 1.5, "note": "a [b", "mask": {"size": [1, 2], "counts": "}{"}, "image'),
        ('"score"', '"score": 0.1, "score"'),
        ('"score"', '"sc\\u006fre"'),
        (", ", "\r\n\t,  "),
    ],
)
def test_coco_is_read_as_a_json_decoder_reads_it(tmp_path: Path, change: tuple[str, str]) -> None:
    text = f"[{ENTRY.replace(*change)}, {ENTRY}]"
    got, _ = read_detections(write(tmp_path, text), DATA)
    assert got.score.tolist() == [entry["score"] for entry in json.loads(text)]
    assert got.xywh.tolist() == [entry["bbox"] for entry in json.loads(text)]
    packed, _ = read_detections(write(tmp_path, gzip.compress(text.encode())), DATA)
    assert packed.score.tolist() == got.score.tolist()


def test_numbers_are_rounded_as_json_rounds_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = [repr(float(v) * 10.0 ** int(p)) for v, p in zip(rng.random(400), rng.integers(-12, 4, 400), strict=True)]
    words += [repr(float(v)) for v in rng.random(200).astype(np.float32)]
    middles = rng.integers(1 << 52, 1 << 53, 200).tolist()  # exactly between two doubles, and right beside that
    words += [f"{2 * m + 1}{end}" for m in middles for end in ("", ".0", "e-3", "e3")]
    words += [f"{2 * m + 1}.{end}" for m in middles for end in ("01", "9")]
    text = "[" + ", ".join(ENTRY.replace("4.5", word) for word in words) + "]"
    got, _ = read_detections(write(tmp_path, text), DATA)
    assert got.xywh[:, 3].tolist() == [float(word) for word in words]


def test_ids_far_apart_negative_and_of_two_kinds(tmp_path: Path) -> None:
    ids = [-5, 1 << 40, "x", 7]
    data = SimpleNamespace(image_ids=ids, files=list("abcd"), sizes=np.zeros((4, 2)), classes=("dog",), class_ids=(9,))
    some = [ENTRY.replace("3", json.dumps(key), 1) for key in (7, -5, 1 << 40, "x")]
    assert read_detections(write(tmp_path, f"[{', '.join(some)}]"), data)[0].image.tolist() == [3, 0, 1, 2]
    for key in (8, -6, "8", 7.5, float(1 << 60)):
        with pytest.raises(DetkitError, match="is not in the data"):
            read_detections(write(tmp_path, f"[{ENTRY.replace('3', json.dumps(key), 1)}]"), data)


def test_no_detections(tmp_path: Path) -> None:
    got, _ = read_detections(write(tmp_path, "[]"), DATA)
    assert (len(got), got.xywh.shape) == (0, (0, 4))
    got, notes = read_detections(write(tmp_path, '{"source": "one/1.jpg", "detections": []}'), DATA)
    assert len(got) == 0
    assert "2 of 3 images have no line" in notes[0]


@pytest.mark.parametrize(
    ("source", "image"),
    [("one/1.jpg", 0), ("../two/1.jpg", 1), ("C:\\data\\two\\1.jpg", 1), ("Zo\u00eb.jpg", 2), ("Zoe\u0308.jpg", 2)],
)
def test_images_are_found_by_name_and_folder(tmp_path: Path, source: str, image: int) -> None:
    line = json.dumps({"source": source, "detections": [json.loads(FOUND)]})
    assert read_detections(write(tmp_path, line), DATA)[0].image.tolist() == [image]


def test_an_unknown_word_is_found_by_its_file_name(tmp_path: Path) -> None:
    entry = {**json.loads(ENTRY), "image_id": "Zo\u00eb", "file_name": "Zo\u00eb.jpg"}
    assert read_detections(write(tmp_path, json.dumps([entry, json.loads(ENTRY)])), DATA)[0].image.tolist() == [2, 0]
    with pytest.raises(DetkitError, match="2 images of the data are called"):
        read_detections(write(tmp_path, json.dumps([{**entry, "file_name": "1.jpg"}])), DATA)


def test_names_count_more_than_numbers_of_another_list(tmp_path: Path) -> None:
    """detkit's own results say the class in words, too: a model's numbers are not those of everybody's data."""
    data = SimpleNamespace(
        image_ids=[3, 7], files=["1.jpg", "2.jpg"], sizes=np.zeros((2, 2)), classes=("car", "person"), class_ids=(0, 1)
    )
    entries = [{**json.loads(ENTRY), "category_id": i, "category_name": name} for i, name in NAMES.items()]
    found, notes = read_detections(write(tmp_path, json.dumps(entries)), data)
    assert found.label.tolist() == [1, 0, 0]
    assert any("1 detection left out, since the data has no class motorcycle" in note for note in notes)
    del entries[1]["category_name"]
    found, notes = read_detections(write(tmp_path, json.dumps(entries[:2])), data)
    assert found.label.tolist() == [1]
    assert any("1 detection left out, since the data has no class 3" in note for note in notes)


def test_flat_boxes_are_noted(tmp_path: Path) -> None:
    _, notes = read_detections(write(tmp_path, f"[{ENTRY.replace('4.5', '0')}]"), DATA)
    assert "2 of 3 images have no detection" in notes[0]
    assert "1 detection of zero width" in notes[1]


NAMES = {1: "person", 3: "car", 0: "Car", 4: "motorcycle"}


def named(image: int | str, name: str) -> str:
    return ENTRY.replace("3,", f"{json.dumps(image)},", 1).replace("}", f', "file_name": {json.dumps(name)}}}')


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([named(3, "elsewhere/1.jpg"), named(7, "1.jpg")], None),
        ([named(3, "2.jpg")], "image 3 is 2.jpg here, in the data it is 1.jpg"),
        ([named(3, "1.jpg"), named(7, "2.jpg")], "image 7 is 2.jpg"),
        ([named("x", "1.jpg"), named(3, "1.jpg")], "image 'x' is 1.jpg"),
    ],
)
def test_images_numbered_anew_are_told_by_their_names(tmp_path: Path, entries: list[str], words: str | None) -> None:
    path = write(tmp_path, f"[{', '.join(entries)}]")
    if words is None:
        assert len(read_detections(path, DATA)[0]) == len(entries)
        return
    with pytest.raises(DetkitError) as error:
        read_detections(path, DATA)
    assert words in error.value.what


@pytest.mark.parametrize(
    ("numbers", "words"), [((0, 1), "counted from 0"), ((1, 2), "counted from 1"), ((80, 90), "use the data's own")]
)
@pytest.mark.parametrize("image", ["3", '"x"'])
def test_category_ids_that_are_places_in_a_list(
    tmp_path: Path, numbers: tuple[int, int], words: str, image: str
) -> None:
    entries = [ENTRY.replace('_id": 9', f'_id": {k}').replace("3,", f"{image},", 1) for k in numbers]
    with pytest.raises(DetkitError) as error:
        read_detections(write(tmp_path, f"[{', '.join(entries)}]"), DATA)
    assert words in error.value.do


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        (" \n", ["empty"]),
        ("<xml>", ["not a detections file"]),
        (gzip.compress(b"[]" * 99, mtime=0)[:-9], ["damaged"]),
        (gzip.compress(f"[{ENTRY}".encode(), mtime=0), ["ends too early", f"byte {len(ENTRY) + 1}"]),
        ("[1, 2]", ["object", "[0]"]),
        (f"[{ENTRY}, {ENTRY[:-10]}", ["ends too early", f"byte {2 * len(ENTRY) - 7}"]),
        (f"[{ENTRY}", ["ends too early", f"byte {len(ENTRY) + 1}"]),
        (f"[{ENTRY.replace('0.5}', '0.')}", ["ends too early"]),
        (f"[{ENTRY}] x", ["trailing", "byte"]),
        (f"[{ENTRY} {ENTRY}]", ["not JSON", f"byte {len(ENTRY) + 2}"]),
        (f"[{ENTRY}]".replace("0.5", "NaN"), ["not a finite number", "entry 0"]),
        (f"[{ENTRY}]".replace("4.5", "-Infinity"), ["not a finite number", "entry 0"]),
        (f"[{ENTRY}".replace("0.5", "NaN"), ["NaN is not a number", f"byte {ENTRY.index('0.5') + 1}"]),
        (f"[{ENTRY}]".replace("0.5", "1e999"), ["range", "[0].score"]),
        (f"[{ENTRY}]".replace("0.5", '"0.5"'), ["str", "[0].score"]),
        (f"[{ENTRY}]".replace("0.5", "true"), ["bool", "[0].score"]),
        (f"[{ENTRY}]".replace("1, 2,", '"1", 2,'), ["str", "[0].bbox[0]"]),
        (f"[{ENTRY}]".replace("1, 2,", "2,"), ["length 4", "[0].bbox"]),
        (f"[{ENTRY}]".replace("image_id", "image"), ["image_id"]),
        (f"[{ENTRY}, {ENTRY}]".replace("0.5}]", "1.5}]"), ["0..1", "entry 1", "1.5"]),
        (f"[{ENTRY}]".replace("0.5", "-0.1"), ["0..1", "logits"]),
        (f"[{ENTRY}]".replace("4.5", "-4.5"), ["negative size", "entry 0"]),
        (f"[{ENTRY}]".replace(": 3", ": 4"), ["image_id 4", "3, 7", "--split"]),
        (f"[{ENTRY}]".replace(": 3", ': "4"'), ["image_id '4'"]),
        (f"[{ENTRY}]".replace(": 9", ": 0"), ["category_id 0", "1, 9"]),
        ('{"annotations": []}', ["source", "line 1", "COCO results"]),
        (f"{LINE}\n{LINE[:-20]}", ["ends too early", "line 2", f"byte {2 * len(LINE) - 19}"]),
        (f"{LINE}\n{LINE}", ["two lines", "1 and 2"]),
        (LINE.replace("one/", ""), ["2 images", "1.jpg"]),
        (LINE.replace("one/1", "Zoe"), ["Zoe.jpg", "Zo\u00eb.jpg"]),
        (LINE.replace('"dog"', '"dogs"'), ["'dogs'", "did you mean dog?"]),
        (LINE.replace('"dog"', '"plane"'), ["'plane'", "cat, dog"]),
        (LINE.replace("20", "40"), ["40 x 10", "20 x 10"]),
        (LINE.replace("null", "3"), ["frame of a video"]),
        (LINE.replace("[1, 2", "[5, 2"), ["negative size", "line 1"]),
        (LINE.replace("0.5", "7"), ["0..1", "line 1"]),
    ],
)
def test_mistakes_are_told(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(DetkitError) as caught:
        read_detections(write(tmp_path, text), DATA)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.code == 2
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none.json", "no such file"), (tmp_path, "no txt files")):
        with pytest.raises(DetkitError, match=what):
            read_detections(path, DATA)


def read_entries(tmp_path: Path, *entries: str) -> tuple[Results, list[str]]:
    got, notes = read_detections(write(tmp_path, f"[{', '.join(entries)}]"), DATA)
    return got, [note for note in notes if "images have no detection" not in note]


def test_other_spellings_of_ids_are_taken_and_said(tmp_path: Path) -> None:
    got, notes = read_entries(
        tmp_path, ENTRY.replace(": 3", ": 3.0"), ENTRY.replace(": 3", ': "7"'), ENTRY.replace(": 9", ": 9.0")
    )
    assert (got.image.tolist(), got.label.tolist()) == ([0, 1, 0], [1, 1, 1])
    assert notes == [
        "1 image_id have a decimal point (taken as whole numbers)",
        "1 image_id are text here and a number in the data, or the reverse (taken as the same)",
        "1 category_id have a decimal point (taken as whole numbers)",
    ]


def test_very_large_ids_are_told_apart(tmp_path: Path) -> None:
    ids = [(1 << 53) + 1, 1 << 53, (1 << 70) + 1, 0]
    data = SimpleNamespace(**vars(DATA) | {"image_ids": ids, "files": list("abcd"), "sizes": np.zeros((4, 2))})
    entries = [ENTRY.replace(": 3", f": {key}") for key in ids]
    assert read_detections(write(tmp_path, f"[{', '.join(entries)}]"), data)[0].image.tolist() == [0, 1, 2, 3]


def test_scores_beyond_1_by_rounding_stay_as_they_are(tmp_path: Path) -> None:
    got, notes = read_entries(tmp_path, ENTRY.replace("0.5}", "1.0000001}"), ENTRY)
    assert got.score.tolist() == [1.0000001, 0.5]
    assert notes == ["1 score outside 0..1 by rounding only (taken as they are)"]


@pytest.mark.parametrize("change", [("4.5", "NaN"), ("0.5}", "NaN}"), ("[1, 2", "[-Infinity, 2")])
def test_one_box_or_score_that_is_no_number_is_left_out(tmp_path: Path, change: tuple[str, str]) -> None:
    got, notes = read_entries(tmp_path, ENTRY, ENTRY.replace(*change), ENTRY)
    assert got.xywh.tolist() == [[1, 2, 3, 4.5]] * 2
    assert "1 detection left out, whose box or score is no finite number: " in notes[0]
    assert notes[0].endswith("entry 1 (counted from 0)")


def test_classes_that_the_data_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    got, notes = read_entries(tmp_path, ENTRY, ENTRY.replace(": 9", ": 90"), ENTRY.replace(": 9", ": 90"))
    assert got.label.tolist() == [1]
    assert notes == ["2 detections left out, since the data has no class 90"]
    lines = LINE.replace(FOUND, f"{FOUND}, {FOUND.replace('dog', 'plane')}")
    got, notes = read_detections(write(tmp_path, lines), DATA)
    assert got.label.tolist() == [1]
    assert "1 detection left out, since the data has no class plane" in notes
