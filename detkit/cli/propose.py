"""``detkit propose``: candidate boxes of images, and which of a data set's objects they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from detkit.cli import options
from detkit.cli.common import message, print_json, progress
from detkit.errors import DetkitError

if TYPE_CHECKING:
    import numpy as np

METHODS = SEARCH, WINDOWS, RPN = "selective-search", "sliding-window", "rpn"
# Options that say nothing to the other methods; and without --recall.
OF_METHOD = {
    SEARCH: ("plan", "seed", "cache"),
    WINDOWS: ("windows", "aspects", "stride", "seed"),
    RPN: ("model", "device"),
}
OF_RECALL = ("limit", "cache", "split", "images")
Source: TypeAlias = "Callable[[np.ndarray, str], np.ndarray]"


def propose(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="IMAGE|DATA", help="An image, or labelled data with --recall.")],
    method: Annotated[str, typer.Option("--method", help=f"{', '.join(METHODS)}.")] = SEARCH,
    plan: Annotated[str, typer.Option("--plan", help="Of selective search: fast or quality.")] = "fast",
    windows: Annotated[str, typer.Option("--windows", help="Window sizes in pixels.")] = "64,128,256",
    aspects: Annotated[str, typer.Option("--aspects", help="Window widths / heights.")] = "0.5,1,2",
    stride: Annotated[float, typer.Option("--stride", help="Of windows, as a share of their sides.")] = 0.25,
    count: Annotated[int, typer.Option("--max", min=0, help="Boxes an image at most (0: all).")] = 2000,
    recall: Annotated[bool, typer.Option("--recall", help="Recall and overlap against DATA's labels.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only the first images (0: all).")] = 0,
    seed: options.Seed = 0,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder that keeps what --recall finds (default: the user's).")
    ] = None,
    split: options.Split = None,
    images: options.Images = None,
    model: options.Model = None,
    device: options.Device = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> int:
    """Propose boxes where objects may be: drawn and printed; with --recall, measured against labels.

    --out is the drawn image, or the plot of --recall.
    """
    from detkit.io.files import refuse_existing

    if out is not None:
        refuse_existing(out, overwrite)
    if out is not None and recall:
        from detkit.io.figures import image_format

        image_format(out)
    if method not in METHODS:
        raise DetkitError(f"no method {method!r}", "--method", f"choose one of {', '.join(METHODS)}")
    _check_options(context, method, recall)
    if method == RPN and model is None:
        raise DetkitError("rpn needs a model that has one", "--model", "give -m RUN, or another method")
    if method == SEARCH:
        find = _selective_search(plan, seed, cache)
    elif method == WINDOWS:
        sizes = _numbers(windows, "--windows"), _numbers(aspects, "--aspects")
        find = _sliding_window(*sizes, stride, seed)
    else:
        find = _model_proposals(model or "", device)
    if recall:
        return _recall(find, source, split, images, limit, method, count, out, overwrite, as_json)
    return _propose(find, source, method, count, out, overwrite, as_json)


def _check_options(context: typer.Context, method: str, recall: bool) -> None:
    """Refuses what was given and would not be looked at."""
    for name in context.params:
        if getattr(context.get_parameter_source(name), "name", "") != "COMMANDLINE":
            continue
        methods = [which for which, names in OF_METHOD.items() if name in names]
        if methods and method not in methods:
            do = f"leave it out, or take --method {' or '.join(methods)}"
            raise DetkitError(f"{method} does not look at --{name}", f"--{name}", do)
        if name in OF_RECALL and not recall:
            raise DetkitError(f"only --recall looks at --{name}", f"--{name}", "leave it out, or add --recall")


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DetkitError(f"{text!r} is not a list of numbers", option, "write 64,128, say") from None


def _selective_search(plan: str, seed: int, cache: Path | None) -> Source:
    from detkit.proposals.search import PLANS, SelectiveSearch

    if plan not in PLANS:
        raise DetkitError(f"no plan {plan!r}", "--plan", f"choose one of {', '.join(PLANS)}")
    return SelectiveSearch(plan=plan, max=0, seed=seed, folder=cache).proposals_for_image  # type: ignore[arg-type]


def _sliding_window(windows: tuple[float, ...], aspects: tuple[float, ...], stride: float, seed: int) -> Source:
    """No window is likelier than another: in a seeded random order, so that the first ones are a fair choice."""
    import numpy as np

    from detkit.proposals.windows import Windows

    try:
        source = Windows(windows=windows, aspects=aspects, stride=stride)
    except ValueError as error:
        raise DetkitError(str(error), "--windows, --aspects, --stride", "change that value") from None

    def find(image: np.ndarray, path: str) -> np.ndarray:
        return np.random.default_rng(seed).permutation(source.of_size(*image.shape[:2]))

    return find


def _model_proposals(name: str, device: str | None) -> Source:
    """The proposals of a model in the original image's pixels."""
    from detkit import api

    detector = api.load(name, device=device)
    source: Any = getattr(detector, "proposals", None)
    if not hasattr(source, "parameters"):
        raise DetkitError("this model has no region proposal network", name, "give a Faster R-CNN")

    def find(image: np.ndarray, path: str) -> np.ndarray:
        import torch

        from detkit.data.loader import collate
        from detkit.structures import Sample

        batch = collate([Sample(image)], detector.resize)[0].to(detector.device)
        with torch.inference_mode():
            boxes, _ = source.propose(batch, detector.features(batch.pixels), False)
        found: np.ndarray = batch.restore[0].to_original(boxes[0]).cpu().numpy()
        return found

    return find


def _propose(
    find: Source, source: str, method: str, count: int, out: Path | None, overwrite: bool, as_json: bool
) -> int:
    from detkit.io.draw import draw_boxes
    from detkit.io.images import read_image, write_image

    if Path(source).is_dir():
        raise DetkitError("this is a folder", source, "name one image, or add --recall for labelled data")
    image = read_image(source)
    boxes = find(image, "")[: count or None]
    if as_json:
        print_json({"source": source, "method": method, "proposals": [[round(float(v), 2) for v in b] for b in boxes]})
    else:
        print(f"{source}: {len(boxes)} proposals")
        for box in boxes:
            print("  " + " ".join(f"{round(float(v)):5d}" for v in box))
    if out is not None:
        write_image(out, draw_boxes(image, boxes), overwrite=overwrite)
        message(f"drawn: {out}")
    return 0


def _recall(
    find: Source,
    source: str,
    split: str | None,
    images: Path | None,
    limit: int,
    method: str,
    count: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    from detkit.data.dataset import Dataset, read
    from detkit.metrics.proposals import COUNTS, RecallMeter

    dataset = Dataset(read(source, split=split, images=images))
    meter = RecallMeter()
    total = min(limit or len(dataset), len(dataset))
    failures = []
    for i in range(total):
        progress(i, total, "images")
        try:
            sample = dataset.load(i)
        except DetkitError as error:
            failures.append(error)
            continue
        target = sample.target[~sample.target.ignore]
        meter.add(target.boxes, target.labels, find(sample.image, sample.path)[: count or None])
    progress(total, total, "images")
    for failure in failures:
        message(f"detkit: {failure.where}: {failure.what}")
    if total == len(failures):
        return 2
    results = meter.results()
    rows = [row.to_dict() for row in results]
    if as_json:
        print_json({"source": source, "method": method, "images": total - len(failures), "recall": rows})
    else:
        print(f"{method}: {total - len(failures)} images, {meter.objects} objects; recall of the first N proposals")
        print(f"{'N':>6}{'boxes':>9}" + "".join(f"{name:>12}" for name in list(rows[0])[2:]))
        for row in rows:
            print(f"{row['count']:>6}{row['proposals']:>9.0f}" + "".join(f"{v:>12.4f}" for v in list(row.values())[2:]))
    if out is not None:
        _plot(rows, f"{method}: {Path(source).name}", COUNTS, out, overwrite)
        message(f"plot: {out}")
    return 3 if failures else 0


def _plot(rows: list[dict[str, Any]], title: str, counts: Sequence[int], path: Path, overwrite: bool) -> None:
    from detkit.io.figures import written_figure

    with written_figure(path, 7, 5, overwrite=overwrite) as figure:
        axes = figure.subplots()
        for name in list(rows[0])[2:]:
            axes.plot(counts, [row[name] for row in rows], "o-", label=name)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="proposals of an image", title=title)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
