"""What the server answers: the command line's JSON, or what is wrong with a request; and its page in a browser."""

from __future__ import annotations

import http.client
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit import serving
from detkit.cli import main
from detkit.errors import DetkitError
from detkit.io.detections import record_of
from detkit.io.images import image_bytes, read_image
from detkit.io.sources import Frame
from detkit.predictor import Predictor
from detkit.serving import Bounds, is_local, listening
from detkit.structures import Detections, Limits, Sample

uvicorn = pytest.importorskip("uvicorn")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What a person does, told to the page; what is seen then is posted.
DROP = """<script>(async () => {
const until = async (seen) => { while (!seen()) await new Promise((done) => setTimeout(done, 20)); };
const one = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const pixel = (x, y) => {
  one.drawImage($("canvas"), -x, -y);
  return [...one.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const slide = (value) => { $("threshold").value = value; $("threshold").dispatchEvent(new Event("input")); };
await until(() => answer);
const sample = answer.source;
answer = null;
const dropped = new DataTransfer();
dropped.items.add(new File([await (await fetch("samples/0")).blob()], "photo.png", { type: "image/png" }));
$("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
await until(() => answer);
const seen = { sample, json: JSON.parse($("json").textContent), edge: pixel(100, 150), inside: pixel(200, 150) };
slide(0.9);
Object.assign(seen, { above: JSON.parse($("json").textContent).detections, unframed: pixel(100, 150) });
slide(0.25);
$("classes").querySelector("input").click();
seen.unticked = JSON.parse($("json").textContent).detections;
$("classes").querySelector("input").click();
answer = null;
document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: dropped }));
await until(() => answer);
seen.pasted = answer.source;
$("camera").click();
await until(() => answer.source === "camera");
$("camera").click();
seen.camera = [answer.width > 0, $("camera").textContent];
$("report").open = true;
await until(() => document.querySelector("iframe")?.contentDocument?.title === "report");
await fetch("seen", { method: "POST", body: JSON.stringify(seen) });
})();</script>"""


class Brightness(Predictor):
    """One box of the middle half, whose score is the mean of the image; remembers its batches; may be told to wait."""

    classes = ("dark", "light")

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.asked, self.open = threading.Event(), threading.Event()
        self.open.set()

    def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
        self.asked.set()
        assert self.open.wait(600)
        self.batches.append(len(samples))
        found = []
        for sample in samples:
            height, width = sample.image.shape[:2]
            score = float(sample.image.mean()) / 255
            if score == 1:
                raise ZeroDivisionError("too bright")
            box = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
            one = Detections(box, np.array([score], np.float32), np.array([int(score > 0.5)]), self.classes)
            found.append(one if score >= limits.conf else one[:0])
        return found


class Client:
    """Requests to one server; in a test's own process, what it serves with."""

    def __init__(self, port: int, model: Brightness, service: Any = None) -> None:
        self.port, self.model, self.service, self.seen = port, model, service, queue.Queue[Any]()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
        """Status, headers, and the answer: JSON read, or text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            reply = connection.getresponse()
            text = reply.read().decode()
            is_json = reply.headers.get_content_type() == "application/json"
            return reply.status, reply.headers, json.loads(text) if is_json else text
        finally:
            connection.close()

    def form(self, path: str, *files: tuple[str, bytes]) -> tuple[int, Any, Any]:
        parts = [
            f'--cut\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for name, data in files
        ]
        body = b"".join(parts) + b"--cut--\r\n"
        return self.ask("POST", path, body, Content_Type="multipart/form-data; boundary=cut")


def grey(value: int, width: int = 40, height: int = 20) -> bytes:
    """A PNG of one grey."""
    return image_bytes(np.full((height, width), value, np.uint8), ".png", 100)


BOUNDS = Bounds(batch=4, queue=8, max_bytes=100_000, max_pixels=10_000_000, timeout=600)


@pytest.fixture
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """A server with BOUNDS, or those that the test is parametrised with."""
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    from detkit.serving.app import SAFE, create_app

    photo, report, model = tmp_path / "photo.png", tmp_path / "report.html", Brightness()
    photo.write_bytes(grey(200, 400, 300))
    report.write_text("<!DOCTYPE html><title>report</title>")
    bounds = getattr(request, "param", BOUNDS)
    app = create_app(model, name="brightness", bounds=bounds, samples=[photo], report=report)
    page = Path(serving.__file__).with_name("page.html").read_text(encoding="utf-8")
    app.router.routes.append(Route("/dropped", lambda _: HTMLResponse(page + DROP, headers=SAFE)))

    async def keep(request: Request) -> Response:
        user.seen.put(await request.json())
        return Response()

    app.router.routes.append(Route("/seen", keep, methods=["POST"]))
    with listening("127.0.0.1", 0) as door:
        user = Client(door.getsockname()[1], model, app.routes[0].endpoint.__self__)  # type: ignore[attr-defined]
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield user
        model.open.set()
        server.should_exit = True
        thread.join(20)


def expected(data: bytes, name: str = "-") -> dict[str, Any]:
    image = read_image(data)
    return record_of(Frame(image, name), Brightness().predict(image))


def test_an_image_as_body_or_as_a_form(client: Client) -> None:
    data = grey(204)
    status, headers, answer = client.ask("POST", "/detect", data)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    box = {"label": "light", "label_id": 1, "score": 0.8, "box": [10.0, 5.0, 30.0, 15.0]}
    assert answer == {"source": "-", "frame": None, "width": 40, "height": 20, "detections": [box]}
    assert client.form("/detect", ("a.png", data))[2] == {**answer, "source": "a.png"}
    assert client.ask("POST", "/detect?conf=0.9", data)[2]["detections"] == []


def test_a_batch_in_its_order(client: Client) -> None:
    files = [("a.png", grey(102)), ("no.png", b"text only, no image"), ("b.png", grey(204)), ("../c.png", grey(103))]
    status, _, answer = client.form("/batch", *files)
    assert status == 200
    assert [one["source"] for one in answer] == ["a.png", "no.png", "b.png", "../c.png"]
    assert [answer[i] for i in (0, 2)] == [expected(files[i][1], files[i][0]) for i in (0, 2)]
    assert answer[1]["error"] == "this is a text file, not an image"
    assert answer[3]["detections"][0]["score"] == pytest.approx(103 / 255, abs=1e-5)


def huge() -> bytes:
    """A PNG whose header says 100,000 x 100,000."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + grey(1)[33:]


@pytest.mark.parametrize(
    ("path", "body", "status", "needle"),
    [
        ("/detect", b"", 400, "empty"),
        ("/detect", b"/etc/passwd and more", 400, "text file"),
        ("/detect", b"https://example.org/photo.jpg", 400, "text file"),
        ("/detect", grey(9)[:40], 400, "damaged"),
        ("/detect", huge(), 413, "too large: 100000 x 100000 pixels, the limit is 10 million"),
        ("/detect", bytes(100_001), 413, "the body is longer than"),
        ("/detect?cnf=0.5", grey(9), 400, "no parameter 'cnf'"),
        ("/detect?conf=much", grey(9), 400, "conf is a number, got 'much'"),
        ("/detect?conf=nan", grey(9), 400, "between 0 and 1"),
        ("/detect?classes=lihgt", grey(9), 400, "no class 'lihgt'"),
        ("/detekt", grey(9), 404, "Not Found"),
    ],
)
def test_mistakes_are_told(client: Client, path: str, body: bytes, status: int, needle: str) -> None:
    got, _, answer = client.ask("POST", path, body)
    assert got == status
    assert needle in answer["error"]
    assert client.ask("POST", "/detect", grey(204))[0] == 200


def test_wrong_forms_and_methods(client: Client) -> None:
    assert client.form("/detect")[2]["error"] == "the form holds no file"
    status, _, answer = client.form("/detect", ("a.png", grey(1)), ("b.png", grey(2)))
    assert (status, answer["error"]) == (400, "Too many files. Maximum number of files is 1.")
    assert client.ask("POST", "/batch", b"--no", Content_Type="multipart/form-data; boundary=cut")[0] == 400
    assert client.ask("POST", "/batch", b"--no", Content_Type="multipart/form-data")[0] == 400
    assert client.ask("GET", "/detect")[0] == 405
    assert client.ask("GET", "/samples/1")[0] == client.ask("GET", "/samples/..%2Fphoto.png")[0] == 404


def test_another_site_does_not_reach_it_by_its_name(client: Client) -> None:
    assert client.ask("GET", "/health", Host="rebound.example")[0] == 400
    assert client.ask("GET", "/health", Host="localhost:1")[0] == 200


def test_what_waits_goes_together_and_more_is_refused(client: Client) -> None:
    client.model.open.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.ask, "POST", "/detect", grey(100))
        assert client.model.asked.wait(600)
        rest = [pool.submit(client.ask, "POST", "/detect", grey(101 + i)) for i in range(7)]
        until(lambda: client.service.batcher._waiting.qsize() == 7)  # decoded, all of them
        status, headers, answer = client.ask("POST", "/detect", grey(1))
        assert (status, headers["Retry-After"]) == (429, "1")
        assert "too many images are waiting" in answer["error"]
        client.model.open.set()
        done = [one.result()[2]["detections"][0]["score"] for one in (first, *rest)]
    assert done == pytest.approx([(100 + i) / 255 for i in range(8)], abs=1e-5)
    assert client.model.batches == [1, 4, 3]
    text = client.ask("GET", "/metrics")[2]
    for line in ('{code="200"} 8', '{code="429"} 1'):
        assert f"detkit_requests_total{line}\n" in text
    for line in ("images_total 8", "batches_total 3", "waiting_images 0", 'request_seconds_bucket{le="+Inf"} 9'):
        assert f"detkit_{line}\n" in text


def until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.005)


def wait_for(client: Client, waiting: int) -> None:
    until(lambda: f"detkit_waiting_images {waiting}\n" in client.ask("GET", "/metrics")[2])


def test_images_of_which_one_fails_the_model(client: Client) -> None:
    client.model.open.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.ask, "POST", "/detect", grey(100))
        assert client.model.asked.wait(600)
        rest = [pool.submit(client.ask, "POST", "/detect", grey(value)) for value in (101, 255, 102)]
        until(lambda: client.service.batcher._waiting.qsize() == 3)
        client.model.open.set()
        assert first.result()[0] == 200
        assert [one.result()[0] for one in rest] == [200, 500, 200]
    assert "ZeroDivisionError" in rest[1].result()[2]["error"]


@pytest.mark.parametrize("client", [replace(BOUNDS, timeout=1)], indirect=True)
def test_a_request_has_its_time(client: Client) -> None:
    client.model.open.clear()
    status, _, answer = client.ask("POST", "/detect", grey(1))
    assert (status, answer["error"]) == (503, "no answer within 1 s")
    with socket.create_connection(("127.0.0.1", client.port), timeout=600) as slow:
        slow.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nhalf")
        assert slow.recv(12) == b"HTTP/1.1 503"
    client.model.open.set()
    client.service.bounds = BOUNDS  # a busy machine may need a second for this one
    assert client.ask("POST", "/detect", grey(204))[0] == 200
    wait_for(client, 0)


def test_a_client_that_leaves(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as one:
        one.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nhalf")
        wait_for(client, 1)
    wait_for(client, 0)
    assert client.ask("POST", "/detect", grey(204))[0] == 200


def test_pages(client: Client) -> None:
    status, headers, page = client.ask("GET", "/")
    assert (status, headers.get_content_type()) == (200, "text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http://" not in page
    assert "https://" not in page
    assert client.ask("GET", "/report")[2].endswith("<title>report</title>")
    health = client.ask("GET", "/health")[2]
    assert (health["model"], health["classes"], health["samples"]) == ("brightness", ["dark", "light"], ["photo.png"])


def test_where_it_listens() -> None:
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.0.7", "box")] == [
        *(True,) * 3,
        *(False,) * 3,
    ]
    with listening("127.0.0.1", 0) as door, pytest.raises(DetkitError, match=r"in use[\s\S]*another --port"):
        listening("127.0.0.1", door.getsockname()[1])
    with pytest.raises(DetkitError, match="no such host"):
        listening("no such host", 0)


def test_answers_wait_for_no_acknowledgement() -> None:
    with listening("127.0.0.1", 0) as door, socket.create_connection(door.getsockname()), door.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with pytest.raises(DetkitError, match="queue must be positive"):
        Bounds(queue=0)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_photo_dropped_in_a_browser(client: Client, tmp_path: Path) -> None:
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    words += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with open(tmp_path / "log", "w+") as log:
        browser = subprocess.Popen([*words, f"http://127.0.0.1:{client.port}/dropped#1"], stderr=log)
        try:
            seen = client.seen.get(timeout=600)
        finally:
            browser.terminate()
            browser.wait()
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "CONSOLE" in line] == []
    found = {"label": "light", "label_id": 1, "score": 0.78431, "box": [100, 75, 300, 225]}
    assert seen["json"] == {"source": "photo.png", "frame": None, "width": 400, "height": 300, "detections": [found]}
    assert (seen["edge"], seen["inside"], seen["unframed"]) == ([0, 194, 255], [200] * 3, [200] * 3)
    assert seen["above"] == seen["unticked"] == []
    assert seen["sample"] == seen["pasted"] == "photo.png"
    assert seen["camera"] == [True, "Camera"]


def test_the_verb_until_ctrl_c(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.api.load", lambda *_, **__: Brightness())
    answers, (read, write) = [], os.pipe()

    def ask() -> None:
        with open(read) as lines:
            said = lines.readline()
        try:
            answers.append(Client(int(json.loads(said)["url"].split(":")[2][:-1]), Brightness()).ask("GET", "/health"))
        finally:
            if said:  # else the server has ended
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with open(write, "w") as out, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            assert main(["serve", "--port", "0", "--json"]) == 130
    finally:
        thread.join()
    assert answers[0][2]["model"] == "detkit-nano"
    assert capfd.readouterr().err.splitlines()[-1] == "detkit: stopped [E002]"


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (["--port", "{busy}"], ["cannot listen: Address already in use", "127.0.0.1:{busy}", "another --port"]),
        (["--port", "70000"], ["--port"]),
        (["--host", "no such host"], ["no such host:8000", "--host 127.0.0.1"]),
        (["--host", "203.0.113.7"], ["cannot listen", "203.0.113.7:8000"]),
        (["--report", "nowhere.html"], ["no such page", "nowhere.html", "--report PAGE"]),
        (["--port", "0", "--model", "detkit-nano2"], ["detkit-nano2", "detkit-nano"]),
        (["--port", "0", "-m", "a", "-m", "b"], ["2 models without --ensemble"]),
        (["--timeout", "0"], ["timeout must be positive"]),
        (["--max-mb", "nan"], ["--max-mb"]),
        (["--max-pixels", "-1"], ["--max-pixels"]),
        (["--queue", "0"], ["--queue"]),
    ],
)
def test_mistakes_of_who_starts_it(words: list[str], needles: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as door:
        busy = str(door.getsockname()[1])
        assert main(["serve", *(word.replace("{busy}", busy) for word in words)]) == 2
    said = capsys.readouterr().err
    assert all(needle.replace("{busy}", busy) in said for needle in needles), said
    assert len(said.splitlines()) <= 5


def test_a_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.serving.NEEDS", ("no_such_server",))
    assert main(["serve"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "detkit: serving needs no-such-server [E007]",
        "  not installed",
        '  pip install "detkit[serve]"',
    ]
