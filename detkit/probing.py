"""What a backbone's features are worth, by classifiers that train nothing of it: nearest neighbours and a linear layer.

Features are the last tapped map averaged, of images as evaluation sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.data.dataset import Dataset, read, splits
from detkit.data.loader import Loader
from detkit.data.names import match_some
from detkit.errors import DetkitError
from detkit.metrics import evaluate_results
from detkit.printed import Printed, counted
from detkit.tables import Results

if TYPE_CHECKING:
    from detkit.detector import Detector

NEIGHBOURS, TEMPERATURE = 20, 0.07
_DECAY = 1e-3  # of the linear layer's weights, on features of unit variance


def probe(
    model: Detector,
    data: str,
    by: str,
    *,
    split: str | None = None,
    format: str | None = None,
    batch: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Printed:
    """Top-1 and top-5 of images by what the model makes of them, its part ``train`` being what is known.

    Args:
        model: Whose backbone is asked.
        data: Images labelled as a whole, with a part train and another.
        by: "knn" or "linear".
        split: The part that is judged; None: test, or val where there is none.
        format: Of the data; None: recognised.
        batch: Images at a time.
        on_progress: Called with batches done and in all, of each part.

    Returns:
        As facts: protocol, metrics, per_class, known and judged (images).

    Raises:
        DetkitError: No such parts, images that are not labelled as a whole.
    """
    parts = splits(data, format=format)
    others = [split] if split else [name for name in ("test", "val", "valid") if name in parts]
    if "train" not in parts or not others or others[0] == "train":
        what = f"a probe learns from a part train and is judged on another; the parts are {', '.join(parts) or 'one'}"
        raise DetkitError(what, data, "lay the class folders into train/ and test/, or use detkit data split")
    known, judged = (Dataset(read(data, split=name, format=format)) for name in ("train", others[0]))
    for name, one in (("train", known), (others[0], judged)):
        one.annotations.check_labelled(f"{data}, {name}")
    learned, met = ([one.classes[k] for k in np.unique(one.annotations.labels)] for one in (known, judged))
    match_some("train has", learned, others[0], met, data, "a probe is judged on classes that it has seen")
    memory, asked = (embed(model, one, batch, on_progress) for one in (known, judged))
    labels, count = torch.from_numpy(known.annotations.labels), len(known.classes)
    scores = (knn_scores if by == "knn" else linear_scores)(memory, labels, asked, count).numpy().astype(np.float64)
    image, label = (index.ravel() for index in np.indices(scores.shape))
    results = Results(image, label, judged.annotations.xywh[image], scores.ravel())
    found = evaluate_results(judged.annotations.ground_truth(), results, "classify")
    said = f"{by}: {counted(len(known), 'image')} of {data} known, {len(judged)} of {others[0]} judged"
    facts = {**found.to_dict(), "protocol": by, "known": len(known), "judged": len(judged)}
    return Printed(facts, [said, *found.lines()])


def embed(
    model: Detector,
    dataset: Dataset,
    batch: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """(N, D) float32, on the CPU: each image's features. The model is left as in evaluation.

    Raises:
        DetkitError: An image that cannot be read.
    """
    found = []
    height, width = model.head.views(torch.zeros(1, 3, *model.resize.input_size)).shape[2:]  # a frame's, not a strip's
    resize = replace(model.resize, size=(height, width))
    model.eval()
    with Loader(replace(dataset, strict=True), resize=resize, batch=batch) as loader, torch.inference_mode():
        for number, (inputs, _) in enumerate(loader.epoch(0), 1):
            pixels = inputs.pixels.to(model.device)
            found.append(model.backbone(model.normalised(pixels))[-1].mean((2, 3)).float().cpu())
            on_progress(number, len(loader))
    return torch.cat(found).clone()


def knn_scores(memory: Tensor, labels: Tensor, asked: Tensor, count: int) -> Tensor:
    """(M, C): shares of the votes of the nearest neighbours by cosine, each weighing exp(cosine / TEMPERATURE) (Wu,
    Xiong, Yu, Lin 2018, arXiv 1805.01978, section 3.4).

    Args:
        memory: (N, D) features of known images.
        labels: (N,) int64, theirs.
        asked: (M, D) features.
        count: C.
    """
    cosines, places = (F.normalize(asked) @ F.normalize(memory).T).topk(min(NEIGHBOURS, len(memory)), dim=1)
    votes = torch.zeros(len(asked), count).scatter_add_(1, labels[places], ((cosines - 1) / TEMPERATURE).exp())
    return votes / votes.sum(1, keepdim=True)


def linear_scores(memory: Tensor, labels: Tensor, asked: Tensor, count: int) -> Tensor:
    """(M, C) probabilities by softmax regression on standardised features, solved by L-BFGS; arguments as above."""
    mean, std = memory.mean(0), memory.std(0) + 1e-6
    x, weights = (memory - mean) / std, torch.zeros(count, memory.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def logits(features: Tensor) -> Tensor:
        return features @ weights[:, 1:].T + weights[:, 0]

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(logits(x), labels) + _DECAY * weights[:, 1:].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return logits((asked - mean) / std).softmax(1).detach()
