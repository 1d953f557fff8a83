"""Several processes against one: the same weights, up to rounding, and runs that change their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from detkit.data.dataset import Dataset, read
from detkit.data.toy import write_toy_data
from detkit.engine import events
from detkit.engine.errors import Interrupted
from detkit.engine.trainer import Trainer

# Processes are forked from one that has imported all this once, which takes each of them seconds else.
_IMPORTED = ["detkit.config.build", "detkit.data.toy", "detkit.engine.trainer", "accelerate", "pytest"]

# Which takes longer than the training here.
_without_curves = patch("detkit.engine.run_folder.draw_curves", lambda *_: None)


def _start(function: Callable[..., None], world: int, *arguments: object) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    # Where they meet, as torchrun has it: a port that is taken now, not one that was free before they came.
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.start_processes(
        function, (world, meeting.port, *arguments), nprocs=world, start_method="forkserver"
    )


def _module(name: str, place: Path) -> Any:
    spec = spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _join(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
        os.environ.update({name: str(value) for name, value in place.items()})


def _toys() -> Any:
    return _module("toys", Path(__file__).with_name("test_trainer.py"))


@_without_curves
def _train(rank: int, world: int, port: int, folder: str) -> None:
    _join(rank, world, port)
    toys = _toys()
    for accumulate in (1, 2):
        options = replace(toys.OPTIONS, epochs=2, accumulate=accumulate)
        run = Path(folder) / f"{world}-{accumulate}"
        Trainer(toys.Toy(frozen=True), toys.Images(16), toys.Images(7, 1), options, run=run).train()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    _train(0, 1, 0, str(tmp_path))
    _start(_train, 2, str(tmp_path))
    toys = _toys()
    for accumulate in (1, 2):
        (a, rows_a, _), (b, rows_b, _) = (toys.run_of(tmp_path / f"{world}-{accumulate}") for world in (1, 2))
        for part in ("model", "average"):
            for name, value in a[part].items():
                torch.testing.assert_close(b[part][name], value, rtol=1e-5, atol=1e-5)
        assert len(rows_a) == len(rows_b) == 2
        for x, y in zip(rows_a, rows_b, strict=True):
            assert {k: abs(float(x[k]) - float(y[k])) < 1e-4 for k in x} == dict.fromkeys(y, True)


@_without_curves
def _train_families(rank: int, world: int, port: int, folder: str) -> None:
    """Two steps of each family on 10 images, and a validation of 5, of which four processes have 2, 1, 1 and 1."""
    _join(rank, world, port)
    families = _module("families", Path(__file__).parents[1] / "test_families.py")
    toys = _toys()
    for name in families.FAMILIES:
        backbone = families.FAMILIES[name]["backbone"]
        if backbone["name"] == "resnet18":  # whose weights take longer to save than to train
            backbone = {**backbone, "name": "resnet20"}
        model = families.make(name, 64, backbone=backbone)
        # All proposals and anchors are looked at: a draw of some would differ between processes.
        if hasattr(model.head, "sampler"):
            model.head.sampler = replace(model.head.sampler, rois=100_000)
        if hasattr(model.proposals, "samples"):
            model.proposals.samples = 100_000
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.num_batches_tracked.fill_(1)  # statistics to keep, as pretrained weights have them
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        data = [Dataset(read(folder, split=part)) for part in ("train", "val")]
        options = replace(toys.OPTIONS, epochs=1, batch=4, freeze_norms=True, warmup=0, warmup_steps=0, optimizer="sgd")
        Trainer(model, *data, options, run=Path(folder) / f"{world}-{name}").train()


def test_every_family_in_four_processes_equals_one(tmp_path: Path) -> None:
    write_toy_data(tmp_path, train=10, val=5, size=64)
    _train_families(0, 1, 0, str(tmp_path))
    _start(_train_families, 4, str(tmp_path))
    toys, families = _toys(), _module("families", Path(__file__).parents[1] / "test_families.py")
    for name in families.FAMILIES:
        (one, rows, _), (four, others, _) = (toys.run_of(tmp_path / f"{world}-{name}") for world in (1, 4))
        for key, value in one["model"].items():
            torch.testing.assert_close(four["model"][key], value, rtol=1e-3, atol=2e-5, msg=f"{name} {key}")
        for x, y in zip(rows, others, strict=True):
            shown = [{k: float(v) for k, v in row.items() if "loss" in k or "AP" in k} for row in (x, y)]
            assert shown[1] == pytest.approx(shown[0], rel=1e-3, abs=1e-4), name


@_without_curves
def _stop_and_go_on(rank: int, world: int, port: int, folder: str, run: str, noise: float, last: int) -> None:
    """Trains up to step ``last`` and stops by a signal; -1: to the end."""
    _join(rank, world, port)
    toys = _toys()
    options = replace(toys.OPTIONS, epochs=2, batch=4)

    def listen(event: Any) -> None:
        if isinstance(event, events.BatchDone) and event.epoch * 4 + event.step == last:
            os.kill(os.getpid(), signal.SIGTERM)
        if isinstance(event, events.Notice):
            with (Path(folder) / f"{run}.txt").open("a") as file:
                file.write(event.text + "\n")

    place, parts = Path(folder) / run, (toys.Toy(noise, frozen=True), toys.Images(16), toys.Images(7, 1))
    with suppress(Interrupted):
        Trainer(*parts, options, run=place, on_event=listen).train(resume=(place / "state.pt").is_file())


def _go(folder: Path, world: int, run: str, noise: float, last: int) -> None:
    if world == 1:
        _stop_and_go_on(0, 1, 0, str(folder), run, noise, last)
    else:
        _start(_stop_and_go_on, world, str(folder), run, noise, last)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    _go(tmp_path, 1, "whole", 0.0, -1)
    _go(tmp_path, 2, "changed", 0.0, 1)
    _go(tmp_path, 1, "changed", 0.0, -1)
    (a, rows_a, _), (b, rows_b, _) = (_toys().run_of(tmp_path / run) for run in ("whole", "changed"))
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-5, atol=1e-5)
    assert [row["AP"] for row in rows_a] == [row["AP"] for row in rows_b]
    said = (tmp_path / "changed.txt").read_text()
    assert "this run began with 2 processes and goes on with 1: the order of the images is the same; dropout" in said


def test_every_process_goes_on_with_its_own_random_numbers(tmp_path: Path) -> None:
    _go(tmp_path, 2, "whole", 0.1, -1)
    _go(tmp_path, 2, "stopped", 0.1, 2)
    _go(tmp_path, 2, "stopped", 0.1, -1)
    (a, _, _), (b, _, _) = (_toys().run_of(tmp_path / run) for run in ("whole", "stopped"))
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
