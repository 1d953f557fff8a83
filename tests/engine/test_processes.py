"""Two processes against one: the same weights, up to rounding."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from detkit.engine.trainer import Trainer


def _toys() -> Any:
    spec = spec_from_file_location("toys", Path(__file__).with_name("test_trainer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _train(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    toys = _toys()
    for accumulate in (1, 2):
        options = replace(toys.OPTIONS, epochs=2, accumulate=accumulate)
        run = Path(folder) / f"{world}-{accumulate}"
        Trainer(toys.Toy(frozen=True), toys.Images(16), toys.Images(7, 1), options, run=run).train()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _train(0, 1, port, str(tmp_path))
    torch.multiprocessing.spawn(_train, (2, port, str(tmp_path)), nprocs=2)
    toys = _toys()
    for accumulate in (1, 2):
        (a, rows_a, _), (b, rows_b, _) = (toys.run_of(tmp_path / f"{world}-{accumulate}") for world in (1, 2))
        for part in ("model", "average"):
            for name, value in a[part].items():
                torch.testing.assert_close(b[part][name], value, rtol=1e-5, atol=1e-5)
        assert len(rows_a) == len(rows_b) == 2
        for x, y in zip(rows_a, rows_b, strict=True):
            assert {k: abs(float(x[k]) - float(y[k])) < 1e-4 for k in x} == dict.fromkeys(y, True)
