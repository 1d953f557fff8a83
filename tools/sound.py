"""Sound inputs of every kind for fuzz.py: how each is made in a folder, and how it is read."""

from __future__ import annotations

import json
import random
import runpy
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detkit.config.build import build_detector, load_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model, read_config
from detkit.config.schema import Place
from detkit.data.check import check_annotations
from detkit.data.convert import convert_annotations
from detkit.data.dataset import Dataset, read
from detkit.data.masks import label_map
from detkit.data.toy import toy_sample, write_toy_data
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.evaluating import track_report
from detkit.exporting.onnx_file import export
from detkit.exporting.predictor import load_exported
from detkit.importers.darknet import import_darknet, untrained_detector
from detkit.importers.nanodet import import_nanodet, nanodet_section
from detkit.importers.weights import layers_of, read_checkpoint
from detkit.io.detections import open_writer, read_detections
from detkit.io.images import image_bytes, read_header, read_image
from detkit.io.sources import Frame
from detkit.io.video import VideoReader
from detkit.metrics import evaluate_results
from detkit.structures import Detections
from detkit.tracking.frames import read_found

FORMATS = ("coco", "voc", "yolo", "csv", "labelme")
TESTS = Path(__file__).resolve().parents[1] / "tests"  # their fixtures make the exports of other programs


@dataclass(frozen=True)
class Kind:
    """How a sound input is made in a folder, how it is read, the suffixes of files to damage, and what a case costs.

    ``use`` gets the folder, the file that is damaged, what else is drawn from, and what ``make`` returned.
    """

    make: Callable[[Path], Any]
    use: Callable[[Path, Path, random.Random, Any], object]
    damaged: tuple[str, ...] = ()
    cost: int = 1


def make_data(form: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        made = write_toy_data(folder.with_name(f"{folder.name}-toys"), train=3, val=2, size=24)
        parts = {part: read(made, split=part) for part in ("train", "val")}
        convert_annotations(parts, form, folder)
        if form == "coco":  # with all that a record may hold
            path = next(folder.glob("**/*train*.json"))
            content = json.loads(path.read_bytes())
            for number, record in enumerate(content["annotations"]):
                x, y, w, h = record["bbox"]
                record |= {"segmentation": [[x, y, x + w, y, x + w, y + h]], "keypoints": [x, y, 2], "num_keypoints": 1}
                if number == 0:
                    record |= {"iscrowd": 1, "segmentation": {"size": [24, 24], "counts": [100, 20, 456]}}
            path.write_text(json.dumps(content))

    return make


def make_exports(name: str) -> Callable[[Path], dict[str, Path]]:
    """All exports that a file of tests makes, each in a folder of its own; what a person would name of each."""

    def make(folder: Path) -> dict[str, Path]:
        exports = TESTS / "data" / "exports"
        scene = runpy.run_path(str(exports / "conftest.py"))["Scene"]()
        makers = runpy.run_path(str(exports / f"test_{name}_exports.py"))["EXPORTS"].values()
        makers = [maker[1] if isinstance(maker, tuple) else maker for maker in makers]
        return {f"{i:02d}": maker(scene, folder / f"{i:02d}")[0] for i, maker in enumerate(makers)}

    return make


def use_export(folder: Path, path: Path, rng: random.Random, named: Mapping[str, Path]) -> None:
    use_data(named[path.relative_to(folder).parts[0]], path, rng)


def use_data(folder: Path, path: Path, rng: random.Random, made: object = None) -> None:
    annotations = read(folder)
    check_annotations(annotations, threads=1)
    for i in range(len(annotations)):
        with suppress(DetkitError):
            Dataset(annotations).load(i)
    annotations.ground_truth()
    if rng.random() < 0.2:
        out = folder.with_name("converted")
        shutil.rmtree(out, ignore_errors=True)
        convert_annotations({"all": annotations}, rng.choice(FORMATS), out)


def make_detections(folder: Path) -> None:
    data = write_toy_data(folder / "sound", train=1, val=3, size=24)
    annotations = read(data, split="val")
    for kind, name in (("coco", "r.json"), ("jsonl", "r.jsonl"), ("yolo", "yolo")):
        ids = dict(zip(annotations.files, annotations.image_ids, strict=True))
        with open_writer(kind, folder / name, annotations.classes, annotations.class_ids, image_ids=ids) as writer:
            for i, file in enumerate(annotations.files):
                target = Dataset(annotations).target(i)
                found = Detections(target.boxes, np.full(len(target), 0.5), target.labels, annotations.classes)
                writer.write(Frame(np.zeros((24, 24, 3), np.uint8), file), found)


def use_detections(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    annotations = read(folder / "sound", split="val")
    for name in ("r.json", "r.jsonl", "yolo"):
        results, _ = read_detections(folder / name, annotations)
        for protocol in ("coco", "voc2007"):
            evaluate_results(annotations.ground_truth(), results, protocol)


def make_images(folder: Path) -> None:
    folder.mkdir()
    image = toy_sample(1, 24).image
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif"):
        (folder / f"a{suffix}").write_bytes(image_bytes(image, suffix, 90))
    for name, pixels in {
        "g.gif": image,
        "d.tif": image.astype(np.uint16) * 200,
        "p.ppm": image,
        "a.png": image,
    }.items():
        cv2.imwrite(str(folder / name), pixels)
    cv2.imwrite(str(folder / "alpha.png"), np.dstack([image, image[..., 0]]))


def use_images(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    for read_one in (read_header, lambda path: read_image(path, reduce_to=8), read_image):
        read_one(path)


def make_masks(folder: Path) -> None:
    """PNGs of numbers, and a COCO json with regions as polygons and RLE."""
    made = write_toy_data(folder.with_name("mask-toys"), train=2, val=2, size=24)
    data = read(made, split="train")
    shutil.copytree(made, folder / "coco")
    (path,) = (folder / "coco").glob("**/*train*.json")
    content = json.loads(path.read_bytes())
    for number, record in enumerate(content["annotations"]):
        x, y, w, h = record["bbox"]
        polygon = [[x, y, x + w, y, x + w, y + h]]
        record["segmentation"] = {"size": [24, 24], "counts": [100, 20, 456]} if number == 0 else polygon
    path.write_text(json.dumps(content))
    for i, file in enumerate(data.files):
        mask = np.zeros((24, 24), np.uint8)
        mask[5:15, 3:20], mask[0] = i + 1, 255
        for part, pixels in (("images", cv2.imread(file)), ("masks", mask)):
            (folder / "png" / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "png" / part / f"{i}.png"), pixels)
    (folder / "png" / "classes.txt").write_text("background\ncat\ndog\n")


def use_masks(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    annotations = read(folder / path.relative_to(folder).parts[0])
    check_annotations(annotations, threads=1)
    for i in range(len(annotations) if annotations.masks else 0):
        with suppress(DetkitError):
            label_map(annotations, i, Dataset(annotations).load(i).image.shape[:2])


def make_tracks(folder: Path) -> None:
    folder.mkdir()
    rows = [f"{frame},{k},{10 * k + frame},5,8,12,{{}},1,1" for frame in range(1, 6) for k in (1, 2)]
    (folder / "gt.txt").write_text("\n".join(row.format(1) for row in rows))
    (folder / "found.txt").write_text("\n".join(row.format(0.9) for row in rows))
    box = {"label": "cat", "label_id": 0, "score": 0.5, "box": [1, 2, 9, 9]}
    lines = [{"source": "a.mp4", "frame": k, "width": 24, "height": 24, "detections": [box]} for k in range(4)]
    (folder / "found.jsonl").write_text("\n".join(map(json.dumps, lines)))


def use_tracks(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    read_found(path)
    if path.suffix == ".txt":
        track_report(folder / "found.txt", folder / "gt.txt")


def make_videos(folder: Path) -> None:
    folder.mkdir()
    for name, code in (("a.avi", "MJPG"), ("b.mp4", "mp4v")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*code), 10, (32, 32))
        for number in range(4):
            writer.write(toy_sample(number, 32).image)
        writer.release()


def use_videos(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    with VideoReader(path) as reader:
        assert sum(1 for _ in zip(range(50), reader, strict=False)) <= 50
        assert reader.cut_short in (True, False)


def make_model(folder: Path) -> None:
    folder.mkdir()
    head = {"name": "yolo", "anchors": [[8, 8], [16, 16]]}
    model = check_model({"size": 32, "backbone": {"name": "lenet5", "taps": [1]}, "head": head}, Place())
    build_detector(Config({}, model, {}, TrainOptions(), EvaluateOptions()), ("a", "b")).save(folder / "m.safetensors")


def use_model(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    load_detector(folder / "m.safetensors").predict(np.zeros((20, 30, 3), np.uint8))


def make_onnx(folder: Path) -> None:
    make_model(folder)
    export(folder / "m.safetensors", folder / "m.onnx")


def use_onnx(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    load_exported(path, "onnxruntime", threads=1).predict(np.zeros((20, 30, 3), np.uint8))


def make_darknet(folder: Path) -> None:
    folder.mkdir()
    nets = runpy.run_path(str(TESTS / "importers" / "conftest.py"))
    (folder / "names.txt").write_text("\n".join(nets["NAMES"]))
    for name, lines in nets["NETS"].items():
        cfg = folder / f"{name}.cfg"
        cfg.write_text(nets["cfg_text"](lines))
        nets["write_weights"](cfg, folder / "names.txt", cfg.with_suffix(".weights"))


def use_darknet(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    stem = folder / ("v3_tiny" if path.suffix == ".txt" else path.stem)
    detector = import_darknet(stem.with_suffix(".cfg"), stem.with_suffix(".weights"), folder / "names.txt")
    detector.predict(np.zeros((20, 30, 3), np.uint8))


def make_ncnn(folder: Path) -> None:
    """A NanoDet-Plus of the smallest trunk as ncnn's files, and as a checkpoint of its first tensors."""
    folder.mkdir()
    (folder / "names.txt").write_text("cat\ndog")
    net = untrained_detector(nanodet_section("shufflenet_v2_x0_5", 16, 64), ("cat", "dog"), (1, 2), "net")
    layers = [layer.conv for layer in layers_of(net)]
    lines, data = ["7767517", f"{len(layers) + 1} 2", "Input data 0 1 data"], b""
    for i, conv in enumerate(layers):
        filters = conv.weight.detach().numpy()
        keys = f"0={len(filters)} 1={filters.shape[3]} 5=1 6={filters.size} 7={conv.groups}"
        lines.append(f"{'Convolution' if conv.groups == 1 else 'ConvolutionDepthWise'} c{i} 1 1 a b {keys}")
        data += bytes(4) + filters.tobytes() + np.zeros(len(filters), "<f4").tobytes()
    (folder / "net.param").write_text("\n".join(lines))
    (folder / "net.bin").write_bytes(data)
    torch.save({"state_dict": {str(i): conv.weight for i, conv in enumerate(layers[:3])}}, folder / "net.ckpt")


def use_ncnn(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    if path.suffix == ".ckpt":
        read_checkpoint(path, "state_dict")
    else:
        import_nanodet(folder / "net.param", folder / "names.txt", size=64)


def make_config(folder: Path) -> None:
    shutil.copytree(Path(__file__).resolve().parents[1] / "configs", folder)


def use_config(folder: Path, path: Path, rng: random.Random, made: object) -> None:
    read_config(path, train_schema=TrainOptions).to_yaml()


TEXTS = (".json", ".jsonl", ".xml", ".yaml", ".csv", ".txt", ".data", ".names")
IMAGES = (".png", ".jpg", ".webp", ".bmp", ".tif", ".gif", ".ppm")
KINDS = {form: Kind(make_data(form), use_data, TEXTS, cost=2) for form in FORMATS} | {
    **{
        f"{name}-exports": Kind(make_exports(name), use_export, TEXTS, cost=2)
        for name in ("coco", "voc", "yolo", "json_and_csv")
    },
    "detections": Kind(make_detections, use_detections, TEXTS, cost=2),
    "images": Kind(make_images, use_images, IMAGES),
    "masks": Kind(make_masks, use_masks, (".json", ".png", ".txt"), cost=2),
    "tracks": Kind(make_tracks, use_tracks, (".txt", ".jsonl"), cost=2),
    "video": Kind(make_videos, use_videos, (".avi", ".mp4")),
    "model": Kind(make_model, use_model, (".safetensors",)),
    "onnx": Kind(make_onnx, use_onnx, (".onnx",), cost=4),
    "darknet": Kind(make_darknet, use_darknet, (".cfg", ".weights", ".txt"), cost=4),
    "ncnn": Kind(make_ncnn, use_ncnn, (".param", ".bin", ".ckpt", ".txt"), cost=8),
    "config": Kind(make_config, use_config, (".yaml",), cost=3),
}
