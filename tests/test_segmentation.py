"""Segmentation from data to coloured images: training, evaluation, report, detect and its PNGs, and what is refused."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import detkit
from detkit.cli import main
from detkit.data.toy import write_toy_data
from detkit.errors import DetkitError
from detkit.io.detections import open_writer
from detkit.io.sources import Frame
from detkit.structures import Detections

CLASSES = ("red", "blue")
BODY = "model.backbone={name: resnet18, weights: none, taps: [1, 2]}"


def write_data(folder: Path, images: int = 6) -> Path:
    """Rectangles of two colours on grey, 50 x 64; a strip that is not asked for."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for k in range(images):
            image = rng.integers(90, 110, (50, 64, 3), dtype=np.uint8)
            mask = np.zeros((50, 64), np.uint8)
            for number, colour in ((1, (200, 20, 20)), (2, (20, 20, 200))):
                x, y = rng.integers(0, 40), rng.integers(0, 26)
                image[y : y + 20, x : x + 20], mask[y : y + 20, x : x + 20] = colour, number
            mask[:, :2] = 255
            for kind, pixels in (("images", image), ("masks", mask)):
                file = folder / kind / part / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    (folder / "classes.txt").write_text("\n".join(["background", *CLASSES]))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = ["model.size=64", BODY, "model.head={name: segment, upsampling: learned, dice_gain: 0.5}"]
    changes += ["train.batch=3", "train.lr=5e-3", "train.backbone_lr=5e-3", "train.workers=0", "train.ema=0"]
    augment = ["augment.scale=[0.9, 1.2]"]
    done = detkit.train(
        "segment", data=data, epochs=12, overrides=[*changes, *augment], out=tmp_path_factory.mktemp("segment") / "run"
    )
    assert done.row["mIoU"] > 0.6
    return done.run


def test_evaluation_and_its_report(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["evaluate", str(run), str(data), "--split", "val", "--report", str(page), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "mIoU" in text
    assert "best F1" not in text
    assert {line.split()[0] for line in text.splitlines() if line} >= {*CLASSES, "background", "fwIoU"}
    assert page.read_text().count("of the pixels right") == 6
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="photo, labels and answer of', page.read_text())
    side = cv2.imdecode(np.frombuffer(base64.b64decode(shown[0]), np.uint8), cv2.IMREAD_COLOR)
    assert side.shape[1] == 3 * 340 + 4 * 6  # three images with gaps
    assert np.abs(side[-20, 6 + 346 + 3] - [0, 0, 0]).max() < 30  # the strip that is not asked for
    assert "background: rgb(255, 56, 56)" in page.read_text()
    assert main(["evaluate", str(run), str(data), "--split", "val", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["mIoU"] == pytest.approx(detkit.load(run).scores["mIoU"], abs=1e-6)
    counts = np.array(report["confusion"]["counts"])
    assert counts.sum() == 6 * 50 * 62  # all that is asked for
    assert counts.trace() / counts.sum() == pytest.approx(report["metrics"]["accuracy"])
    assert "curves" not in report


def test_detect_draws_and_writes_masks(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = data / "images/val/0.png"
    line = ["detect", str(image), "-m", str(run), "--device", "cpu"]
    assert main([*line, "--save", "--out", "found", "--format", "masks"]) == 0
    assert "red" in capsys.readouterr().out
    assert Path("found/classes.txt").read_text().split() == ["background", *CLASSES]
    numbers, truth = (np.asarray(Image.open(file)) for file in ("found/0.png", data / "masks/val/0.png"))
    assert numbers.shape == truth.shape
    assert (numbers == truth)[truth < 255].mean() > 0.85
    drawn = cv2.imread(str(next(Path("runs").rglob("0.jpg"))))
    assert drawn.shape == (50, 64, 3)
    found = detkit.load(run, device="cpu").predict(image)
    assert found.extra["masks"].shape == (len(found), 50, 64)
    assert found.extra["masks"].sum(0).max() <= 1
    assert (found.draw(cv2.imread(str(image))) != cv2.imread(str(image))).any()


def test_masks_are_judged_as_the_model_is(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    line = ["detect", str(data / "images/val"), "-m", str(run), "--device", "cpu", "--conf", "0"]
    assert main([*line, "--out", str(found), "--format", "masks"]) == 0
    judge = ["evaluate", "--predictions", str(found), str(data), "--split", "val"]
    capsys.readouterr()
    assert main([*judge, "--json"]) == 0
    mean = detkit.load(run).scores["mIoU"]
    assert json.loads(capsys.readouterr().out)["metrics"]["mIoU"] == pytest.approx(mean)
    assert detkit.evaluate(found, data, split="val").metrics["mIoU"] == pytest.approx(mean)
    (found / "1.png").unlink()
    Image.fromarray(np.full((50, 64), 9, np.uint8)).save(found / "2.png")
    assert main([*judge, "--report", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().err
    assert "1 of 6 images have no mask in found" in said
    assert "2.png: 3200 pixels, the first of number 9" in said
    assert "1 mask with a number or colour that has no name" in said
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(found / "2.png")
    assert main(judge) == 2
    assert "the mask is 6 x 5 pixels, its image 64 x 50" in capsys.readouterr().err
    (found / "classes.txt").write_text("background\ncow")
    (found / "2.png").unlink()
    assert main(judge) == 2
    assert "no class in common" in capsys.readouterr().err


def test_a_model_of_boxes_has_no_masks_to_write(data: Path, tmp_path: Path) -> None:
    image = data / "images/val/0.png"
    found = Detections(np.array([[0, 0, 4, 4]]), np.ones(1), np.zeros(1), CLASSES)
    with open_writer("masks", tmp_path / "out", CLASSES) as writer, pytest.raises(DetkitError, match="no masks"):
        writer.write(Frame(cv2.imread(str(image)), str(image)), found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "segment", "--data", "TOY", "model.size=64", BODY], "without|no mask that can be read|has no mask"),
        (["train", "segment", "--data", "DATA", BODY, "augment.mosaic=0.5"], "mosaic"),
        (["evaluate", "RUN", "DATA", "--protocol", "coco"], "these answers are pixels, and coco judges boxes"),
        (["evaluate", "RUN", "DATA", "--match-iou", "0.5"], "matches no boxes"),
        (["evaluate", "RUN", "DATA", "--tta", "flip"], "masks of several views"),
        (["compare", "RUN", "LAST", "--data", "DATA"], "or pixels"),
        (["export", "RUN", "-o", "x.onnx", "--nms"], "one answer per image or pixel"),
    ],
)
def test_what_does_not_go_together(
    run: Path, data: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    toys = write_toy_data(tmp_path / "toys", train=2, val=1, size=64) if "TOY" in arguments else tmp_path
    words = {"RUN": str(run), "DATA": str(data), "TOY": str(toys), "LAST": str(run / "last.safetensors")}
    assert main([words.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert "Traceback" not in error
