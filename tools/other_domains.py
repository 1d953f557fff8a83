"""A detection set as another domain: the same photos at night, painted, or drawn in pencil, as COCO json and images.

    python tools/other_domains.py data/voc --split val --how dark -o dark [--images 300] [--seed 0]
    python tools/other_domains.py -o domains.jpg                             # an installed photo in all ways

dark: in linear light v = (x / 255) ^ 2.2 each photo keeps a share k of its light, drawn from 0.02 to 0.1 (evenly in its
logarithm); then noise: x' = 255 * clip(k v + sqrt(0.002 k v) n1 + 0.004 n2, 0, 1) ^ (1 / 2.2), n1 (photons) and n2 (the
sensor) being normal, for each pixel and channel. painted and pencil: OpenCV's stylization and pencilSketch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from detkit.cli.quickstart import installed_photos
from detkit.data.convert import convert_annotations
from detkit.data.dataset import read
from detkit.io.draw import scaled_to
from detkit.io.images import paths_in, read_image, write_image


def darkened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``image`` (uint8 (H, W, 3) RGB) in little light."""
    light = (image / 255.0) ** 2.2 * np.exp(rng.uniform(np.log(0.02), np.log(0.1)))
    light += np.sqrt(0.002 * light) * rng.normal(size=image.shape) + 0.004 * rng.normal(size=image.shape)
    return np.rint(255 * light.clip(0, 1) ** (1 / 2.2)).astype(np.uint8)


def painted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``image`` with flat colours and its edges, as in a painting."""
    return cv2.stylization(image, sigma_s=60, sigma_r=0.45)


def pencil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``image`` as a grey drawing."""
    grey, _ = cv2.pencilSketch(image, sigma_s=60, sigma_r=0.07, shade_factor=0.05)
    return np.repeat(grey[..., None], 3, axis=2)


WAYS = {"dark": darkened, "painted": painted, "pencil": pencil}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument("--how", choices=[*WAYS], default="dark")
    parser.add_argument("--images", type=int, default=0, help="so many, drawn; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.data is None:
        image = scaled_to(read_image(installed_photos()[0]), 320)
        shown = [image, *(way(image, np.random.default_rng(options.seed)) for way in WAYS.values())]
        write_image(options.out, np.concatenate(shown, axis=1), quality=88)
        return
    annotations = read(options.data, split=options.split)
    if options.images:
        drawn = np.random.default_rng(options.seed).permutation(len(annotations))[: options.images]
        annotations = annotations.subset(np.sort(drawn))
    convert_annotations({"data": annotations}, "coco", options.out)
    files = [path for folder in (options.out, *options.out.rglob("*")) if folder.is_dir() for path in paths_in(folder)]
    for number, path in enumerate(sorted(files)):
        changed = WAYS[options.how](read_image(path), np.random.default_rng([options.seed, number]))
        write_image(path, changed, quality=95, overwrite=True)


if __name__ == "__main__":
    main()
