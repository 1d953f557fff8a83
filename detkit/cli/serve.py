"""``detkit serve``: a model behind HTTP, as a page and as an endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from detkit.cli import options
from detkit.cli.common import message, note
from detkit.errors import DetkitError


def serve(
    model: options.ModelNames = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0: all networks, without a password.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    report: Annotated[Path | None, Option(help="A page of evaluate --report to show beside.")] = None,
    size: options.Size = None,
    answers: options.Answers = options.Answers(),
    batch: Annotated[int, Option(min=1, help="Waiting images that are looked at together, at most.")] = 8,
    queue: Annotated[int, Option(min=1, help="Images in work, at most; more are answered with 429.")] = 64,
    max_mb: Annotated[float, Option("--max-mb", min=0.001, help="Of a request's body, in megabytes.")] = 32,
    max_pixels: Annotated[float, Option("--max-pixels", min=0.001, help="Of an image, in millions.")] = 50,
    timeout: Annotated[float, Option(help="Seconds for a request.")] = 30,
    as_json: bool = False,
) -> int:
    """Serve a model as a page and as an endpoint. Browsers drop photos on it, programs POST /detect, until Ctrl-C."""
    from detkit import serving
    from detkit.cli.quickstart import installed_photos
    from detkit.zoo import DEFAULT

    serving.check_installed()
    bounds = serving.Bounds(
        batch=batch, queue=queue, max_bytes=int(max_mb * 2**20), max_pixels=int(max_pixels * 1e6), timeout=timeout
    )
    if report is not None and not report.is_file():
        raise DetkitError("there is no such page", str(report), "make one: detkit evaluate MODEL DATA --report PAGE")
    with serving.listening(host, port) as door:  # before the model is loaded, which takes longer
        address, port = door.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"
        predictor = answers.predictor(model or [], size, quick=True)
        local = serving.is_local(host)
        if not local:
            note("whoever reaches this machine may use the model: there is no password and no encryption")
        name = ", ".join(model or [DEFAULT])

        def ready() -> None:
            print(json.dumps({"url": url, "model": name}) if as_json else url, flush=True)
            message("Ctrl-C stops")

        photos = installed_photos()
        serving.serve(
            predictor, door, name=name, local=local, bounds=bounds, samples=photos, report=report, on_start=ready
        )
    return 0
