"""The application: its addresses, what they take and answer. Nothing that a client names is opened."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Message

import detkit
from detkit.errors import DetkitError, nearest
from detkit.io.detections import record_of
from detkit.io.draw import colour_of
from detkit.io.images import image_size, read_image
from detkit.io.sources import Frame
from detkit.predictor import Predictor
from detkit.serving import Bounds
from detkit.serving.batching import Batcher
from detkit.serving.metrics import Metrics
from detkit.structures import Limits

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
SAFE = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ASKED: dict[str, Callable[[str], object]] = {
    "conf": float,
    "iou": float,
    "max_detections": int,
    "classes": lambda text: [name.strip() for name in text.split(",")],
}
Named = tuple[str, bytes]  # of an image of a request: what the client calls it, its bytes
Work = Callable[[Request], Awaitable[object]]


class Refused(DetkitError):
    """A request that is not answered, and its HTTP status."""

    def __init__(self, status: int, what: str, where: str = "", do: str = "") -> None:
        super().__init__(what, where, do)
        self.status = status


def create_app(
    predictor: Predictor,
    *,
    name: str,
    bounds: Bounds = Bounds(),
    samples: Sequence[Path] = (),
    report: Path | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    on_start: Callable[[], None] = lambda: None,
) -> Starlette:
    """An ASGI application; see ``detkit.serving.serve``.

    Args:
        predictor: Asked by one thread.
        name: Of the model, as the page shows it.
        bounds: What clients may ask for.
        samples: Images that the page offers.
        report: A page of ``detkit evaluate --report`` to show beside.
        hosts: That a request's ``Host`` may name; "*": any.
        on_start: Called when requests are answered.
    """
    service = _Service(predictor, name, bounds, samples, report)

    @asynccontextmanager
    async def alive(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(service.batcher.run())
        on_start()
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    routes = [
        Route("/", service.page),
        Route("/detect", partial(service.answer, service.detect), methods=["POST"]),
        Route("/batch", partial(service.answer, service.detect_several), methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.shown_metrics),
        Route("/report", service.shown_report),
        Route("/samples/{number:int}", service.sample),
    ]
    return Starlette(
        routes=routes,
        lifespan=alive,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={HTTPException: _refusal},
    )


class _Service:
    def __init__(
        self, predictor: Predictor, name: str, bounds: Bounds, samples: Sequence[Path], report: Path | None
    ) -> None:
        self.predictor, self.name, self.bounds = predictor, name, bounds
        self.samples, self.report = samples, report
        self.metrics = Metrics()
        self.batcher = Batcher(predictor, bounds.batch, self.metrics.count_batch)
        self.free = bounds.queue

    async def page(self, _: Request) -> Response:
        return HTMLResponse(_PAGE, headers=SAFE)

    async def health(self, _: Request) -> Response:
        """What is served: what the page must know."""
        classes = self.predictor.classes
        return _json(
            {
                "status": "ok",
                "version": detkit.__version__,
                "model": self.name,
                "classes": classes,
                "colours": [colour_of(label) for label in range(len(classes))],
                "threshold": self.predictor.threshold,
                "samples": [path.name for path in self.samples],
                "report": self.report is not None,
            }
        )

    async def shown_metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(self.bounds.queue - self.free), media_type="text/plain; version=0.0.4")

    async def shown_report(self, _: Request) -> Response:
        if self.report is None:
            raise HTTPException(404, "the server was started without --report")
        return FileResponse(self.report, media_type="text/html")

    async def sample(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.samples):
            raise HTTPException(404, f"there is no sample {number}")
        return FileResponse(self.samples[number])

    async def answer(self, work: Work, request: Request) -> Response:
        """What ``work`` makes of a request, counted, in its time; what goes wrong as its status."""
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.bounds.timeout):
                with self._places(1):
                    response = _json(await work(request))
        except TimeoutError:
            what = f"no answer within {self.bounds.timeout:g} s"
            response = _error(Refused(503, what, do="try again, or start the server with a longer --timeout"))
        except ClientDisconnect:
            response = Response(status_code=400)  # which nobody reads
        except HTTPException as error:
            response = await _refusal(request, error)
        except DetkitError as error:
            response = _error(error)
        except Exception as error:
            logging.getLogger("uvicorn.error").exception("detkit: a request failed")
            response = _error(Refused(500, f"the model failed: {type(error).__name__}", do="see the server's log"))
        self.metrics.count(response.status_code, time.perf_counter() - start)
        return response

    async def detect(self, request: Request) -> dict[str, object]:
        """``POST /detect``: one image, as the body or as a form's file."""
        limits = self._limits(request)
        images = await self._images(request, 1)
        return await self._record(*images[0], limits)

    async def detect_several(self, request: Request) -> list[dict[str, object]]:
        """``POST /batch``: a form's files, answered in their order; one that fails has its error there."""
        limits = self._limits(request)
        images = await self._images(request, self.bounds.queue)
        with self._places(len(images) - 1):
            tasks = [asyncio.create_task(self._record(*image, limits)) for image in images]
            try:
                done = await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                for task in tasks:  # of a request whose time is over
                    task.cancel()
        return [_record_or_error(one, named) for one, (named, _) in zip(done, images, strict=True)]

    async def _record(self, named: str, data: bytes, limits: Limits) -> dict[str, object]:
        image, found = await self.batcher.detect(partial(_read, data, named, self.bounds.max_pixels), limits)
        self.metrics.images += 1
        self.metrics.detections += len(found)
        return record_of(Frame(image, named), found)

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        if count > self.free:
            raise Refused(429, "too many images are waiting", do="try again in a second, or send fewer at a time")
        self.free -= count
        try:
            yield
        finally:
            self.free += count

    def _limits(self, request: Request) -> Limits:
        given: dict[str, Any] = {}
        for key, text in request.query_params.items():
            if key not in _ASKED:
                raise DetkitError(f"there is no parameter {key!r}", request.url.path, nearest(key, _ASKED))
            try:
                given[key] = _ASKED[key](text)
            except ValueError:
                raise DetkitError(f"{key} is a number, got {text!r}", request.url.path) from None
        return self.predictor.limits(**given)

    async def _images(self, request: Request, most: int) -> list[Named]:
        """The images of a request: its body, or the files of its form."""
        request = _bounded(request, self.bounds.max_bytes)
        if not request.headers.get("content-type", "").startswith("multipart/"):
            return [("-", await request.body())]  # called as detkit detect calls stdin
        async with request.form(max_files=most, max_fields=most) as form:
            files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
            if not files:
                raise DetkitError("the form holds no file", request.url.path, "curl -F image=@photo.jpg URL, say")
            return [(file.filename or "-", await file.read()) for file in files]


def _bounded(request: Request, most: int) -> Request:
    """The request, whose body ends with an error as soon as it is longer."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise Refused(413, f"the body is longer than {most / 2**20:g} MB", do="send fewer or smaller images")
        return message

    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() and int(declared) > most else 0
    return Request(request.scope, receive)


def _read(data: bytes, named: str, max_pixels: int) -> np.ndarray:
    try:
        width, height = image_size(data)
        if width * height > max_pixels:
            what = f"the image is too large: {width} x {height} pixels, the limit is {max_pixels / 1e6:g} million"
            raise Refused(413, what, named, "make it smaller")
        return read_image(data)
    except Refused:
        raise
    except DetkitError as error:
        raise DetkitError(error.what, named, error.do) from None


def _record_or_error(done: dict[str, object] | BaseException, named: str) -> dict[str, object]:
    if isinstance(done, dict):
        return done
    if not isinstance(done, DetkitError):
        raise done
    return {"source": named, **_told(done)}


def _told(error: DetkitError) -> dict[str, str]:
    return {"error": error.what, "where": error.where, "do": error.do}


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, media_type="application/json")


def _error(error: DetkitError) -> Response:
    response = _json(_told(error), error.status if isinstance(error, Refused) else 400)
    if response.status_code in (429, 503):
        response.headers["Retry-After"] = "1"
    return response


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(Refused(error.status_code, error.detail, request.url.path))
