"""labelme, VIA, Supervisely, FiftyOne, Open Images and plain csv: each export holds the scene."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit.data.dataset import format_of, read, splits

# Makes the export in a folder; returns what a person would name, and the findings that the reader must have.
Export = Callable[[Any, Path], tuple[Path, dict[str, int]]]


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def rows(scene: Any, row: Callable[[Any, Any], Sequence[object]], header: str = "") -> str:
    lines = [",".join(map(str, row(photo, box))) for photo in scene for box in photo.boxes]
    return "\n".join([header, *lines] if header else lines) + "\n"


def labelme_file(photo: Any, shape: Callable[[Any], dict[str, Any]], image: str = "{}") -> dict[str, Any]:
    shapes = [{"label": b.name, "group_id": None, "flags": {}, **shape(b)} for b in photo.boxes]
    return {
        "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image.format(photo.file), "imageData": None,
        "imageHeight": photo.height, "imageWidth": photo.width,
    }  # fmt: skip


def rectangle(b: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = b.corners  # drawn from the right
    return {"points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"}


def labelme(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root)
    for photo in scene:
        write(root / f"{photo.stem}.json", labelme_file(photo, rectangle))
    return root, {}


def labelme_polygons(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images")
    for photo in scene:
        file = labelme_file(photo, lambda b: {"points": b.polygon, "shape_type": "polygon"}, "..\\images\\{}")
        write(root / "labels" / f"{photo.stem}.json", file)
    return root / "labels", {"polygon made into a box": 5}


def labelme_shapes(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """A circle where the box is a square, masks, groups of halves, and points that are no objects."""

    def shapes(b: Any) -> list[dict[str, Any]]:
        x1, y1, x2, y2 = b.corners
        middle = x1 + b.w // 2
        halves = [[[x1, y1], [middle, y2]], [[middle, y1], [x2, y2]]]
        mask = {"points": [[x1, y1], [x2 - 1, y2 - 1]], "shape_type": "mask", "mask": "..."}
        parts = [{"points": half, "shape_type": "rectangle", "group_id": 7} for half in halves]
        return {"cat": [{**mask, "group_id": None}], "dog": parts}[b.name]

    scene.draw(root)
    for photo in scene:
        file = labelme_file(photo, rectangle)
        point = {"label": "cat", "points": [[3, 4]], "shape_type": "point"}
        file["shapes"] = [{"label": b.name, **one} for b in photo.boxes for one in shapes(b)] + [point]
        write(root / f"{photo.stem}.json", file)
    return root, {"mask made into a box": 3, "shape of a group made into one box": 2, "point has no area (dropped)": 3}


def via_json(scene: Any, root: Path, project: bool = False) -> tuple[Path, dict[str, int]]:
    scene.draw(root)
    value = {}
    for photo in scene:
        regions = [
            {"shape_attributes": {"name": "rect", "x": b.x, "y": b.y, "width": b.w, "height": b.h},
             "region_attributes": {"colour": "grey", "Class": b.name}}
            for b in photo.boxes
        ]  # fmt: skip
        value[f"{photo.file}123"] = {
            "filename": photo.file,
            "size": 123,
            "regions": regions,
            "file_attributes": {},
        }
    whole = {"_via_settings": {"ui": {}}, "_via_img_metadata": value, "_via_attributes": {"region": {}}}
    write(root / "via_region_data.json", whole if project else value)
    return root, {}


def via_1(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """Version 1: regions by number, polygons, ticked boxes."""
    scene.draw(root / "train")
    value = {}
    for photo in scene:
        regions = {}
        for i, b in enumerate(photo.boxes):
            xs, ys = zip(*b.polygon, strict=True)
            shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions[str(i)] = {"shape_attributes": shape, "region_attributes": {"kind": {b.name: True}}}
        value[f"{photo.file}9"] = {"fileref": "", "filename": photo.file, "regions": regions}
    write(root / "train" / "via_region_data.json", value)
    return root, {"polygon made into a box": 5}


def via_csv(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    def row(photo: Any, b: Any) -> list[object]:
        i = photo.boxes.index(b)
        shape = {"name": "ellipse", "cx": b.x + b.w / 2, "cy": b.y + b.h / 2, "rx": b.w / 2, "ry": b.h / 2}
        cells = ["{}", json.dumps(shape), json.dumps({"name": b.name})]
        quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        return [photo.file, 99, quoted[0], len(photo.boxes), i, quoted[1], quoted[2]]

    scene.draw(root / "images")
    header = "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    write(root / "via_export_csv.csv", rows(scene, row, header))
    return root, {"ellipse made into a box": 5}


def supervisely(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """The boxes of the first image as rectangles, of the second as polygons, of the third as bitmaps."""

    def figure(kind: str, b: Any) -> dict[str, Any]:
        x1, y1, x2, y2 = b.corners
        last = [x2 - 1, y2 - 1]  # inclusive
        if kind == "bitmap":
            png = cv2.imencode(".png", np.full((b.h, b.w), 255, np.uint8))[1].tobytes()
            bitmap = {"data": base64.b64encode(zlib.compress(png)).decode(), "origin": [x1, y1]}
            return {"geometryType": "bitmap", "bitmap": bitmap}
        exterior = [[x1, y1], last] if kind == "rectangle" else [[x1, y1], [x2 - 1, y1], last]
        return {"geometryType": kind, "points": {"exterior": exterior, "interior": []}}

    scene.draw(root / "ds0" / "img")
    classes = [{"title": name, "shape": "any", "color": "#F00"} for name in (*scene.classes, "nose")]
    classes[-1]["shape"] = "point"
    write(root / "meta.json", {"classes": classes, "tags": []})
    for photo, kind in zip(scene, ("rectangle", "polygon", "bitmap"), strict=True):
        objects = [{"classTitle": b.name, "tags": [], **figure(kind, b)} for b in photo.boxes]
        value = {"size": {"height": photo.height, "width": photo.width}, "tags": [], "objects": objects}
        write(root / "ds0" / "ann" / f"{photo.file}.json", value)
    return root, {"polygon made into a box": 2, "bitmap made into a box": 1}


def cvat_xml(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """Cats turned by 90 degrees, dogs as polygons; points and tags, which have no area."""

    def shape(b: Any) -> str:
        if b.name == "dog":
            points = ";".join(f"{x},{y}" for x, y in b.polygon)
            return f'<polygon label="dog" occluded="0" points="{points}"/>'
        x, y = b.x + b.w / 2, b.y + b.h / 2  # the middle stays, width and height change places
        corners = f'xtl="{x - b.h / 2}" ytl="{y - b.w / 2}" xbr="{x + b.h / 2}" ybr="{y + b.w / 2}"'
        return f'<box label="cat" {corners} rotation="90.0"><attribute name="a">1</attribute></box>'

    scene.draw(root / "images")
    images = [
        f'<image id="{k}" name="{p.file}" width="{p.width}" height="{p.height}"><tag label="cat"/>'
        f'{"".join(map(shape, p.boxes))}<points label="cat" points="1,2"/></image>'
        for k, p in enumerate(scene)
    ]
    labels = "".join(f"<label><name>{name}</name></label>" for name in scene.classes)
    meta = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    write(root / "annotations.xml", f"<?xml version='1.0'?>\n<annotations>{meta}{''.join(images)}</annotations>")
    return root, {"rotated box made into a box": 3, "polygon made into a box": 2, "points has no area (dropped)": 3}


def fiftyone_nested(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """Images in a folder of data/, names of classes in place of numbers."""
    scene.draw(root / "data" / "day 1")
    labels = {
        f"day 1/{p.stem}": [
            {"label": b.name, "bounding_box": [b.x / p.width, b.y / p.height, b.w / p.width, b.h / p.height]}
            for b in p.boxes
        ]
        for p in scene
    }
    write(root / "labels.json", {"labels": labels})
    return root, {}


def fiftyone(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "data")
    labels = {
        p.stem: [
            {"label": scene.classes.index(b.name),
             "bounding_box": [b.x / p.width, b.y / p.height, b.w / p.width, b.h / p.height]}
            for b in p.boxes
        ]
        for p in scene
    }  # fmt: skip
    write(root / "labels.json", {"classes": list(scene.classes), "labels": labels})
    return root, {}


def open_images(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """As FiftyOne downloads it: train/data, train/labels/detections.csv, train/metadata/classes.csv."""
    scene.draw(root / "train" / "data")
    codes = dict(zip(scene.classes, ("/m/01yrx", "/m/0bt9lr"), strict=True))
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )

    def row(p: Any, b: Any) -> list[object]:
        x1, y1, x2, y2 = b.corners
        corners = [x1 / p.width, x2 / p.width, y1 / p.height, y2 / p.height]
        return [p.stem, "xclick", codes[b.name], 1, *corners, 0, 0, 0, 0, 0]

    write(root / "train" / "labels" / "detections.csv", rows(scene, row, header))
    write(root / "train" / "metadata" / "classes.csv", "".join(f"{c},{name}\n" for name, c in codes.items()))
    return root, {}


def csv(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "images")
    row = lambda p, b: [f"images/{p.file}", *b.corners, b.name]  # noqa: E731
    return write(root / "boxes.csv", rows(scene, row, "image,x1,y1,x2,y2,label")), {}


def tensorflow_csv(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """As Roboflow writes it, a file in the folder of each part."""
    scene.draw(root / "train", *(f"{p.stem}_jpg.rf.0a1b.jpg" for p in scene))
    row = lambda p, b: [f"{p.stem}_jpg.rf.0a1b.jpg", p.width, p.height, b.name, *b.corners]  # noqa: E731
    header = "filename,width,height,class,xmin,ymin,xmax,ymax"
    write(root / "train" / "_annotations.csv", rows(scene, row, header))
    return root, {}


def retinanet_csv(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "pics")
    write(root / "annotations.csv", rows(scene, lambda p, b: [f"/home/me/pics/{p.file}", *b.corners, b.name]))
    write(root / "classes.csv", "dog,0\ncat,1\n")
    return root, {"file name of another machine or upload (found by its last part)": 3}


def kaggle_csv(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root / "train")
    row = lambda p, b: [p.stem, p.width, p.height, f'"[{b.x}.0, {b.y}.0, {b.w}.0, {b.h}.0]"', b.name]  # noqa: E731
    write(root / "train.csv", rows(scene, row, "image_id,width,height,bbox,class"))
    return root, {}


def semicolon_csv(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root)
    header = "\ufeffFile;Label;X;Y;Width;Height;Score"
    text = rows(scene, lambda p, b: [p.file, b.name, b.x, b.y, b.w, b.h, 0.5], header).replace(",", ";")
    write(root / "table.csv", text)
    return root, {"score of a box (left out)": 5}


def label_studio(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    """Cats turned by 90 degrees about their upper right corner, dogs as polygons or, drawn and named apart, ellipses;
    key points, answers about the image, skipped and older annotations, a task that nobody has done."""

    def results(p: Any, b: Any) -> list[dict[str, Any]]:
        common = {"original_width": p.width, "original_height": p.height, "id": f"{p.stem}{b.x}"}
        x, y, w, h = 100 * b.x / p.width, 100 * b.y / p.height, 100 * b.w / p.width, 100 * b.h / p.height
        if b.name == "cat":
            turned = {"width": 100 * b.h / p.width, "height": 100 * b.w / p.height, "rotation": 90}
            return [{**common, "value": {"x": x + w, "y": y, **turned, "rectanglelabels": ["cat"]}}]
        if p.stem == "gamma":
            ellipse = {"x": x + w / 2, "y": y + h / 2, "radiusX": w / 2, "radiusY": h / 2, "rotation": 0}
            return [{**common, "value": ellipse}, {**common, "value": {**ellipse, "labels": ["dog"]}}]
        points = [[100 * px / p.width, 100 * py / p.height] for px, py in b.polygon]
        return [{**common, "value": {"points": points, "polygonlabels": ["dog"]}}]

    scene.draw(root / "images")
    more = [
        {"id": "1", "value": {"x": 1, "y": 2, "width": 0.5, "keypointlabels": ["cat"]}},
        {"id": "2", "value": {"choices": ["day"]}},
    ]
    tasks: list[dict[str, Any]] = []
    for p in scene:
        result = [one for b in p.boxes for one in results(p, b)] + more
        newest = {"result": result, "was_cancelled": False, "created_at": "2026-01-02"}
        others = [{**newest, "result": [], "created_at": "2026-01-01"}, {"result": more, "was_cancelled": True}]
        image = f"/data/upload/1/0a1b2c3d-{p.file}"
        tasks.append({"id": len(tasks), "data": {"image": image}, "annotations": [*others, newest]})
    undone = {"id": 9, "data": {"image": "/data/upload/1/0a1b2c3d-omega.jpg"}, "annotations": []}
    write(root / "project-1.json", [*tasks, undone])
    return root, {
        "annotation of an image besides its latest (left out)": 3,
        "rotated box made into a box": 3,
        "polygon made into a box": 1,
        "ellipse made into a box": 1,
        "keypoint has no area (dropped)": 3,
        "answer about the whole image (left out)": 3,
        "task without an annotation (left out)": 1,
        "file name of another machine or upload (found by its last part)": 3,
    }


def label_studio_min(scene: Any, root: Path) -> tuple[Path, dict[str, int]]:
    scene.draw(root)
    tasks = [
        {"image": f"/data/local-files/?d={p.file}", "id": 1, "annotator": 1, "annotation_id": 1, "label": [
            {"x": 100 * b.x / p.width, "y": 100 * b.y / p.height, "width": 100 * b.w / p.width,
             "height": 100 * b.h / p.height, "rotation": 0, "rectanglelabels": [b.name]}
            for b in p.boxes
        ]}
        for p in scene
    ]  # fmt: skip
    write(root / "result.json", tasks)
    return root, {"file name of another machine or upload (found by its last part)": 3}


def createml(scene: Any, root: Path, image: str = "image", boxes: str = "annotations") -> tuple[Path, dict[str, int]]:
    """As Roboflow and supervision write it, or Apple."""
    scene.draw(root / "train")
    records = [
        {image: p.file, boxes: [
            {"label": b.name, "coordinates": {"x": b.x + b.w / 2, "y": b.y + b.h / 2, "width": b.w, "height": b.h}}
            for b in p.boxes
        ]}
        for p in scene
    ]  # fmt: skip
    write(root / "train" / "_annotations.createml.json", records)
    return root, {}


EXPORTS: dict[str, tuple[str, Export]] = {
    "Label Studio's json": ("label_studio", label_studio),
    "Label Studio's short json": ("label_studio", label_studio_min),
    "Create ML of Roboflow": ("createml", createml),
    "Create ML of Apple": ("createml", lambda scene, root: createml(scene, root, "imagefilename", "annotation")),
    "labelme": ("labelme", labelme),
    "labelme, polygons, images elsewhere": ("labelme", labelme_polygons),
    "labelme, other shapes": ("labelme", labelme_shapes),
    "VIA 2 json": ("via", via_json),
    "VIA 2 project": ("via", lambda scene, root: via_json(scene, root, project=True)),
    "VIA 1 json": ("via", via_1),
    "VIA csv": ("via", via_csv),
    "Supervisely": ("supervisely", supervisely),
    "FiftyOne image detection": ("fiftyone", fiftyone),
    "FiftyOne image detection, nested": ("fiftyone", fiftyone_nested),
    "CVAT for images": ("cvat", cvat_xml),
    "Open Images": ("csv", open_images),
    "csv": ("csv", csv),
    "csv of TensorFlow and Roboflow": ("csv", tensorflow_csv),
    "csv of keras-retinanet": ("csv", retinanet_csv),
    "csv of Kaggle": ("csv", kaggle_csv),
    "csv with semicolons": ("csv", semicolon_csv),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_holds_the_scene(name: str, scene: Any, tmp_path: Path) -> None:
    kind, export = EXPORTS[name]
    path, findings = export(scene, tmp_path / "export")
    a = read(path)
    scene.check(a, findings)
    assert all(f.note or "no area" in f.name for f in a.findings), "nothing is wrong with these"
    scene.check_round_trips(a, tmp_path)
    assert a.source is not None
    assert a.source.format == kind
    for part in splits(path):
        assert len(read(path, split=part)) == 3
    single = kind in ("via", "fiftyone", "label_studio", "createml")
    inner = [p for p in path.rglob("*.json" if kind != "csv" else "*.csv") if single]
    for file in inner:  # the file itself names the set as well
        assert type(format_of(file)) is type(format_of(path))
        scene.check(read(file), findings)
