"""Parquet files as Hugging Face's datasets writes them: boxes, classes, and the same training as loose files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.cli import main
from detkit.data.dataset import Dataset, read, splits
from detkit.data.loader import Loader
from detkit.data.resize import Resize
from detkit.data.toy import write_toy_data
from detkit.errors import DetkitError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    write_toy_data(tmp_path / "toy", train=6, val=2, size=64)
    return tmp_path / "toy"


def write(toy: Path, out: Path, form: str) -> None:
    """The toy data's parts in two files each, by one of the ways that its tables are written."""
    for part in splits(toy):
        a = read(toy, split=part)
        rows: list[dict[str, Any]] = []
        for i, file in enumerate(a.files):
            own = slice(int(a.offsets[i]), int(a.offsets[i + 1]))
            boxes, labels = a.xywh[own].tolist(), a.labels[own].tolist()
            if form == "corners":
                boxes = [[x, y, x + w, y + h] for x, y, w, h in boxes]
            pairs = [{"bbox": box, "category": label} for box, label in zip(boxes, labels, strict=True)]
            objects = pairs if form == "structs" else {"bbox": boxes, "category": labels}
            rows.append({"image": {"bytes": Path(file).read_bytes(), "path": None}, "objects": objects})
        category = {"names": list(a.classes), "_type": "ClassLabel"}
        features = {"objects": {"feature": {"category": category}, "_type": "Sequence"}, "image": {"_type": "Image"}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table, half = pa.Table.from_pylist(rows).replace_schema_metadata(about), len(rows) // 2
        for k in (0, 1):
            place = out / part / f"000{k}.parquet" if form == "structs" else out / "data" / f"{part}-{k}-of-2.parquet"
            place.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(k * half, half), place)


@pytest.mark.parametrize("form", ["lists", "structs", "corners"])
def test_rows_are_images_and_boxes(toy: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(toy, tmp_path / "hub", form)
    assert splits(tmp_path / "hub") == ["train", "val"]
    for part in ("train", "val"):
        loose, packed = read(toy, split=part), read(tmp_path / "hub", split=part)
        assert packed.classes == loose.classes
        assert packed.labels.tolist() == loose.labels.tolist()
        assert packed.sizes.tolist() == loose.sizes.tolist()
        np.testing.assert_allclose(packed.xywh, loose.xywh)
        names = [one.name for one in packed.findings]
        assert any(name.startswith("box is x1, y1, x2, y2") for name in names) == (form == "corners")
    assert not read(tmp_path / "hub").findings or form == "corners", "the cache is used"
    assert main(["data", "check", str(tmp_path / "hub")]) == 0
    assert "8 images" in capsys.readouterr().out


def test_training_sees_the_same_batches(toy: Path, tmp_path: Path) -> None:
    write(toy, tmp_path / "hub", "lists")
    batches = []
    for place in (toy, tmp_path / "hub"):
        with Loader(Dataset(read(place, split="train")), resize=Resize(64), batch=2, seed=3, shuffle=True) as loader:
            batches.append([batch.pixels.numpy() for batch, _ in loader.epoch(1)])
    assert len(batches[0]) == 3
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))


def test_what_is_wrong_is_told(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.parquet"
    objects = [{"bbox": [1, 2, 3, 4], "category": "cat"}, {"bbox": [1, 2, 3], "category": "cat"}, {"category": "dog"}]
    pq.write_table(pa.Table.from_pylist([{"image": b"no image", "objects": objects}]), file)
    found = read(file)
    assert found.classes == ("cat",)
    assert found.xywh.tolist() == [[1, 2, 3, 4]]
    counts = {one.name: one.count for one in found.findings}
    assert counts["object without a box of four numbers and a class (dropped)"] == 2
    lists = {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 2, 2]], "category": ["cat", "dog"]}
    pq.write_table(pa.Table.from_pylist([{"image": b"no image", "objects": lists}]), file)
    counts = {one.name: one.count for one in read(file).findings}
    assert counts["object without a box of four numbers and a class (dropped)"] == 1
    assert main(["data", "check", str(file)]) == 3
    assert "this is a text file, not an image" in capsys.readouterr().out
    pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(DetkitError, match="no column image"):
        read(file)
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(DetkitError, match="this Parquet file is damaged"):
        read(file)
