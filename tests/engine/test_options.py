"""Options of training, its rates, and the table of detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detkit.config.experiment import read_config
from detkit.devices import pick_device
from detkit.engine.optim import rate_factor
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.structures import Detections
from detkit.tables import results_of


def test_results_are_float64_xywh() -> None:
    one = Detections(np.array([[1, 2, 4, 8]]), np.array([0.5]), np.array([1]))
    results = results_of([one, Detections.empty(), one], [4, 5, 7])
    assert results.image.tolist() == [4, 7]
    assert results.xywh.dtype == np.float64
    assert results.xywh.tolist() == [[1, 2, 3, 6]] * 2
    assert len(results_of([], [])) == 0


def test_rates_rise_and_fall() -> None:
    options = TrainOptions(epochs=10, warmup=1, warmup_steps=0)
    rates = [rate_factor(step, 20, options) for step in range(200)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(options.final_lr, abs=1e-3)
    steps = [rate_factor(s, 20, TrainOptions(epochs=10, schedule="step")) for s in (100, 139, 140, 179, 180)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("lr", 0.0), ("lr", float("nan")), ("ema", 1.0), ("workers", -1)]
)
def test_options_refuse_what_makes_no_sense(name: str, value: Any) -> None:
    with pytest.raises(DetkitError, match=name):
        TrainOptions(**{name: value})


def test_a_number_is_that_gpu() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in (73, "73"):
        with pytest.raises(DetkitError, match="no device 'cuda:73' here"):
            pick_device(name)
    config = read_config("toy", ["train.device=1"], train_schema=TrainOptions)
    assert config.train.device == 1
