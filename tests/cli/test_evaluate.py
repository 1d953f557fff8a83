"""``detkit evaluate --predictions``: what it prints, on three formats, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from detkit.cli import main
from detkit.metrics.coco import metric_table

BOXES = {1: [[10, 10, 30, 20]], 2: [[5, 5, 40, 40], [60, 60, 20, 20]], 3: []}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three images of 100 x 100, three objects, classes cat (id 5), dog (id 9) and cow, of which there is none."""
    rows = [(image, box) for image, boxes in BOXES.items() for box in boxes]
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in BOXES],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "cow"}],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": 9 if n == 3 else 5,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for n, (image, box) in enumerate(rows, 1)
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """All cats found, the dog missed, one false cat."""
    boxes = [(1, BOXES[1][0], 0.9), (2, BOXES[2][0], 0.8), (3, [0, 0, 9, 9], 0.1)]
    path = tmp_path / "found.json"
    path.write_text(json.dumps([{"image_id": i, "category_id": 5, "bbox": b, "score": s} for i, b, s in boxes]))
    return path


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json(coco: Path, found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = run_json(capsys, "--predictions", found, coco)
    assert got["protocol"] == "coco"
    assert list(got["metrics"]) == list(metric_table())
    assert got["metrics"]["AP50"] == pytest.approx(0.5)
    assert got["metrics"]["APl"] == -1
    assert got["per_class"]["cat"]["AP50"] == pytest.approx(1.0)
    assert got["per_class"]["dog"]["AP"] == 0
    assert got["per_class"]["cow"]["AP"] is None
    assert got["best_threshold"] == pytest.approx({"score": 0.45, "f1": 0.8})


def test_several_processes_are_refused(
    coco: Path, found: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "--predictions", str(found), str(coco)]) == 2
    assert "several processes would each judge all images [E062]" in capsys.readouterr().err


def test_a_table_for_people(coco: Path, found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--predictions", str(found), str(coco)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 images, 3 objects, 0 ignored, 3 detections" in lines
    assert any(line.split() == ["AP50", "0.5000"] for line in lines)
    assert next(line for line in lines if line.startswith("cow")).split() == ["cow", "0", *["-"] * 7]
    table = lines[lines.index(next(line for line in lines if line.startswith("class"))) :]
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize(("protocol", "expected"), [("voc2007", 0.5), ("voc2010", 0.5)])
def test_voc_protocols(
    coco: Path, found: Path, capsys: pytest.CaptureFixture[str], protocol: str, expected: float
) -> None:
    got = run_json(capsys, "--predictions", found, coco, "--protocol", protocol, "--match-iou", "0.7")
    assert got["metrics"] == pytest.approx({"AP": expected, "AP70": expected})
    assert got["protocol"] == protocol
    assert main(["evaluate", "--predictions", str(found), str(coco), "--protocol", protocol, "--match-iou", "0.7"]) == 0
    said = capsys.readouterr().out
    assert "(IoU 0.7, " in said.splitlines()[0]
    assert "(IoU 0.7)" in said


def test_bootstrap_and_another_iou(coco: Path, found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--predictions", found, coco, "--bootstrap", "30", "--match-iou", "0.6")
    got = run_json(capsys, *words)
    assert list(got["intervals"]) == ["AP", "AP50", "AP60"]
    assert got == run_json(capsys, *words, "--seed", "0")
    assert main(["evaluate", *map(str, words)]) == 0
    assert "95% interval" in capsys.readouterr().out


def test_check_with_pycocotools(coco: Path, found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--predictions", found, coco, "--check", "pycocotools")
    got = run_json(capsys, *words)
    assert got["check"]["pycocotools"] == pytest.approx(got["metrics"], abs=0)
    assert main(["evaluate", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "largest difference: 0" in lines
    row = next(line.split() for line in lines if line.startswith("AP50 ") and line.count(".") == 2)
    assert row[1] == row[2]


def test_lines_of_detect_match_by_name(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"label": "cat", "label_id": 17, "score": 0.9, "box": [10, 10, 40, 30]}
    line = {"source": "somewhere/1.jpg", "frame": None, "width": 100, "height": 100, "detections": [record]}
    path = tmp_path / "found.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert main(["evaluate", "--predictions", str(path), str(coco), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["per_class"]["cat"]["AR100"] == 0.5
    assert "2 of 3 images have no line" in said.err


def test_a_model_is_run_with_the_options_given(
    coco: Path, found: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detkit import api
    from detkit.data.dataset import read
    from detkit.io.detections import read_detections

    asked: dict[str, object] = {}

    def load(given: list[str], **options: object) -> SimpleNamespace:
        asked.update(options, names=given)
        return SimpleNamespace(classes=("cat", "dog", "cow"), protocol="coco")

    def evaluate_model(model: object, data: str, **options: object) -> tuple:
        asked.update(options)
        annotations = read(data)
        options["on_read"](annotations)  # type: ignore[operator]
        return annotations, read_detections(found, annotations)[0], {"batches": [(2, 0.1, 0.5, 0.0)]}

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(api, "evaluate_model", evaluate_model)
    got = run_json(
        capsys, "runs/1", coco, "--device", "cpu", "--iou", "0.6", "--batch", "2", "--split", "val", "--threads", "1"
    )
    assert got["metrics"]["AP50"] == pytest.approx(0.5)
    assert got["timings"]["ms"]["model"]["median"] == pytest.approx(250)
    assert got["model"]["name"] == "runs/1"
    expected = {
        "max_detections": 100,
        "names": ["runs/1"],
        "device": "cpu",
        "threads": 1,
        "iou": 0.6,
        "batch": 2,
        "split": "val",
    }
    assert asked.items() >= expected.items()


def test_max_detections(coco: Path, found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--predictions", found, coco, "--max-detections", "1")
    got = run_json(capsys, *words, "--bootstrap", "3")
    assert list(got["metrics"])[6:7] == ["AR1"]
    assert got["settings"]["max_detections"] == 1
    assert main(["evaluate", *map(str, words)]) == 0
    assert "1 detections per image and class" in capsys.readouterr().out


def test_report_and_json_hold_the_same(coco: Path, found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = coco.parent / "report.html"
    words = ("--predictions", found, coco, "--bootstrap", "20")
    got = run_json(capsys, *words, "--report", page)
    assert got == run_json(capsys, *words)
    assert {"errors", "calibration", "curves", "confusion", "worst", "examples", "by_size", "protocols"} <= got.keys()
    text = page.read_text(encoding="utf-8")
    assert f"{got['metrics']['AP50']:.3f}" in text
    assert "found.json" in text
    assert main(["evaluate", *map(str, words), "--report", str(page), "--overwrite"]) == 0
    assert "could not be read" in capsys.readouterr().err  # the data set's images do not exist


@pytest.mark.parametrize("protocol", ["voc2007", "voc2010"])
def test_report_of_voc(coco: Path, found: Path, capsys: pytest.CaptureFixture[str], protocol: str) -> None:
    page = coco.parent / "report.html"
    got = run_json(capsys, "--predictions", found, coco, "--protocol", protocol, "--report", page, "--bootstrap", "3")
    assert got["protocol"] == protocol
    assert list(got["intervals"]) == ["AP"]
    assert page.is_file()


def test_data_without_objects(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(coco.read_text())
    coco.write_text(json.dumps({**data, "annotations": []}))
    empty = tmp_path / "none.json"
    empty.write_text("[]")
    for more in ([], ["--json", "--report", str(tmp_path / "r.html")]):
        assert main(["evaluate", "--predictions", str(empty), str(coco), *more]) == 0
        said = capsys.readouterr()
        assert "nothing can be measured" in said.err
        assert "nan" not in said.out


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        ([], "DATA"),
        (["DATA", "--predictions", "none.json"], "none.json"),
        (["nowhere", "--predictions", "FOUND"], "nowhere"),
        (["DATA", "--predictions", "FOUND", "--protocol", "voc2012"], "voc2010"),
        (["DATA", "--predictions", "FOUND", "--match-iou", "50"], "--match-iou"),
        (["DATA", "--predictions", "FOUND", "--match-iou", "0"], "--match-iou"),
        (["DATA", "--predictions", "FOUND", "--bootstrap", "-1"], "--bootstrap"),
        (["DATA", "--predictions", "FOUND", "--max-detections", "0"], "--max-detections"),
        (["DATA", "--predictions", "FOUND", "--check", "detectron"], "--check"),
        (["DATA", "--predictions", "FOUND", "--check", "pycocotools", "--protocol", "voc2010"], "--check"),
        (["DATA", "--predictions", "FOUND", "--max-detections", "9", "--protocol", "voc2010"], "--max-detections"),
        (["DATA", "--predictions", "FOUND", "--report", "DATA"], "exists"),
        (["DATA", "--predictions", "FOUND", "--report", "/proc/none/r.html"], "none"),
        (["DATA", "--predictions", "FOUND", "--report", "report.pdf"], "name it report.html"),
        (["DATA", "--predictions", "FOUND", "--images", "nofolder"], "nofolder"),
        (["DATA", "--predictions", "DATA"], "COCO results"),
        (["model", "DATA", "--predictions", "FOUND"], "not both"),
        (["a", "b", "DATA"], "--ensemble"),
        (["DATA", "FOUND"], "--predictions FILE DATA"),
        (["DATA", "--predictions", "FOUND", "--seed", "-1"], "--seed"),
        (["DATA", "--prediction", "FOUND"], "--prediction"),
        (["tracks.txt", "--predictions", "FOUND", "--protocol", "mott"], "did you mean mot?"),
        (["DATA", "--protocol", "liner"], "did you mean linear?"),
        (["tracks.txt", "--predictions", "tracks.txt"], "--protocol mot"),
        (["DATA", "--predictions", "FOUND", "--protocol", "mot"], "not a row of MOT's"),
        (["DATA", "--protocol", "mot"], "tracks are judged from a file"),
        (["a", "DATA", "--predictions", "FOUND", "--protocol", "mot"], "tracks are judged from a file"),
        ([".", "--predictions", "FOUND", "--protocol", "mot"], "two folders for several"),
        (["tracks", "--predictions", ".", "--protocol", "mot"], "no labelled tracks are here"),
        (["DATA", "--predictions", "FOUND", "--protocol", "mot", "--split", "val"], "--split"),
        (["DATA", "--predictions", "FOUND", "--protocol", "mot", "--bootstrap", "9"], "--bootstrap"),
    ],
)
def test_mistakes(
    coco: Path,
    found: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    needle: str,
) -> None:
    monkeypatch.chdir(coco.parent)
    Path("tracks").mkdir()
    names = {"DATA": str(coco), "FOUND": str(found)}
    assert main(["evaluate", *(names.get(word, word) for word in words)]) == 2
    said = capsys.readouterr()
    assert needle in said.err
    assert not said.out


@pytest.mark.parametrize(
    "words", [["--match-iou", "0.6"], ["--max-detections", "9"], ["--report", "new.html"], ["--protocol", "coco"]]
)
def test_what_a_model_cannot_be_asked_is_said_before_it_runs(
    coco: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    from detkit import api

    monkeypatch.setattr(api, "load", lambda *_, **__: SimpleNamespace(protocol="classify"))
    monkeypatch.setattr(api, "evaluate_model", lambda *_, **__: pytest.fail("ran"))
    assert main(["evaluate", "model", str(coco), *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_parts_judged_together_and_images_left_out_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detkit import api
    from detkit.data.toy import CLASSES, write_toy_data
    from detkit.predictor import Predictor
    from detkit.structures import Detections

    class Blind(Predictor):
        classes = CLASSES

        def predict_samples(self, samples: list, limits: object) -> list[Detections]:
            return [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), CLASSES) for _ in samples]

    monkeypatch.setattr(api, "load", lambda *_, **__: Blind())
    data = write_toy_data(tmp_path / "toy", train=2, val=2, size=48)
    next((data / "val").iterdir()).write_bytes(b"no image")
    assert main(["evaluate", "model", str(data)]) == 0
    said = capsys.readouterr().err
    assert "all of train, val together; --split takes one part" in said
    assert "1 of 4 images cannot be read, and count as if nothing was found: " in said
    assert main(["evaluate", "model", str(data), "--split", "train"]) == 0
    assert not capsys.readouterr().err


def test_a_classifier_is_refused_several_objects_a_image_before_it_runs(
    coco: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detkit import api

    ran = SimpleNamespace(protocol="classify", classes=("cat",), predict_samples=lambda *_: pytest.fail("ran"))
    monkeypatch.setattr(api, "load", lambda *_, **__: ran)
    assert main(["evaluate", "model", str(coco)]) == 2
    assert "2 of 3 images do not have exactly one label" in capsys.readouterr().err


def test_the_file_path_needs_no_torch(coco: Path, found: Path) -> None:
    code = (
        "import sys; from detkit.cli import main\n"
        f"words = ['evaluate', '--predictions', {str(found)!r}, {str(coco)!r}, '--bootstrap', '2']\n"
        "assert main(words) == 0\n"
        f"assert main([*words, '--json', '--report', {str(coco.parent / 'page.html')!r}]) == 0\n"
        "heavy = {'torch', 'torchvision', 'albumentations', 'pycocotools'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


OWN_METRIC = """
from detkit.interfaces import Metric
from detkit.tables import Evaluation


class Count(Metric):
    scores = ("count",)
    rules = "how many detections there are"

    def evaluate(self, gt, dt, *, iou=None, max_detections=100):
        return Evaluation({"count": float(len(dt))}, {})


class Forgetful(Count):
    scores = ("count", "share")
"""


@pytest.fixture
def own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "count_metric.py").write_text(OWN_METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "count_metric", raising=False)


def test_a_metric_without_a_resampler_gives_no_intervals(
    own_metric: None, coco: Path, found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--predictions", str(found), str(coco), "--protocol", "count_metric:Count"]
    assert main([*words, "--bootstrap", "5"]) == 2
    said = capsys.readouterr().err
    assert "the metric count_metric:Count gives no intervals" in said
    assert "leave out --bootstrap, or write its resampler" in said
    assert main([*words, "--report", str(tmp_path / "report.html"), "--match-iou", "0.6", "--json"]) == 0
    told = capsys.readouterr()
    assert "gives no intervals, so the report has none" in told.err
    assert json.loads(told.out)["metrics"] == {"count": 3}
    assert (tmp_path / "report.html").is_file()


def test_a_score_that_a_metric_does_not_return_is_named(
    own_metric: None, coco: Path, found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--predictions", str(found), str(coco), "--protocol", "count_metric:Forgetful"]
    for more in ([], ["--bootstrap", "0"]):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert "count_metric:Forgetful has the score share, but its evaluate returns count" in said


def test_a_file_after_json_is_not_taken_for_the_data(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "detkit-nano", str(coco), "--json", "out.json"]) == 2
    said = capsys.readouterr().err
    assert "--json prints and takes no file" in said
    assert "detkit evaluate ... --json > out.json" in said
