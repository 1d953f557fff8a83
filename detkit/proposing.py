"""Candidate boxes of any image, and which of a data set's objects they reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from detkit.errors import DetkitError, nearest
from detkit.printed import counted

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from detkit.proposals.search import PlanName

    BoxesOf = Callable[[np.ndarray, str], np.ndarray]

METHODS: dict[str, tuple[str, ...]] = {  # and the options that each looks at
    "selective-search": ("plan", "seed", "cache"),
    "sliding-window": ("windows", "aspects", "stride", "seed"),
    "rpn": ("model", "device"),
}


class ProposalOptions(TypedDict, total=False):
    """Keyword arguments of ``propose`` and ``proposal_recall``.

    Attributes:
        plan: Of selective search: "fast" or "quality".
        windows: Sides in pixels, of sliding windows.
        aspects: Their widths / heights.
        stride: Of windows, as a share of their own sides.
        seed: Of every random choice.
        model: With a region proposal network: file, run folder or shipped name.
        device: Where the model computes; None: the best there is.
    """

    plan: PlanName
    windows: tuple[float, ...]
    aspects: tuple[float, ...]
    stride: float
    seed: int
    model: str
    device: str | None


@dataclass(frozen=True)
class ProposalRecall:
    """How many of a data set's objects the first N proposals reach.

    Attributes:
        source: The data.
        method: What proposed.
        images: How many were read.
        objects: How many they hold; crowds and difficult ones do not count.
        rows: Per number of proposals "count": how many there were on average ("proposals"), recalls and MABO.
        failures: Images that could not be read.
    """

    source: str
    method: str
    images: int
    objects: int
    rows: list[dict[str, float]]
    failures: list[DetkitError] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The form of ``propose --recall --json``."""
        return {"source": self.source, "method": self.method, "images": self.images, "recall": self.rows}

    def lines(self) -> list[str]:
        """The same for a person."""
        names = list(self.rows[0])[2:]
        seen = f"{counted(self.images, 'image')}, {counted(self.objects, 'object')}"
        lines = [f"{self.method}: {seen}; recall of the first N proposals"]
        lines.append(f"{'N':>6}{'boxes':>9}" + "".join(f"{name:>12}" for name in names))
        for row in self.rows:
            numbers = "".join(f"{row[name]:>12.4f}" for name in names)
            lines.append(f"{row['count']:>6}{row['proposals']:>9.0f}{numbers}")
        return lines

    def plot(self, path: Path, *, overwrite: bool = False) -> None:
        """Draws recall over the number of proposals.

        Raises:
            DetkitError: An ending that plots cannot have, or a file that exists.
        """
        from detkit.io.files import written_figure

        counts = [row["count"] for row in self.rows]
        with written_figure(path, 7, 5, overwrite=overwrite) as figure:
            axes = figure.subplots()
            for name in list(self.rows[0])[2:]:
                axes.plot(counts, [row[name] for row in self.rows], "o-", label=name)
            title = f"{self.method}: {Path(self.source).name}"
            axes.set(xscale="log", ylim=(0, 1.02), xlabel="proposals per image", title=title)
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend()


def propose(
    image: str | Path | bytes | np.ndarray | Image.Image,
    method: str = "selective-search",
    *,
    max: int = 2000,
    **options: Unpack[ProposalOptions],
) -> np.ndarray:
    """Boxes where objects may be.

    Args:
        image: A path, or pixels, as for ``Detector.predict``.
        method: "selective-search", "sliding-window" (in a seeded random order) or "rpn" of a model.
        max: Boxes at most, the likelier ones; 0: all.
        options: See ``ProposalOptions``.

    Returns:
        (R, 4) float32 xyxy in the image's pixels, the likelier ones first.

    Raises:
        DetkitError: No such method, an option that it does not look at or that makes no sense, an image that cannot
            be read, a model without a region proposal network.
    """
    from detkit.io.images import as_rgb

    find = _boxes_of(method, options)
    return find(as_rgb(image), "")[: max or None]


def proposal_recall(
    data: str | Path,
    method: str = "selective-search",
    *,
    max: int = 2000,
    split: str | None = None,
    images: str | Path | None = None,
    format: str | None = None,
    limit: int = 0,
    cache: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Unpack[ProposalOptions],
) -> ProposalRecall:
    """Recall and overlap of proposals on labelled data (Hosang et al. 2016, "What makes for effective detection
    proposals?").

    Args:
        data: COCO json, VOC folder, YOLO data.yaml or class folders.
        method: See ``propose``.
        max: Boxes per image at most; 0: all.
        split: One part of the data; None: all of it.
        images: Folder of the images, if not where the format puts them.
        format: Of the data, by name or ``module:Name``; None: recognised.
        limit: Only the first images; 0: all.
        cache: Folder that keeps what selective search finds; None: the user's.
        on_progress: Called with images done and in all.
        options: See ``ProposalOptions``.

    Raises:
        DetkitError: As ``propose``; data that cannot be read, or none of its images.
    """
    from detkit.data.dataset import Dataset, read
    from detkit.metrics.proposals import RecallMeter

    find = _boxes_of(method, options, cache)
    dataset, meter = Dataset(read(data, split=split, images=images, format=format)), RecallMeter()
    failures: list[DetkitError] = []
    total = min(limit or len(dataset), len(dataset))
    for i, sample in dataset.readable(range(total), failures):
        on_progress(i, total)
        target = sample.target[~sample.target.ignore]
        meter.add(target.boxes, target.labels, find(sample.image, sample.path)[: max or None])
    on_progress(total, total)
    return ProposalRecall(str(data), method, total - len(failures), meter.objects, meter.results(), failures)


def _boxes_of(method: str, options: ProposalOptions, cache: str | Path | None = None) -> BoxesOf:
    """What gives the boxes of an image, likeliest first."""
    if method not in METHODS:
        raise DetkitError(f"no method {method!r}", "--method", nearest(method, METHODS))
    for name in [*options, *([] if cache is None else ["cache"])]:
        if name not in METHODS[method]:
            others = [other for other, names in METHODS.items() if name in names]
            do = f"leave it out, or take --method {' or '.join(others)}"
            raise DetkitError(f"{method} does not look at --{name}", f"--{name}", do)
    if method == "sliding-window":
        return _windows(options)
    if method == "rpn":
        return _of_model(options)
    from detkit.proposals.search import PLANS, SelectiveSearch

    plan = options.get("plan", "fast")
    if plan not in PLANS:
        raise DetkitError(f"no plan {plan!r}", "--plan", nearest(plan, PLANS))
    return SelectiveSearch(plan=plan, max=0, seed=options.get("seed", 0), folder=cache).proposals_for_image


def _windows(options: ProposalOptions) -> BoxesOf:
    """No window is likelier than another: in a seeded random order, so that the first ones are a fair choice."""
    import numpy as np

    from detkit.proposals.windows import ASPECTS, WINDOWS, Windows

    windows, aspects = options.get("windows", WINDOWS), options.get("aspects", ASPECTS)
    try:
        source = Windows(windows=windows, aspects=aspects, stride=options.get("stride", 0.25))
    except ValueError as error:
        raise DetkitError(str(error), "--windows, --aspects, --stride", "change that value") from None

    def find(image: np.ndarray, path: str) -> np.ndarray:
        return np.random.default_rng(options.get("seed", 0)).permutation(source.of_size(*image.shape[:2]))

    return find


def _of_model(options: ProposalOptions) -> BoxesOf:
    """The proposals of a model in the original image's pixels."""
    import torch

    from detkit import api
    from detkit.data.loader import collate
    from detkit.detector import Detector
    from detkit.structures import Sample

    if "model" not in options:
        raise DetkitError("rpn needs a model that has one", "--model", "give -m RUN, or another method")
    detector = api.load(options["model"], device=options.get("device"))
    source = detector.proposals if isinstance(detector, Detector) else None
    if not isinstance(source, torch.nn.Module):
        raise DetkitError("this model has no region proposal network", options["model"], "give a Faster R-CNN")

    def find(image: np.ndarray, path: str) -> np.ndarray:
        batch = collate([Sample(image)], detector.resize)[0].to(detector.device)
        with torch.inference_mode():
            boxes = source.propose(batch, detector.features(batch.pixels), False)[0]
        found: np.ndarray = batch.restore[0].to_original(boxes[0]).cpu().numpy()
        return found

    return find
