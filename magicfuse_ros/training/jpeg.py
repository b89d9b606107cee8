"""What JPEG does to images, in tensor operations: colour at half the resolution, quantised DCT.

It follows libjpeg (ITU-T T.81; the tables of its Annex K, scaled by quality as libjpeg does), but
for the entropy coding, which loses nothing. Nearly every pixel comes out as libjpeg's, within a
level; where a coefficient lies between two steps, its block may take the other one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)  # fmt: skip
_FORWARD = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_ROWS = 4.0 * 8.0**0.5  # steps of a level in which libjpeg keeps the rows' transform
_CELL = 16  # pixels: a block of 8 of colour, which has half the resolution


def through_jpeg(images: Tensor, quality: NDArray[np.float64]) -> Tensor:
    """Encode and decode images, each at its own quality, (B,) from 1 to 100.

    The images are (B, H, W, 3) float32 RGB in whole levels of [0, 255], before and after.
    """
    height, width = images.shape[1:3]
    planes = images.permute(0, 3, 1, 2)
    planes = functional.pad(planes, (0, -width % _CELL, 0, -height % _CELL), mode="replicate")
    red, green, blue = planes.unbind(1)
    y, cb, cr = (
        (red * r + green * g + blue * b).add_(0.5 if r > 0.0 and b > 0.0 else 128.5).floor_()
        for r, g, b in _FORWARD
    )
    scale = np.where(quality < 50.0, np.floor(5000.0 / quality), 200.0 - 2.0 * quality)
    y = _quantised(y, _LUMINANCE, scale)[:, :height, :width]
    # libjpeg rounds halves down and up in turn.
    chroma = functional.avg_pool2d(torch.stack([cb, cr], dim=1), 2)
    turns = chroma.new_tensor([0.25, 0.5]).repeat(chroma.shape[-1] // 2)
    chroma = chroma.add_(turns).floor_().flatten(0, 1)
    chroma = _quantised(chroma, _CHROMINANCE, scale.repeat(2))
    chroma = chroma[:, None, : (height + 1) // 2, : (width + 1) // 2]
    chroma = functional.interpolate(chroma, scale_factor=2.0, mode="bilinear")
    turns = chroma.new_tensor([0.5, 0.4375]).repeat(chroma.shape[-1] // 2)
    chroma = chroma.add_(turns).floor_().sub_(128.0).view(len(images), 2, *chroma.shape[-2:])
    cb, cr = chroma[..., :height, :width].unbind(1)
    rgb = (
        y + (1.402 * cr).round_(),
        y - (0.344136 * cb + 0.714136 * cr).round_(),
        y + (1.772 * cb).round_(),
    )
    return torch.stack(rgb, dim=-1).clamp_(0.0, 255.0)


def _quantised(
    planes: Tensor, table: tuple[tuple[int, ...], ...], scale: NDArray[np.float64]
) -> Tensor:
    """Quantise the blocks of planes (B, H, W) in [0, 255]; H and W are multiples of 8."""
    steps = np.floor((np.array(table) * scale[:, None, None] + 50.0) / 100.0).clip(1.0, 255.0)
    steps_of = torch.tensor(steps).to(planes)[:, None, :, None]  # (B, 1, 8, 1, 8)
    count, height, width = planes.shape
    cosine = _cosine().to(planes)
    # As libjpeg's integers: rounded along rows, then to eighths of a coefficient, and halves of a
    # step go away from 0.
    x = (((planes - 128.0).view(-1, 8) @ cosine.T).mul_(_ROWS).round_()).div_(_ROWS)
    x = (cosine @ x.view(-1, 8, width)).mul_(8.0).round_()
    x = x.view(count, height // 8, 8, width // 8, 8).div_(8.0 * steps_of)
    x = (x + x.sign().mul_(0.5)).trunc_().mul_(steps_of)
    x = x.view(-1, 8) @ cosine
    x = cosine.T @ x.view(-1, 8, width)
    return x.view(count, height, width).add_(128.5).floor_().clamp_(0.0, 255.0)


def _cosine() -> Tensor:
    """Return the orthonormal DCT-II of eight samples, (8, 8)."""
    k, n = np.mgrid[0:8, 0:8]
    basis = np.cos((2 * n + 1) * k * np.pi / 16.0) / 2.0
    basis[0] /= np.sqrt(2.0)
    return torch.tensor(basis)
