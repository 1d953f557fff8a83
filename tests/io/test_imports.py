"""Reading and writing need neither torch nor matplotlib's start-up time."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import numpy as np
from detkit.io import detections, download, draw, files, images, sources, video
from detkit.io.detections import writers
from detkit.structures import Detections
draw.draw_detections(np.zeros((50, 60, 3), np.uint8), Detections([[1, 20, 30, 40]], [0.5], [0], ("ä",)))
print([m for m in ("torch", "torchvision", "albumentations", "matplotlib", "numba") if m in sys.modules])
"""


def test_no_heavy_import() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
