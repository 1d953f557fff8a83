"""``detkit data``: check, describe, show, convert, split and cut up labelled images, and choose anchors for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option, Typer

from detkit.cli import options
from detkit.cli.common import Printable, message, progress
from detkit.cli.options import names_in
from detkit.errors import DetkitError
from detkit.printed import Printed, counted

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations

app = Typer(help="Check, describe, show, convert and split labelled images.", no_args_is_help=True)


def _read(labelled: options.LabelledData) -> Annotations:
    """The labels; says what was found while reading."""
    annotations = labelled.read()
    if found := annotations.findings:
        total = counted(sum(one.count for one in found), "finding")
        message(f"{total} while reading ({found[0].name}, ...): see detkit data check {labelled.data}")
    return annotations


@app.command()
def check(
    labelled: options.LabelledData,
    headers: Annotated[bool, Option("--headers", help="Read only the images' headers: quick.")] = False,
    strict: Annotated[bool, Option("--strict", help="Notes count as mistakes, too.")] = False,
    duplicates: Annotated[
        bool, Option("--duplicates", help="Find images that are nearly the same, in a part and between parts.")
    ] = False,
    against: Annotated[
        list[str] | None, Option(metavar="DATA", help="Other data that should share no image (repeat it for several).")
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Draw the pairs of --duplicates to this file.")] = None,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Look for mistakes in labels and images; exit code 3 if there are any, notes aside."""
    from detkit.data.check import check_annotations
    from detkit.data.duplicates import draw_pairs, near_duplicates
    from detkit.io.files import refuse_existing

    if (against or out) and not duplicates:
        raise DetkitError("this says how duplicates are shown", "--against, --out", "add --duplicates")
    pairs = None
    if duplicates:
        refuse_existing(out, overwrite)
        files = {name: part.read(refuse=False).files for name, part in labelled.parts(labelled.data).items()}
        for other in against or ():
            for name, part in options.LabelledData(data=other).parts("").items():
                files[f"{other} {name}".rstrip()] = part.read(refuse=False).files
        pairs = near_duplicates(files, on_progress=lambda done, total: progress(done, total, "images"))
        if out is not None and pairs:
            draw_pairs(pairs, out, overwrite=overwrite)
            message(f"pairs: {out}")
    report = check_annotations(labelled.read(refuse=False), decode=not headers, duplicates=pairs)
    return report, 3 if any(strict or not one.note for one in report.facts["findings"]) else 0


@app.command()
def stats(
    labelled: options.LabelledData,
    out: options.Out = None,
    sample: Annotated[int, Option(min=0, help="Images to read for the colour statistics (0: none).")] = 300,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> Printed:
    """Count and measure the boxes; colour mean and covariance of the images; plots to --out."""
    from detkit.data.stats import colour_statistics, describe_annotations, description_lines, plot_annotations

    annotations = _read(labelled)
    numbers = describe_annotations(annotations)
    if sample:
        try:
            numbers["rgb"] = colour_statistics(annotations, images=sample, seed=seed)._asdict()
        except DetkitError as error:
            message(f"no colour statistics: {error.what} ({error.where})")
    if out is not None:
        plot_annotations(annotations, out, overwrite=overwrite)
        message(f"plots are in {out}")
    return Printed(numbers, description_lines(numbers))


@app.command()
def show(
    labelled: options.LabelledData,
    out: Annotated[Path, Option("--out", "-o", help="Write to exactly this path.")] = Path("labels.jpg"),
    count: Annotated[int, Option("--count", "-n", min=1, help="Images to show.")] = 12,
    augment: Annotated[int, Option(min=0, help="Augmented versions of each image.")] = 0,
    size: Annotated[int, Option(min=32, help="Side of each image in the grid, in pixels.")] = 320,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Draw labels on some images, in one grid (--out, else labels.jpg here)."""
    from detkit.data.dataset import Dataset
    from detkit.data.show import augmented_samples, labelled_samples, sample_grid
    from detkit.io.files import refuse_existing
    from detkit.io.images import write_image

    refuse_existing(out, overwrite)
    dataset = Dataset(_read(labelled))
    samples, failed = labelled_samples(dataset, count, seed)
    for line in failed:
        message(f"left out: {line}")
    if augment:
        samples = augmented_samples(samples, augment, size, seed)
    columns = augment + 1 if augment else 0
    write_image(out, sample_grid(samples, dataset.classes, tile=size, columns=columns), overwrite=overwrite)
    return Printed({"out": out, "images": len(samples), "failed": failed}, [str(out)]), 3 if failed else 0


@app.command()
def convert(
    labelled: options.LabelledData,
    to: Annotated[Literal["coco", "voc", "yolo", "csv", "labelme"], Option("--to", help="The format to write.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to write (COCO: or one .json, without images).")],
    link: Annotated[bool, Option("--link", help="Link the images instead of copying them.")] = False,
    overwrite: options.Overwrite = False,
) -> Printable:
    """Write the data set in another format, every part of it or one --split; what is lost is counted."""
    from detkit.data.convert import convert_annotations

    parts = {name: _read(part) for name, part in labelled.parts("train").items()}
    return convert_annotations(parts, to, out, overwrite=overwrite, link=link)


@app.command()
def split(
    labelled: options.LabelledData,
    val: Annotated[float, Option(min=0, max=1, help="Share of the validation part.")] = 0.2,
    test: Annotated[float, Option(min=0, max=1, help="Share of the test part.")] = 0.0,
    out: options.Out = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> Printable:
    """Draw train, val and test parts with balanced classes; --out gets lists or json files, no image is moved.

    Of class folders, whose parts are folders, the images are copied to --out. Without it nothing is written.
    """
    from detkit.data.split import split_annotations

    if len(parts := labelled.parts("")) > 1:
        message(f"{labelled.data}: all of {', '.join(parts)} together, to be drawn anew; --split takes one part")
    if val + test >= 1:
        raise DetkitError(f"--val {val:g} and --test {test:g} leave nothing to train on", do="give smaller shares")
    shares = {"train": 1 - val - test, "val": val, "test": test}
    shares = {name: share for name, share in shares.items() if share > 0}
    return split_annotations(_read(labelled), shares, out, seed=seed, overwrite=overwrite)


@app.command()
def crops(
    labelled: options.LabelledData,
    out: Annotated[Path, Option("--out", "-o", help="Folder to write: PART/CLASS/*.jpg.")],
    background: Annotated[int, Option(min=0, help="So many crops of each part that touch no object.")] = 0,
    min_size: Annotated[int, Option(min=1, help="Leave out objects with a shorter side, in pixels.")] = 48,
    classes: options.Classes = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Cut the objects out: a folder of class folders, to train a classifier on."""
    from detkit.data.crops import write_crops

    parts = {"" if labelled.split else name: _read(part) for name, part in labelled.parts("").items()}
    chosen = None if classes is None else names_in(classes)
    done = write_crops(
        parts, out, classes=chosen, background=background, min_size=min_size, seed=seed, overwrite=overwrite
    )
    return done, 3 if done.facts["failed"] else 0


@app.command()
def strips(
    source: Annotated[str, Argument(metavar="VIDEO", help="A film, or a folder of its frames by name.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to write.")],
    frames: Annotated[int, Option(min=3, max=5, help="Of a strip.")] = 3,
    step: Annotated[int, Option(min=1, help="From each frame of a strip to the next.")] = 5,
    overwrite: options.Overwrite = False,
) -> tuple[Printable, int]:
    """Lay frames of a film side by side, to learn their order (detkit pretrain frame_order)."""
    from detkit.data.strips import write_strips

    done, failed = write_strips(source, out, frames=frames, step=step, overwrite=overwrite)
    return done, 3 if failed else 0


@app.command()
def anchors(
    labelled: options.LabelledData,
    k: Annotated[int, Option("-k", "--anchors", min=1, help="How many.")] = 9,
    size: Annotated[int | None, Option(min=1, help="Letterbox to this input size (default: pixels).")] = None,
    distance: Annotated[Literal["iou", "euclidean"], Option(help="What k-means makes small (iou: 1 - IoU).")] = "iou",
    grid: Annotated[int | None, Option(min=1, help="Share of objects losing their slot on S x S cells.")] = None,
    plot: Annotated[Path | None, Option(help="Plot average IoU for 1 to 12 anchors, both distances.")] = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> Printable:
    """Choose anchor boxes by k-means; say what average IoU they reach."""
    from detkit.data.anchors import choose_anchors

    return choose_anchors(
        _read(labelled), k, size=size, distance=distance, grid=grid, plot=plot, seed=seed, overwrite=overwrite
    )
