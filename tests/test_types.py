"""What a user writes against detkit passes ``mypy --strict``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np

import detkit

detector = detkit.load("runs/aligned")
found = detector.predict(np.zeros((8, 8, 3), np.uint8))
good: detkit.Detections = found.filter(conf=0.5, classes="dog")
names: list[str] = good.names
kept = detkit.nms(np.zeros((1, 4)), np.zeros(1), 0.5)
ap: float = detkit.evaluate("found.json", "DATA").metrics["AP50"]
minutes: float = detkit.train("yolo", data="DATA", epochs=2, overrides={"train.lr": 1e-3}).minutes
print(names, kept.shape, ap, minutes, detkit.iou(np.zeros((1, 4)), np.zeros((2, 4))).shape)
"""


@pytest.mark.parametrize(("change", "fault"), [((), ""), (("names: list[str]", "names: int"), "Incompatible types")])
def test_a_users_script(change: tuple[str, str] | tuple[()], fault: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace(*change) if change else SCRIPT, encoding="utf-8")
    words = ["--strict", "--follow-imports=silent", "--cache-dir", str(Path(__file__).parents[1] / ".mypy_cache")]
    done = subprocess.run([sys.executable, "-m", "mypy", *words, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (not fault), done.stdout
    assert fault in done.stdout
