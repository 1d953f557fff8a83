"""``adapt``: a model's BatchNorms take the statistics of other images than it was trained on. Nothing is learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from detkit.errors import DetkitError
from detkit.io.sources import Failure, open_sources
from detkit.printed import Printed, counted
from detkit.structures import Sample

if TYPE_CHECKING:
    from detkit.detector import Detector


def adapt(
    model: str | Path, images: str, out: Path, *, share: float = 1.0, limit: int = 500, overwrite: bool = False
) -> Printed:
    """AdaBN (Li, Wang, Shi, Liu, Hou 2016, arXiv 1603.04779, section 3.2): no labels, no training, one look.

    Args:
        model: A model file, run folder or shipped name.
        images: A folder, or what else ``detkit.io.sources`` opens, of the kind of images that is to be understood.
        out: The model file to write.
        share: Of the new statistics; the rest are the model's own.
        limit: Images at most.
        overwrite: Replace a file that exists.

    Returns:
        As facts: out, images, norms, failed (images that cannot be read).

    Raises:
        DetkitError: No image can be read, no BatchNorm in the model, a share out of range.
    """
    from detkit.config.build import load_detector
    from detkit.io.files import refuse_existing

    refuse_existing(out, overwrite)
    if not 0 < share <= 1:
        raise DetkitError(f"share must be above 0 and at most 1, got {share:g}", "--share", "give 0.5, say")
    detector, failed = load_detector(model), list[str]()

    def samples() -> Iterator[Sample]:
        for frame in open_sources(images):
            if isinstance(frame, Failure):
                failed.append(f"{frame.source}: {frame.what}")
            else:
                yield Sample(frame.image)

    count, norms = remeasure_norms(detector, islice(samples(), limit), share)
    if not count:
        where = failed[0] if failed else images
        raise DetkitError("no image could be read to measure BatchNorm on", where, "give a folder of photos")
    detector.record = {**detector.record, "adapted": {"images": count, "share": share}}
    detector.save(out, overwrite=overwrite)
    said = f"{out}: {counted(norms, 'BatchNorm')} with statistics of {counted(count, 'image')}"
    facts = {"out": out, "images": count, "norms": norms, "failed": failed}
    return Printed(facts, [said, *(f"left out: {one}" for one in failed)])


@torch.no_grad()
def remeasure_norms(
    detector: Detector, samples: Iterator[Sample], share: float = 1.0, batch: int = 16
) -> tuple[int, int]:
    """Gives the BatchNorms, in place, mean and variance of what they read from these images.

    Args:
        detector: Whose weights stay as they are.
        samples: The images.
        share: Of the new statistics.
        batch: Images at a time.

    Returns:
        How many images there were, and BatchNorms.

    Raises:
        DetkitError: There is no BatchNorm.
    """
    norms = [layer for layer in detector.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not norms:
        raise DetkitError("this model has no BatchNorm to adapt", do="fine-tune it: detkit train MODEL --data DATA")
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in norms]  # type: ignore[union-attr]
    detector.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    count = 0
    while group := list(islice(samples, batch)):
        count += len(group)
        for norm in norms:
            norm.momentum = len(group) / count  # the mean over all images
        detector.raw(detector.batch_of(group).pixels)
    for norm, (mean, var, momentum) in zip(norms, before, strict=True):
        kept = 1 - share if count else 1.0
        norm.running_mean.lerp_(mean, kept)  # type: ignore[union-attr]
        norm.running_var.lerp_(var, kept)  # type: ignore[union-attr]
        norm.momentum = momentum
    detector.eval()
    return count, len(norms)
