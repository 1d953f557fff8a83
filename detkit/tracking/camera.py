"""How the camera moved from one frame to the next, from corners of the background that are followed (optical flow)."""

from __future__ import annotations

import cv2
import numpy as np

_SIDE = 480  # pixels of the longer side, to which frames are shrunk
_STILL = np.eye(2, 3)


class CameraMotion:
    """Compares each frame with the one before, as BoT-SORT does (Aharon et al. 2022, section 3.2)."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._corners: np.ndarray | None = None

    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """The motion of still things in the image since the last call.

        Args:
            image: uint8 (H, W, 3) RGB.
            boxes: (N, 4) xyxy pixels of objects, which move by themselves and are left out.

        Returns:
            (2, 3): place now = motion[:, :2] @ place before + motion[:, 2], pixels; no motion where none can be told.
        """
        scale = min(1.0, _SIDE / max(image.shape[:2]))
        grey = cv2.cvtColor(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY
        )
        motion = _STILL
        if self._before is not None and self._before.shape == grey.shape and self._corners is not None:
            motion = _motion(self._before, grey, self._corners).copy()
            motion[:, 2] /= scale
        mask = np.full(grey.shape, 255, np.uint8)
        for x1, y1, x2, y2 in (np.clip(boxes, 0, 1e6) * scale).astype(int):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 0
        self._corners = cv2.goodFeaturesToTrack(grey, 400, 0.01, 5, mask=mask)
        self._before = grey
        return motion


def _motion(before: np.ndarray, now: np.ndarray, corners: np.ndarray) -> np.ndarray:
    places, found, _ = cv2.calcOpticalFlowPyrLK(before, now, corners, None)  # type: ignore[call-overload]
    good = found.ravel() == 1
    if good.sum() < 8:
        return _STILL
    motion, inliers = cv2.estimateAffinePartial2D(corners[good], places[good], ransacReprojThreshold=2.0)
    return _STILL if motion is None or inliers.mean() < 0.5 else motion
