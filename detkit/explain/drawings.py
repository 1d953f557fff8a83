"""What a network looks at, drawn: filters, maps, patches, Grad-CAM, edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detkit.data.dataset import Dataset
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.explain.edges import EDGE_FILTERS, TEXTBOOK_IMAGE, filter_response, learn_filter
from detkit.explain.features import cut_patches, find_peaks, first_filters, stage_maps, stages_of
from detkit.explain.gradcam import grad_cam
from detkit.io.draw import scaled_to, sheet
from detkit.io.files import numbered_folder, refuse_existing
from detkit.io.images import ImageSource, as_rgb, read_image, write_image
from detkit.printed import Printed, counted

_SIDE = 360  # pixels along the longer side of what is drawn over or filtered


@dataclass(frozen=True, slots=True)
class Drawing(Printed):
    """Images, and as facts and text what is to be said of them.

    Attributes:
        images: uint8 (H, W, 3) RGB by file name.
        notes: What was left out or not found.
    """

    images: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    def save(self, folder: str | Path | None = None, *, overwrite: bool = False) -> list[Path]:
        """Writes the images into ``folder``, None: a new one in runs/; returns their paths.

        Raises:
            DetkitError: A file that exists, before the first is written.
        """
        folder = numbered_folder("runs", "inspect") if folder is None else Path(folder)
        files = {folder / name: image for name, image in self.images.items()}
        for file in files:
            refuse_existing(file, overwrite)
        for file, image in files.items():
            write_image(file, image, overwrite=overwrite)
        return list(files)


def draw_filters(detector: Detector) -> Drawing:
    """The filters of the first layer; grey is 0, and each filter's largest weight is as bright as can be."""
    found = first_filters(detector)
    largest = np.abs(found).max(axis=(1, 2, 3), keepdims=True)
    tiles = [_enlarged(tile, 48) for tile in 127.5 + 127.5 * found / np.maximum(largest, 1e-12)]
    count, high, wide = found.shape[:3]
    text = [f"{counted(count, 'filter')} of {high} x {wide}"]
    return Drawing({"filters": [count, high, wide]}, text, {"filters.png": sheet(tiles)})


def draw_maps(detector: Detector, image: ImageSource, stage: int | None = None, count: int = 35) -> Drawing:
    """What each stage makes of an image, each map from its lowest answer (black) to its highest.

    Args:
        detector: The network.
        image: Whatever ``Predictor.predict`` takes.
        stage: Of the backbone, from 0; None: each.
        count: Maps of a stage: those that vary most.
    """
    pixels, images, shapes = as_rgb(image), {}, {}
    for number in range(len(stages_of(detector))) if stage is None else [stage]:
        found = stage_maps(detector, pixels, number)
        channels = np.sort(np.argsort(-found.std(axis=(1, 2)), kind="stable")[:count])
        low, high = (limit(found[channels], axis=(1, 2), keepdims=True) for limit in (np.min, np.max))
        shades = 255 * (found[channels] - low) / np.maximum(high - low, 1e-12)
        tiles = [_enlarged(np.repeat(tile[..., None], 3, axis=2), 112) for tile in shades]
        images[f"stage{number}.png"] = sheet(tiles, channels.astype(str).tolist())
        shapes[f"stage {number}"] = found.shape
    text = "; ".join(f"{name}: {counted(c, 'map')} of {h} x {w}" for name, (c, h, w) in shapes.items())
    return Drawing({"maps": shapes}, [text], images)


def draw_patches(
    detector: Detector,
    dataset: Dataset,
    stage: int = 2,
    *,
    channels: Sequence[int] = (),
    images: int = 300,
    window: int | None = None,
    seed: int = 0,
) -> Drawing:
    """The patches of images that excite a channel most, nine per channel, of different images, the strongest first.

    Args:
        detector: The network.
        dataset: The images.
        stage: Of the backbone, from 0.
        channels: Of the stage; none: eight that stand out most.
        images: How many to look at, drawn by ``seed``.
        window: Pixels of the input to cut out; None: what a cell sees.
        seed: Of the draw.
    """
    found = find_peaks(detector, dataset, stage, images=images, seed=seed)
    chosen = channels or found.choose(8)
    rows = {channel: cut_patches(found, detector, dataset, channel, window=window) for channel in chosen}
    tiles = [patch.image for row in rows.values() for patch in row]
    captions = [f"{channel}: {patch.value:.3g}" for channel, row in rows.items() for patch in row]
    listed = {channel: [{"value": p.value, "path": p.path} for p in row] for channel, row in rows.items()}
    facts = {"field": found.field.size, "stride": found.field.stride, "images": len(found.images)}
    seen = f"a cell sees {found.field.size:g} pixels, stride {found.field.stride:g}"
    text = f"{seen}; {counted(len(found.images), 'image')}"
    drawn = {f"stage{stage}-patches.jpg": sheet(tiles, captions, len(tiles) // len(rows))}
    notes = [f"left out: {line}" for line in found.failed]
    return Drawing({**facts, "channels": listed, "failed": found.failed}, [text], drawn, notes)


def draw_cam(
    detector: Detector, image: ImageSource, classes: Sequence[int | str] = (), stage: int | None = None
) -> Drawing:
    """Where an image speaks for classes, from blue to red: see ``grad_cam``.

    Args:
        detector: A detector or classifier.
        image: Whatever ``Predictor.predict`` takes.
        classes: By name or label; none: the one of the highest score.
        stage: Of the backbone, from 0; None: the deepest that the answer comes through.
    """
    from matplotlib import colormaps

    pixels = as_rgb(image)
    drawn, rows, notes = [_at_most(pixels)], [], []
    for label in detector.limits(classes=classes).classes or (None,):
        found = grad_cam(detector, pixels, label, stage)
        name = detector.classes[found.label]
        if not found.heat.any():
            notes.append(f"nothing in this image speaks for {name} at stage {found.stage}")
        colours = colormaps["turbo"](found.heat)[..., :3] * 255
        drawn.append(_at_most(np.rint((pixels + colours) / 2).astype(np.uint8)))
        rows.append({"class": name, "score": found.score, "stage": found.stage})
    text = [f"{row['class']} {row['score']:.2f}, stage {row['stage']}" for row in rows]
    stem = Path(image).stem if isinstance(image, (str, Path)) else "image"
    return Drawing({"cam": rows}, text, {f"{stem}-cam.jpg": sheet(drawn, ["image", *text], min(len(drawn), 4))}, notes)


def draw_edges(image: str | Path | None = None, learn: str = "sobel", seed: int = 0) -> Drawing:
    """An image filtered by edge filters, made by hand and learned: the last one is learned from another's answers.

    Args:
        image: A file; None: 6 x 6 numbers, as in textbooks.
        learn: The name, in ``EDGE_FILTERS``, of the filter that gradient descent is to find.
        seed: Of the first weights.

    Raises:
        DetkitError: No such filter, or an image that is smaller than one.
    """
    if learn not in EDGE_FILTERS:
        raise DetkitError(f"no filter {learn!r}", "--learn", f"choose one of {', '.join(EDGE_FILTERS)}")
    if image is None:
        pixels, shown = np.repeat(TEXTBOOK_IMAGE[..., None], 3, axis=2), 25.5
    else:
        pixels, shown = _at_most(read_image(image, reduce_to=_SIDE)).astype(np.float64), 1.0
        if min(pixels.shape[:2]) < 3:
            raise DetkitError("the image is smaller than a filter of 3 x 3", str(image), "give a larger one")
    learned = learn_filter(pixels, EDGE_FILTERS[learn], seed=seed)
    table = {**EDGE_FILTERS, "learned": learned.weights}
    answers = {name: filter_response(pixels, weights) for name, weights in table.items()}
    text = []
    if image is None:
        for name, values in {"image": pixels[..., 0], **answers}.items():
            text += [name, *("  " + " ".join(f"{value + 0.0:5.0f}" for value in row) for row in values)]
    off = float(np.abs(learned.weights - EDGE_FILTERS[learn]).max())
    text.append(
        f"learned from {learn}'s answers in {learned.steps} steps: error {learned.error:.2g} of their size, "
        f"weights within {off:.2g} of {learn}'s:\n{np.round(learned.weights, 3) + 0.0}"  # no "-0."
    )
    facts = {
        "answers": {name: value if image is None else value.shape for name, value in answers.items()},
        "learned": {"from": learn, "weights": learned.weights, "error": learned.error, "steps": learned.steps},
    }
    tiles = [_enlarged(tile, 60) for tile in (shown * pixels, *map(answers_as_image, answers.values()))]
    return Drawing(facts, text, {f"edges.{'jpg' if image else 'png'}": sheet(tiles, ["image", *answers], 4)})


def answers_as_image(answers: np.ndarray) -> np.ndarray:
    """Answers (H, W) as uint8 (H, W, 3): grey is 0, white the largest size of any answer, black minus that."""
    scaled = answers / max(float(np.abs(answers).max(initial=0)), 1e-12)
    return np.repeat(np.rint(127.5 + 127.5 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def _enlarged(tile: np.ndarray, side: int) -> np.ndarray:
    """Each pixel of (h, w, 3), 0..255, several times, to about ``side`` pixels; larger ones are made that small."""
    pixels, longer = np.rint(tile).astype(np.uint8), max(tile.shape[:2])
    if longer > 3 * side:
        return scaled_to(pixels, 3 * side)
    times = max(1, round(side / longer))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _at_most(image: np.ndarray) -> np.ndarray:
    return scaled_to(image, _SIDE) if max(image.shape[:2]) > _SIDE else image
