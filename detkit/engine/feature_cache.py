"""What a fixed network makes of pictures or of their regions, computed once and kept on disk.

Arrays are float16, a memory-mapped file a picture (``detkit.io.cache``). An entry's name holds all that decides its
numbers: the network's weights, what is done to pixels before it, the pixels, the boxes. So an entry of another
network, size or proposal is never found, and an interrupted run finds what it had done.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkit.data.loader import Loader
from detkit.engine.runtime import Runtime
from detkit.errors import DetkitError
from detkit.heads.stages import Embedded
from detkit.io.cache import Cache, image_hash
from detkit.ops.roi import roi_table
from detkit.structures import Target

VERSION = 1  # of what is kept: a higher one makes entries stale


def feature_cache(networks: Iterable[nn.Module], preprocessing: Mapping[str, Any]) -> Cache:
    """The cache of what these networks, with their present weights, make of pictures.

    preprocessing: plain values that decide how pixels become the networks' input (size, mean, pooling, ...).
    """
    parameters = {"network": network_hash(networks), "preprocessing": dict(preprocessing)}
    return Cache("features", parameters, VERSION, mapped=True)


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
    """The key of a picture's entry: its uint8 pixels (3, H, W) and, of regions, their boxes (R, 4) in input pixels."""
    digest = hashlib.sha256(image_hash(pixels.cpu().numpy()).encode())
    if boxes is not None:
        digest.update(boxes.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:40]


def announced(cache: Cache, what: str, size: float) -> str:
    """The sentence that says where ``size`` bytes of ``what`` will lie.

    Raises:
        DetkitError: code 4, before anything is computed: the disk has no room for them.
    """
    place = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
    free, text = shutil.disk_usage(place).free, f"{what}: about {size / 1e9:.2f} GB"
    if size > free:
        do = "set DETKIT_CACHE to a folder on a larger disk, or give model.proposals fewer boxes"
        raise DetkitError(f"{text}, but the disk has {free / 1e9:.2f} GB", str(cache.folder), do, code=4)
    return f"{text} in {cache.folder}"


class Embeddings:
    """A sequence of ``Embedded``: the regions of one picture after the other, their features still on disk."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.entries: list[tuple[str | np.ndarray, Tensor, Target]] = []

    def add(self, key: str, features: np.ndarray, boxes: Tensor, target: Target) -> None:
        """One more picture, whose features lie in the cache, or are kept in memory where nothing can be written."""
        lies = isinstance(features.base, np.memmap) or not features.size
        self.entries.append((key if lies else features, boxes, target))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Embedded:
        kept, boxes, target = self.entries[i]
        features = self.cache.find(kept) if isinstance(kept, str) else kept
        if features is None:
            do = "run again with --resume: what is missing is computed again"
            raise DetkitError("a file of cached features is gone", str(self.cache.path(str(kept))), do, code=4)
        return Embedded(features, boxes, target)

    def __iter__(self) -> Iterator[Embedded]:
        return (self[i] for i in range(len(self)))


@torch.inference_mode()
def embed_regions(
    model: Any,
    loader: Loader,
    pictures: int,
    runtime: Runtime,
    tell: Callable[[str], None],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Embeddings:
    """What the trunk of ``model`` (a Detector with a head that embeds regions) makes of each picture's objects and
    proposals, in this order; computed where the cache does not have it yet.

    loader: the pictures, as evaluation sees them; pictures: how many it has in all; tell: gets a sentence about the
    size before anything is computed; on_batch(done, total): counts batches.

    Raises:
        DetkitError: the disk has no room.
    """
    head = model.head
    preprocessing = {name: getattr(head.pooling, name) for name in ("pool", "size", "sampling", "padding", "strides")}
    preprocessing |= {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    preprocessing |= {"resize": model.resize.to_dict(), "precision": runtime.precision}
    cache = feature_cache([model.backbone, model.neck, head.trunk], preprocessing)
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
                rows = sum(len(boxes) for boxes in regions) * pictures / len(batch)
                what = f"features of some {rows:.0f} regions of {pictures} pictures"
                tell(announced(cache, what, 2 * rows * head.classes.in_features))
            for i, boxes in enumerate(regions):
                key = feature_key(pixels[i], boxes)
                kept = cache.find(key)
                if kept is None:
                    rois = roi_table([boxes])
                    embedded = head.embed([feature[i : i + 1] for feature in features], rois).float()
                    kept = cache.put(key, embedded.clamp(-65504, 65504).half().cpu().numpy())
                found.add(key, kept, boxes.float().cpu(), targets[i])
        on_batch(number + 1, len(loader))
    return found
