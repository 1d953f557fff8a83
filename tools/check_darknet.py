"""Compares an imported Darknet detector with OpenCV 4's own reader, which OpenCV 5 no longer has.

    python tools/check_darknet.py --peer-python PYTHON CFG WEIGHTS PICTURE...

PYTHON is that of another environment, with opencv-python-headless 4.x and numpy. Layers are not fused there. Compared
are, on the same pixels, the outputs of the convolutions that feed the yolo or region layers, and the decoded boxes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TOLERANCE = 1e-3


def peer(cfg: str, weights: str, pixels: str, out: str) -> None:
    """In the peer: for each yolo or region layer raw (B, C, H, W) and decoded (B, A, 5 + classes)."""
    import cv2

    net = cv2.dnn.readNetFromDarknet(cfg, weights)
    net.enableFusion(False)
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    names = list(net.getLayerNames())
    ends = [i for i, name in enumerate(names) if net.getLayer(name).type == "Region"]
    # A region layer is preceded by a permutation, and that by the convolution and its activation.
    raws = [max(j for j in range(i) if net.getLayer(names[j]).type == "Convolution") for i in ends]
    wanted = [names[i] for i in (*raws, *ends)]
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for image in np.load(pixels):
        net.setInput(cv2.dnn.blobFromImage(image, 1 / 255))
        for name, value in zip(wanted, net.forward(wanted), strict=True):
            found[name].append(value.reshape(value.shape[-3:] if value.ndim == 4 else value.shape[-2:]))
    np.savez(out, *(np.stack(found[name]) for name in wanted))


def compare(python: str, cfg: str, weights: str, pictures: list[str]) -> float:
    """Prints the differences, level by level, and returns the largest of the convolutions' outputs."""
    import torch

    from detkit.importers.darknet import import_darknet
    from detkit.importers.darknet_files import read_cfg
    from detkit.io.images import read_image

    count = next(s for s in read_cfg(Path(cfg).read_text(), cfg) if s.kind in ("yolo", "region")).whole("classes", 20)
    with tempfile.TemporaryDirectory() as folder:
        names, pixels, out = (Path(folder) / name for name in ("names.txt", "pixels.npy", "peer.npz"))
        names.write_text("\n".join(f"class {i}" for i in range(count)))
        detector = import_darknet(cfg, weights, names)
        images = np.stack([detector.resize(read_image(path))[0] for path in pictures])
        np.save(pixels, images)
        subprocess.run(
            [python, str(Path(__file__).resolve()), "--peer", cfg, weights, str(pixels), str(out)], check=True
        )
        arrays = [torch.from_numpy(value) for value in np.load(out).values()]
    with torch.inference_mode():
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        features = detector.features(batch)
        raw = detector.head.raw(features)
        boxes, scores = detector.head.decoded(raw)
        outputs = [layer(feature) for layer, feature in zip(detector.head.layers, features, strict=True)]
    half = len(arrays) // 2
    by_size = {value.shape[-2:]: (value, decoded) for value, decoded in zip(arrays[:half], arrays[half:], strict=True)}
    worst, start = 0.0, 0
    height, width = detector.resize.input_size
    for output, level in zip(outputs, detector.head.levels(raw), strict=True):
        theirs, decoded = by_size[output.shape[-2:]]
        mine = boxes[:, start : start + level.total]
        corners = torch.cat((decoded[..., :2] - decoded[..., 2:4] / 2, decoded[..., :2] + decoded[..., 2:4] / 2), -1)
        apart = (mine - corners * corners.new_tensor((width, height, width, height))).abs().max()
        shown = (decoded[..., 5:] > 0).float()  # OpenCV puts low scores to 0
        score = ((scores[:, start : start + level.total] - decoded[..., 5:]) * shown).abs().max()
        difference = float((output - theirs).abs().max())
        print(
            f"stride {level.stride:3g}  {tuple(output.shape)}  convolution {difference:.2e} (values up to "
            f"{float(theirs.abs().max()):.1f})  boxes {float(apart):.2e} px  scores {float(score):.2e}"
        )
        worst, start = max(worst, difference), start + level.total
    return worst


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("cfg")
    parser.add_argument("weights")
    parser.add_argument("images", nargs="+")
    given = parser.parse_args()
    largest = compare(given.peer_python, given.cfg, given.weights, given.pictures)
    print(f"largest difference {largest:.2e}: {'equal' if largest <= TOLERANCE else 'NOT EQUAL'} to {TOLERANCE:g}")
    sys.exit(largest > TOLERANCE)
