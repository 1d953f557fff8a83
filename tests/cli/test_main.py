"""The command line as a whole: help, versions, exit codes, and mistakes told in a person's words."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import typer
from PIL import Image
from torch import nn

from detkit import registry
from detkit.cli import Terminated, about, common, main
from detkit.cli.app import VERBS as VERBS_BY_USE, app_of, name_of
from detkit.registry import UntrustedPart

VERBS = (
    "detect",
    "track",
    "train",
    "evaluate",
    "compare",
    "compress",
    "propose",
    "config",
    "models",
    "info",
    "doctor",
    "quickstart",
)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"detkit {verb}" in text
    assert len(text.splitlines()) >= 6


MAY_LOAD_A_MODEL = ("inspect filters", "inspect maps", "inspect patches", "inspect cam", *VERBS)


@pytest.mark.parametrize("verb", [verb for verb in MAY_LOAD_A_MODEL if verb not in ("models", "doctor")])
def test_every_verb_that_may_load_a_model_takes_plugins(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    assert "--plugin MODULE" in capsys.readouterr().out


def test_no_verb_has_two_options_of_one_name() -> None:
    group = typer.main.get_command(app_of())
    for verb, command in group.commands.items():
        for name, one in getattr(command, "commands", {verb: command}).items():
            words = [word for parameter in one.params for word in parameter.opts]
            assert len(words) == len(set(words)), (verb, name, words)


def test_every_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in (*VERBS, "data"))


def _verbs() -> Iterator[tuple[str, Any]]:
    for name, command in typer.main.get_command(app_of()).commands.items():
        below = getattr(command, "commands", None)
        yield from ((f"{name} {verb}", one) for verb, one in below.items()) if below else [(name, command)]


def test_help_is_grouped_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^([A-Z]\w+):$", text, re.MULTILINE)[1:] == [*VERBS_BY_USE]
    assert {*map(name_of, chain(*VERBS_BY_USE.values()))} == {*typer.main.get_command(app_of()).commands}


@pytest.mark.parametrize(("verb", "command"), _verbs())
def test_help_ends_with_two_examples_that_are_understood(
    verb: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.partition("Examples:\n")[2].splitlines()
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        assert words[: 1 + len(verb.split())] == ["detkit", *verb.split()]
        command.make_context(verb, words[1 + len(verb.split()) :])


@pytest.mark.parametrize(("typed", "offered"), [("detkit serv", "serve"), ("detkit serve --re", "--report")])
def test_the_shell_completes(
    typed: str, offered: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_DETKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    with pytest.raises(SystemExit, match="0"):  # typer's own end
        main([])
    assert offered in capsys.readouterr().out.split()


def test_doctor_says_what_is_missing_for_which_verb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = {
        extra: tuple(re.split(r"[<>=\[]", name)[0] for name in names)
        for extra, names in project["optional-dependencies"].items()
        if extra not in ("dev", "docs", "all")  # no verb needs these
    }
    assert {extra: names for extra, (names, _) in about.EXTRAS.items()} == packages
    monkeypatch.setattr(about, "EXTRAS", {"serve": (("numpy", "no-such"), "detkit serve"), "x": (("numpy",), "all")})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        'detkit serve: needs no-such: pip install "detkit[serve]"',
        "all: ready",
    ]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "detkit 0.2.0\n"


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["detct"], "detct"),
        (["detect"], "SOURCE"),
        (["detect", "nothing_here.jpg"], "nothing_here.jpg"),
        (["detect", "x.jpg", "--cofn", "0.5"], "--cofn"),
        (["detect", ".", "--out", "here.txt"], "format"),
        (["detect", ".", "--out", "here.csv", "--format", "xml"], "no writer 'xml'"),
        (["detect", ".", "--format", "csv"], "--out"),
        (["train"], "nothing to train on"),
        (["train", "a.yaml", "b.yaml"], "b.yaml"),
        (["train", "yolo_vok"], "yolo_voc"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "yolo", "--resume", "nowhere"], "--resume"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "yolo", "train.epoch=3"], "epochs"),
        (["config", "yolo_vok"], "yolo_voc"),
        (["config", "yolo", "train.epochs"], "train.epochs"),
        (["info", "nowhere.safetensors"], "nowhere.safetensors"),
        (["evaluate"], "DATA"),
        (["detect", ".", "--plugin", "nope"], "there is no module nope"),
        (["detect", ".", "--plugin", "mine.head:Name"], "write mine.head"),
    ],
)
def test_mistakes_get_code_2_and_say_where(
    words: list[str], needle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = _said(capsys)
    assert needle in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 8


def test_torch_that_is_missing_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    monkeypatch.setattr("detkit.cli.app.app_of", Mock(side_effect=missing))
    assert main(["detect", "photo.jpg"]) == 2
    assert "torch is not installed [E007]\n  pip install torch torchvision, or name an .onnx file" in _said(capsys)


def test_a_bug_is_called_a_bug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.cli.app.app_of", Mock(side_effect=ZeroDivisionError("division by zero")))
    assert main(["models"]) == 1
    assert "a bug in detkit: ZeroDivisionError" in _said(capsys)
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "models"])


@pytest.mark.parametrize("folder", ["mine", "site-packages"])
def test_an_error_in_a_part_from_outside_is_not_called_a_bug_in_detkit(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.setattr(registry, "_outside", set())
    monkeypatch.delitem(sys.modules, "broken_format", raising=False)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "broken_format.py").write_text(
        "from detkit.interfaces import DatasetFormat\n"
        "class Broken(DatasetFormat):\n"
        "    looked_for = 'anything'\n"
        "    def recognises(self, path): return True\n"
        "    def read(self, path, split, images):\n"
        "        return {}['hexagon']\n",
        encoding="utf-8",
    )
    assert main(["data", "check", ".", "--format", "broken_format:Broken"]) == 2
    assert _said(capsys).splitlines() == [
        f"detkit: error in {folder}/broken_format.py, line 6, in read: KeyError: 'hexagon' [E043]",
        "  return {}['hexagon']",
        "  mend that part (--debug shows all)",
    ]


@pytest.mark.parametrize(
    ("error", "code", "needle"),
    [
        (MemoryError(), 4, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 4, "train.batch"),
        (OSError(28, "No space left on device", "x.bin"), 4, "x.bin"),
        (PermissionError(13, "Permission denied", "x.bin"), 2, "Permission denied"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_failures_of_the_machine(
    error: BaseException, code: int, needle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("detkit.cli.app.app_of", broken)
    assert main(["models"]) == code
    assert needle in _said(capsys)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 5), nn.MaxPool2d(3)])
def test_images_smaller_than_a_kernel_are_the_users(
    layer: nn.Module, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*_: object, **__: object) -> None:
        layer(torch.zeros(1, 1, 2, 2))

    monkeypatch.setattr("detkit.cli.app.app_of", small)
    assert main(["models"]) == 2
    assert "too small" in _said(capsys)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_stop_inside_a_verb_is_said(
    stop: type[BaseException], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr("detkit.cli.common.emit", stopped)
    assert main(["models", "--json"]) == code
    assert "stopped" in _said(capsys)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from detkit.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "torchvision", "albumentations", "numpy", "numba", "cv2", "matplotlib", "rich"}


def test_python_m_and_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "detkit", "models"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_is_143() -> None:
    code = (
        "import time, sys, detkit.cli as c\n"
        "import detkit.cli.app as a\n"
        "def slow(*_, **__):\n    print('ready', flush=True)\n    time.sleep(3600)\n"
        "a.app_of = slow\nsys.exit(c.main(['models']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 143
    process.stdout.close()


def test_doctor_looks_at_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(about, "_exported", lambda make: asked.append(make) or "no")  # an export takes long
    assert main(["doctor", "--warm", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"].startswith("cpu")
    assert "compiled and cached" in facts["kernels"]
    assert asked == [True]
    assert "not installed" not in facts["torch"]


def test_doctor_needs_no_torch() -> None:
    code = """
import importlib.metadata, sys
sys.modules["torch"] = None
from detkit.cli import about, main
version = importlib.metadata.version
def installed(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (facts["torch"], facts["devices"]) == ("not installed", "cpu")


def test_progress_of_a_long_task_is_a_few_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    for total in (39, 75, 1000):
        for done in range(total + 1):
            common.progress(done, total, "images")
    said = _said(capsys).splitlines()
    assert said[:9] == [f"{done} of 75 images" for done in range(8, 75, 8)]  # of 39 steps nothing is said
    assert said[9:] == [f"{done} of 1000 images" for done in range(100, 1001, 100)]


def test_config_prints_every_value_or_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "yolo_textbook"]) == 0
    assert capsys.readouterr().out.startswith("# ")
    assert main(["config", "yolo", "train.epochs=7", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["train"]["epochs"] == 7
    assert values["model"]["head"]["ratio"] == 3.5


def test_warnings_are_told_as_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    image, box = {"id": 1, "file_name": "a.png", "width": 40, "height": 30}, {"id": 1, "image_id": 1, "category_id": 1}
    kinds = [{"id": 1, "name": "cat"}]
    boxes = [{**box, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}]
    data = tmp_path / "annotations" / "all.json"
    data.write_text(json.dumps({"images": [image], "annotations": boxes, "categories": kinds}))
    (tmp_path / "file").write_bytes(b"")
    words = ["propose", str(data), "--images", str(tmp_path), "--recall", "--cache", str(tmp_path / "file")]
    assert main(words) == 0
    told = [line for line in _said(capsys).splitlines() if "nothing is cached" in line]
    assert len(told) == 1
    assert told[0].startswith("detkit: ")
    assert "Warning" not in told[0]


def test_python_m_imports_nothing_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "shlex.py").write_text("raise SystemExit('imported from the working directory')")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "detkit", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "detkit 0.2.0\n", done.stderr


def test_a_part_that_a_file_names_is_allowed_by_the_command_that_the_error_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrusted(*_: object, **__: object) -> None:
        raise UntrustedPart("this file asks for head a b:C", "x.safetensors", module="a b")

    monkeypatch.setattr("detkit.cli.app.app_of", untrusted)
    assert main(["detect", "-m", "x", "--", "my photo.jpg"]) == 2
    assert "detkit detect -m x --plugin 'a b' -- 'my photo.jpg'" in _said(capsys).splitlines()[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "pets"], "if it is data: detkit train --data pets"),
        (["train", "--data", "pets", "--epochs", "5"], "train.epochs=20, say"),
        (["train", "--data", "pets", "epochs=5"], "did you mean train.epochs=5?"),
        (["evaluate", "run"], "no data was named: this is a model"),
        (["evaluate", "best.safetensors"], "detkit evaluate best.safetensors DATA, say"),
        (["evaluate", "default"], "no data was named: this is a model"),
        (["detect", "empty"], "no image lies in this folder [E004]"),
        (["data", "check", "pets/images"], "their labels beside this folder: give pets"),
        (["detect", "*.JPG"], "did you mean '*.jpg'?"),
        (["detect", "photo.jpeg"], "did you mean photo.jpg?"),
        (["detect", "photo.jpg", "--model", "best.safetensor"], "did you mean best.safetensors?"),
        (["detect", "pets"], "its sub-folders hold 1 image: give 'pets/**/*.JPG'"),
    ],
)
def test_what_was_meant_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("pets/images/a.JPG", "pets/labels/a.txt", "run/best.safetensors", "best.safetensors", "photo.jpg"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    Path("empty").mkdir()
    Image.new("RGB", (9, 9)).save("photo.jpg")
    assert main(words) == 2
    assert said in capsys.readouterr().err
