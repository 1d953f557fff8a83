"""What ``--json`` of every verb prints has the keys that docs/files.md names, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import detkit
from detkit.cli import main
from detkit.cli.examples import EXAMPLES
from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.toy import CLASSES, write_toy_data
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.io.images import write_image

SMALL = "model.size=64 train.batch=4 train.workers=0 train.epochs=1 train.device=cpu"
# Of every row in the page's table a command; words in capitals are of ``places``.
COMMANDS = {
    "detect --shards": "detect IMAGE -m RUN --device cpu --shards NEW",
    "track": "track FRAMES -m RUN --device cpu --count zone:0,0,60,60",
    "match verify": "match verify IMAGE IMAGE -m RUN --threshold 0",
    "match enrol": "match enrol GALLERY square IMAGE -m RUN",
    "match identify": "match identify GALLERY IMAGE -m RUN --threshold 0",
    "match search": "match search IMAGE FRAMES -m RUN",
    "serve": "serve -m RUN --device cpu --port 0",
    "quickstart": "quickstart IMAGE",
    "data check": "data check DATA",
    "data stats": "data stats DATA",
    "data show": "data show DATA -n 2",
    "data convert": "data convert DATA --to yolo --out NEW",
    "data split": "data split DATA --split train",
    "data crops": "data crops DATA --out NEW --min-size 1",
    "data strips": "data strips FRAMES --out NEW --step 1",
    "data anchors": "data anchors DATA -k 2",
    "label": "label FRAMES -m RUN --device cpu",
    "propose": "propose IMAGE --max 2",
    "propose --recall": "propose DATA --recall --method sliding-window --windows 32 --limit 2",
    "train": f"train toy --data DATA --out NEW {SMALL}",
    "train --dry-run": f"train toy --data DATA --dry-run {SMALL}",
    "pretrain": f"pretrain rotation --data FRAMES --out NEW {SMALL}",
    "adapt": "adapt RUN FRAMES --out new.safetensors",
    "config": "config toy",
    "models": "models",
    "evaluate": "evaluate --predictions FOUND DATA --split val",
    "evaluate --protocol mot": "evaluate --predictions TRACKS TRACKS --protocol mot",
    "evaluate --protocol knn": "evaluate RUN FOLDERS --protocol knn --device cpu",
    "compare": "compare RUN LAST --data DATA --split val --bootstrap 2 --timed 1 --device cpu",
    "inspect filters": "inspect filters RUN --out NEW",
    "inspect maps": "inspect maps RUN IMAGE --out NEW",
    "inspect patches": "inspect patches RUN DATA --split val --out NEW",
    "inspect cam": "inspect cam RUN IMAGE --out NEW",
    "inspect edges": "inspect edges --out NEW",
    "style": "style IMAGE IMAGE --weights none --size 32 --steps 2 --layers 1:0",
    "info": "info LAST",
    "info BACKBONE": "info lenet_textbook",
    "help": "help E020",
    "import": "import darknet CFG WEIGHTS",
    "export": "export RUN --out new.onnx",
    "compress": "compress REGIONS --ranks 16",
    "doctor": "doctor",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data, a run, and what else the commands name."""
    root = tmp_path_factory.mktemp("json")
    data = write_toy_data(root / "toy", train=4, val=4, size=64)
    detkit.train("toy", data=data, out=root / "run", overrides=SMALL.split(), on_event=lambda event: None)
    regions = {
        "size": 64,
        "backbone": {"name": "lenet_textbook", "taps": [1]},
        "proposals": {"name": "windows", "windows": [32], "aspects": [1.0]},
        "head": {"name": "roi", "layers": "mlp", "width": 64, "size": 3},
    }
    torch.manual_seed(0)
    checked = Config({}, check_model(regions, Place()), {}, TrainOptions(), EvaluateOptions())
    build_detector(checked, CLASSES).save(root / "regions.safetensors")
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        for name in ("frames", f"folders/train/{i % 2}", f"folders/test/{i % 2}"):
            (root / name).mkdir(parents=True, exist_ok=True)
            write_image(root / name / f"{i}.png", picture)
    found = [{"image_id": 1, "category_id": 1, "bbox": [20, 10, 20, 20], "score": 0.9}]
    (root / "found.json").write_text(json.dumps(found))
    (root / "tracks.txt").write_text("1,1,5,5,20,20,1,-1,-1,-1\n")
    names = {"DATA": data, "RUN": "run", "LAST": "run/last.safetensors", "IMAGE": "frames/0.png", "FRAMES": "frames"}
    names |= {"FOUND": "found.json", "TRACKS": "tracks.txt", "FOLDERS": "folders", "REGIONS": "regions.safetensors"}
    return {word: str(root / name) for word, name in names.items()}


def documented() -> dict[str, set[str]]:
    """Of each command in the page's table, the keys of its JSON."""
    page = (Path(__file__).parents[2] / "docs/files.md").read_text(encoding="utf-8").partition("## Results as JSON")[2]
    keys: dict[str, set[str]] = {}
    verbs: list[str] = []
    for names, words in re.findall(r"^\| ([^|]*) ?\| (`[^|]*) \|", page.partition("\n## ")[0], re.MULTILINE):
        verbs = re.findall(r"`([^`]+)`", names) or verbs
        for verb in verbs:
            keys.setdefault(verb, set()).update(re.findall(r"`([^`]+)`", words))
    return keys


def test_the_json_of_every_verb_is_documented() -> None:
    assert COMMANDS.keys() == documented().keys()
    told = {verb.split()[0] if verb.startswith("import ") else verb for verb in EXAMPLES}
    assert not told - documented().keys() - {"detect"}  # which prints a line an image


@pytest.mark.parametrize("row", COMMANDS)
def test_keys_of_json_are_documented(
    row: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if row == "export":
        pytest.importorskip("onnxscript")
    if row == "detect --shards":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    if row == "match identify":
        assert main(["match", "enrol", "gallery", "square", places["IMAGE"], "-m", places["RUN"]]) == 0
        capsys.readouterr()

    def imported(*_: object) -> Detector:
        return detkit.load(places["RUN"], device="cpu")  # type: ignore[return-value]

    def served(*_: object, on_start: Callable[[], None], **__: object) -> None:
        on_start()

    monkeypatch.setattr("detkit.importers.darknet.import_darknet", imported)
    monkeypatch.setattr("detkit.serving.serve", served)
    words = [places.get(word, word.lower() if word.isupper() else word) for word in COMMANDS[row].split()]
    assert main([*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == documented()[row]
