"""The package as a whole: what an import costs, and which names it offers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import detkit

HEAVY = ("torch", "torchvision", "albumentations")


def _modules_after(code: str) -> set[str]:
    """Modules loaded in a fresh process once ``code`` has run."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import detkit",
        "from detkit import iou, giou, nms, batched_nms, soft_nms, weighted_boxes_fusion, kmeans_anchors",
        "from detkit import Detections, Target, Limits, Sample, DetkitError",
        "import detkit.metrics, detkit.io, detkit.data, detkit.heads, detkit.backbones, detkit.necks, detkit.engine",
        "import detkit.metrics.coco, detkit.metrics.voc, detkit.data.coco, detkit.data.voc, detkit.data.yolo",
        "import detkit.api, detkit.zoo, detkit.cli.app",
        "import numpy as np, detkit; b = np.zeros((2, 4)); detkit.iou(b, b); detkit.nms(b, b[:, 0], 0.5)",
    ],
)
def test_light_parts_import_nothing_heavy(code: str) -> None:
    assert not _modules_after(code).intersection(HEAVY)


def test_import_alone_loads_neither_numpy_nor_numba() -> None:
    assert not _modules_after("import detkit").intersection({"numpy", "numba", "cv2", *HEAVY})


@pytest.mark.parametrize("name", detkit.__all__)
def test_public_names_resolve(name: str) -> None:
    value = getattr(detkit, name)
    assert name.startswith("__") or value.__doc__, f"{name} has no docstring"


def test_no_public_name_is_a_modules_name() -> None:
    modules = {path.stem for path in Path(detkit.__file__).parent.iterdir()}
    assert not modules.intersection(detkit.__all__) - {"__init__"}


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nsm'"):
        detkit.nsm  # noqa: B018


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).resolve().parents[1]
    said = {
        "pyproject.toml": rf'^version = "{detkit.__version__}"$',
        "CITATION.cff": rf"^version: {detkit.__version__}$",
        "README.md": rf"^  version = {{{detkit.__version__}}},$",
        "CHANGELOG.md": rf"\A# Changelog\n\n.*\n\n## {detkit.__version__} ",
    }
    for name, pattern in said.items():
        assert re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE), name
