"""Chunks on threads, the number of threads, and kernels where nothing can be cached."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest
import torch

from detkit.ops import compiled


@pytest.mark.parametrize(("count", "threads"), [(10, 1), (10, 3), (3, 3), (2, 5), (0, 2)])
def test_chunks_cover_the_range_once(count: int, threads: int) -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def work(start: int, stop: int) -> None:
        with lock:
            seen.extend(range(start, stop))

    compiled.run_chunks(work, count, threads)
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("failing", [0, 5])
def test_an_error_in_any_chunk_reaches_the_caller(failing: int) -> None:
    def work(start: int, stop: int) -> None:
        if start <= failing < stop:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        compiled.run_chunks(work, 10, 2)


def test_thread_count_is_torchs_once_torch_is_loaded() -> None:
    assert compiled.thread_count() == torch.get_num_threads()


def test_thread_count_without_torch_follows_the_environment() -> None:
    code = "from detkit.ops.compiled import thread_count; print(thread_count())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "1"


def test_a_kernel_compiles_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def without_cache(*functions: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*functions, **options)

    monkeypatch.setattr(numba, "njit", without_cache)

    def double(x: int) -> int:
        return 2 * x

    assert compiled.kernel(double)(21) == 42


def test_cached_code_loads_without_what_compiling_needs(tmp_path: Path) -> None:
    """And what is not cached compiles afterwards all the same: here the kernel for a float."""
    text = "from detkit.ops.compiled import kernel\n\n@kernel\ndef twice(x):\n    return 2 * x\n"
    (tmp_path / "doubling.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(Path(compiled.__file__).resolve().parents[2])}

    def run(*values: str) -> list[str]:
        calls = ", ".join(f"doubling.twice({value}), 'numba.np.linalg' in sys.modules" for value in values)
        command = [sys.executable, "-c", f"import sys, doubling; print({calls})"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert run("2") == ["4", "True"]
    assert run("2", "1.5") == ["4", "False", "3.0", "True"]
