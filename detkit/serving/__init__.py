"""A model behind HTTP: a page for people, ``POST /detect`` for programs. Needs the extra ``serve``."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from detkit.errors import DetkitError
from detkit.predictor import Predictor

NEEDS = ("starlette", "uvicorn", "python_multipart")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What clients may ask for.

    Attributes:
        batch: Images that the model sees at a time, of as many requests as are waiting.
        queue: Images that are read, waiting or looked at; more are answered with 429.
        max_bytes: Of a request's body.
        max_pixels: Of an image; larger ones are refused before a pixel is decoded.
        timeout: Seconds for a request, from its headers to its answer.

    Raises:
        DetkitError: A value out of range.
    """

    batch: int = 8
    queue: int = 64
    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    timeout: float = 30

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise DetkitError(f"{name} must be positive, got {getattr(self, name)}", do="leave it out")


def check_installed() -> None:
    """Raises a DetkitError that says how to install what serving needs, unless it is there."""
    missing = [name.replace("_", "-") for name in NEEDS if find_spec(name) is None]
    if missing:
        raise DetkitError(f"serving needs {', '.join(missing)}", "not installed", 'pip install "detkit[serve]"')


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any that is free.

    Raises:
        DetkitError: The port is in use, needs another user, or the host is no address of this machine.
    """
    where = f"{host}:{port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        door = socket.create_server(address[:2], family=family, backlog=1024)
    except socket.gaierror:
        what, do = "there is no such host", "give --host 127.0.0.1, or 0.0.0.0 for all networks"
        raise DetkitError(what, where, do) from None
    except OSError as error:
        do = "stop what listens there, or give another --port (0: any that is free) or a --host of this machine"
        raise DetkitError(f"cannot listen: {error.strerror or error}", where, do) from None
    # Answers leave at once: asyncio does so for sockets that name TCP as their protocol, which this one does not, and
    # waiting for the client to acknowledge the headers costs 40 ms.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return door


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    predictor: Predictor,
    door: socket.socket,
    *,
    name: str,
    local: bool = True,
    bounds: Bounds = Bounds(),
    samples: Sequence[Path] = (),
    report: Path | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Answers requests until Ctrl-C or SIGTERM; those that have begun are finished.

    Args:
        predictor: Asked by one thread.
        door: Of ``listening``.
        name: Of the model, as the page shows it.
        local: Only requests whose ``Host`` is this machine are answered, so that no other site reaches it by its name.
        bounds: What clients may ask for.
        samples: Images that the page offers.
        report: A page of ``detkit evaluate --report`` to show beside.
        on_start: Called when requests are answered.

    Raises:
        DetkitError: The extra ``serve`` is not installed.
    """
    check_installed()
    import numpy as np
    import uvicorn

    from detkit.serving.app import create_app

    hosts = ("localhost", "127.0.0.1", "::1", "[::1]", door.getsockname()[0]) if local else ("*",)
    app = create_app(
        predictor, name=name, bounds=bounds, samples=samples, report=report, hosts=hosts, on_start=on_start
    )
    predictor.predict(np.zeros((64, 64, 3), np.uint8), conf=0)  # what is compiled on first use makes no client wait
    end = int(bounds.timeout) + 1
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", server_header=False, timeout_graceful_shutdown=end
    )
    uvicorn.Server(config).run(sockets=[door])
