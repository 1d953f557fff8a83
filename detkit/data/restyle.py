"""The looks of another image, without its content: what an object is must not hang on light, stain or brush."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Looks = Literal["statistics", "fourier"]
_LOW = 0.02  # of the spectrum along each side, around the constant: a few waves across the image


def restyled(image: np.ndarray, other: np.ndarray, by: Looks) -> np.ndarray:
    """``image`` with the looks of ``other``; what lies where does not change.

    Args:
        image: uint8 (H, W, 3) RGB.
        other: uint8 (h, w, 3) RGB.
        by: ``statistics``: mean and standard deviation of each channel in CIE L*a*b* (Reinhard et al. 2001, "Color
            transfer between images", section 3); ``fourier``: the amplitudes of the lowest frequencies, the phases
            being its own (Yang and Soatto 2020, FDA, arXiv 2004.05498, eq. 3).
    """
    if by == "fourier":
        other = cv2.resize(other, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        own, theirs = (np.fft.rfft2(x.astype(np.float32), axes=(0, 1)) for x in (image, other))
        high, wide = (max(1, round(side * _LOW)) for side in image.shape[:2])
        rows = np.arange(1 - high, high)  # both signs of the vertical frequency; the horizontal one has half of them
        own[rows, :wide] = np.abs(theirs[rows, :wide]) * np.exp(1j * np.angle(own[rows, :wide]))
        return np.rint(np.fft.irfft2(own, s=image.shape[:2], axes=(0, 1))).clip(0, 255).astype(np.uint8)
    lab, wanted = (cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for x in (image, other))
    (mean, std), (to_mean, to_std) = ((x.mean((0, 1)), x.std((0, 1)) + 0.1) for x in (lab, wanted))
    made = cv2.cvtColor((lab - mean) / std * to_std + to_mean, cv2.COLOR_LAB2RGB)
    return np.rint(made * 255).clip(0, 255).astype(np.uint8)
