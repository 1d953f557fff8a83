"""What compares views of the same images: random views of a batch, and which of them are alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, of R, G, B


def random_views(pixels: Tensor, area: float, colour: float, grey: float) -> Tensor:
    """A random window, enlarged to the size of the input, perhaps mirrored, then colours: what SimCLR needs most
    (Chen et al. 2020, arXiv 2002.05709, section 3.1, without blur and hue).

    Args:
        pixels: (B, 3, H, W) in 0..255, any dtype.
        area: The least share of the image that a window shows; its sides' relation is 3/4 to 4/3.
        colour: Brightness, contrast and saturation are multiplied by 1 - colour to 1 + colour.
        grey: Chance of losing all colour.

    Returns:
        (B, 3, H, W) float32 in 0..255; drawn from torch's generator.
    """
    count, device = len(pixels), pixels.device

    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(low, high)

    share, aspect = drawn(area, 1), torch.exp(drawn(-0.2877, 0.2877))  # logarithms of 3/4 and 4/3
    wide, high = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    mirrored = torch.where(drawn(0, 1) < 0.5, -wide, wide)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = mirrored, high
    theta[:, 0, 2], theta[:, 1, 2] = drawn(-1, 1) * (1 - wide), drawn(-1, 1) * (1 - high)
    grid = F.affine_grid(theta, [count, 3, *pixels.shape[2:]], align_corners=False)
    x = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (drawn(1 - colour, 1 + colour).view(-1, 1, 1, 1) for _ in range(3))
    saturation = torch.where((drawn(0, 1) < grey).view(-1, 1, 1, 1), 0.0, saturation)
    x = x * brightness
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
    luminance = (x * x.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return torch.lerp(luminance, x, saturation).clamp(0, 255)


def partner_logits(vectors: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Which of all other views is a view's partner, asked as cross-entropy asks for a class.

    The normalised temperature-scaled loss of a view is -log(exp(s_ij / t) / sum_(k != i) exp(s_ik / t)), s being
    cosines (Chen et al. 2020, arXiv 2002.05709, eq. 1): the cross-entropy of what is returned.

    Args:
        vectors: (2 * B, D) of length 1; row i and row i + B are views of one image.
        temperature: t.

    Returns:
        Logits (2 * B, 2 * B), a view's with itself left out; and each partner's row (2 * B,).
    """
    rows = torch.arange(len(vectors), device=vectors.device)
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf), rows.roll(len(vectors) // 2)
