"""The diffusion arithmetic: schedule, timesteps, ε / v / z0 conversions, as plain functions.

Notation: z_t = a·z0 + s·ε with a = sqrt(ᾱ_t) and s = sqrt(1 − ᾱ_t) (paper, section 2.2).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from magicfuse_ros.model.config import DiffusionConfig, Prediction, Spacing, check_steps

FEW_STEPS = 25
"""With fewer steps than this the spacing is trailing, whatever the model's configuration says.

Leading spacing would then start too late: a single step would be at t = 0, where the networks take
the noise that they are given for the picture.
"""


class Estimate(NamedTuple):
    """What a prediction says at one timestep: the clean latent and the noise, each (B, C, h, w)."""

    z0: Tensor
    eps: Tensor


@lru_cache(maxsize=8)
def alphas_cumprod(config: DiffusionConfig) -> np.ndarray:
    """Return ᾱ_t for t = 0 … T − 1, shape (T,), float64; β is linear."""
    betas = np.linspace(config.beta_start, config.beta_end, config.train_steps, dtype=np.float64)
    result = np.cumprod(1.0 - betas)
    result.setflags(write=False)  # it is shared by every caller
    return result


def timesteps(steps: int, train_steps: int, spacing: Spacing) -> list[int]:
    """Return the `steps` timesteps of the reverse process, from noisy to clean.

    `leading` starts below T and ends at 0 (25 of 1000: 960, 920 … 0). `trailing` starts at T − 1 (4
    of 1000: 999, 749, 499, 249). Few-step sampling needs `trailing`, because only at T − 1 is z_t
    the pure noise that sampling starts from.
    """
    check_steps(steps, train_steps)
    if spacing == "leading":
        stride = train_steps // steps
        return [index * stride for index in reversed(range(steps))]
    # Half-way values round to even, as in diffusers' schedulers.
    return [int(t) - 1 for t in np.round(np.arange(train_steps, 0, -train_steps / steps))][:steps]


def timesteps_of(config: DiffusionConfig, steps: int) -> list[int]:
    """Return a model's timesteps in its own spacing, or trailing for less than `FEW_STEPS`."""
    spacing = config.spacing if steps >= FEW_STEPS else "trailing"
    return timesteps(steps, config.train_steps, spacing)


def coefficients(alpha_bar: float) -> tuple[float, float]:
    """Return (a, s) of z_t = a·z0 + s·ε."""
    return float(np.sqrt(alpha_bar)), float(np.sqrt(1.0 - alpha_bar))


def input_gain(a: Tensor | float, config: DiffusionConfig) -> Tensor | float:
    """Return the factor that the networks' noisy inputs are multiplied by; a = sqrt(ᾱ_t)."""
    return a if config.scale_inputs else 1.0


def add_noise(z0: Tensor, eps: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
    """z_t = a·z0 + s·ε, the closed form of Eq. 3-4."""
    return a * z0 + s * eps


def clean_estimate(
    prediction: Tensor, z_t: Tensor, a: Tensor | float, s: Tensor | float, kind: Prediction
) -> Tensor:
    """Return the one-step estimate of z0 (z̃ in the paper) that follows from a prediction."""
    if kind == "eps":
        return (z_t - s * prediction) / a
    return a * z_t - s * prediction if kind == "v" else prediction


def estimates(
    prediction: Tensor, z_t: Tensor, a: float, s: float, kind: Prediction, *, clip: bool
) -> Estimate:
    """Turn a network's prediction into z0 and ε.

    With `clip`, z0 is limited to [-1, 1], and ε is computed from it and z_t, so that the two stay
    consistent.
    """
    z0 = clean_estimate(prediction, z_t, a, s, kind)
    if clip:
        z0 = z0.clamp(-1.0, 1.0)
    elif kind == "eps":
        return Estimate(z0, prediction)
    return Estimate(z0, noise_from(z0, z_t, a, s))


def noise_from(z0: Tensor, z_t: Tensor, a: float, s: float) -> Tensor:
    """ε = (z_t − a·z0) / s."""
    return (z_t - a * z0) / s


def training_target(z0: Tensor, eps: Tensor, a: Tensor, s: Tensor, kind: Prediction) -> Tensor:
    """Return what a denoiser that predicts `kind` should output: ε, v = a·ε − s·z0, or z0."""
    if kind == "eps":
        return eps
    return z0 if kind == "z0" else a * eps - s * z0


def training_coefficients(alpha_bars: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, s) for the timesteps `t` (B,), each (B, 1, 1, 1); `alpha_bars` is ᾱ (T,)."""
    alpha_bar = alpha_bars[t].float()[:, None, None, None]
    return torch.sqrt(alpha_bar), torch.sqrt(1.0 - alpha_bar)
