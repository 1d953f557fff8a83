"""What a fixed network, or its frozen part, makes of images or of their regions, computed once and kept on disk.

Arrays are float16, a file per image (``detkit.io.cache``). An entry's name holds all that decides its
numbers: the network's weights, what is done to pixels before it, the pixels, the boxes. So an entry of another
network, size or proposal is never found, and an interrupted run finds what it had done.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from detkit.data.augment import Augment
from detkit.data.dataset import Dataset
from detkit.data.loader import Loader
from detkit.data.sampler import EpochSampler
from detkit.detector import Detector, read_weights
from detkit.engine.events import score_texts
from detkit.engine.runtime import Runtime
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.heads.rcnn_svm import Embedded
from detkit.heads.roi import RoIHead
from detkit.io.cache import Cache, image_hash
from detkit.ops.roi import roi_table
from detkit.printed import counted
from detkit.structures import Batch, Target

if TYPE_CHECKING:
    from detkit.engine.trainer import Trainer

# One view of an image, as a batch of it has it: key (see ``FrozenStages``), size, id, path, restore, proposals, target.
View = tuple[str, Tensor, int | str, str, Geometry, Tensor | None, Target]


def network_hash(networks: Iterable[nn.Module]) -> str:
    """64 hexadecimal digits that stand for the layers, weights and statistics of ``networks``."""
    digest = hashlib.sha256()
    for network in networks:
        digest.update(repr(network).encode())
        for name, value in network.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def feature_key(pixels: Tensor, boxes: Tensor | None = None) -> str:
    """The key of an image's entry: its uint8 pixels (3, H, W) and, of regions, their boxes (R, 4) in input pixels."""
    digest = hashlib.sha256(image_hash(pixels.cpu().numpy()).encode())
    if boxes is not None:
        digest.update(boxes.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:40]


class FeatureStore:
    """The cache of what networks, with their present weights, make of images; in memory where it cannot be written.

    Args:
        networks: Whose output is kept.
        preprocessing: Plain values that decide how pixels become the networks' input (size, mean, pooling, ...).
        tell: Gets a sentence about each entry that is damaged, and about a cache that cannot be written.
    """

    def __init__(
        self, networks: Iterable[nn.Module], preprocessing: Mapping[str, object], tell: Callable[[str], None]
    ) -> None:
        parameters = {"network": network_hash(networks), "preprocessing": dict(preprocessing)}
        self.cache = Cache("features", parameters, tell=tell)
        self._memory: dict[str, np.ndarray] = {}
        self._tell = tell

    def announce(self, what: str, size: float, do: str, there: float = 0) -> None:
        """Says where ``size`` bytes of ``what`` will lie, of which some may be ``there`` already.

        Raises:
            DetkitError: Code 4, before anything is computed: the disk has no room; ``do`` says what needs less.
        """
        folder = self.cache.folder
        place = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free, text = shutil.disk_usage(place).free, f"{what}: about {_amount(size)}"
        if size - there > free:
            do = f"set DETKIT_CACHE to a folder on a larger disk, or {do}"
            raise DetkitError(f"{text}, but the disk has {_amount(free)}", str(folder), do, code=4)
        self._tell(f"{text} in {folder}")

    def find(self, key: str) -> np.ndarray | None:
        """An entry; None where there is none that is sound."""
        return self._memory[key] if key in self._memory else self.cache.find(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keeps an entry in float16, with what that cannot hold at its limits."""
        array = features.float().clamp(-65504, 65504).half().cpu().numpy()
        if not self.cache.put(key, array):
            self._memory[key] = array

    def read(self, key: str) -> np.ndarray:
        """An entry that was found, or ``put``, before.

        Raises:
            DetkitError: Code 4, the file has gone since.
        """
        features = self.find(key)
        if features is None:
            do = "run again with --resume: what is missing is computed again"
            raise DetkitError("a file of cached features is gone", str(self.cache.path(key)), do, code=4)
        return features


def _amount(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def pixel_preparation(model: Detector, runtime: Runtime) -> dict[str, object]:
    """What decides, besides weights, what a detector's network makes of pixels; for ``FeatureStore``."""
    mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
    return {"mean": mean, "std": std, "precision": runtime.precision}


class FrozenStages:
    """What the frozen stages of a detector's backbone make of images: computed once, kept as float16.

    An entry holds an image's ``frozen_maps`` one after the other, channels last.

    Args:
        model: The detector.
        runtime: Where it computes.
        tell: See ``FeatureStore``.

    Attributes:
        computed: How many images the cache did not have.
        each: Bytes per image.
    """

    def __init__(self, model: Detector, runtime: Runtime, tell: Callable[[str], None]) -> None:
        self.model, self.runtime, self.computed = model, runtime, 0
        backbone = model.backbone
        with torch.inference_mode(), runtime.autocast():
            maps = model.frozen_maps(torch.zeros(1, 3, *model.resize.input_size, device=runtime.device))
        self.shapes = [tuple(x.shape[1:]) for x in maps]
        self.dtypes = [x.dtype for x in maps]
        self.each = 2 * sum(x.numel() for x in maps)
        options = {**model.config["model"]["backbone"], "weights": None}  # the hash stands for these
        decides = {"backbone": options, "maps": self.shapes, **pixel_preparation(model, runtime)}
        self.store = FeatureStore(list(backbone.stages)[: backbone.frozen], decides, tell)

    @torch.inference_mode()
    def keep(self, pixels: Tensor) -> list[str]:
        """Sees to it that the cache has these (B, 3, H, W) uint8 images, and returns what ``maps`` finds them by."""
        keys = [feature_key(image) for image in pixels]
        missing = [i for i, key in enumerate(keys) if self.store.find(key) is None]
        if missing:
            with self.runtime.autocast():
                maps = self.model.frozen_maps(pixels[missing].to(self.runtime.device))
            rows = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in maps], dim=1)
            for i, row in zip(missing, rows, strict=True):
                self.store.put(keys[i], row)
        self.computed += len(missing)
        return keys

    def maps(self, keys: list[str]) -> list[Tensor]:
        """``frozen_maps`` of these images, (B, C, H, W) on the CPU, in the types and strides that were computed."""
        rows = torch.from_numpy(np.stack([self.store.read(key) for key in keys]))
        found = []
        parts = rows.split([math.prod(shape) for shape in self.shapes], dim=1)
        for part, (depth, height, width), dtype in zip(parts, self.shapes, self.dtypes, strict=True):
            found.append(part.contiguous().view(-1, height, width, depth).permute(0, 3, 1, 2).to(dtype))
        return found


class CachedLoader:
    """``Loader``'s batches with ``Batch.cached`` in the place of pixels, once ``fill`` has seen all images.

    In epoch e image i is its view (e + i) mod ``views``.

    Args:
        stages: What makes the maps.
        dataset: The images.
        sampler: Says which images make a batch.
        views: How many of each image there are.
    """

    def __init__(self, stages: FrozenStages, dataset: Dataset, sampler: EpochSampler, views: int = 1) -> None:
        self.stages, self.sampler, self.views = stages, sampler, views
        self._failures: dict[str, DetkitError] = {}
        annotations = dataset.annotations
        self._names = list(zip(annotations.image_ids, annotations.files, strict=True))
        self._images: dict[tuple[int, int], View] = {}  # by view and index

    def fill(self, loader: Loader) -> Iterator[tuple[Batch, list[Target]]]:
        """Goes through all views of all images, in the data set's order; yields each batch when it is kept."""
        self._failures = loader.failures
        for view in range(self.views):
            index = -1
            for batch, targets in loader.epoch(view, mosaic=False):
                proposals: Sequence[Tensor | None] = batch.proposals or [None] * len(batch)
                columns = (self.stages.keep(batch.pixels), batch.sizes, batch.image_ids, batch.paths, batch.restore)
                for image in zip(*columns, proposals, targets, strict=True):
                    index = self._names.index(image[2:4], index + 1)  # those that cannot be read are missing
                    self._images[view, index] = image
                yield batch, targets

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0, mosaic: bool = True) -> Iterator[tuple[Batch, list[Target]]]:
        """As ``Loader.epoch``, whatever ``mosaic`` says: no images are joined.

        Raises:
            DetkitError: There is no image, or none that could be read.
        """
        if not self._images:
            raise next(iter(self._failures.values()), DetkitError("the data set holds no images"))
        for slots in self.sampler.epoch(epoch, start):
            places = [self._place(epoch, position, index) for position, index in slots]
            found = [self._images[place] for place in places if place in self._images]
            if found:
                yield self._batch(found)

    def _place(self, epoch: int, position: int, index: int) -> tuple[int, int]:
        """View and index of the image at this position; training takes another for one that cannot be read."""
        rng = np.random.default_rng([self.sampler.seed, epoch, position])
        while (place := ((epoch + index) % self.views, index)) not in self._images and self.sampler.shuffle:
            index = int(rng.integers(len(self._names)))
        return place

    def _batch(self, images: list[View]) -> tuple[Batch, list[Target]]:
        keys, sizes, image_ids, paths, restore, proposals, targets = (list(x) for x in zip(*images, strict=True))
        # Their shape alone is known: one byte of memory.
        pixels = torch.zeros((), dtype=torch.uint8).expand(len(keys), 3, *self.stages.model.resize.input_size)
        boxes = None if proposals[0] is None else proposals
        cached = self.stages.maps(keys)
        batch = Batch(pixels, torch.stack(sizes), tuple(restore), tuple(image_ids), tuple(paths), boxes, cached)
        return batch, targets


def cache_frozen(trainer: Trainer) -> None:
    """Lets the frozen stages look at every image, and the loaders hand out what these have made of them."""
    trainer.count_time()
    progress, views = trainer.progress, trainer.options.cache_views or 1
    stages = FrozenStages(trainer.model, trainer.runtime, trainer.say)
    begun, images = progress.caching, views * len(trainer.train_set) + len(trainer.val_set or ())
    what = f"output of the frozen stages for {counted(images, 'image')}"
    there = stages.store.cache.count() * stages.each
    stages.store.announce(what, images * stages.each, "freeze more stages, or keep fewer views", there)
    trainer.loader = _filled(trainer, stages, trainer.loader.sampler, trainer.train_set, trainer.augment, views)
    if trainer.val_set and trainer.val_loader is not None:
        trainer.val_loader = _filled(trainer, stages, trainer.val_loader.sampler, trainer.val_set, None, 1)
    progress.caching += trainer.count_time()
    seconds = progress.caching - begun
    rest = f", {images - stages.computed} were in the cache" if stages.computed < images else ""
    trainer.say(f"the frozen stages looked at {counted(stages.computed, 'image')} in {seconds:.0f} s{rest}")
    if trainer.val_loader is not None:
        trainer.say("validation reads what is kept in float16: evaluate may differ from its scores in the third digit")


def _filled(
    trainer: Trainer, stages: FrozenStages, sampler: EpochSampler, dataset: Dataset, augment: Augment | None, views: int
) -> CachedLoader:
    cached = CachedLoader(stages, dataset, sampler, views)
    with trainer.make_loader(dataset, augment, shuffle=False) as loader:
        for number, item in enumerate(cached.fill(loader)):
            if number == 0 and sampler.shuffle:
                trainer.show_first(*item)
            trainer.progress.caching += trainer.count_time()
            trainer.looked(number % len(loader) + 1, len(loader))
    return cached


class Embeddings(Sequence[Embedded]):
    """The regions of one image after the other, their features still on disk: what ``Head.fit`` learns from."""

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
                what = f"features of some {rows:.0f} regions of {counted(images, 'image')}"
                store.announce(what, 2 * rows * head.classes.in_features, "give model.proposals fewer boxes")
            for i, boxes in enumerate(regions):
                key = feature_key(pixels[i], boxes)
                if store.find(key) is None:
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
