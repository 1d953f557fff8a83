from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkit.data.augment import Augment
from detkit.data.loader import Loader, collate
from detkit.data.resize import Resize
from detkit.errors import DetkitError
from detkit.structures import Sample, Target

RESIZE = Resize(64)


class Toys:
    """Twelve small images with one object each; image ``bad`` cannot be read, ``deadly`` ends the process."""

    classes = ("a", "b")
    strict = False

    def __init__(self, count: int = 12, bad: tuple[int, ...] = (), deadly: int | None = None) -> None:
        self.count, self.bad, self.deadly = count, bad, deadly

    def __len__(self) -> int:
        return self.count

    def load(self, i: int, reduce_to: int | None = None) -> Sample:
        if i in self.bad:
            raise DetkitError("the image cannot be decoded", f"{i}.png", "fetch it again")
        if i == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        image = np.random.default_rng(i).integers(0, 256, (50 + i, 70, 3), dtype=np.uint8)
        target = Target(np.array([[10, 10, 40 + i, 30]], np.float32), np.array([i % 2]))
        return Sample(image, target, image_id=i, path=f"{i}.png")

    def labels_of(self, i: int) -> np.ndarray:
        return np.array([i % 2])


def run(
    dataset: Toys, epoch: int = 0, start: int = 0, mosaic: bool = True, around: Any = iter, **options: Any
) -> list[tuple[np.ndarray, tuple, list[np.ndarray]]]:
    with Loader(dataset, **{"resize": RESIZE, "batch": 4, **options}) as loader:
        passes = around(loader.epoch(epoch, start, mosaic))
        return [(b.pixels.numpy().copy(), b.image_ids, [t.boxes.numpy() for t in ts]) for b, ts in passes]


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a[0], b[0]) and a[1] == b[1] and all(map(np.array_equal, a[2], b[2]))
        for a, b in zip(first, second, strict=True)
    )


def test_collate_puts_images_boxes_and_sizes_together() -> None:
    samples = [Toys().load(0), Toys().load(5).replace(proposals=np.array([[0, 0, 70, 55]], np.float32))]
    batch, targets = collate(samples, RESIZE)
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.image_ids == (0, 5)
    assert batch.sizes.tolist() == [[46, 64], [50, 64]]
    for row, sample in enumerate(samples):
        expected, geometry = RESIZE(sample.image)
        np.testing.assert_array_equal(batch.pixels[row].permute(1, 2, 0).numpy(), expected)
        assert batch.restore[row] == geometry
        np.testing.assert_allclose(targets[row].boxes.numpy(), geometry.to_input(sample.target.boxes))
        restored = batch.restore[row].to_original(targets[row].boxes).numpy()
        np.testing.assert_allclose(restored, sample.target.boxes, atol=1e-4)
    assert batch.proposals is not None
    assert [tuple(p.shape) for p in batch.proposals] == [(0, 4), (1, 4)]
    np.testing.assert_allclose(targets[0].area.numpy(), 30 * 20 * 64 / 70 * 46 / 50, rtol=1e-5)


def test_evaluation_keeps_everything_in_order() -> None:
    rows = run(Toys(10))
    assert [len(row[1]) for row in rows] == [4, 4, 2]
    assert sum((row[1] for row in rows), ()) == tuple(range(10))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(workers: int) -> None:
    options = {"augment": Augment(), "seed": 3, "epoch": 2, "shuffle": True}
    assert same(run(Toys(), **options), run(Toys(), **options, workers=workers, context="fork"))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_models_random_numbers_stay_where_they_are(workers: int) -> None:
    state = torch.get_rng_state()
    run(Toys(), workers=workers)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_depend_on_seed_and_epoch() -> None:
    options = {"augment": Augment(), "shuffle": True}
    first = run(Toys(), **options)
    assert not same(first, run(Toys(), **options, seed=1))
    assert not same(first, run(Toys(), **options, epoch=1))


def test_an_epoch_goes_on_where_it_stopped_and_workers_live_on() -> None:
    whole = run(Toys(), augment=Augment(), shuffle=True, batch=3, epoch=1)
    assert same(whole[2:], run(Toys(), augment=Augment(), shuffle=True, batch=3, epoch=1, start=2))
    with Loader(Toys(), resize=RESIZE, augment=Augment(), batch=3, shuffle=True, workers=1) as loader:
        next(loader.epoch(0))  # left half-way
        again = [b.pixels.numpy() for b, _ in loader.epoch(1)]
    assert all(np.array_equal(a, b[0]) for a, b in zip(again, whole, strict=True))


def test_two_processes_see_what_one_would() -> None:
    options = {"augment": Augment(), "shuffle": True, "seed": 5}
    one = run(Toys(), batch=4, **options)
    left, right = (run(Toys(), batch=2, rank=rank, world=2, **options) for rank in (0, 1))
    for whole, a, b in zip(one, left, right, strict=True):
        np.testing.assert_array_equal(whole[0], np.concatenate([a[0], b[0]]))


def test_mosaic_can_be_switched_off_for_the_last_epochs() -> None:
    augment = Augment.off(mosaic=1.0)
    with_mosaic = run(Toys(), augment=augment, shuffle=True)
    without = run(Toys(), augment=augment, shuffle=True, mosaic=False)
    assert any(len(boxes) > 1 for row in with_mosaic for boxes in row[2])
    assert same(without, run(Toys(), augment=Augment.off(), shuffle=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_costs_training_only_itself_and_is_told_once(workers: int) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"on_bad_image": lambda error: told.append(error.where), "workers": workers}
    with Loader(Toys(bad=(2, 7)), resize=RESIZE, batch=4, shuffle=True, **options) as loader:
        batches = [b for epoch in range(2) for b, _ in loader.epoch(epoch)]
    assert [len(b) for b in batches] == [4] * 6
    assert sorted(told) == sorted(loader.failures) == ["2.png", "7.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_strict_set_ends_with_the_error_of_its_first_bad_image(workers: int) -> None:
    toys = Toys(bad=(2, 7))
    toys.strict = True
    for shuffle in (True, False):
        with pytest.raises(DetkitError, match=r"cannot be decoded\n[27]\.png\nfetch it again"):
            run(toys, shuffle=shuffle, workers=workers)


def test_a_bad_image_is_left_out_of_evaluation() -> None:
    with Loader(Toys(bad=(4, 5, 6, 7, 9)), resize=RESIZE, batch=4) as loader:
        ids = [b.image_ids for b, _ in loader.epoch(0)]
    assert ids == [(0, 1, 2, 3), (8, 10, 11)]
    assert len(loader.failures) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_images_is_an_error(workers: int) -> None:
    with pytest.raises(DetkitError, match="in a row") as error:
        run(Toys(bad=tuple(range(12))), shuffle=True, workers=workers)
    assert error.value.code == 2


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_killed_worker_stops_the_run_and_says_what_to_lower(context: str) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DetkitError) as error:
        run(Toys(deadly=9), workers=1, context=context)
    assert error.value.code == 4
    assert "train.workers" in error.value.do
    assert signal.getsignal(signal.SIGCHLD) == handler


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_ctrl_c_in_the_terminal_does_not_change_what_workers_give(context: str) -> None:
    # Without albumentations, which spawned workers would import for seconds.
    ours = Augment.off(mirror=0.5, scale=(0.5, 1.5), shift=20, pca=0.1, mosaic=0.5)
    options = {"augment": ours, "seed": 3, "shuffle": True}

    def interrupted(batches: Iterator[Any]) -> Iterator[Any]:
        yield next(batches)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGINT)
        yield from batches

    whole = run(Toys(32), **options)
    assert len(whole) == 8
    assert same(whole, run(Toys(32), **options, around=interrupted, workers=1 + (context == "fork"), context=context))


def test_boxes_without_area_are_left_out() -> None:
    class Bad(Toys):
        def load(self, i: int, reduce_to: int | None = None) -> Sample:
            boxes = np.array([[5, 5, 5, 9], [10, 10, 30, 30]], np.float32)
            return super().load(i).replace(target=Target(boxes, np.zeros(2)))

    with Loader(Bad(4), resize=RESIZE, augment=Augment.off(mirror=0.5), batch=2, shuffle=True) as loader:
        assert all(len(t) == 1 for _, ts in loader.epoch(0) for t in ts)


def test_balance_draws_rare_classes_more_often() -> None:
    class Rare(Toys):
        def labels_of(self, i: int) -> np.ndarray:
            return np.array([int(i == 0)])

    with Loader(Rare(), resize=RESIZE, batch=12, shuffle=True, balance=1.0) as loader:
        ids = [i for epoch in range(4) for b, _ in loader.epoch(epoch) for i in b.image_ids]
    assert ids.count(0) >= 8


def test_an_empty_set_is_a_persons_error() -> None:
    with pytest.raises(DetkitError, match="no images"):
        Loader(Toys(0), resize=RESIZE, batch=2)


def test_workers_survive_a_parent_that_used_opencv_threads() -> None:
    cv2.setNumThreads(2)
    try:
        cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (500, 500), interpolation=cv2.INTER_AREA)
        torch.ones(2000, 2000).sum()
        assert len(run(Toys(), workers=2, context="fork")) == 3
    finally:
        cv2.setNumThreads(-1)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_without_a_guard_is_told_before_any_process_starts(tmp_path: Path, guarded: bool) -> None:
    script = tmp_path / "script.py"
    lines = ["from detkit.data.loader import _check_main_guard as check"]
    lines += ["def work():", "    check()", "if __name__ == '__main__':" if guarded else "if True:", "    work()"]
    script.write_text("\n".join(lines))
    if guarded:
        runpy.run_path(str(script), run_name="__main__")
        return
    with pytest.raises(DetkitError) as error:
        runpy.run_path(str(script), run_name="__main__")
    assert error.value.where == f"{script}, line 5"
    assert "if __name__ ==" in error.value.do
