"""What a fixed network, or its frozen part, makes of images or of their regions, computed once and kept on disk.

Arrays are float16, a memory-mapped file an image (``detkit.io.cache``). An entry's name holds all that decides its
numbers: the network's weights, what is done to pixels before it, the pixels, the boxes. So an entry of another
network, size or proposal is never found, and an interrupted run finds what it had done.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit.data.loader import Loader
from detkit.data.sampler import Sampler
from detkit.engine.options import TrainOptions
from detkit.engine.runtime import Runtime
from detkit.errors import DetkitError
from detkit.geometry import Geometry
from detkit.heads.stages import Embedded
from detkit.io.cache import Cache, image_hash
from detkit.ops.roi import roi_table
from detkit.structures import Batch, Target

VERSION = 1  # of what is kept: a higher one makes entries stale


def feature_cache(
    networks: Iterable[nn.Module], preprocessing: Mapping[str, Any], tell: Callable[[str], None] | None = None
) -> Cache:
    """The cache of what these networks, with their present weights, make of images.

    preprocessing: plain values that decide how pixels become the networks' input (size, mean, pooling, ...); tell: see
    ``Cache``.
    """
    parameters = {"network": network_hash(networks), "preprocessing": dict(preprocessing)}
    return Cache("features", parameters, VERSION, mapped=True, tell=tell)


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


def announced(cache: Cache, what: str, size: float, do: str, there: float = 0) -> str:
    """The sentence that says where ``size`` bytes of ``what`` will lie, of which some may be ``there`` already.

    Raises:
        DetkitError: code 4, before anything is computed: the disk has no room for them; ``do`` says what needs less.
    """
    place = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
    free, text = shutil.disk_usage(place).free, f"{what}: about {_amount(size)}"
    if size - there > free:
        do = f"set DETKIT_CACHE to a folder on a larger disk, or {do}"
        raise DetkitError(f"{text}, but the disk has {_amount(free)}", str(cache.folder), do, code=4)
    return f"{text} in {cache.folder}"


def _amount(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _reference(key: str, features: np.ndarray) -> str | np.ndarray:
    """What to remember of an entry: its key, or the features themselves where nothing can be written."""
    return key if isinstance(features.base, np.memmap) or not features.size else features


def _features(cache: Cache, kept: str | np.ndarray) -> np.ndarray:
    """The inverse of ``_reference``. Raises DetkitError, code 4, if the file has gone since."""
    features = cache.find(kept) if isinstance(kept, str) else kept
    if features is None:
        do = "run again with --resume: what is missing is computed again"
        raise DetkitError("a file of cached features is gone", str(cache.path(str(kept))), do, code=4)
    return features


class Embeddings(Sequence[Embedded]):
    """A sequence of ``Embedded``: the regions of one image after the other, their features still on disk."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.entries: list[tuple[str | np.ndarray, Tensor, Target]] = []

    def add(self, key: str, features: np.ndarray, boxes: Tensor, target: Target) -> None:
        """One more image, whose features lie in the cache, or are kept in memory where nothing can be written."""
        self.entries.append((_reference(key, features), boxes, target))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Embedded:  # type: ignore[override]
        kept, boxes, target = self.entries[i]
        return Embedded(_features(self.cache, kept), boxes, target)


def _half(x: Tensor) -> Tensor:
    """float16, with what that cannot hold at its limits."""
    return x.float().clamp(-65504, 65504).half()


@torch.inference_mode()
def embed_regions(
    model: Any,
    loader: Loader,
    images: int,
    runtime: Runtime,
    tell: Callable[[str], None],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """What the trunk of ``model`` (a Detector with a head that embeds regions) makes of each image's objects and
    proposals, in this order; computed where the cache does not have it yet.

    loader: the images, as evaluation sees them; images: how many it has in all; tell: gets a sentence about the
    size before anything is computed, and what the cache has to say; on_batch(done, total): counts batches.

    Raises:
        DetkitError: the disk has no room.
    """
    head = model.head
    parts = ("pool", "size", "sampling", "padding", "aligned", "strides")
    preprocessing = {name: getattr(head.pooling, name) for name in parts}
    preprocessing |= {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    preprocessing |= {"resize": model.resize.to_dict(), "precision": runtime.precision}
    cache = feature_cache([model.backbone, model.neck, head.trunk], preprocessing, tell)
    found = Embeddings(cache)
    model.eval()
    for number, (batch, targets) in enumerate(loader.epoch(0)):
        pixels = batch.pixels
        batch = batch.to(runtime.device, non_blocking=True)
        with runtime.autocast():
            features = model.features(batch.pixels)
            proposals, _ = model.propose(batch, features)
            regions = [torch.cat((t.boxes.to(p), p)) for t, p in zip(targets, proposals, strict=True)]
            if not number:
                rows = sum(len(boxes) for boxes in regions) * images / len(batch)
                what = f"features of some {rows:.0f} regions of {images} images"
                size = 2 * rows * head.classes.in_features
                tell(announced(cache, what, size, "give model.proposals fewer boxes"))
            for i, boxes in enumerate(regions):
                key = feature_key(pixels[i], boxes)
                kept = cache.find(key)
                if kept is None:
                    rois = roi_table([boxes])
                    embedded = head.embed([feature[i : i + 1] for feature in features], rois)
                    kept = cache.put(key, _half(embedded).cpu().numpy())
                found.add(key, kept, boxes.float().cpu(), targets[i])
        on_batch(number + 1, len(loader))
    return found


def refuse_uncacheable(model: Any, options: TrainOptions, augment: Any | None, world: int) -> None:
    """Raises DetkitError, naming the key, where ``cache_features`` does not go with the model or the other options."""
    backbone = getattr(model, "backbone", None)
    stages = list(getattr(backbone, "stages", ()))[: getattr(backbone, "frozen", 0)]
    key, views = "train.cache_features", options.cache_views
    if not any(list(stage.parameters()) for stage in stages):
        do = "set model.backbone.frozen to all or to a number of stages, or leave cache_features out"
        raise DetkitError("no stage of the backbone is frozen, so none can be cached", key, do)
    if options.unfreeze:
        do = "leave out unfreeze, or cache_features"
        raise DetkitError("stages that begin to train later cannot be cached", "train.unfreeze", do)
    if world > 1:
        raise DetkitError("several processes share no cached features", key, "train in one process, or without it")
    joins = [f"augment.{name}" for name in ("mosaic", "mixup") if getattr(augment, name, 0)]
    none = "".join(f" {name}=0" for name in joins)
    changes = augment is not None and augment.changes
    if views is None and changes:
        what = "cached images are the same in every epoch, and augmentation changes them"
        do = f"train.cache_views=1 trains on the images as they are, train.cache_views=8{none} on eight views of each"
        raise DetkitError(what, key, do)
    if (views or 1) > 1 and joins:
        raise DetkitError("views that are kept show one image each", joins[0], f"set{none}, or train.cache_views=1")
    if (views or 1) > 1 and not changes:
        what = "without augmentation all views of an image are the same"
        raise DetkitError(what, "train.cache_views", "set it to 1, or switch an augmentation on")


class FrozenStages:
    """What the frozen stages of a Detector's backbone make of images: computed once, kept as float16.

    each: bytes of an image. An entry holds an image's ``frozen_maps`` one after the other, channels last.
    """

    def __init__(self, model: Any, runtime: Runtime, tell: Callable[[str], None]) -> None:
        self.model, self.runtime, self.tell = model, runtime, tell
        self.computed = 0  # images that the cache did not have
        backbone = model.backbone
        with torch.inference_mode(), runtime.autocast():
            maps = model.frozen_maps(torch.zeros(1, 3, *model.resize.input_size, device=runtime.device))
        self.shapes = [tuple(x.shape[1:]) for x in maps]
        self.dtypes = [x.dtype for x in maps]
        self.each = 2 * sum(x.numel() for x in maps)
        decides = {name: getattr(backbone, name, None) for name in ("taps", "outputs", "scales")}
        decides |= {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
        decides |= {"maps": self.shapes, "precision": runtime.precision}
        self.cache = feature_cache(backbone.stages[: backbone.frozen], decides, tell)

    def announce(self, images: int) -> None:
        """Says what so many images take on the disk. Raises DetkitError, code 4, if that has no room."""
        what = f"output of the frozen stages for {images} images"
        there = self.cache.count() * self.each
        self.tell(announced(self.cache, what, images * self.each, "freeze more stages, or keep fewer views", there))

    @torch.inference_mode()
    def keep(self, pixels: Tensor) -> list[str | np.ndarray]:
        """Sees to it that the cache has these (B, 3, H, W) uint8 images, and returns what ``maps`` finds them by."""
        keys = [feature_key(image) for image in pixels]
        found = [self.cache.find(key) for key in keys]
        missing = [i for i, features in enumerate(found) if features is None]
        if missing:
            with self.runtime.autocast():
                maps = self.model.frozen_maps(pixels[missing].to(self.runtime.device))
            rows = torch.cat([_half(x).permute(0, 2, 3, 1).flatten(1) for x in maps], dim=1).cpu().numpy()
            for i, row in zip(missing, rows, strict=True):
                found[i] = self.cache.put(keys[i], row)
        self.computed += len(missing)
        return [_reference(key, features) for key, features in zip(keys, found, strict=True) if features is not None]

    def maps(self, kept: list[str | np.ndarray]) -> list[Tensor]:
        """``frozen_maps`` of these images, (B, C, H, W) on the CPU, in the types and strides that were computed."""
        tables = [np.empty((len(kept), height, width, depth), np.float16) for depth, height, width in self.shapes]
        for i, one in enumerate(kept):
            row, begin = _features(self.cache, one), 0
            for table in tables:
                end = begin + table[i].size
                table[i] = row[begin:end].reshape(table.shape[1:])
                begin = end
        pairs = zip(tables, self.dtypes, strict=True)
        return [torch.from_numpy(table).permute(0, 3, 1, 2).to(dtype) for table, dtype in pairs]


class _Image(NamedTuple):
    """One view of an image, as a batch of it has it; kept: see ``FrozenStages``."""

    kept: str | np.ndarray
    size: Tensor
    restore: Geometry
    image_id: int | str
    path: str
    proposals: Tensor | None
    target: Target


class CachedLoader:
    """``Loader``'s batches with ``Batch.cached`` in the place of pixels, once ``add`` has seen all images in order.

    sampler: says which images make a batch. In epoch e image i is its view (e + i) mod ``views``.
    """

    def __init__(self, stages: FrozenStages, dataset: Any, sampler: Sampler, views: int = 1) -> None:
        self.stages, self.sampler, self.views = stages, sampler, views
        self.failures: dict[str, DetkitError] = {}
        names = dataset.annotations
        self._names = list(zip(names.image_ids, names.files, strict=True))
        self._images: dict[tuple[int, int], _Image] = {}  # by view and index
        self._next = [0] * views

    def add(self, view: int, batch: Batch, targets: list[Target]) -> None:
        """The next images of the data set, in its order; those that cannot be read are missing."""
        proposals: list[Any] = batch.proposals or [None] * len(batch)
        columns = (self.stages.keep(batch.pixels), batch.sizes, batch.restore, batch.image_ids, batch.paths)
        for row in zip(*columns, proposals, targets, strict=True):
            image = _Image(*row)
            index = self._names.index((image.image_id, image.path), self._next[view])
            self._images[view, index] = image
            self._next[view] = index + 1

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0, mosaic: bool = True) -> Iterator[tuple[Batch, list[Target]]]:
        """As ``Loader.epoch``; nothing is joined, whatever ``mosaic`` says. Raises DetkitError without any image."""
        if not self._images:
            raise next(iter(self.failures.values()), DetkitError("the data set holds no images"))
        for slots in self.sampler.epoch(epoch, start):
            places = [self._place(epoch, int(p), int(i)) for p, i in zip(*slots, strict=True)]
            found = [self._images[place] for place in places if place in self._images]
            if found:
                yield self._batch(found)

    def close(self) -> None:
        """Nothing is open."""

    def _place(self, epoch: int, position: int, index: int) -> tuple[int, int]:
        """View and index of the image at this position; training takes another for one that cannot be read."""
        place = (epoch + index) % self.views, index
        if place not in self._images and self.sampler.shuffle:
            rng = np.random.default_rng([self.sampler.seed, epoch, position])
            while place not in self._images:
                index = int(rng.integers(len(self._names)))
                place = (epoch + index) % self.views, index
        return place

    def _batch(self, images: list[_Image]) -> tuple[Batch, list[Target]]:
        kept, sizes, restore, image_ids, paths, proposals, targets = (list(x) for x in zip(*images, strict=True))
        # Their shape alone is known: one byte of memory.
        pixels = torch.zeros((), dtype=torch.uint8).expand(len(kept), 3, *self.stages.model.resize.input_size)
        boxes = None if proposals[0] is None else proposals
        cached = self.stages.maps(kept)
        batch = Batch(pixels, torch.stack(sizes), tuple(restore), tuple(image_ids), tuple(paths), boxes, cached)
        return batch, targets
