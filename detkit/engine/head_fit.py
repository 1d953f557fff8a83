"""What some heads learn after the loop, not by gradient: R-CNN's SVMs, on features of the regions of all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from detkit.data.loader import Loader
from detkit.detector import Detector, read_weights
from detkit.engine.events import score_texts
from detkit.engine.feature_cache import FeatureStore, feature_key, pixel_preparation
from detkit.engine.runtime import Runtime
from detkit.heads.rcnn_svm import Embedded
from detkit.heads.roi import RoIHead
from detkit.ops.roi import roi_table
from detkit.structures import Target

if TYPE_CHECKING:
    from detkit.engine.trainer import Trainer


class Embeddings(Sequence[Embedded]):
    """The regions of one image after the other, their features still on disk."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.entries: list[tuple[str, Tensor, Target]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Embedded:  # type: ignore[override]
        key, boxes, target = self.entries[i]
        return Embedded(self.store.read(key), boxes, target)


@torch.inference_mode()
def embed_regions(
    model: Detector,
    loader: Loader,
    images: int,
    runtime: Runtime,
    tell: Callable[[str], None],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """What the trunk makes of each image's objects and proposals, in this order; computed where the cache has it not.

    Args:
        model: A detector with a head that embeds regions.
        loader: The images, as evaluation sees them.
        images: How many it has in all.
        runtime: Where it computes.
        tell: Gets a sentence about the size before anything is computed, and what the cache has to say.
        on_batch: Gets how many batches are done, and of how many.

    Raises:
        DetkitError: The disk has no room.
    """
    head = cast(RoIHead, model.head)
    parts = ("pool", "size", "sampling", "padding", "aligned", "strides")
    decides = {name: getattr(head.pooling, name) for name in parts}
    decides |= {"resize": model.resize.to_dict(), **pixel_preparation(model, runtime)}
    store = FeatureStore([model.backbone, model.neck, head.trunk], decides, tell)
    found = Embeddings(store)
    model.eval()
    for number, (batch, targets) in enumerate(loader.epoch(0)):
        pixels = batch.pixels
        batch = batch.to(runtime.device, non_blocking=True)
        with runtime.autocast():
            features = model.features(batch.pixels)
            proposals, _ = model.propose(batch, features)
            regions = [torch.cat((t.boxes.to(p), p)) for t, p in zip(targets, proposals or (), strict=True)]
            if not number:
                rows = sum(len(boxes) for boxes in regions) * images / len(batch)
                what = f"features of some {rows:.0f} regions of {images} images"
                store.announce(what, 2 * rows * head.classes.in_features, "give model.proposals fewer boxes")
            for i, boxes in enumerate(regions):
                key = feature_key(pixels[i], boxes)
                if not store.has(key):
                    store.put(key, head.embed([feature[i : i + 1] for feature in features], roi_table([boxes])))
                found.entries.append((key, boxes.float().cpu(), targets[i]))
        on_batch(number + 1, len(loader))
    return found


def fit_head(trainer: Trainer) -> None:
    """Fits the head's last stages on the features that the best weights, now fixed, give for the training set.

    The file of these weights, and the row of their epoch, are replaced by those of the whole.
    """
    progress, model = trainer.progress, trainer.average.model
    place, name = progress.best_epoch, "best.safetensors"
    if place is None:
        place, name = len(progress.rows) - 1, "last.safetensors"
    model.load_state_dict(read_weights(trainer.run / name))
    with trainer.make_loader(trainer.train_set, None, shuffle=False) as loader:
        images = len(trainer.train_set)
        regions = embed_regions(model, loader, images, trainer.runtime, trainer.say, trainer.looked)
    model.head.fit(regions)
    before, row = progress.rows[place], dict(progress.rows[place])
    if trainer.val_loader is None:
        trainer.save_weights(name, row)
    else:
        progress.best_score = -1.0  # what is fitted is the result, better or not
        trainer.validate(place, row)
        scores, was = (", ".join(score_texts(r, trainer.shown)) for r in (row, before))
        trainer.say(f"the head's stages are fitted: {scores}; before: {was}")
    progress.rows[place], progress.fitted = row, True
    trainer.save_state()
    regions.store.cache.clear()  # no other run has this trunk
