"""detect --shards: whatever is killed, missing or wrong, the rows are those of one process that nothing happened to."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest

from detkit import sharding
from detkit.cli import main
from detkit.cli.options import Answers
from detkit.errors import DetkitError
from detkit.io.images import write_image
from detkit.io.shards import MANIFEST, Shards
from detkit.sharding import Job, detect_shards

pq = pytest.importorskip("pyarrow.parquet")

# What a worker's process imports. An image's grey is its number; ``trouble`` happens to the one of that number.
HELPER = """
import os, signal, time
from pathlib import Path
from detkit.predictor import Predictor
from detkit.structures import Detections

class Greys(Predictor):
    classes = ("cat", "dog")

    def __init__(self, folder, trouble=None, at=-1, once=True):
        self.folder, self.trouble, self.at, self.once = Path(folder), trouble, at, once

    def predict_samples(self, samples, limits):
        return [self.found(int(sample.image[0, 0, 0])) for sample in samples]

    def found(self, grey):
        try:  # of two processes that come at once one is the first
            (self.folder / f"{grey}-first").touch(exist_ok=False)
            first = True
        except FileExistsError:
            (self.folder / f"{grey}-{os.getpid()}-{time.monotonic_ns()}").touch()
            first = False
        if grey == self.at and (first or not self.once):
            if self.trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        count = grey % 3
        return Detections([[0, 0, 1 + grey % 7, 2]] * count, [0.5] * count, [grey % 2] * count, self.classes)
"""
COUNT = 23


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images 0.png to 22.png, of which 5 is cut off."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greys.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "seen").mkdir()
    for i in range(COUNT):
        write_image(tmp_path / "photos" / f"{i:02d}.png", np.full((8, 10, 3), i, np.uint8))
    cut = tmp_path / "photos" / "05.png"
    cut.write_bytes(cut.read_bytes()[:40])
    return tmp_path / "photos"


def run(out: str | Path, sources: str | Path = "photos", trouble: str | None = None, **how: Any) -> dict[str, Any]:
    from greys import Greys  # type: ignore[import-not-found]

    load = partial(Greys, "seen", trouble, how.pop("at", -1), how.pop("once", True))
    names, settings = [str(sources)], how.pop("settings", {"conf": 0.25})
    return dict(detect_shards(names, Job(out=str(out), load=load), names=names, settings=settings, size=4, **how).facts)


def rows(out: str | Path) -> list[dict[str, Any]]:
    return list(Shards(str(out)).rows())


def said(error: pytest.ExceptionInfo[DetkitError]) -> str:
    return str(error.value)


def test_the_rows_are_those_of_detect_json(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from greys import Greys

    monkeypatch.setattr(Answers, "predictor", lambda *_, **__: Greys("seen"))
    assert main(["detect", "photos", "--json"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["detect", "photos", "--shards", "out", "--shard-size", "4", "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["shards"], facts["images"], facts["failed"]) == (6, COUNT, 1)
    got = rows("out")
    assert [row["source"] for row in got] == [f"photos/{i:02d}.png" for i in range(COUNT)]
    assert [row["error"] for row in got if row["error"]] == [got[5]["error"]]
    assert "cut off" in got[5]["error"]
    assert got[5]["detections"] == []
    assert got[5]["width"] is None
    for row in got:
        row["frame"] = None
        for found in row["detections"]:
            assert found.pop("points") is None
    assert [{key: row[key] for key in lines[0]} for row in got if not row["error"]] == lines
    assert pq.read_table("out/shard-00000.parquet").num_rows == 4
    assert pq.read_table("out").to_pylist() == rows("out"), "the manifest is none of a data set's files"
    assert main(["detect", "photos", "--shards", "out"]) == 0
    assert "0 of 6 shards made now, 6 were there" in capsys.readouterr().out
    for more, name in ((["--slice", "auto"], "slice"), (["--conf", "0.5"], "conf")):
        assert main(["detect", "photos", "--shards", "out", *more]) == 2
        assert f"made with {name} default, not {more[1]}" in capsys.readouterr().err
    write_image(photos / "more.png", np.full((8, 10, 3), 2, np.uint8))
    assert main(["detect", "photos", "--shards", "out", "--json"]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["new"] == 1
    assert "1 image came (left out) and 0 went" in shown.err


def test_parts_and_processes_make_the_same_rows(photos: Path) -> None:
    run("one")
    left = [run("parts", part=(k, 4))["left"] for k in (3, 1, 2, 4)]
    assert left == [5, 3, 1, 0]
    run("processes", workers=2)
    assert rows("one") == rows("parts") == rows("processes")
    assert not list(Path("processes").glob("*.partial"))


def test_a_rerun_makes_what_is_missing_or_damaged(photos: Path) -> None:
    run("out")
    whole, told = rows("out"), []
    Path("out/shard-00001.parquet").unlink()
    half = Path("out/shard-00003.parquet")
    half.write_bytes(half.read_bytes()[:300])
    with pytest.raises(DetkitError, match="2 of 6 shards are missing"):
        rows("out")
    kept = Path("out/shard-00002.parquet").stat().st_mtime_ns
    assert run("out", tell=told.append)["made"] == 2
    assert [text for text in told if "not whole" in text] == ["out/shard-00003.parquet is not whole: it is made again"]
    assert rows("out") == whole
    assert Path("out/shard-00002.parquet").stat().st_mtime_ns == kept


def test_other_sources_settings_and_shards_are_refused(photos: Path) -> None:
    run("out")
    with pytest.raises(DetkitError, match="holds the detections of photos"):
        run("out", "photos/*.png")
    with pytest.raises(DetkitError, match=r"conf 0\.25, not 0\.5"):
        run("out", settings={"conf": 0.5})
    run("other", settings={"conf": 0.5})
    os.replace("other/shard-00002.parquet", "out/shard-00002.parquet")
    with pytest.raises(DetkitError, match="this shard is of another run"):
        run("out")
    Path("out", MANIFEST).write_bytes(b"PAR1 and no more")
    with pytest.raises(DetkitError, match="this Parquet file is damaged"):
        run("out")


def test_images_that_come_or_go_after_the_manifest_are_said(photos: Path) -> None:
    run("out", part=(1, 2))
    (photos / "22.png").rename(photos / "new.png")
    (photos / "new.txt").touch()
    told: list[str] = []
    facts = run("out", tell=told.append)
    assert (facts["new"], facts["gone"], facts["made"], facts["there"], facts["failed"]) == (1, 1, 3, 3, 2)
    assert "out: since its list was made 1 image came (left out) and 1 went" in told[0]
    assert run("out", part=(2, 2))["new"] == 0, "only the first part looks"
    store = fsspec.filesystem("memory")
    store.put("out", "/kept", recursive=True)
    for out in ("out", "memory://kept"):
        assert run(out, overwrite=True)["made"] == 6
        assert rows(out)[-1]["source"] == "photos/new.png"
        assert (run(out)["new"], run(out)["gone"]) == (0, 0)
    store.rm("/", recursive=True)
    for file in photos.iterdir():
        file.rename(file.with_name(f"other-{file.name}"))
    with pytest.raises(DetkitError, match="not one image of this folder's list is there"):
        run("out")
    for i in range(10):
        (photos / f"other-{i:02d}.png").unlink()
    run("out", overwrite=True)
    assert len(list(Path("out").glob("shard-*"))) == 4


def test_starting_over_touches_only_what_it_made(photos: Path) -> None:
    Path("out").mkdir()
    own = Path("out/shard-00099.parquet")
    own.touch()
    run("out", overwrite=True)
    assert own.exists(), "there was no manifest beside it"
    Path("out/mine.parquet").touch()
    run("out", overwrite=True)
    assert Path("out/mine.parquet").exists()
    with pytest.raises(DetkitError, match="for all parts together"):
        run("out", overwrite=True, part=(1, 2))


def test_an_output_that_cannot_be_a_folder(photos: Path) -> None:
    for out, what in (
        ("greys.py", "a file stands"),
        ("greys.py/out", "a file stands"),
        ("/proc/out", "cannot be written"),
    ):
        with pytest.raises(DetkitError, match=what) as error:
            run(out)
        assert error.value.number


def test_files_that_change_after_the_manifest_are_said(photos: Path) -> None:
    run("out")
    Path("out/shard-00000.parquet").unlink()
    write_image(photos / "01.png", np.full((50, 90, 3), 9, np.uint8), overwrite=True)
    (photos / "02.png").unlink()
    assert run("out")["failed"] == 2
    errors = [row["error"] for row in rows("out")[:3]]
    assert errors[0] is None
    assert "has changed since the manifest was made" in errors[1]
    assert errors[2] == "no such file"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_machine_that_does_not_see_the_images_stops(photos: Path, workers: int) -> None:
    run("out", part=(1, 2))
    Path("out/shard-00002.parquet").unlink()
    photos.rename("elsewhere")
    photos.mkdir()  # where the disk is mounted as a rule
    with pytest.raises(
        DetkitError, match="not one image of a shard can be read on this machine: no such file"
    ) as error:
        run("out", part=(2, 2), workers=workers)
    assert error.value.code == 4
    assert f"{platform.node()}: " in error.value.where
    assert "is their disk mounted here" in error.value.do
    assert not list(Path("out").glob("shard-0000[135].parquet"))


@pytest.mark.parametrize(("start", "workers"), [("memory:///photos", 1), ("file://photos", 1), ("file://photos", 2)])
def test_a_store_that_does_not_have_the_images_stops(
    photos: Path, start: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = start.replace("file://", f"file://{photos.parent}/")
    store, folder = fsspec.core.url_to_fs(source)
    for file in photos.iterdir() if folder == "/photos" else ():
        store.pipe_file(f"{folder}/{file.name}", file.read_bytes())
    run("out", source, part=(1, 2))
    for i in range(4, 8):
        store.rm(f"{folder}/{i:02d}.png")
    assert run("out", source, part=(2, 2), workers=workers)["failed"] == 4
    assert {row["error"] for row in rows("out")[4:8]} == {"no such file"}, "of a folder in which others lie"
    Path("out/shard-00003.parquet").unlink()
    store.mv(folder, f"{folder}-elsewhere", recursive=True)
    store.makedirs(folder, exist_ok=True)
    what = "not one image of a shard can be read on this machine: no such file"
    with pytest.raises(DetkitError, match=what) as error:
        run("out", source, part=(2, 2), workers=workers)
    assert error.value.code == 4
    assert f"{source}/12.png and all others of shard 3" in error.value.where
    if workers == 1:
        real = type(store).ls

        def refuse(own: Any, path: str, *how: Any, **more: Any) -> Any:
            if str(path) == folder:
                raise PermissionError("key AKIA-SECRET")
            return real(own, path, *how, **more)

        with monkeypatch.context() as patched:
            patched.setattr(type(store), "ls", refuse)
            with pytest.raises(DetkitError, match="the store refuses access") as error:
                run("out", source, part=(2, 2))
        assert error.value.code == 4
        assert "SECRET" not in said(error)
    assert not Path("out/shard-00003.parquet").exists()
    store.rm(f"{folder}-elsewhere", recursive=True)


def test_images_that_were_removed_are_rows(photos: Path) -> None:
    run("out", part=(1, 2))
    for i in range(4, 8):
        (photos / f"{i:02d}.png").unlink()
    assert run("out", part=(2, 2))["failed"] == 4
    assert {row["error"] for row in rows("out")[4:8]} == {"no such file"}


@pytest.mark.parametrize(("trouble", "once"), [("dies", True), ("sleeps", True), ("dies", False)])
def test_a_worker_that_dies_or_hangs_costs_nothing(
    photos: Path, trouble: str, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("one")
    for file in Path("seen").iterdir():
        file.unlink()
    # What dies is made again at once; that its new process is slow to start would have it made a third time.
    monkeypatch.setattr(sharding, "_SLOW", 20.0 if trouble == "sleeps" else float("inf"))
    make: Callable[[], dict[str, Any]] = partial(run, "out", trouble=trouble, at=9, once=once, workers=2)
    if once:
        make()
        assert len(list(Path("seen").glob("9-*"))) == 2
    else:
        with pytest.raises(DetkitError, match="3 times, in 1 shard") as error:
            make()
        assert "shard-00002.parquet" in said(error)
        assert error.value.code == 4
        assert run("out")["made"] == 1
    assert rows("out") == rows("one")


def test_a_driver_that_is_killed_loses_only_what_was_under_way(photos: Path) -> None:
    call = "import test_run; test_run.go()"
    Path("test_run.py").write_text(
        "from functools import partial\nfrom greys import Greys\nfrom detkit.sharding import Job, detect_shards\n"
        "def go():\n"
        "    job = Job(out='out', load=partial(Greys, 'seen', 'sleeps', 13, once=False))\n"  # the second try, too
        "    detect_shards(['photos'], job, names=['photos'], settings={'conf': 0.25}, size=4, workers=2)\n"
    )
    path = os.pathsep.join([str(Path(sharding.__file__).parents[1]), os.getcwd()])
    driver = subprocess.Popen([sys.executable, "-c", call], env=os.environ | {"PYTHONPATH": path})
    while len(list(Path("out").glob("shard-*"))) < 4:
        assert driver.poll() is None
        time.sleep(0.01)
    with pytest.raises(DetkitError, match="another run is at work"):
        run("out")
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not psutil.wait_procs(children, timeout=600)[1], "they end with their parent"
    made = {path: path.stat().st_mtime_ns for path in Path("out").glob("shard-*")}
    assert run("out")["made"] == 6 - len(made)
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    run("one")
    assert rows("out") == rows("one")


def test_what_killed_processes_left_half_written_is_swept(photos: Path) -> None:
    run("out", part=(1, 2))
    left = {
        name: Path("out", f".{name}.parquet.ab12cd34.partial") for name in ("shard-00002", "shard-00003", "manifest")
    }
    for file in left.values():
        file.touch()
    run("out", part=(1, 2))
    assert [name for name, file in left.items() if file.exists()] == ["shard-00003", "manifest"], "another part's"
    run("out")
    assert not list(Path("out").glob(".*.partial"))


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with sharding._alone(tmp_path, (2, 3)):
        for part in ((2, 3), (1, 1), (1, 2)):
            with pytest.raises(DetkitError, match="another run is at work"), sharding._alone(tmp_path, part):
                pass
        with sharding._alone(tmp_path, (1, 3)):
            pass
    for file in tmp_path.glob(".part-*"):
        os.utime(file, (4e9, 4e9))  # a clock that is wrong
    with sharding._alone(tmp_path, (1, 1)):
        pass


def test_addresses_are_read_and_written(photos: Path) -> None:
    run("one", "photos/*.png")
    store = fsspec.filesystem("memory")
    for file in photos.iterdir():
        store.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    store.pipe_file("/bucket/readme.txt", b"no image")
    for source in ("memory://bucket/*.png", "memory://bucket", f"file://{photos}"):
        out = f"memory://out-{len(source)}"
        run(out, source)
        got = rows(out)
        assert got[1]["source"].startswith(source[:9])
        for row in got:
            row["source"] = f"photos/{row['source'].rpartition('/')[2]}"
        assert got == rows("one")
    store.rm("/", recursive=True)


class Refusal(Exception):
    pass


class NoCredentials(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (PermissionError("key AKIA-SECRET"), "the store refuses access"),
        (Refusal("token AKIA-SECRET"), r"the store cannot be reached \(Refusal\)"),
        (NoCredentials("token AKIA-SECRET"), "credentials are missing"),
        (OSError(28, "No space left on device"), "no room left"),
    ],
)
@pytest.mark.parametrize("method", ["ls", "cat_file", "_open"])
def test_a_store_that_fails_stops_the_run_and_keeps_secrets(
    photos: Path, error: Exception, what: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/a.png", (photos / "00.png").read_bytes())

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(store), method, fail)
    with pytest.raises(DetkitError, match=what) as shown:
        run("memory://out" if method == "_open" else "out", "memory://bucket")
    monkeypatch.undo()
    assert shown.value.code == 4
    assert "SECRET" not in said(shown)
    assert shown.value.__cause__ is None
    assert not list(Path().glob("out/shard-*"))
    store.rm("/", recursive=True)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("nothing/*.jpg", "no file matches"),
        ("nothing.jpg", "no such file"),
        ("memory://nothing", "no such file"),
        ("memory://nothing/*.png", "no image lies there"),
        ("nosuch://a/b", "no such kind of address"),
        ("sftp://me:secret@host/a", "a password or a user stands in the address"),
        ("zip://a.png::memory://b.zip", "chained addresses"),
        ("0", "only image files"),
        ("rtsp://host/a", "only image files"),
    ],
)
def test_sources_that_are_no_images(photos: Path, source: str, what: str) -> None:
    with pytest.raises(DetkitError, match=what) as error:
        run("out", source)
    assert "secret" not in said(error)
    assert not Path("out", MANIFEST).exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--shards", "o", "--out", "a.csv"], "shards are the output"),
        (["--shards", "o", "--part", "9/8"], "a part is K/N"),
        (["--shards", "o", "--part", "0/8"], "a part is K/N"),
        (["--shards", "o", "--workers", "many"], "workers are a number or ray"),
        (["--workers", "2"], "this says how shards are made"),
    ],
)
def test_options_that_do_not_fit(photos: Path, words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "photos", *words]) == 2
    assert what in capsys.readouterr().err


def test_a_list_of_nothing_is_no_finished_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("names.txt").write_text("\n")
    assert main(["detect", "--list", "names.txt", "--shards", "out"]) == 2
    assert "no image was found" in capsys.readouterr().err
    assert not Path("out", MANIFEST).exists()


def test_evaluate_reads_shards(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("out")
    images = [{"id": i, "file_name": f"{i:02d}.png", "width": 10, "height": 8} for i in range(COUNT)]
    boxes = [{"id": i + 1, "image_id": i, "category_id": i % 2, "bbox": [0, 0, 1 + i % 7, 2]} for i in range(COUNT)]
    kinds = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    labels = {"images": images, "annotations": [{**b, "area": 4, "iscrowd": 0} for b in boxes], "categories": kinds}
    Path("labels.json").write_text(json.dumps(labels))
    lines = [{key: row[key] for key in row if key != "error"} for row in rows("out") if row["error"] is None]
    Path("lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = []
    store = fsspec.filesystem("memory")
    store.put("out", "/bucket/out", recursive=True)
    for predictions in ("out", "memory://bucket/out", "lines.jsonl"):
        words = ["evaluate", "--predictions", predictions, "labels.json", "--images", "photos", "--json"]
        assert main(words) == 0
        shown = capsys.readouterr()
        results.append(json.loads(shown.out)["metrics"])
        assert ("images that could not be read when they were detected on: photos/05.png" in shown.err) == (
            predictions != "lines.jsonl"
        )
    assert results[0] == results[1] == results[2]
    assert main(["evaluate", "--predictions", "memory://bucket/none", "labels.json", "--images", "photos"]) == 2
    assert "memory://bucket/none" in capsys.readouterr().err
    for predictions in ("out", "memory://bucket/out"):
        words = ["label", "labels.json", "--images", "photos", "--predictions", predictions, "--json", "--overwrite"]
        assert main(words) == 0
        results.append(json.loads(capsys.readouterr().out)["per_class"])
    assert results[-1] == results[-2]
    store.rm("/", recursive=True)
    Path("out/shard-00004.parquet").unlink()
    assert main(["evaluate", "--predictions", "out", "labels.json", "--images", "photos"]) == 2
    assert "1 of 6 shards are missing" in capsys.readouterr().err


def test_ray_makes_the_same_rows(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    run("one")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(sharding.__file__).parents[1]), os.getcwd()]))
    try:
        assert run("out", workers="ray")["made"] == 6
    finally:
        ray.shutdown()
    assert rows("out") == rows("one")


def test_a_ray_that_is_not_there(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse))
    with pytest.raises(DetkitError, match="Ray cannot be reached") as error:
        run("out", workers="ray://head:10001")
    assert (error.value.where, error.value.code) == ("ray://head:10001", 4)


def test_an_object_store(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    run("one")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "SECRET", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    store = fsspec.filesystem("s3")
    store.mkdir("bucket")
    store.put(f"{photos}/", "bucket/photos/", recursive=True)
    try:
        for k in (1, 2):
            run("s3://bucket/found", "s3://bucket/photos/*.png", part=(k, 2))
        assert run("s3://bucket/found", "s3://bucket/photos/*.png")["made"] == 0
        got = rows("s3://bucket/found")
        assert got[3]["source"] == "s3://bucket/photos/03.png"
        assert [row["detections"] for row in got] == [row["detections"] for row in rows("one")]
        with pytest.raises(DetkitError, match=r"no such file|no image lies there"):
            run("out", "s3://nobucket/*.png")
        with pytest.raises(DetkitError, match="there is no such bucket"):
            run("s3://nobucket/found", "s3://bucket/photos")
        assert not store.exists("nobucket")
    finally:
        server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DetkitError, match="the store cannot be reached") as error:
        run("out", "s3://bucket/photos")
    assert "SECRET" not in said(error)


def test_a_simulated_cluster_loses_only_what_was_under_way() -> None:
    place = Path(__file__).parents[1] / "tools" / "simulate_shards.py"
    spec = spec_from_file_location("simulate_shards", place)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["simulate_shards"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    tails: dict[str, list[float]] = {"parts": [], "queue": [], "re-issue": []}
    for seed in range(3):
        for policy in tails:
            one = module.simulate(1000, 100, 5.0, seed, policy)
            assert set(one.finished) == set(range(1000))
            assert one.started == one.finished.total() + one.deaths + one.under_way
            tails[policy].append(one.tail / one.usual)
    assert max(tails["re-issue"]) < sharding._SLOW + 2, "a late shard is made again by a worker that is not slow"
    assert max(tails["queue"]) > max(tails["re-issue"]), "without that the slowest worker is waited for"
