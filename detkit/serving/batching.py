"""Requests together: what waits while the model is busy is its next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from detkit.predictor import Predictor
from detkit.structures import Detections, Limits, Sample

_TOGETHER = 0.002  # seconds that a batch waits for images that are being decoded


class _Waiting(NamedTuple):
    image: np.ndarray
    limits: Limits
    answer: asyncio.Future[Detections]


class Batcher:
    """One predictor for many requests at a time.

    Images are decoded by two threads and looked at by a third; at most two batches of them are in memory.

    Args:
        predictor: What looks at them.
        batch: Images at a time.
        on_batch: Told how many images each batch has.
    """

    def __init__(self, predictor: Predictor, batch: int, on_batch: Callable[[int], None] = lambda _: None) -> None:
        self.predictor, self.batch, self.on_batch = predictor, batch, on_batch
        self._model = ThreadPoolExecutor(1, "model")
        self._readers = ThreadPoolExecutor(2, "reader")
        self._room = asyncio.Semaphore(2 * batch)
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._decoding = 0

    async def detect(self, read: Callable[[], np.ndarray], limits: Limits) -> tuple[np.ndarray, Detections]:
        """The image that ``read`` decodes (in a thread), and what is in it; raises what reading or detecting raises."""
        loop = asyncio.get_running_loop()
        async with self._room:
            self._decoding += 1
            try:
                image = await loop.run_in_executor(self._readers, read)
            finally:
                self._decoding -= 1
            one = _Waiting(image, limits, loop.create_future())
            self._waiting.put_nowait(one)
            return image, await one.answer

    async def run(self) -> None:
        """Answers until cancelled."""
        try:
            while True:
                batch = [await self._waiting.get()]
                if self._decoding:
                    await asyncio.sleep(_TOGETHER)
                while len(batch) < self.batch and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                batch = [one for one in batch if not one.answer.done()]  # nobody waits any longer for the others
                for limits in dict.fromkeys(one.limits for one in batch):
                    await self._answer([one for one in batch if one.limits == limits], limits)
        finally:
            self._model.shutdown(wait=False, cancel_futures=True)
            self._readers.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, batch: list[_Waiting], limits: Limits) -> None:
        self.on_batch(len(batch))
        samples, loop = [Sample(one.image) for one in batch], asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._model, self.predictor.predict_samples, samples, limits)
        except Exception as error:
            if len(batch) > 1:  # one image that the model cannot take is no reason to fail the others
                for one in batch:
                    await self._answer([one], limits)
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for one, detections in zip(batch, found, strict=True):
            if not one.answer.done():
                one.answer.set_result(detections)
