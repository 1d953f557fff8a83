"""Omniglot (Lake et al. 2015, "Human-level concept learning"): folders to train on, and its 20-way one-shot runs.

python tools/omniglot.py prepare ZIPS omniglot           # images_background_small1.zip and 2
python tools/omniglot.py runs RUN all_runs.zip           # the share of 400 that is right, and each run's
python tools/omniglot.py roc RUN omniglot roc.png        # verification on the characters of val
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 56  # pixels that the drawings of 105 are kept in
VAL = ("Korean",)  # alphabets that are not trained on


def prepare(zips: Path, out: Path) -> None:
    """A folder per character, in train also turned by 90, 180 and 270 degrees as characters of their own."""
    for path in sorted(zips.glob("images_background_small*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in filter(lambda name: name.endswith(".png"), archive.namelist()):
                _, alphabet, character, file = name.split("/")
                image = (
                    Image.open(io.BytesIO(archive.read(name))).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
                )
                for turn in (0,) if alphabet in VAL else (0, 90, 180, 270):
                    folder = out / ("val" if alphabet in VAL else "train") / f"{alphabet}_{character}_{turn}"
                    folder.mkdir(parents=True, exist_ok=True)
                    image.rotate(turn).save(folder / file)


def runs(model: str, path: Path) -> None:
    """Each of a run's 20 drawings is one of its 20 characters, known from one drawing by somebody else."""
    import detkit
    from detkit.metrics.identities import likeness

    detector, right = detkit.load(model, device="cpu"), []
    with zipfile.ZipFile(path) as archive:

        def seen(names: list[str]) -> np.ndarray:
            images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
            return detector.vectors([np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images])

        for run in range(1, 21):
            lines = archive.read(f"run{run:02d}/class_labels.txt").decode().splitlines()
            items, wanted = zip(*map(str.split, lines), strict=True)
            names = sorted(set(wanted))
            nearest = likeness(seen(list(items)), seen(names), detector.head.measure).argmax(1)
            right.append(np.mean([names[place] == name for place, name in zip(nearest, wanted, strict=True)]))
    print(f"accuracy {np.mean(right):.4f}; of each run", *(f"{share:.2f}" for share in right))


def roc(model: str, data: Path, out: Path) -> None:
    """The ROC curve of pairs of val's drawings, as an image."""
    import detkit
    from detkit.data.dataset import Dataset, read
    from detkit.engine.evaluator import detect_dataset
    from detkit.io.files import written_figure
    from detkit.metrics import find_metric
    from detkit.metrics.identities import roc as curve

    detector = detkit.load(model, device="cpu")
    truth, results, _ = detect_dataset(detector, Dataset(read(data, split="val")))
    metric = find_metric(detector.protocol)
    pairs = metric.pairs(truth, results)
    accepted, refused, _ = curve(*pairs)
    with written_figure(out, 5, 4) as figure:
        axes = figure.subplots()
        axes.plot(accepted, 1 - refused)
        axes.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.01), xlabel="false accepts", ylabel="true accepts")
        axes.grid(alpha=0.3)


if __name__ == "__main__":
    verb, *words = sys.argv[1:] or ["help"]
    known = {"prepare": prepare, "runs": runs, "roc": roc}
    if verb not in known:
        raise SystemExit(__doc__)
    known[verb](words[0] if verb != "prepare" else Path(words[0]), *map(Path, words[1:]))
