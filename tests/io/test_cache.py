"""The cache: hits, other parameters, damage, staleness, a place that cannot be written."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from detkit.io.cache import Cache, cache_folder, cache_size, clear_cache, image_hash

KEY = image_hash(np.zeros((2, 3, 3), np.uint8))
OTHER = image_hash(np.ones((2, 3, 3), np.uint8))
ARRAY = np.arange(12, dtype=np.int32).reshape(3, 4)


def refuse() -> np.ndarray:
    raise AssertionError("computed again")


def quiet(cache: Cache, compute=refuse) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cache.get(KEY, compute)


def test_computed_once_and_returned_as_it_was(tmp_path: Path) -> None:
    cache = Cache("boxes", {"plan": "fast"}, folder=tmp_path)
    assert quiet(cache, lambda: ARRAY) is ARRAY
    kept = quiet(Cache("boxes", {"plan": "fast"}, folder=tmp_path))
    assert kept.dtype == ARRAY.dtype
    assert np.array_equal(kept, ARRAY)
    assert kept.flags.writeable


def test_other_parameters_and_images_are_other_entries(tmp_path: Path) -> None:
    one, two = (Cache("boxes", {"plan": plan}, folder=tmp_path) for plan in ("fast", "quality"))
    quiet(one, lambda: ARRAY)
    assert len(quiet(two, lambda: ARRAY[:1])) == 1
    assert image_hash(np.zeros((3, 2, 3), np.uint8)) != KEY
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_an_empty_array(tmp_path: Path) -> None:
    cache = Cache("boxes", {}, folder=tmp_path)
    quiet(cache, lambda: ARRAY[:0])
    assert quiet(cache).shape == (0, 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-3],
        lambda data: data[:20],
        lambda data: b"junk" + data,
        lambda data: data[:-8] + bytes(8),
        lambda data: data.replace(b"(3, 4)", b"(3, 5)"),
        lambda data: data.replace(b"descr", b"decsr"),
        lambda data: data.replace(b"{'", b"{{", 1),
    ],
)
def test_damage_is_mended_and_said(tmp_path: Path, damage) -> None:
    quiet(Cache("boxes", {}, folder=tmp_path), lambda: ARRAY)
    cache = Cache("boxes", {}, folder=tmp_path)
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=f"{path.name}: the cached entry is damaged; it is computed again"):
        assert np.array_equal(cache.get(KEY, lambda: ARRAY + 1), ARRAY + 1)
    assert np.array_equal(quiet(cache), ARRAY + 1)


def test_without_a_place_to_write_it_only_computes(tmp_path: Path) -> None:
    (tmp_path / "boxes").write_text("a file where the folder should be")
    cache = Cache("boxes", {}, folder=tmp_path)
    with pytest.warns(RuntimeWarning, match="nothing is cached"):
        assert cache.get(KEY, lambda: ARRAY) is ARRAY


def test_each_networks_entries_are_its_own(tmp_path: Path) -> None:
    cache, other = (Cache("features", {"network": name}, folder=tmp_path) for name in "ab")
    array = np.random.default_rng(0).random((5, 7, 3)).astype(np.float16)
    assert np.array_equal(quiet(cache, lambda: array), array)
    kept = quiet(Cache("features", {"network": "a"}, folder=tmp_path))
    assert kept.dtype == np.float16
    assert np.array_equal(kept, array)
    assert other.find(KEY) is None
    assert cache.put("0" * 40, array[:0])
    assert cache.find("0" * 40).shape == (0, 7, 3)
    quiet(other, lambda: array)
    cache.clear()
    assert cache.find(KEY) is None
    assert np.array_equal(quiet(other), array)


def test_size_and_clearing_leave_other_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_size() == (0, 0)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    cache = Cache("boxes", {})
    quiet(cache, lambda: ARRAY)
    assert cache_size() == (1, cache.path(KEY).stat().st_size)
    copied, exported = tmp_path / "parquet" / "ab" / "train.tar", tmp_path / "exported" / "ab-0.2.0.onnx"
    for file in (copied, exported):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"12345")
    assert cache_size() == (3, cache.path(KEY).stat().st_size + 10)
    assert clear_cache() == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETKIT_CACHE", raising=False)
    assert cache_folder().name == "detkit"
