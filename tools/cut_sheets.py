"""Cuts sheets of tiles, one sheet per class, into class folders: how small image sets travel as few files.

    python tools/cut_sheets.py cifar10 -o cifar --tile 32 [--per-class 10] [--seed 0]

SHEETS/PART/CLASS.png (or .jpg, or CLASS-COUNT.png) becomes OUT/PART/CLASS/0000.png; a last row padded with black is
left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from detkit.io.files import atomic_folder
from detkit.io.images import paths_in, read_image, write_image


def tiles_of(sheet: np.ndarray, tile: int) -> np.ndarray:
    """(N, tile, tile, 3) uint8: the tiles of a sheet row by row, without the black ones at its end."""
    rows, columns = sheet.shape[0] // tile, sheet.shape[1] // tile
    cut = sheet[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    flat = cut.reshape(-1, tile, tile, 3)
    return flat[: np.flatnonzero(flat.any(axis=(1, 2, 3)))[-1] + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheets", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--tile", type=int, required=True, help="side of a tile in pixels")
    parser.add_argument("--per-class", type=int, default=0, help="of the part train, drawn; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with atomic_folder(options.out, False) as folder:
        for part in sorted(path for path in options.sheets.iterdir() if path.is_dir()):
            for sheet in paths_in(part):
                tiles = tiles_of(read_image(sheet), options.tile)
                if options.per_class and part.name == "train":
                    tiles = tiles[np.sort(rng.permutation(len(tiles))[: options.per_class])]
                for number, tile in enumerate(tiles):
                    write_image(
                        folder / part.name / sheet.stem.split("-")[0] / f"{number:04d}.png", np.ascontiguousarray(tile)
                    )


if __name__ == "__main__":
    main()
