"""``detkit data``: check, describe, show, convert, split and cut up labelled images, and choose anchors for them."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkit.cli import options
from detkit.cli.common import message, names_in, print_json
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations, Finding

app = typer.Typer(help="Check, describe, show, convert and split labelled images.", no_args_is_help=True)


class Format(StrEnum):
    """Formats that ``convert`` writes."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"


class Distance(StrEnum):
    """Distances for k-means."""

    IOU = "iou"
    EUCLIDEAN = "euclidean"


def _read(data: str, split: str | None, images: Path | None, *, tell: bool = True) -> Annotations:
    from detkit.data.dataset import read

    annotations = read(data, split=split, images=images, refuse=tell)
    if tell and annotations.findings:
        total = sum(f.count for f in annotations.findings)
        message(f"{total} findings while reading ({annotations.findings[0].name}, ...): see detkit data check {data}")
    return annotations


def _read_parts(data: str, split: str | None, images: Path | None) -> dict[str, Annotations]:
    """Each part of the data set, or the one asked for, by name; empty if it is one piece."""
    from detkit.data.dataset import splits

    names = [split] if split is not None else splits(data)
    if {"train", "val", "trainval"} <= set(names):
        names.remove("trainval")  # the two others joined
    return {Path(name).stem: _read(data, name, images) for name in names}


def _print_findings(findings: list[Finding]) -> None:
    for finding in findings:
        print(f"{finding.count:7d}  {finding.name}")
        for example in finding.examples:
            print(f"         {example}")
        if finding.count > len(finding.examples) and finding.examples:
            print("         ...")


@app.command()
def check(
    data: options.Data,
    split: options.Split = None,
    images: options.Images = None,
    headers: Annotated[bool, typer.Option("--headers", help="Read only the images' headers: quick.")] = False,
    as_json: options.Json = False,
) -> int:
    """Look for mistakes in labels and images; exit code 3 if there are any."""
    from detkit.data.check import check as check_data

    annotations = _read(data, split, images, tell=False)
    findings = check_data(annotations, decode=not headers)
    if as_json:
        found = [asdict(f) for f in findings]
        print_json({"images": len(annotations), "boxes": len(annotations.labels), "findings": found})
    else:
        classes = len(annotations.classes)
        print(f"{len(annotations)} images, {len(annotations.labels)} boxes, {classes} classes")
        _print_findings(findings)
        if not findings:
            print("nothing to complain of")
    return 3 if findings else 0


@app.command()
def stats(
    data: options.Data,
    split: options.Split = None,
    images: options.Images = None,
    out: options.Out = None,
    sample: Annotated[int, typer.Option(min=0, help="Images to read for the colour statistics (0: none).")] = 300,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Count and measure the boxes; colour mean and covariance of the images; plots to --out."""
    from detkit.data.stats import colour, describe, plot

    annotations = _read(data, split, images)
    numbers = describe(annotations)
    if sample:
        try:
            rgb = colour(annotations, pictures=sample, seed=seed)
        except DetkitError as error:
            message(f"no colour statistics: {error.what} ({error.where})")
        else:
            numbers["rgb"] = {"mean": rgb.mean, "covariance": rgb.covariance, "images": rgb.pictures}
    if out is not None:
        plot(annotations, out, overwrite=overwrite)
        message(f"plots are in {out}")
    if as_json:
        print_json(numbers)
    else:
        _print_stats(numbers)
    return 0


def _print_stats(numbers: dict[str, Any]) -> None:
    print(f"images   {numbers['images']} ({numbers['images_without_boxes']} without boxes)")
    print(f"boxes    {numbers['boxes']} ({numbers['crowd']} crowd, {numbers['difficult']} difficult)")
    for name in ("boxes_per_image", "side", "aspect", "width", "height"):
        values = "  ".join(f"{key} {value:g}" for key, value in numbers[name].items())
        print(f"{name:16s} {values}")
    print("sizes    " + "  ".join(f"{name} {count}" for name, count in numbers["sizes"].items()))
    if "rgb" in numbers:
        mean = ", ".join(f"{v:.1f}" for v in numbers["rgb"]["mean"])
        rows = "; ".join(", ".join(f"{v:.0f}" for v in row) for row in numbers["rgb"]["covariance"])
        print(f"rgb      mean [{mean}]  covariance [{rows}]  ({numbers['rgb']['images']} images)")
    width = max((len(name) for name in numbers["classes"]), default=0)
    for name, row in sorted(numbers["classes"].items(), key=lambda item: -item[1]["boxes"]):
        print(f"  {name:{width}s} {row['boxes']:8d} boxes in {row['images']:7d} images")


@app.command()
def show(
    data: options.Data,
    split: options.Split = None,
    images: options.Images = None,
    out: options.Out = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images to show.")] = 12,
    augment: Annotated[int, typer.Option(min=0, help="Augmented versions of each image.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of each image in the grid, in pixels.")] = 320,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Draw labels on some images, in one grid (--out, else labels.jpg here)."""
    from detkit.data.dataset import Dataset
    from detkit.data.show import augmented, grid, labelled
    from detkit.io.files import refuse_existing
    from detkit.io.images import write_image

    path = out or Path("labels.jpg")
    refuse_existing(path, overwrite)
    dataset = Dataset(_read(data, split, images))
    samples, failed = labelled(dataset, count, seed)
    for line in failed:
        message(f"left out: {line}")
    columns = 0
    if augment:
        samples, columns = augmented(samples, augment, size, seed), augment + 1
    write_image(path, grid(samples, dataset.classes, tile=size, columns=columns), overwrite=overwrite)
    if as_json:
        print_json({"out": path, "images": len(samples), "failed": failed})
    else:
        print(path)
    return 3 if failed else 0


@app.command()
def convert(
    data: options.Data,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write (COCO: or one .json, without images).")],
    split: options.Split = None,
    images: options.Images = None,
    link: Annotated[bool, typer.Option("--link", help="Link the images instead of copying them.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Write the data set in another format, every part of it or one --split; what is lost is counted."""
    from detkit.data.convert import convert_annotations

    parts = _read_parts(data, split, images) or {"train": _read(data, None, images)}
    done = convert_annotations(parts, to.value, out, overwrite=overwrite, link=link)
    if as_json:
        lost = [asdict(f) for f in done.lost]
        print_json({"out": done.out, "images": done.images, "boxes": done.boxes, "lost": lost})
    else:
        print(f"{done.images} images and {done.boxes} boxes written to {done.out}")
        if done.lost:
            print(f"{to.value} cannot hold:")
            _print_findings(done.lost)
    return 0


@app.command()
def split(
    data: options.Data,
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the validation part.")] = 0.2,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the test part.")] = 0.0,
    part: Annotated[str | None, typer.Option("--split", help="Split this part of DATA (default: all of it).")] = None,
    images: options.Images = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Draw train, val and test parts with balanced classes; writes lists or json files, moves no image.

    Of class folders, whose parts are folders, the images are copied to --out.
    """
    from detkit.data.split import balance, stratify, write_split

    if val + test >= 1:
        raise DetkitError(f"--val {val:g} and --test {test:g} leave nothing to train on", do="give smaller shares")
    annotations = _read(data, part, images)
    shares = {"train": 1 - val - test, "val": val, "test": test}
    parts = stratify(annotations, {name: share for name, share in shares.items() if share > 0}, seed)
    counts = balance(annotations, parts)
    files = write_split(annotations, parts, out, overwrite=overwrite)
    if as_json:
        rows = {
            name: {"images": len(parts[name]), "classes": dict(zip(annotations.classes, count.tolist(), strict=True))}
            for name, count in counts.items()
        }
        print_json({"files": files, "parts": rows})
        return 0
    for name, rows_of in parts.items():
        print(f"{name}: {len(rows_of)} images, {int(counts[name].sum())} boxes")
    for i, name in enumerate(annotations.classes):
        print(f"  {name}: " + ", ".join(f"{key} {int(count[i])}" for key, count in counts.items()))
    for file in files:
        print(file)
    return 0


@app.command()
def crops(
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: PART/CLASS/*.jpg.")],
    background: Annotated[int, typer.Option(min=0, help="So many crops of each part that touch no object.")] = 0,
    min_size: Annotated[int, typer.Option(min=1, help="Leave out objects with a shorter side, in pixels.")] = 48,
    classes: Annotated[str | None, typer.Option(help="Only these classes: cat,dog.")] = None,
    split: options.Split = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Cut the objects out: a folder of class folders, to train a classifier on."""
    from detkit.data.crops import UNREADABLE
    from detkit.data.crops import crops as cut

    parts = _read_parts(data, split, images)
    parts = {"": next(iter(parts.values()))} if split else parts or {"": _read(data, None, images)}
    chosen = None if classes is None else names_in(classes)
    counts, findings = cut(
        parts, out, classes=chosen, background=background, min_size=min_size, seed=seed, overwrite=overwrite
    )
    found = findings.as_list()
    code = 3 if any(finding.name == UNREADABLE for finding in found) else 0
    if as_json:
        print_json({"out": out, "parts": counts, "left_out": [asdict(f) for f in found]})
        return code
    for part, table in counts.items():
        print(f"{out / part}: {sum(table.values())} crops")
        for name, count in table.items():
            print(f"  {name}: {count}")
    _print_findings(found)
    return code


@app.command()
def anchors(
    data: options.Data,
    k: Annotated[int, typer.Option("-k", "--anchors", min=1, help="How many.")] = 9,
    size: Annotated[int | None, typer.Option(min=1, help="Letterbox to this input size (default: pixels).")] = None,
    distance: Annotated[Distance, typer.Option(help="What k-means makes small: 1 - IoU, or Euclidean.")] = Distance.IOU,
    grid: Annotated[int | None, typer.Option(min=1, help="Share of objects losing their slot on S x S cells.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot average IoU for 1 to 12 anchors, both distances.")] = None,
    split: options.Split = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Choose anchor boxes by k-means; say what average IoU they reach."""
    from detkit.data.anchors import collisions, curve, object_sizes, plot_curve
    from detkit.ops.anchors import average_iou, kmeans_anchors

    sizes = object_sizes(_read(data, split, images), size)
    try:
        chosen = kmeans_anchors(sizes.wh, k, distance=distance.value, seed=seed)
    except ValueError as error:  # fewer different sizes than anchors
        raise DetkitError(str(error), data, "give a smaller -k") from None
    result: dict[str, Any] = {"anchors": chosen.round(2).tolist(), "average_iou": average_iou(sizes.wh, chosen)}
    if grid is not None:
        result["collisions"] = collisions(sizes, grid, chosen)
    if plot is not None:
        result["curve"] = curve(sizes.wh, seed=seed)
        plot_curve(result["curve"], plot, overwrite=overwrite)
    if as_json:
        print_json(result)
        return 0
    print("anchors: [" + ", ".join(f"[{w:.1f}, {h:.1f}]" for w, h in chosen) + "]")
    print(f"average IoU {result['average_iou']:.4f} of {len(sizes.wh)} boxes")
    if grid is not None:
        print(f"{100 * result['collisions']:.2f}% of the objects lose their slot on a {grid} x {grid} grid")
    for name, values in result.get("curve", {}).items():
        print(f"{name:10s} " + "  ".join(f"{n}: {value:.3f}" for n, value in enumerate(values, 1)))
    return 0
