"""Near-duplicates: copies in another size or quality are found, different images are not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.cli import main
from detkit.data import duplicates
from detkit.data.duplicates import near_duplicates, perceptual_hash
from detkit.io.images import read_image, write_image


def scene(seed: int) -> np.ndarray:
    """Soft blobs: (90, 120, 3), energy at low frequencies as photos have it."""
    noise = np.random.default_rng(seed).normal(size=(9, 12, 3)).astype(np.float32)
    smooth = cv2.resize(noise, (120, 90), interpolation=cv2.INTER_CUBIC)
    return (128 + 50 * smooth).clip(0, 255).astype(np.uint8)


def other_forms(image: np.ndarray) -> dict[str, np.ndarray]:
    height, width = image.shape[:2]
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    return {
        "smaller": cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "larger": cv2.resize(image, (2 * width, 2 * height)),
        "re-compressed": jpeg,
        "brighter": (image * 1.1 + 10).clip(0, 255).astype(np.uint8),
        "grey": cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
    }


def test_the_hash_by_hand() -> None:
    """cos(pi (2 x + 1) u / 64) along x is one coefficient, the u-th of the first row, and no other."""
    x = np.arange(32)
    for u, sign in ((1, 1), (2, 1), (3, -1)):
        row = 128 + sign * 60 * np.cos(np.pi * (2 * x + 1) * u / 64)
        found = perceptual_hash(np.repeat(np.repeat(row[None, :, None], 32, 0), 3, 2).round().astype(np.uint8))
        assert found is not None
        bits = np.unpackbits(np.array([found[0]]).view(np.uint8))
        assert bits[u - 1] == (sign > 0), "the mean, which comes first, has no bit"
    assert perceptual_hash(np.full((40, 50, 3), 77, np.uint8)) is None


def test_other_forms_are_found_and_other_images_are_not(tmp_path: Path) -> None:
    train, val = [], []
    for seed in range(40):
        write_image(tmp_path / f"train{seed}.png", scene(seed))
        train.append(str(tmp_path / f"train{seed}.png"))
    expected = set()
    for k, (name, image) in enumerate(other_forms(scene(7)).items()):
        write_image(tmp_path / f"{name}.png", image)
        val.append(str(tmp_path / f"{name}.png"))
        expected |= {(train[7], val[-1], "leak")} | ({(val[0], val[-1], "copy")} if k else set())
    write_image(tmp_path / "blank.png", np.full((9, 9, 3), 200, np.uint8))
    blank = [str(tmp_path / "blank.png")] * 2
    pairs = near_duplicates({"train": train, "val": [*val, *blank, str(tmp_path / "missing.png")]})
    assert {(p.a, p.b, "copy" if p.parts[0] == p.parts[1] else "leak") for p in pairs} == expected
    assert [p.parts[0] for p in pairs] == ["train"] * 5 + ["val"] * 4, "leaks first"


def test_the_search_in_blocks_is_the_whole_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 150, dtype=np.uint64)
    for copy in range(20):  # each within ten bits of an earlier one
        flips = rng.choice(64, copy % 11, replace=False).astype(np.uint64)
        hashes[100 + copy] = hashes[copy] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    small = np.tile(rng.integers(0, 255, (1, 16, 16)).astype(np.uint8), (150, 1, 1))
    part, places = np.zeros(150, int), np.arange(150)
    whole = duplicates._search(hashes, small, part, places)
    assert whole == [(copy, 100 + copy, copy % 11) for copy in range(20)]
    monkeypatch.setattr(duplicates, "_ROWS", 7)
    assert duplicates._search(hashes, small, part, places) == whole


def coco(path: Path, names: list[str]) -> Path:
    images = [{"id": k, "file_name": name, "width": 120, "height": 90} for k, name in enumerate(names)]
    boxes = [
        {"id": k + 1, "image_id": k, "category_id": 1, "bbox": [5, 5, 30 + k, 30], "area": 900, "iscrowd": 0}
        for k in range(len(names))
    ]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "blob"}]}))
    return path


def test_check_tells_leaks_between_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        write_image(tmp_path / "a" / f"{seed}.png", scene(seed))
        write_image(tmp_path / "b" / f"{seed}.png", scene(seed + 3))
    write_image(tmp_path / "a" / "4.png", scene(1)[::1] // 2 + 60)
    a = coco(tmp_path / "a" / "train.json", [f"{k}.png" for k in range(5)])
    b = coco(tmp_path / "b" / "labels.json", [f"{k}.png" for k in range(4)])
    assert main(["data", "check", str(a), "--duplicates"]) == 0, "copies within a part are notes"
    assert "nearly the same image twice in" in capsys.readouterr().out
    picture = tmp_path / "pairs.png"
    words = ["data", "check", str(a), "--duplicates", "--against", str(b), "--out", str(picture), "--json"]
    assert main(words) == 3
    facts = json.loads(capsys.readouterr().out)
    leaks = [(Path(pair["a"]).parts[-2:], Path(pair["b"]).parts[-2:]) for pair in facts["duplicates"]]
    assert leaks == [(("a", "3.png"), ("b", "0.png")), (("a", "1.png"), ("a", "4.png"))]
    assert read_image(picture).shape[1] > 2 * 320
    assert main(["data", "check", str(a), "--against", str(b)]) == 2
