"""detkit's kernels against the packages that people use today: the README's table.

``python tools/bench_peers.py --peer-python /path/to/venv/bin/python [ROW ...]`` where that environment holds any of
torchvision, pycocotools, faster-coco-eval, ultrafast-pycocotools, opencv-python-headless and scikit-learn (with numpy);
absent ones are named and left out. ``--yolov5 FILE`` names a checkout's utils/autoanchor.py, whose genetic search is
then the k-means' peer.

Each figure is the median of five rounds; in a round every candidate runs in a process of its own, warm, one after the
other, so whatever else the machine does falls on all alike. A peer that takes more than two seconds is timed in one
round only (``--full``: in all). Results are compared, not only times.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

Call = Callable[[], object]
SLOW = 2.0  # seconds
COCO = os.environ.get("DETKIT_BENCH_COCO", "")
YOLOV5 = os.environ.get("DETKIT_BENCH_YOLOV5", "")


class Row(NamedTuple):
    """kernel: the candidate and its argument; peers with the ratio wanted; how results must agree."""

    kernel: str
    size: int
    peers: dict[str, float]
    agree: str = "equal"


def _rows(images: int = 5000) -> dict[str, Row]:
    rows = {
        "iou-1000": Row("iou", 1000, {"torchvision": 40}),
        "iou-10000": Row("iou", 10000, {"torchvision": 7}),
    }
    for n, wanted, batched in ((1000, 6, 5), (8732, 18, 7), (100000, 45, 3)):
        rows[f"nms-{n}"] = Row("nms", n, {"torchvision": wanted})
        rows[f"batched-{n}"] = Row("batched", n, {"torchvision": batched}, "same set")
    # OpenCV rounds boxes to whole pixels, so its scores differ a little.
    rows["soft-linear"] = Row("soft-linear", 1000, {"opencv-python-headless": 3}, "")
    rows["soft-gaussian"] = Row("soft-gaussian", 1000, {"opencv-python-headless": 3}, "")
    files = {"pycocotools": 150.0, "faster-coco-eval": 30.0, "ultrafast-pycocotools": 1.3}
    rows["coco-files"] = Row("coco-files", images, files)
    rows["coco-arrays"] = Row("coco-arrays", images, {"ultrafast-pycocotools": 1.5})
    rows["kmeans"] = Row("kmeans", 36000, {"yolov5": 100, "scikit-learn": 0, "scipy": 0}, "average IoU")
    return rows


def clustered(n: int, seed: int = 0, size: float = 640.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32, scores, labels 0..79 as a detector gives them: four fifths lie in clusters."""
    rng = np.random.default_rng(seed)
    clusters, near = int(np.clip(n // 25, 3, 2000)), int(n * 0.8)
    of = rng.integers(0, clusters, near)
    sizes = np.exp(rng.normal(4, 0.8, (clusters, 2))).clip(4, size)
    centres = rng.uniform(0, size, (clusters, 2))[of] + rng.normal(0, 0.12, (near, 2)) * sizes[of]
    sizes = sizes[of] * np.exp(rng.normal(0, 0.12, (near, 2)))
    scores = (rng.uniform(0.05, 0.95, clusters)[of] * rng.beta(4, 2, near)).clip(0.001, 1)
    labels = rng.integers(0, 80, clusters)[of]
    rest = n - near
    centres = np.concatenate([centres, rng.uniform(0, size, (rest, 2))])
    sizes = np.concatenate([sizes, np.exp(rng.normal(3.5, 1, (rest, 2))).clip(2, size)])
    scores = np.concatenate([scores, rng.beta(1, 12, rest)])
    labels = np.concatenate([labels, rng.integers(0, 80, rest)])
    mixed = rng.permutation(n)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).clip(0, size)[mixed]
    return boxes.astype(np.float32), scores[mixed].astype(np.float32), labels[mixed].astype(np.int64)


def spread(n: int, seed: int) -> np.ndarray:
    """(n, 4) float32 boxes of all sizes, anywhere."""
    rng = np.random.default_rng(seed)
    centres, sizes = rng.uniform(0, 640, (n, 2)), np.exp(rng.normal(4, 1, (n, 2)))
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(np.float32)


def sizes(n: int) -> np.ndarray:
    """(n, 2) widths and heights as in a data set."""
    rng = np.random.default_rng(3)
    side, aspect = np.exp(rng.normal(4.0, 1.05, n)), np.exp(rng.normal(0, 0.45, n))
    return np.stack([side * aspect, side / aspect], 1).clip(2, 640)


def write_coco(folder: Path, images: int) -> None:
    """A ground truth of about seven objects an image, with polygons, and 100 detections an image, two json files."""
    rng = np.random.default_rng(7)
    popular = 1 / np.arange(1, 81) ** 0.9
    popular /= popular.sum()
    ids = np.sort(rng.choice(581929, images, replace=False) + 1).tolist()
    objects, found = [], []
    for image in ids:
        count = min(60, int(rng.gamma(1.1, 6.7)))
        kinds = rng.choice(80, int(rng.poisson(2)) + 1, p=popular)
        of = rng.choice(kinds, count)
        wh = np.exp(rng.normal(4, 1, (count, 2))).clip(5, 450)
        xywh = np.concatenate([rng.random((count, 2)) * (480 - wh), wh], 1).round(2)
        for c, box in zip(of.tolist(), xywh.tolist(), strict=True):
            polygon = (np.tile(box[:2], 14) + rng.random(28) * np.tile(box[2:], 14)).round(2).tolist()
            area = round(box[2] * box[3] * float(rng.uniform(0.4, 0.9)), 4)
            crowd = int(rng.random() < 0.012)
            objects.append({"segmentation": [polygon], "area": area, "iscrowd": crowd, "image_id": image, "bbox": box,
                            "category_id": c + 1, "id": len(objects) + 1000})  # fmt: skip
        source = rng.integers(0, count, 40) if count else np.zeros(0, np.int64)
        moved = xywh[source] + rng.normal(0, 0.12, (len(source), 4)) * np.tile(xywh[source, 2:], 2)
        rest = 100 - len(source)
        stray = np.concatenate([rng.uniform(0, 400, (rest, 2)), np.exp(rng.normal(3.8, 1, (rest, 2))).clip(3, 400)], 1)
        boxes = np.concatenate([moved, stray])
        boxes[:, 2:] = boxes[:, 2:].clip(1)
        labels = np.concatenate([of[source], rng.choice(80, rest, p=popular)])
        scores = np.concatenate([rng.beta(2, 2, len(source)), rng.beta(1, 12, rest)]).round(5)
        for c, box, score in zip(labels.tolist(), boxes.round(3).tolist(), scores.tolist(), strict=True):
            found.append({"image_id": image, "category_id": c + 1, "bbox": box, "score": score})
    pictures = [{"id": i, "width": 480, "height": 480, "file_name": f"{i:012d}.jpg"} for i in ids]
    classes = [{"id": c + 1, "name": f"c{c}", "supercategory": "s"} for c in range(80)]
    truth = {"info": {}, "images": pictures, "annotations": objects, "categories": classes}
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "dt.json").write_text(json.dumps(found))


def own(kernel: str, n: int) -> Call:
    """detkit's call."""
    from detkit import ops

    if kernel == "iou":
        a, b = spread(n, 0), spread(1000, 1)
        return lambda: ops.iou(a, b)
    if kernel == "kmeans":
        wh = sizes(n)
        return lambda: ops.kmeans_anchors(wh, 9)
    if kernel.startswith("coco"):
        from detkit.data.dataset import read
        from detkit.io.detections import read_detections
        from detkit.metrics import evaluate_results

        def tables() -> tuple:
            annotations = read(f"{COCO}/gt.json")
            return annotations.ground_truth(), read_detections(f"{COCO}/dt.json", annotations)[0]

        if kernel == "coco-files":
            return lambda: list(evaluate_results(*tables()).metrics.values())
        gt, dt = tables()
        return lambda: list(evaluate_results(gt, dt).metrics.values())
    boxes, scores, labels = clustered(n)
    if kernel == "nms":
        return lambda: ops.nms(boxes, scores, 0.5)
    if kernel == "batched":
        return lambda: ops.batched_nms(boxes, scores, labels, 0.5)
    method = kernel.removeprefix("soft-")
    return lambda: ops.soft_nms(boxes, scores, method=method)[1]


def torchvision(kernel: str, n: int) -> Call:
    import torch
    from torchvision import ops

    if kernel == "iou":
        a, b = (torch.from_numpy(spread(m, seed)) for m, seed in ((n, 0), (1000, 1)))
        return lambda: ops.box_iou(a, b)
    boxes, scores, labels = (torch.from_numpy(v) for v in clustered(n))
    if kernel == "nms":
        return lambda: ops.nms(boxes, scores, 0.5)
    return lambda: ops.batched_nms(boxes, scores, labels, 0.5)


def opencv(kernel: str, n: int) -> Call:
    import cv2

    boxes, scores, _ = clustered(n)
    whole = [(int(x), int(y), int(x2 - x), int(y2 - y)) for x, y, x2, y2 in boxes.tolist()]
    methods = {"soft-linear": "SOFT_NMSMETHOD_SOFTNMS_LINEAR", "soft-gaussian": "SOFT_NMSMETHOD_SOFTNMS_GAUSSIAN"}
    method, listed = getattr(cv2.dnn, methods[kernel]), scores.tolist()
    return lambda: cv2.dnn.softNMSBoxes(whole, listed, 0.001, 0.5, 0, 0.5, method)[0]


def cocotools(module: str, evaluator: str) -> Callable[[str, int], Call]:
    """pycocotools and what has its interface."""

    def make(kernel: str, n: int) -> Call:
        if module == "pycocotools":
            from pycocotools.coco import COCO as Data
            from pycocotools.cocoeval import COCOeval as Eval
        else:
            package = importlib.import_module(module)
            Data, Eval = package.COCO, getattr(package, evaluator)

        def load() -> tuple:
            gt = Data(f"{COCO}/gt.json")
            return gt, gt.loadRes(f"{COCO}/dt.json")

        def score(gt: object, dt: object) -> list[float]:
            run = Eval(gt, dt, "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
            return [float(v) for v in run.stats[:12]]

        if kernel == "coco-files":
            return lambda: score(*load())
        loaded = load()
        return lambda: score(*loaded)

    return make


def scikit_learn(kernel: str, n: int) -> Call:
    from sklearn.cluster import KMeans

    wh = sizes(n)
    return lambda: KMeans(9, n_init=1, random_state=0).fit(wh).cluster_centers_


def scipy(kernel: str, n: int) -> Call:
    from scipy.cluster.vq import kmeans

    wh = sizes(n)
    deviation = wh.std(0)
    return lambda: kmeans(wh / deviation, 9, iter=30, rng=0)[0] * deviation


def yolov5(kernel: str, n: int) -> Call:
    """The genetic search of a checkout; what it imports from the rest of that package is stood in for."""
    import logging

    general = types.ModuleType("general")
    general.LOGGER = logging.getLogger("autoanchor")
    general.colorstr = lambda *words: words[-1]
    general.NCOLS, general.TQDM_BAR_FORMAT = 80, ""
    quiet = type("Quiet", (), {"__init__": lambda self, it, **_: setattr(self, "it", it),
                               "__iter__": lambda self: iter(self.it)})  # fmt: skip
    general.TQDM = quiet
    utils = types.ModuleType("utils")
    utils.TryExcept = lambda *_, **__: lambda function: function
    for package in ("", "yolov5."):
        sys.modules |= {f"{package}utils": utils, f"{package}utils.general": general}
    sys.modules["yolov5"] = types.ModuleType("yolov5")
    spec = importlib.util.spec_from_file_location("autoanchor", YOLOV5)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "tqdm"):
        module.tqdm = quiet
    wh = sizes(n)
    labels = [np.concatenate([np.zeros((n, 3)), wh / 640], 1)]
    data = types.SimpleNamespace(shapes=np.array([[640.0, 640.0]]), labels=labels)

    def call() -> object:
        np.random.seed(0)  # noqa: NPY002 (that code draws from the global generator)
        return module.kmean_anchors(data, 9, 640, gen=1000, verbose=False)

    return call


PEERS: dict[str, Callable[[str, int], Call]] = {
    "detkit": own,
    "torchvision": torchvision,
    "opencv-python-headless": opencv,
    "pycocotools": cocotools("pycocotools", ""),
    "faster-coco-eval": cocotools("faster_coco_eval", "COCOeval_faster"),
    "ultrafast-pycocotools": cocotools("ultrafast_pycocotools", "COCOeval"),
    "scikit-learn": scikit_learn,
    "scipy": scipy,
    "yolov5": yolov5,
}


def worker(name: str, kernel: str, n: int, out: str) -> None:
    """Times one candidate, warm, and saves its result; prints seconds of wall clock and of CPU, and the version."""
    with contextlib.redirect_stdout(io.StringIO()):
        call = PEERS[name](kernel, n)
        clocks, result = _timed(call, 1)
        if name == "detkit" or clocks[0] < SLOW:
            clocks, result = _timed(call, 1)
            calls = max(1, min(500, int(0.05 / max(clocks[0], 1e-7))))
            runs = [_timed(call, calls)[0] for _ in range(5 if clocks[0] < 0.3 else 1)]
            clocks = tuple(statistics.median(run[i] for run in runs) for i in range(2))
    np.save(out, np.asarray(result))
    version = "" if name in ("detkit", "yolov5") else importlib.metadata.version(name)
    print(json.dumps([*clocks, version]))


def _timed(call: Call, times: int) -> tuple[tuple[float, ...], object]:
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        result = call()
    return ((time.perf_counter() - start) / times, (time.process_time() - cpu) / times), result


def compare(title: str, row: Row, options: argparse.Namespace, folder: Path) -> list[str]:
    """Runs the rounds of one row; the table's lines."""
    peers = [name for name in row.peers if name not in options.absent]
    clocks: dict[str, list[list[float]]] = {name: [] for name in (*peers, "detkit")}
    versions: dict[str, str] = {}
    for number in range(options.rounds):
        for name in (*peers, "detkit"):
            if number and clocks[name] and clocks[name][0][0] > SLOW and not options.full:
                continue
            python = sys.executable if name == "detkit" else options.peer_python
            command = [python, __file__, "--worker", name, row.kernel, str(row.size), str(folder / f"{name}.npy")]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                options.absent.add(name)
                print(f"{title}: {name} left out: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            *times, versions[name] = json.loads(run.stdout.splitlines()[-1])
            clocks[name].append(times)
    mine = clocks["detkit"]
    lines = []
    for name in peers:
        if not clocks[name] or not mine:
            continue
        ratios = [statistics.median(p[i] / o[i] for p, o in zip(clocks[name], mine, strict=False)) for i in (0, 1)]
        seconds = [statistics.median(run[0] for run in clocks[who]) for who in (name, "detkit")]
        agreed = _agreement(row, *(np.load(folder / f"{who}.npy") for who in (name, "detkit")))
        goal = row.peers[name]
        verdict = "" if not goal else f" (goal {goal:g}{'' if ratios[0] >= goal else ', MISSED'})"
        lines.append(
            f"| {title} | {name} {versions[name]} | {seconds[0] * 1e3:.3g} ms | {seconds[1] * 1e3:.3g} ms |"
            f" {ratios[0]:.3g}x{verdict} | {ratios[1]:.3g}x | {agreed} |"
        )
    return lines


def _agreement(row: Row, theirs: np.ndarray, mine: np.ndarray) -> str:
    if row.agree == "average IoU":
        a, b = (_average_iou(sizes(row.size), anchors) for anchors in (theirs, mine))
        return f"average IoU {b:.4f}, theirs {a:.4f}"
    if not row.agree:
        return f"{len(mine)} kept, theirs {len(theirs)}"
    if np.array_equal(theirs, mine, equal_nan=row.kernel == "iou"):
        return "equal"
    if row.agree == "same set" and np.array_equal(np.sort(theirs), np.sort(mine)):
        return "same set"
    return f"differs by {np.abs(theirs - mine).max():.1g}" if theirs.shape == mine.shape else "DIFFERS"


def _average_iou(wh: np.ndarray, anchors: np.ndarray) -> float:
    shared = np.minimum(wh[:, None], anchors[None]).prod(2)
    return float((shared / (wh.prod(1)[:, None] + anchors.prod(1) - shared)).max(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(_rows())}")
    parser.add_argument("--peer-python", default=sys.executable, help="Python of the environment that holds the peers")
    parser.add_argument("--yolov5", default="", help="a checkout's utils/autoanchor.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=5000, help="of the COCO rows, 100 detections each (goals: 5000)")
    parser.add_argument("--keep", default="", metavar="FOLDER", help="write the COCO rows' gt.json and dt.json here")
    parser.add_argument("--full", action="store_true", help="all rounds of slow calls too")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, kernel, size, out = options.worker
        worker(name, kernel, int(size), out)
        return
    rows = _rows(options.images)
    if unknown := set(options.rows) - set(rows):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    options.absent = set() if options.yolov5 else {"yolov5"}
    os.environ["DETKIT_BENCH_YOLOV5"] = options.yolov5
    print("| kernel | peer | its time | detkit's | faster | in CPU time | result |\n|---|---|---|---|---|---|---|")
    with contextlib.nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["DETKIT_BENCH_COCO"] = name
        chosen = options.rows or list(rows)
        if any(title.startswith("coco") for title in chosen):
            write_coco(folder, options.images)
        for title in chosen:
            for line in compare(title, rows[title], options, folder):
                print(line, flush=True)


if __name__ == "__main__":
    main()
