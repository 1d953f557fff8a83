"""--devices: processes are started, and what one of them says or dies of is told once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkit.engine.errors import explained
from detkit.engine.launch import launch_processes
from detkit.errors import DetkitError


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A script in place of Python, which knows its number as under torchrun."""
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def test_every_process_has_the_words_and_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stand_in(tmp_path, monkeypatch, f'echo "$@" $WORLD_SIZE $OMP_NUM_THREADS >"{tmp_path}/$RANK"; echo $RANK')
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert launch_processes(["train", "a b.yaml"], 2) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["-m detkit train a b.yaml 2 1\n"] * 2
    assert capfd.readouterr().out == "0\n", "one speaks"


def test_an_error_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch, "echo wrong >&2; exit 2")
    with monkeypatch.context() as patch:  # neither is stopped between its word and its end
        patch.setattr("subprocess.Popen.poll", subprocess.Popen.wait)
        assert launch_processes([], 2) == 2
    assert capfd.readouterr().err == "wrong\n"
    stand_in(tmp_path, monkeypatch, "[ $RANK = 0 ] && exec sleep 3600; echo no such GPU >&2; exit 2")
    assert launch_processes([], 2) == 2
    assert capfd.readouterr().err == "no such GPU\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:51600: Connection reset"
        ),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp: remote process exited"),
    ],
)
def test_a_process_that_outlives_another_says_so(tmp_path: Path, error: RuntimeError) -> None:
    with pytest.raises(DetkitError, match="another process of this run has ended") as said, explained(tmp_path):
        raise error
    assert said.value.code == 4


def test_a_process_that_is_killed_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "[ $RANK = 0 ] && exec sleep 3600; kill -9 $$")
    with pytest.raises(DetkitError, match=r"process 1 of 2 was ended from outside \(signal 9\)") as error:
        launch_processes([], 2)
    assert error.value.code == 4
