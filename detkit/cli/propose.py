"""``detkit propose``: candidate boxes of images, and which of a data set's objects they reach."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from detkit import proposing
from detkit.cli import options
from detkit.cli.common import Printable, message, note, progress
from detkit.errors import DetkitError
from detkit.printed import Printed, counted
from detkit.proposing import METHODS, ProposalOptions

OF_RECALL = ("limit", "cache", "split", "images", "format")


def propose(
    context: Context,
    source: Annotated[str, Argument(metavar="IMAGE|DATA", help="An image, or labelled data with --recall.")],
    method: Annotated[str, Option(help=f"{', '.join(METHODS)}.")] = "selective-search",
    plan: Annotated[str, Option(help="Of selective search: fast or quality.")] = "fast",
    windows: Annotated[str, Option(help="Window sizes in pixels.")] = "64,128,256",
    aspects: Annotated[str, Option(help="Window widths / heights.")] = "0.5,1,2",
    stride: Annotated[float, Option(help="Of windows, as a share of their sides.")] = 0.25,
    count: Annotated[int, Option("--max", min=0, help="Boxes per image at most (0: all).")] = 2000,
    recall: Annotated[bool, Option("--recall", help="Recall and overlap against DATA's labels.")] = False,
    limit: Annotated[int, Option(min=0, help="Only the first images (0: all).")] = 0,
    seed: options.Seed = 0,
    cache: Annotated[Path | None, Option(help="Folder that keeps what --recall finds (default: the user's).")] = None,
    part: options.Part = options.Part(),
    model: Annotated[str | None, Option("--model", "-m", help="Weights file, run folder or shipped name.")] = None,
    device: options.Device = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> Printable | tuple[Printable, int] | int:
    """Propose boxes where objects may be. Drawn and printed; with --recall, measured against labels.

    --out is the drawn image, or the plot of --recall.
    """
    from detkit.io.draw import draw_boxes
    from detkit.io.files import image_format, refuse_existing
    from detkit.io.images import read_image, write_image

    words = [
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    given: dict[str, Any] = {name: context.params[name] for name in words if name in ProposalOptions.__annotations__}
    for name in {"windows", "aspects"} & given.keys():
        given[name] = _numbers(given[name], f"--{name}")
    refuse_existing(out, overwrite)
    if recall:
        if out is not None:
            image_format(out)
        tell = partial(progress, unit="images")
        given |= {**vars(part), "limit": limit, "cache": cache}
        result = proposing.proposal_recall(source, method, max=count, on_progress=tell, **given)
        for failure in result.failures:
            note(f"{failure.where}: {failure.what}")
        if not result.images:
            return 2
        if out is not None:
            result.plot(out, overwrite=overwrite)
            message(f"plot: {out}")
        return result, 3 if result.failures else 0
    for name in OF_RECALL:
        if name in words:
            raise DetkitError(f"only --recall looks at --{name}", f"--{name}", "leave it out, or add --recall")
    if Path(source).is_dir():
        raise DetkitError("this is a folder", source, "name one image, or add --recall for labelled data")
    image = read_image(source)
    boxes = proposing.propose(image, method, max=count, **given)
    lines = [f"{source}: {counted(len(boxes), 'proposal')}"]
    lines += ["  " + " ".join(f"{round(v):5d}" for v in box) for box in boxes.tolist()]
    rounded = [[round(v, 2) for v in box] for box in boxes.tolist()]
    if out is not None:
        write_image(out, draw_boxes(image, boxes), overwrite=overwrite)
        message(f"drawn: {out}")
    return Printed({"source": source, "method": method, "proposals": rounded}, lines)


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DetkitError(f"{text!r} is not a list of numbers", option, "write 64,128, say") from None
