"""From data to boxes: one small training run, and everything that is done with what it leaves."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detkit
from detkit import api
from detkit.cli import main
from detkit.config.experiment import shipped_configs
from detkit.data.toy import CLASSES, toy_sample, write_toy_data
from detkit.engine.events import EpochDone
from detkit.errors import DetkitError

SMALL = ("model.size=64", "train.batch=4", "train.workers=0", "train.epochs=2", "train.device=cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy"), train=8, val=4, size=64)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "toy", "--data", str(data), "-o", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), toy_sample(50 + i, 96).image[..., ::-1])
    return folder


def test_run_folder_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "log.txt",
        "first_batch.jpg",
        "best.safetensors",
        "last.safetensors",
        "state.pt",
        "run.json",
    } <= names
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    assert {"AP", "AP50", "val_loss", "loss"} <= set(rows[0].split(","))
    read = json.loads((run / "run.json").read_text())["data"]
    assert [(name, part["images"]) for name, part in read["parts"].items()] == [("train", 8), ("val", 4)]
    assert set(read["parts"]["val"]["classes"]) == set(CLASSES)
    assert read["findings"] == []


def test_the_config_of_a_run_repeats_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seed and config decide: the same run again ends with the same weights."""
    again = tmp_path / "again"
    assert main(["train", str(run / "config.yaml"), "-o", str(again)]) == 0
    assert (again / "metrics.csv").read_text().split(",")[-1] == (run / "metrics.csv").read_text().split(",")[-1]
    a, b = (detkit.load(folder / "last.safetensors", device="cpu").state_dict() for folder in (run, again))
    assert all((a[name] == b[name]).all() for name in a)


def test_resume_is_bit_equal(run: Path, data: Path, tmp_path: Path) -> None:
    """One epoch, a stop, then the rest, equals both at a stretch: real detector, augmentation and mosaic."""

    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 0:
            raise KeyboardInterrupt

    halves = tmp_path / "halves"
    with pytest.raises(KeyboardInterrupt):
        detkit.train("toy", data=data, out=halves, overrides=SMALL, on_event=stop)
    assert len((halves / "metrics.csv").read_text().splitlines()) == 2
    detkit.train(resume=halves)
    a, b = (detkit.load(folder / "last.safetensors", device="cpu").state_dict() for folder in (run, halves))
    assert all((a[name] == b[name]).all() for name in a)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(detkit.DetkitError, match="no run to go on with"):
        detkit.train(resume=tmp_path)


def test_dry_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "toy", "--data", str(data), "-o", str(tmp_path / "r"), "--dry-run", "--json", *SMALL]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["epochs"] == 2
    assert estimate["memory"] > 0
    assert (tmp_path / "r" / "first_batch.jpg").is_file()
    assert not (tmp_path / "r" / "state.pt").exists()


def test_a_dry_run_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    estimate = detkit.train("toy", data=data, overrides=SMALL, dry_run=True)
    assert estimate.run is None
    assert "first batch" not in estimate.lines()[-1]
    with pytest.raises(DetkitError, match="best_by"):
        detkit.train("toy", data=data, overrides=[*SMALL, "train.best_by=AR7"])
    assert not list(tmp_path.iterdir())


def test_what_python_users_write(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress unless told otherwise, epochs, a mapping of overrides, a name; and all of it from another folder."""
    monkeypatch.chdir(data.parent)
    values = dict(word.split("=") for word in SMALL)
    changes = {name: value if name == "train.device" else int(value) for name, value in values.items()}
    done = detkit.train("toy", data=data.name, epochs=1, overrides={**changes, "train.lr": 1e-3}, name="mine")
    run = (data.parent / done.run).resolve()
    assert run == data.parent / "runs" / "mine"
    said = capsys.readouterr().err
    assert "epoch 1/1" in said
    assert "done in" not in said
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", str(run), "train.epochs=2"]) == 0
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    for wrong in ({"name": "a/b"}, {"name": "a", "out": "b"}):
        with pytest.raises(DetkitError, match="is no name"):
            detkit.train("toy", data=data, **wrong)
    moved = data.rename(data.with_name("moved"))
    try:
        with pytest.raises(DetkitError) as caught:
            detkit.train(resume=run)
    finally:
        moved.rename(data)
    assert caught.value.what.endswith(f"is not here: {data}")
    assert caught.value.do.endswith(f"detkit train --resume {run} data.train=DATA")
    quiet = detkit.train(resume=run, on_event=lambda event: None)
    assert quiet.to_dict()["best_epoch"] in (1, 2)


def test_info_reads_the_header_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["classes"] == list(CLASSES)
    assert facts["parameters"] > 1e5


def test_python_and_command_line_agree(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "detect",
        str(photos),
        "-m",
        str(run),
        "--conf",
        "0.01",
        "--max-detections",
        "5",
        "--json",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    detector = detkit.load(run, device="cpu")
    assert [line["source"] for line in lines] == [str(photos / f"{i}.png") for i in range(3)]
    for line in lines:
        found = detector.predict(line["source"], conf=0.01, max_detections=5)
        assert line["detections"] == found.to_records()
        assert (line["width"], line["height"]) == (96, 96)
        array = cv2.imread(line["source"])
        assert detector.predict(array, bgr=True, conf=0.01, max_detections=5).to_records() == line["detections"]
    streamed = list(detector.stream(photos, conf=0.01, max_detections=5, batch=2))
    assert [len(found) for found in streamed] == [len(line["detections"]) for line in lines]


def test_stdin_and_filters(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO((photos / "0.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    words = ["detect", "-", "-m", str(run), "--conf", "0.001", "--classes", "square", "--json", "--device", "cpu"]
    assert main(words) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["source"] == "-"
    assert {d["label"] for d in line["detections"]} <= {"square"}


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", None), ("a.json", None), ("a.csv", None), ("a", "yolo"), ("b", "voc")]
)
def test_outputs_are_never_overwritten(run: Path, photos: Path, tmp_path: Path, name: str, form: str | None) -> None:
    out = tmp_path / name
    words = ["detect", str(photos), "-m", str(run), "--conf", "0.01", "-o", str(out), "--device", "cpu"]
    words += ["--format", form] if form else []
    assert main(words) == 0
    before = sorted((p.name, p.read_bytes()) for p in (out.iterdir() if out.is_dir() else [out]))
    assert main(words) == 2
    assert main([*words, "--overwrite"]) == 0
    assert before == sorted((p.name, p.read_bytes()) for p in (out.iterdir() if out.is_dir() else [out]))


def test_one_bad_image_costs_that_image(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "1.png").write_bytes(b"this is text")
    assert main(["detect", str(photos), "-m", str(run), "--json", "--device", "cpu"]) == 3
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "1.png" in captured.err
    assert "2 done, 1 failed" in captured.err


def test_annotated_copies(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("detect", "detect2"):
        assert main(["detect", str(photos), "-m", str(run), "--conf", "0.01", "--save", "--device", "cpu"]) == 0
        drawn = sorted((tmp_path / "runs" / number).iterdir())
        assert [path.name for path in drawn] == ["0.jpg", "1.jpg", "2.jpg"]
        assert cv2.imread(str(drawn[0])).shape == (96, 96, 3)


def test_evaluate_is_the_same_by_every_way(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model itself, the file that detect wrote, and Python give one AP, the one stored in training."""
    assert main(["evaluate", str(run), str(data), "--split", "val", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["per_class"]) == set(CLASSES)
    out = tmp_path / "found.jsonl"
    words = ["detect", str(data / "val"), "-m", str(run), "--conf", "0.001", "-o", str(out), "--device", "cpu"]
    assert main(words) == 0
    from_file = detkit.evaluate(out, data, split="val")
    texts = tmp_path / "found"
    assert main([*words[:-4], "--format", "yolo", "-o", str(texts), "--device", "cpu"]) == 0
    from_texts = detkit.evaluate(texts, data, split="val")
    from_model = detkit.evaluate(run, data, split="val")
    for name, value in report["metrics"].items():
        assert from_model.metrics[name] == pytest.approx(value, abs=1e-9), name
        # The file rounds boxes to a hundredth of a pixel.
        assert from_file.metrics[name] == pytest.approx(value, abs=2e-2), name
        assert from_texts.metrics[name] == pytest.approx(value, abs=2e-2), name


def test_report_of_a_model_has_its_times_and_size(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ["evaluate", str(run), str(data), "--split", "val", "--batch", "2", "--device", "cpu"]
    assert main([*words, "--json", "--report", str(page)]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["timings"]["split"]
    assert all(0 < part["median"] <= part["p95"] for part in got["timings"]["ms"].values())
    assert got["model"]["parameters"] == sum(p.numel() for p in detkit.load(run).parameters())
    assert got["model"]["multiply_adds"] > 1e6
    assert list(got["intervals"]) == ["AP", "AP50"]
    assert "post-processing" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--classes", "sqare"], "did you mean square"),
        (["--classes", ","], "no class ','"),
        (["--conf", "7"], "conf"),
        (["--iou", "-1"], "iou"),
        (["--max-detections", "0"], "max_detections"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--threads", "0"], "threads"),
        (["--precision", "fp8"], "fp8"),
        (["--size", "5"], "5 pixels"),
        (["--batch", "0"], "batch"),
        (["--out", "x.gif"], "x.gif"),
    ],
)
def test_wrong_options(
    run: Path, photos: Path, words: list[str], needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in words else ["-m", str(run)]
    assert main(["detect", str(photos), *model, *words]) == 2
    said = capsys.readouterr().err
    assert needle in said
    assert "Traceback" not in said


def test_precision(run: Path, photos: Path, data: Path) -> None:
    plain, halved = (detkit.load(run, device="cpu", precision=name) for name in ("fp32", "bf16"))
    assert detkit.load(run, device="cpu").precision == plain.precision == "fp32"
    assert detkit.load(run, device="cpu", precision="auto").precision in ("fp32", "bf16")
    best = [model.predict(photos / "0.png", conf=0.001).scores[0] for model in (plain, halved)]
    assert best[0] == pytest.approx(best[1], abs=0.05)
    assert best[0] != best[1]
    tables = [api.evaluate_model(model, data, split="val")[1] for model in (plain, halved)]
    assert not np.array_equal(*(table.score[:20] for table in tables))
    with pytest.raises(DetkitError, match="fp32"):
        detkit.load("torchvision/ssdlite320_mobilenet_v3_large", precision="bf16")


def test_streams_divide_the_threads_that_were_there_first(run: Path) -> None:
    before = torch.get_num_threads()
    try:
        api.set_threads(6)
        for streams, each in ((2, 3), (2, 3), (3, 2), (8, 1), (2, 3)):
            assert detkit.load(run, device="cpu", streams=streams).streams == streams
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (each, each)
        detkit.load([run, run], device="cpu", streams=2)
        assert torch.get_num_threads() == 3
        for threads in (4, None):
            detkit.load(run, device="cpu", threads=threads, streams=2)
            assert torch.get_num_threads() == 2
        api.set_threads(2)
        detkit.load(run, device="cpu", streams=2)
        assert torch.get_num_threads() == 1, "of those that were set since"
    finally:
        api.set_threads(before)


def test_another_input_size(run: Path, photos: Path) -> None:
    detector = detkit.load(run, device="cpu", size=96)
    assert detector.resize.to_dict()["size"] == [96, 96]
    assert isinstance(detector.predict(photos / "0.png"), detkit.Detections)
    assert np.all(detector.predict(photos / "0.png", conf=0).boxes <= 96)


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_config_runs_or_says_which_data_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    if name == "toy":
        assert detkit.train(name, overrides=SMALL, dry_run=True).lines()
        return
    with pytest.raises(DetkitError, match="the data that this config names is not here") as caught:
        detkit.train(name)
    assert caught.value.do.endswith(f"detkit train {name} --data DATA")
    assert "data.train" in caught.value.where


OWN_FORMAT = """
from detkit.data.dataset import read, splits
from detkit.interfaces import DatasetFormat


class Pointer(DatasetFormat):
    looked_for = "a file that says where the data lies"

    def recognises(self, path):
        return False

    def splits(self, path):
        return splits(path.read_text())

    def read(self, path, split, images):
        return read(path.read_text(), split=split, images=images)
"""


@pytest.fixture
def pointer(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Data that only ``pointer_format:Pointer`` reads."""
    (tmp_path / "pointer_format.py").write_text(OWN_FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pointer_format", raising=False)
    (tmp_path / "data.txt").write_text(str(data))
    return str(tmp_path / "data.txt")


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN", "DATA", "--split", "val"],
        [
            "compare",
            "RUN",
            "RUN/last.safetensors",
            "--data",
            "DATA",
            "--split",
            "val",
            "--timed",
            "1",
            "--bootstrap",
            "2",
        ],
        ["propose", "DATA", "--recall", "--method", "sliding-window", "--split", "val"],
        ["train", "toy", "--data", "DATA", "--dry-run", *SMALL],
        ["inspect", "patches", "RUN", "DATA", "--stage", "0", "--channels", "0", "-n", "2", "-o", "OUT"],
        ["data", "check", "DATA"],
    ],
)
def test_a_format_is_named_wherever_data_is_read(
    run: Path, pointer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    names = {"DATA": pointer, "RUN": str(run), "RUN/last.safetensors": f"{run}/last.safetensors", "OUT": str(tmp_path)}
    typed = [names.get(word, word) for word in words]
    assert main(typed) == 2
    assert "name the format: --format NAME" in capsys.readouterr().err
    assert main([*typed, "--format", "pointer_format:Pointer"]) == 0


def test_a_format_in_python(run: Path, pointer: str) -> None:
    named = {"format": "pointer_format:Pointer"}
    assert detkit.evaluate(run, pointer, split="val", **named).metrics["AP"] >= 0
    assert detkit.proposal_recall(pointer, "sliding-window", split="val", **named).images == 4
    assert detkit.train("toy", data=pointer, overrides=SMALL, dry_run=True, **named).lines()
    with pytest.raises(DetkitError, match="no data is given"):
        detkit.train("toy", **named)
