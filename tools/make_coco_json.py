"""Writes a synthetic COCO annotation file of train2017's size: 118k images, 860k boxes with polygons, about 500 MB."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

CLASSES = 80


def _object(number: int, image: int, rng: np.random.Generator) -> dict[str, object]:
    w, h = (float(v) for v in np.round(rng.uniform(8, 250, 2), 2))
    x, y = (float(v) for v in np.round(rng.uniform(0, 1, 2) * (640 - w, 480 - h), 2))
    corners = np.round(rng.uniform(0, 1, (int(rng.integers(12, 52)), 2)) * (w, h) + (x, y), 2)
    return {
        "segmentation": [corners.ravel().tolist()],
        "area": round(0.6 * w * h, 4),
        "iscrowd": int(rng.random() < 0.01),
        "image_id": image,
        "bbox": [x, y, w, h],
        "category_id": int(rng.integers(1, CLASSES + 1)),
        "id": number,
    }


def write(path: Path, images: int, boxes: int, seed: int = 0) -> None:
    """Writes the file piece by piece; object records are drawn from a pool, so that it takes seconds."""
    rng = np.random.default_rng(seed)
    pool = [_object(0, 0, rng) for _ in range(2000)]
    texts = [json.dumps({k: v for k, v in one.items() if k not in ("image_id", "id")})[:-1] for one in pool]
    ids = np.sort(rng.choice(600_000 + images, images, replace=False) + 1)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
        for i, number in enumerate(ids):
            record = {"license": 3, "file_name": f"{number:012d}.jpg", "flickr_url": f"http://a.example/{number}",
                      "height": 480, "width": 640, "date_captured": "2013-11-14", "id": int(number)}  # fmt: skip
            file.write((", " if i else "") + json.dumps(record))
        file.write('], "annotations": [')
        owners, kinds = rng.choice(ids, boxes), rng.integers(0, len(texts), boxes)
        for i, (owner, kind) in enumerate(zip(owners.tolist(), kinds.tolist(), strict=True)):
            file.write(f'{", " if i else ""}{texts[kind]}, "image_id": {owner}, "id": {i + 1}}}')
        categories = [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--boxes", type=int, default=860_001)
    options = parser.parse_args()
    write(options.path, options.images, options.boxes)
    print(f"{options.path}: {options.path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
