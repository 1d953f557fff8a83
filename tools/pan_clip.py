"""The moving picture of the README: a camera pans over photos that come with installed packages, and is tracked.

python tools/pan_clip.py --out pan.mp4
detkit track pan.mp4 --save
python tools/pan_clip.py --moving runs/track/pan.mp4
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from detkit.cli.quickstart import installed_photos
from detkit.exporting.proof import photos
from detkit.io.images import read_image
from detkit.io.video import VideoWriter

HIGH, WIDE, FRAMES, EVERY = 360, 560, 200, 2


def panned(path: Path) -> None:
    """Writes the clip: there and back over the photos in a row."""
    row = np.concatenate(
        [
            cv2.resize(image, (round(image.shape[1] * HIGH / image.shape[0]), HIGH), interpolation=cv2.INTER_AREA)
            for image in [*map(read_image, installed_photos()), photos()[3]]
        ],
        axis=1,
    )
    with VideoWriter(path, fps=25) as writer:
        for i in range(FRAMES):
            share = (1 - math.cos(math.pi * i / (FRAMES - 1))) / 2
            left = round(share * (row.shape[1] - WIDE))
            writer.write(row[:, left : left + WIDE])


def moving(clip: Path, out: Path) -> None:
    """The drawn clip as an animated WebP."""
    video, frames = cv2.VideoCapture(str(clip)), []
    while (read := video.read())[0]:
        frames.append(Image.fromarray(read[1][..., ::-1]))
    frames = frames[::EVERY]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=40 * EVERY, loop=0, quality=60, method=4)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, help="write the clip")
parser.add_argument("--moving", type=Path, help="the drawn clip, of which docs/track.webp is made")
given = parser.parse_args()
if given.out:
    panned(given.out)
if given.moving:
    moving(given.moving, Path("docs/track.webp"))
