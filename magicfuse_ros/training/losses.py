"""Losses: reconstruction, the branches' objective, and the MKF losses of Eq. 15."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sobel(image: Tensor) -> Tensor:
    """Return the Sobel gradient |∂x| + |∂y| of each channel of (B, C, H, W), in the same shape.

    Borders are replicated.
    """
    kernel = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    channels = image.shape[1]
    weight = torch.stack([kernel, kernel.T])[:, None].repeat(channels, 1, 1, 1)
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    gradients = functional.conv2d(padded, weight, groups=channels).abs()
    return gradients.reshape(len(image), channels, 2, *image.shape[-2:]).sum(dim=2)


def ycrcb(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert RGB (B, 3, H, W) in [0, 1] to Y, Cr and Cb of BT.601, each (B, 1, H, W).

    Cr and Cb are centred on 0.5.
    """
    red, green, blue = image[:, 0:1], image[:, 1:2], image[:, 2:3]
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return y, (red - y) * 0.713 + 0.5, (blue - y) * 0.564 + 0.5


def visual_loss(
    magimg: Tensor,
    enhanced: Tensor,
    infrared: Tensor,
    weight: Tensor | None = None,
    cold: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the three terms of Eq. 15, not yet multiplied by their factors.

    Parameters
    ----------
    magimg, enhanced, infrared
        D(z0_f), D(z0_ψ) and D(z0_φ), each (B, 3, H, W) in [0, 1].
    weight
        How much each pixel's `contrast` counts, (B, 1, H, W); None weighs all alike, as the paper.
    cold
        Where infrared is not asked for, (B, 1, H, W) boolean: there the restored image's brightness
        and edges are wanted. None is nowhere, as in the paper.

    Returns
    -------
    `contrast`, `texture` and `color`, () each.
    """
    y, cr, cb = ycrcb(magimg)
    y_psi, cr_psi, cb_psi = ycrcb(enhanced)
    y_phi = ycrcb(infrared)[0]
    edges_psi = sobel(y_psi)
    brighter, stronger = torch.maximum(y_psi, y_phi), torch.maximum(edges_psi, sobel(y_phi))
    if cold is not None:
        brighter = torch.where(cold, y_psi, brighter)
        stronger = torch.where(cold, edges_psi, stronger)
    return {
        "contrast": weighted_l1(y, brighter, torch.ones_like(y) if weight is None else weight),
        "texture": functional.l1_loss(sobel(y), stronger),
        "color": functional.l1_loss(cr, cr_psi) + functional.l1_loss(cb, cb_psi),
    }


def weighted_l1(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of |prediction − target|, weighted by pixel.

    Prediction and target are (B, C, h, w), the weight is (B, 1, h, w), the result ().
    """
    error = (prediction - target).abs().mean(dim=1, keepdim=True)
    return (error * weight).sum() / weight.sum().clamp(min=1e-6)
