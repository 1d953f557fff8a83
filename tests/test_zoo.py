"""The table of model files and what a path or name means."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import fields

import pytest

from detkit import zoo
from detkit.errors import DetkitError


def entry(**changes) -> zoo.Weights:
    values = {"name": "toy", "sha256": "", "bytes": 5, "licence": "MIT", "classes": ("a",), "score": "AP50 1"}
    values["file"] = "toy.safetensors"
    return zoo.Weights(**{**values, **changes})


def test_every_entry_is_complete():
    for name, weights in zoo.WEIGHTS.items():
        assert weights.name == name
        assert len(weights.sha256) == 64
        assert all(getattr(weights, f.name) for f in fields(weights))
    assert zoo.DEFAULT in zoo.WEIGHTS


def test_an_unknown_name_shows_the_nearest(monkeypatch):
    monkeypatch.setitem(zoo.WEIGHTS, "toy", entry())
    with pytest.raises(DetkitError, match="did you mean toy"):
        zoo.weights_named("toi")
    with pytest.raises(DetkitError, match="a model file or one of"):
        zoo.weights_named("zzzzz")


def test_the_default_is_shipped():
    assert zoo.model_file("default") == zoo.weights_file(zoo.DEFAULT)
    assert zoo.weights_named("default").file


def test_paths_folders_and_names(tmp_path, monkeypatch):
    best = tmp_path / "best.safetensors"
    with pytest.raises(DetkitError, match="holds no best"):
        zoo.model_file(tmp_path)
    best.write_bytes(b"12345")
    assert zoo.model_file(tmp_path) == zoo.model_file(best) == best
    with pytest.raises(DetkitError, match="no such model file"):
        zoo.model_file(tmp_path / "other.safetensors")
    monkeypatch.setitem(zoo.WEIGHTS, "toy", entry())
    with pytest.raises(DetkitError, match="not installed"):
        zoo.model_file("toy")


def test_shipped_files_are_the_ones_in_the_table():
    for name, weights in zoo.WEIGHTS.items():
        path = zoo.weights_file(name)
        assert path.stat().st_size == weights.bytes
        assert path.stat().st_size <= 12_000_000
        assert tuple(zoo.read_model_header(path)["classes"]) == weights.classes


def test_a_shipped_file_that_changed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "toy.safetensors").write_bytes(b"12345")
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "detkit" / "zoo.py"))
    digest = hashlib.sha256(b"12345").hexdigest()
    monkeypatch.setitem(zoo.WEIGHTS, "toy", entry(sha256=digest))
    assert zoo.weights_file("toy").read_bytes() == b"12345"
    monkeypatch.setitem(zoo.WEIGHTS, "toy", entry(sha256=digest[::-1]))
    with pytest.raises(DetkitError, match="has changed"):
        zoo.weights_file("toy")


def test_a_header_is_read_without_torch(tmp_path):
    from safetensors.numpy import save_file

    header = {key: {} for key in ("config", "resize", "scores", "record")}
    header |= {"classes": ["a"], "class_ids": [1], "threshold": 0.5}
    import numpy as np

    path = tmp_path / "m.safetensors"
    save_file({"w": np.zeros((2, 3), np.float16)}, path, zoo.header_metadata(header))
    read = zoo.read_model_header(path)
    assert read["tensors"] == {"w": {"dtype": "F16", "shape": [2, 3], "count": 6}}
    assert read["format"] == zoo.FORMAT_VERSION
    code = (
        f"import sys; from detkit import zoo; zoo.read_model_header({str(path)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
